"""One path for figures: hooks give their records to the recorder, which passes each to every sink."""

from collections.abc import Sequence
from typing import Any

from pretrain.training.hooks.base import Hook
from pretrain.training.state import TrainingRun

Record = dict[str, Any]
"""A line of metrics.jsonl. `pretrain/README.md` lists the fields."""


class Sink:
    """A destination of records. Lives on the main rank only."""

    def open(self, run: TrainingRun) -> None:
        """Called before the first record of this start. Drops records of steps that will be taken again."""

    def write_training(self, record: Record) -> None:
        """Take the figures of the steps since the last such record."""

    def write_validation(self, record: Record) -> None:
        """Take the figures of one validation set; they are under the key `validation`."""

    def write_texts(self, record: Record) -> None:
        """Take samples of text; they are under the key `texts`."""

    def close(self) -> None:
        """Called after the last record."""


class Recorder(Hook):
    """Opens the sinks, passes records on, closes the sinks. Comes first in the list of hooks."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def on_start(self, run: TrainingRun) -> None:
        """Open the sinks on the main rank."""
        if run.world.is_main:
            for sink in self._sinks:
                sink.open(run)

    def record_training(self, record: Record) -> None:
        """Pass a training record to every sink. For the main rank."""
        for sink in self._sinks:
            sink.write_training(record)

    def record_validation(self, record: Record) -> None:
        """Pass a validation record to every sink. For the main rank."""
        for sink in self._sinks:
            sink.write_validation(record)

    def record_texts(self, record: Record) -> None:
        """Pass a record with texts to every sink. For the main rank."""
        for sink in self._sinks:
            sink.write_texts(record)

    def on_failure(self, run: TrainingRun) -> None:
        """Close the sinks."""
        self.on_end(run)

    def on_end(self, run: TrainingRun) -> None:
        """Close the sinks."""
        if run.world.is_main:
            for sink in self._sinks:
                sink.close()
