"""The trainings of a study: their settings, and what tells one from another. Imports no torch."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from data_pipeline.dataset.blend import Blend, load_blend
from data_pipeline.manifest import VALIDATION
from pretrain.config.keys import flatten
from pretrain.config.load import load_settings, override_of
from pretrain.config.overrides import parse_overrides
from pretrain.config.run_plan import RunPlan, make_run_plan
from pretrain.errors import ConfigError, UserError
from pretrain.studies.definition import Arm, Measurement, Scale, Study
from pretrain.studies.local_files import hashes_of_files

WITHOUT_EFFECT = ("run.dir", "run.name", "data.path", "log.", "hardware.", "checkpoint.", "parallel.timeout_minutes")
"""Keys, or beginnings of keys, that do not change what a training computes."""

NEUTRAL: dict[str, Any] = {"model.causal": False}
"""Setting that is newer than the first studies -> the plain value (as in JSON) with which a training computes what it computed
before there was the setting. At this value it is no part of the key, so that finished trainings stay finished. Added with the
setting, and never changed: it is not the default, which may change. A setting from before this table has no entry.
"""

DATA = "{data}"
"""In the options of a measurement, the prepared folder of the study."""

CHECKPOINTS, STEPS_BETWEEN = 10, 50
"""Checkpoints of a training, and the least number of steps between them: at most a tenth of a training is repeated after a kill."""


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        plan: of the training, with all settings.
        words: the recipe's overrides, `key=value`.
    """

    arm: str
    lr: float
    seed: int
    recipe: str
    plan: RunPlan
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.arm}, lr {self.lr:g}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.plan.settings.run_folder

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole training, at the expected loops."""
        return self.plan.expected_flops(0, self.plan.total_steps)

    @property
    def largest_loops(self) -> int:
        """S_max."""
        return self.plan.settings.model.loop.max

    def loops_of(self, wanted: Sequence[str]) -> list[str]:
        """Those of the numbers of loops at which this model is measured; S_max is always one of them."""
        most = self.largest_loops
        if most == 1:
            return ["1"]
        fixed = sorted({most, *(int(s) for s in wanted if s.isdecimal() and int(s) <= 2 * most)})
        return [*map(str, fixed), *(s for s in wanted if not s.isdecimal())]


@dataclass(frozen=True)
class Command:
    """A command of `loopmdm` that measures one thing, without the run folder and the output.

    Attributes:
        measurement: name in the study, or `nelbo`.
        option: value of the option that varies; empty if none does.
    """

    measurement: str
    option: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the result."""
        return f"{self.measurement}_{self.option}" if self.option else self.measurement

    @property
    def file(self) -> str:
        """Name of the result's file: another command has another one, and a file of a task with another content."""
        return f"{self.name}-{_digest([*self.words, *hashes_of_files(self.words)])[:12]}.json"


def arms_of(study: Study, scale: Scale) -> dict[str, Arm]:
    """Name -> arm, also of a grid, whose arms are named by their values."""
    if study.arms:
        return study.arms
    grid, found = scale.grid or study.grid, {}
    for values in itertools.product(*grid.values()):
        settings = {key: value for keys, value in zip(grid, values, strict=True) for key in keys.split()}
        about = ", ".join(f"{key}={value}" for key, value in settings.items())
        found["-".join(values)] = Arm(about=about, settings=settings)
    return found


def unit_counts(study: Study, scale: Scale) -> tuple[int, int]:
    """Trainings that tune the learning rates, and those of the other seeds."""
    arms = len(arms_of(study, scale))
    return arms * len(scale.learning_rates), arms * (scale.seeds - 1)


@dataclass(frozen=True)
class Experiment:
    """A study at one scale.

    Attributes:
        overrides: `key=value` words for all arms, from the command line.
        data: the prepared folder.
        runs: folder of the run folders, which studies share.
    """

    study: Study
    scale_name: str
    scale: Scale
    overrides: tuple[str, ...]
    data: Path
    runs: Path

    @cached_property
    def blend(self) -> Blend:
        """The prepared data."""
        return load_blend(self.data)

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """Name -> arm."""
        return arms_of(self.study, self.scale)

    @cached_property
    def tuning(self) -> list[Trial]:
        """Every arm with every learning rate and seed 0."""
        return [self.trial(arm, lr, 0) for arm in self.arms for lr in self.rates(arm)]

    def rates(self, arm: str) -> tuple[float, ...]:
        """The learning rates of an arm, as many as every other arm has."""
        factor = self.arms[arm].learning_rate_factor
        return tuple(float(f"{factor * lr:.6g}") for lr in self.scale.learning_rates)

    def repeats(self, best: dict[str, float]) -> list[Trial]:
        """Every arm at its best learning rate with the other seeds."""
        return [self.trial(arm, best[arm], seed) for arm in self.arms for seed in range(1, self.scale.seeds)]

    @property
    def data_name(self) -> str:
        """The data: the folder that an override names, else the inputs of the study."""
        return str(override_of("data.path", self.overrides) or " ".join(self.scale.data.input))

    @property
    def folder_name(self) -> str:
        """Of the results: the scale, and a hash of what the command line changes, so that they replace no others."""
        changed = dict(parse_overrides(self.overrides)[0])
        if override_of("data.path", self.overrides):
            changed["data.path"] = str(self.data)
        if self.scale.seeds != self.study.scales[self.scale_name].seeds:
            changed["--seeds"] = str(self.scale.seeds)
        return f"{self.scale_name}-{_digest(changed)[:8]}" if changed else self.scale_name

    @property
    def units(self) -> int:
        """Number of trainings."""
        return sum(unit_counts(self.study, self.scale))

    def trial(self, arm: str, lr: float, seed: int) -> Trial:
        """One training.

        Raises:
            UserError: the settings of the study, of the arm or of the command line are wrong.
        """
        budget = {} if self.scale.flops is None else {"train.max_flops": f"{self.scale.flops:g}", "train.steps": "null"}
        flops, factor = override_of("train.max_flops", self.overrides) or self.scale.flops, self.arms[arm].flops_factor
        words = _words(
            budget, self.study.settings, self.scale.settings, self.arms[arm].settings,
            {"optim.lr": repr(lr), "run.seed": str(seed)},
        )  # fmt: skip
        own = [*self.overrides, f"data.path={self.data}", f"run.dir={self.runs}"]
        own += [f"train.max_flops={factor * flops:g}"] if flops and factor != 1 else []
        try:
            words += [*self._logging(self._plan([*words, *own])), *own]
            words.append(f"run.name={content_key(self._plan(words), self.blend)}")
            return Trial(arm, lr, seed, self.study.recipe, self._plan(words), tuple(words))
        except ConfigError as error:
            raise UserError(f"study {self.study.name}, arm {arm}: {error}") from None

    def check_rules(self) -> None:
        """Raise UserError for a rule of the verdict about loops at which nothing is measured: better before the trainings."""
        for rule in self.study.verdict:
            arms = rule.arm, rule.reference or rule.arm
            for arm, loops in zip(arms, (rule.loops, rule.reference_loops), strict=True):
                if loops is None or not arm:
                    continue
                measured = self._loops_of(rule.measurement, self.trial(arm, self.rates(arm)[0], 0))
                if loops not in measured:
                    key = f"loops of {rule.measurement}" if rule.measurement else "curve"
                    raise UserError(
                        f"study {self.study.name}, verdict, {rule.figure}: {arm} is not measured at S = {loops}, only at "
                        f"{', '.join(measured)}; correct the rule or {key} (up to twice the S_max of an arm)"
                    )

    def _loops_of(self, measurement: str, trial: Trial) -> list[str]:
        """Numbers of loops at which a measurement, or if empty the NELBO, is measured on a training."""
        if not measurement:
            return [str(s) for s in trial.plan.settings.eval.loops]
        return trial.loops_of(self.scale.loops.get(measurement, self.study.measurements[measurement].loops))

    def _plan(self, words: Sequence[str]) -> RunPlan:
        settings = load_settings(self.study.recipe, words)
        return make_run_plan(settings, self.blend.manifest, self.scale.ranks)

    def _logging(self, plan: RunPlan) -> list[str]:
        """When a training is validated, saved and logged."""
        steps, most = plan.total_steps, plan.settings.model.loop.max
        wanted = self.scale.loops.get("curve", self.study.curve)
        loops = sorted({most, *(int(s) for s in wanted if most > 1 and int(s) <= 2 * most)})
        return [
            f"eval.every={-(-steps // self.scale.points)}",
            f"eval.loops=[{', '.join(map(str, loops))}]",
            f"eval.rows={self.scale.rows}",
            "eval.batch_size=128",
            f"checkpoint.every={max(STEPS_BETWEEN, -(-steps // CHECKPOINTS))}",
            "checkpoint.keep=1",
            f"log.every={-(-steps // 100)}",
            "log.tensorboard=false",
        ]

    def commands(self, trial: Trial) -> dict[str, Command]:
        """What is measured on a training, by the name of the result."""
        loops = ",".join(self._loops_of("", trial))
        nelbo = ["evaluate", "--loops", loops, "--rows", str(self.scale.rows), "--batch-size", "128"]
        found = {"nelbo": Command("nelbo", "", tuple(nelbo))}
        if trial.plan.settings.optim.ema_decay > 0:
            # Validations along a training have the raw weights: so must the end of its curve.
            found["nelbo-raw"] = Command("nelbo-raw", "", (*nelbo, "--weights", "raw"))
        for name, measurement in self.study.measurements.items():
            if not measurement.arms or trial.arm in measurement.arms:
                found |= {c.name: c for c in self._measured(name, measurement, trial)}
        return found

    def _measured(self, name: str, measurement: Measurement, trial: Trial) -> list[Command]:
        folder = str(trial.plan.settings.data.path)
        given = measurement.options | self.scale.options.get(name, {})
        options = {key: value.replace(DATA, folder) for key, value in given.items()}
        if measurement.kind == "probe":
            words = ["probe", "--loops", options.pop("loops", str(trial.largest_loops))]
        else:
            words = ["evaluate", "--loops", ",".join(self._loops_of(name, trial))]
        (key, values), *_ = [*measurement.vary.items(), ("", ("",))]
        words += [word for name, value in options.items() if name != key for word in (f"--{name}", value)]
        return [Command(name, value, (*words, *((f"--{key}", value) if key else ()))) for value in values]


def content_key(plan: RunPlan, blend: Blend) -> str:
    """What a training computes, as a short name: equal for equal settings, data and ranks."""
    values = {
        key: value
        for key, value in flatten(plan.settings).items()
        if has_effect(key) and not (key in NEUTRAL and value == NEUTRAL[key])
    }
    validation = [
        {name: info.sha256 for name, info in corpus.manifest.splits[VALIDATION].files.items()}
        for corpus in blend.corpora
        if VALIDATION in corpus.manifest.splits
    ]
    return _digest([values, blend.identity(), validation, plan.world_size])[:16]


def has_effect(key: str) -> bool:
    """Whether a setting changes what a training computes."""
    return not any(key == name or (name.endswith(".") and key.startswith(name)) for name in WITHOUT_EFFECT)


def _words(*sections: dict[str, str]) -> list[str]:
    """`key=value` of each key, the last value of a key that several sections have."""
    merged: dict[str, str] = {}
    for section in sections:
        merged |= section
    return [f"{key}={value}" for key, value in merged.items()]


def _digest(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
