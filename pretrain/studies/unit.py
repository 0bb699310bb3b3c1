"""One unit of work: a training and its measurements, each done once. Imports no torch."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.atomic_files import locked, write_atomic
from data_pipeline.json_text import json_text, lines_of
from pretrain.config.run_folder import read_status
from pretrain.errors import UserError
from pretrain.studies.processes import Runner, require_success
from pretrain.studies.trials import Command, Experiment, Trial

STUDY_FOLDER = "study"
"""In a run folder: what a study keeps there."""


class BusyError(UserError):
    """Another process works on the unit."""


@dataclass(frozen=True)
class Workplace:
    """Where the files of a unit are."""

    trial: Trial

    @property
    def folder(self) -> Path:
        """Of the study, in the run folder."""
        return self.trial.folder / STUDY_FOLDER

    @property
    def log(self) -> Path:
        """What the commands print."""
        return self.folder / "log.txt"

    @property
    def finished(self) -> Path:
        """Exists once the training has ended."""
        return self.folder / "finished.json"

    @property
    def diverged(self) -> bool:
        """Whether the training has ended because it diverged: it is not measured."""
        return bool(self._end().get("diverged"))

    @property
    def where(self) -> str | None:
        """`Runner.where` of the training's last start; None if it has not ended, or ended before this was written down."""
        return self._end().get("where")

    def result(self, command: Command) -> Path:
        """What a command measured."""
        return self.folder / command.file

    def missing(self, experiment: Experiment) -> list[Command]:
        """Measurements that are not done."""
        if self.diverged:
            return []
        return [c for c in experiment.commands(self.trial).values() if not self.result(c).is_file()]

    def is_done(self, experiment: Experiment) -> bool:
        """Whether nothing is left to do."""
        return self.finished.is_file() and not self.missing(experiment)

    def state(self, experiment: Experiment) -> str:
        """`done`, `diverged` or `to do`."""
        done = "diverged" if self.diverged else "done"
        return done if self.is_done(experiment) else "to do"

    def _end(self) -> dict[str, Any]:
        return json.loads(self.finished.read_text(encoding="utf-8")) if self.finished.is_file() else {}

    def steps_done(self) -> int:
        """Steps that the training has logged."""
        if self.finished.is_file():
            return self.trial.plan.total_steps
        return last_record(self.trial.folder / "metrics.jsonl").get("step", 0)


def run_unit(experiment: Experiment, trial: Trial, run: Runner, slot: int, wait: bool = True) -> None:
    """Train unless the training has ended, and make the measurements that are missing.

    A training that was stopped resumes from its newest checkpoint; one that diverged has ended.

    Args:
        wait: for another process that works on the unit, such as another study with the same arm.

    Raises:
        UserError: a command failed.
        BusyError: another process works on it, and `wait` is False or a signal has stopped the study.
    """
    place = Workplace(trial)
    if place.is_done(experiment):
        return
    with owned(place.folder, lambda: wait and not run.stopping):
        if not place.finished.is_file():
            words = ["train", "--config", trial.recipe, *trial.words]
            status = run(words, place.log, slot, experiment.scale.ranks)
            diverged = status != 0 and read_status(trial.folder).get("diverged", False)
            if not diverged:
                require_success(status, f"training {trial.name}", place.log)
            content = {"words": trial.words, "recipe": trial.recipe, "diverged": diverged, "where": run.where}
            write_atomic(place.finished, json_text(content, indent=2) + "\n")
        for command in place.missing(experiment):
            words = [command.words[0], str(trial.folder), *command.words[1:], "--output", str(place.result(command))]
            what = f"measuring {command.name} of {trial.name}"
            require_success(run(words, place.log, slot), what, place.log)


@contextmanager
def owned(folder: Path, wait: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Hold the lock of a folder. Raises BusyError if another process holds it and `wait` says no, asked every second."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = BusyError(f"{folder.parent}: another process works on this training; wait for it")
    while True:
        try:
            with locked(folder / ".lock", busy):
                yield
            return
        except BusyError:
            if not wait():
                raise
            sleep(1.0)


def last_record(path: Path) -> dict[str, Any]:
    """The last whole line of a file of JSON objects; empty if there is none."""
    try:
        size, window = path.stat().st_size, 1 << 16
        while True:
            with path.open("rb") as file:
                file.seek(max(0, size - window))
                lines = lines_of(file.read(window).decode("utf-8", errors="replace"))
            for line in reversed(lines):
                with suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict):
                        return record
            if window >= size:
                return {}
            window *= 4  # a line with texts may be long
    except OSError:
        return {}
