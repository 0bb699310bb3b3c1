"""What the trainings of a study have given, read from their run folders. Imports no torch."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.errors import UserError
from pretrain.inspection.run_facts import loss_name, read_run
from pretrain.studies.accounting import CONVENTIONS, Work
from pretrain.studies.estimates import Curve
from pretrain.studies.trials import Experiment, Trial
from pretrain.studies.unit import Workplace

Record = dict[str, Any]
AXES = ("flops", "seconds")


@dataclass(frozen=True)
class TrialResult:
    """A training and what was measured on it.

    Attributes:
        validations: of the raw weights, along the training, then the final one: step, tokens, flops, seconds, and `loops`, the
            figures at each S.
        measured: measurement -> value of the varied option -> result of the command.
        end: like the final validation, of the averaged weights if the training averages them.
        diverged: its end is the last record, and nothing was measured.
        where: it was trained, see `Workplace.where`.
    """

    trial: Trial
    validations: Sequence[Record]
    measured: dict[str, dict[str, Record]]
    end: Record
    diverged: bool = False
    where: str | None = None

    def figures(self, loops: str | int | None = None) -> Record:
        """Final figures at a number of loops, S_max if None: `nats_per_token`, `bits_per_byte` and others."""
        return self.end["loops"][int(loops or self.trial.largest_loops)]

    def nelbo(self, loops: str | int | None = None) -> float:
        """Final NELBO in nats per token; infinite if the training diverged."""
        return math.inf if self.diverged else self.figures(loops)["nats_per_token"]

    def curve(self, axis: str, loops: str | int | None = None, value: str = "nats_per_token") -> Curve:
        """NELBO against FLOPs in one of `CONVENTIONS`, against `seconds`, `steps` or `tokens`."""
        s = int(loops or self.trial.largest_loops)
        known = [record for record in self.validations if s in record["loops"]]
        return (
            np.array([self._at(record, axis) for record in known], float),
            np.array([record["loops"][s][value] for record in known], float),
        )

    def _at(self, record: Record, axis: str) -> float:
        if axis not in CONVENTIONS:
            return record[axis]
        model = self.trial.plan.flops
        return Work.of(model, record["tokens"], record["flops"]).flops(model, axis)

    @cached_property
    def mean_loops(self) -> float:
        """Mean S of the training."""
        work = Work.of(self.trial.plan.flops, self.end["tokens"], self.end["flops"])
        return work.passes / work.tokens


def read_trial(experiment: Experiment, trial: Trial) -> TrialResult:
    """Read a unit that is done.

    Raises:
        UserError: it is not done, or a file is broken.
    """
    place = Workplace(trial)
    if not place.is_done(experiment):
        raise UserError(f"{trial.folder}: {trial.name} is not done; run `loopmdm study {experiment.study.name}` first")
    facts = read_run(trial.folder, trial.name)
    if place.diverged:
        start = dict.fromkeys(("step", "tokens", "flops", "elapsed"), 0)
        end = _validation([start, *facts.steps][-1], {"loops": []})
        return TrialResult(trial, [end], {}, end, diverged=True, where=place.where)
    last = facts.steps[-1]
    measured: dict[str, dict[str, Record]] = {}
    for command in experiment.commands(trial).values():
        measured.setdefault(command.measurement, {})[command.option] = _read(place.result(command))
    validations = [_validation(r, r["validation"]) for r in facts.validations if r["step"] < last["step"]]
    nelbo = measured.pop("nelbo")[""]
    raw = measured.pop("nelbo-raw", {"": nelbo})[""]
    curve = [*validations, _validation(last, raw)]
    return TrialResult(trial, curve, measured, _validation(last, nelbo), where=place.where)


def best_rates(experiment: Experiment) -> dict[str, float]:
    """Arm -> the learning rate with the lowest final NELBO at S_max, with seed 0.

    Raises:
        UserError: a training is not done, or all of an arm diverged.
    """
    best: dict[str, tuple[float, float]] = {}
    if len(experiment.scale.learning_rates) == 1:
        return {arm: experiment.rates(arm)[0] for arm in experiment.arms}
    for trial in experiment.tuning:
        found = (read_trial(experiment, trial).nelbo(), trial.lr)
        best[trial.arm] = min(best.get(trial.arm, found), found)
    for arm, (nelbo, _) in best.items():
        if nelbo == math.inf:
            raise UserError(f"arm {arm}: diverged at every learning rate; give the study lower learning_rates")
    return {arm: lr for arm, (_, lr) in best.items()}


@dataclass(frozen=True)
class Results:
    """All results of a study.

    Attributes:
        tuning: with seed 0, at all learning rates.
        best: arm -> the results of all seeds at its best learning rate.
    """

    experiment: Experiment
    tuning: Sequence[TrialResult]
    best: dict[str, list[TrialResult]]

    @property
    def seeds(self) -> range:
        """Numbers of the seeds."""
        return range(self.experiment.scale.seeds)

    @property
    def loss_name(self) -> str:
        """What validations measure: `NELBO`, unless models are autoregressive."""
        return loss_name({r.trial.plan.settings.model.causal for r in self.tuning})

    @property
    def reference(self) -> str:
        """The arm that others are compared with."""
        return next(iter(self.best))


def read_results(experiment: Experiment) -> Results:
    """Read a study that is done. Raises UserError if it is not, or a training with the best learning rate diverged."""
    rates = best_rates(experiment)
    tuning = [read_trial(experiment, trial) for trial in experiment.tuning]
    best = {arm: [r for r in tuning if (r.trial.arm, r.trial.lr) == (arm, lr)] for arm, lr in rates.items()}
    for trial in experiment.repeats(rates):
        best[trial.arm].append(read_trial(experiment, trial))
    for result in (result for group in best.values() for result in group):
        if result.diverged:
            raise UserError(f"{result.trial.name}: the training diverged; give the study lower learning_rates")
    return Results(experiment, tuning, best)


def _validation(position: Record, figures: Record) -> Record:
    return {
        "step": position["step"],
        "tokens": position["tokens"],
        "flops": position["flops"],
        "seconds": position["elapsed"],
        "loops": {row["loops"]: row for row in figures["loops"]},
    }


def _read(path: Path) -> Record:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); delete the file and run the study again") from None
