"""Studies in the process of the tests, which has loaded torch already, on one set of process groups."""

import threading
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from pretrain.cli import main as loopmdm
from pretrain.config.load import load_run
from pretrain.config.run_plan import make_run_plan
from pretrain.errors import TrainingDivergedError
from pretrain.studies import command


class InProcess:
    """A `Runner`. Keeps the words of what it ran."""

    where = "the machine of the tests, 1 at a time"

    def __init__(self) -> None:
        self.ran: list[list[str]] = []

    def __call__(self, words: Sequence[str], log: Path, slot: int, ranks: int = 1) -> int:
        from pretrain.training.start import run_training

        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self.ran.append(list(words))
        if words[0] != "train":
            return loopmdm(list(words))
        settings, blend = load_run(words[2], words[3:])
        try:
            return run_training(make_run_plan(settings, blend.manifest, 1), blend, resume=True)
        except TrainingDivergedError:  # as `pretrain.main`
            return 2

    def stop(self) -> None:
        """A signal in the tests' process ends it."""

    stopping = False

    @property
    def verbs(self) -> list[str]:
        """What it ran."""
        return [words[0] for words in self.ran]


class Stoppable:
    """`stop` of a `Runner` whose commands look at it."""

    where = "the machine of the tests"

    def __init__(self) -> None:
        self.asked = threading.Event()

    def stop(self) -> None:
        """Ask what runs to end."""
        self.asked.set()

    @property
    def stopping(self) -> bool:
        """Whether it was asked."""
        return self.asked.is_set()


def study(*words: str | Path, jobs: int = 1) -> tuple[int, InProcess]:
    """`loopmdm study WORDS`."""
    parser, runner = ArgumentParser(), InProcess()
    command.add_arguments(parser)
    return command.run_study(parser.parse_intermixed_args([str(word) for word in words]), runner, jobs), runner
