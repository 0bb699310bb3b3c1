"""From the places that each task has noted to those of the whole corpus, see `data_pipeline.provenance`.

The files of the tasks are read one after the other, so memory does not grow with the number of documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import FileInfo, sha256_of
from data_pipeline.provenance import (
    DUPLICATES,
    DUPLICATES_NAME,
    PLACES,
    PLACES_SUFFIX,
    SOURCES,
    SOURCES_NAME,
    TableWriter,
    read_columns,
    shown_place,
)
from data_pipeline.readers.inputs import Input
from data_pipeline.rejects import Example
from data_pipeline.tasks.build import Build
from data_pipeline.tasks.encode import TokenJob
from data_pipeline.tasks.signatures import repeats_file
from data_pipeline.tasks.task import Task
from data_pipeline.tasks.task_records import TaskRecord


@dataclass(frozen=True)
class CorpusSources:
    """The files, datasets and generators that the tasks read.

    Attributes:
        inputs: of the corpus, then those that it was compared with.
        tasks: of all of them, in order.
    """

    inputs: Sequence[Input]
    tasks: Sequence[Task]

    @classmethod
    def of(cls, build: Build, tasks: Sequence[Task]) -> Self:
        """Those of a run with these tasks."""
        against = (replace(task, input=task.input + len(build.inputs)) for task in build.against_tasks)
        return cls([*build.inputs, *build.against], [*tasks, *against])

    @cached_property
    def _numbers(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """The number of each task's first range among the ranges of all, [tasks + 1], and the source of each range."""
        begins, sources, last = [0], [], None
        for task in self.tasks:
            for each in task.ranges:
                is_new = (task.input, each.source) != last
                sources.append(sources[-1] + is_new if sources else 0)
                last = task.input, each.source
            begins.append(len(sources))
        return np.array(begins), np.array(sources, np.uint32)

    def of_ranges(self, tasks: NDArray | int, file_ranges: NDArray) -> NDArray[np.uint32]:
        """The sources of some file ranges of tasks, [n]."""
        begins, sources = self._numbers
        return sources[begins[tasks] + file_ranges.astype(np.int64)]

    def write(self, folder: Path) -> None:
        """Write `sources.parquet`."""
        last = None
        with TableWriter(folder / SOURCES_NAME, SOURCES) as table:
            for task in self.tasks:
                rows = []
                for each in task.ranges:
                    if (task.input, each.source) != last:
                        rows.append((self.inputs[task.input].name, each.shown, each.kind))
                    last = task.input, each.source
                if rows:
                    table.append(*zip(*rows, strict=True))


def write_provenance(
    sources: CorpusSources, job: TokenJob, done: Sequence[TaskRecord], splits: Sequence[str], folder: Path
) -> dict[str, FileInfo]:
    """Write the files of `data_pipeline.provenance` into `folder`; returns their sizes and hashes by name.

    Raises:
        DataError: a task's file has changed since the task was done.
    """
    sources.write(folder)
    names = [SOURCES_NAME]
    for split in splits:
        names.append(f"{split}{PLACES_SUFFIX}")
        with TableWriter(folder / names[-1], PLACES) as table:
            for task, record in zip(sources.tasks, done, strict=False):  # those after the corpus's own are not written
                if split in record.shards:
                    path = job.path(task) / names[-1]
                    _require_unchanged(path, record.shards[split].places)
                    ranges, places = read_columns(path)
                    table.append(sources.of_ranges(task.number, ranges), places)
    if job.decisions:
        names.append(DUPLICATES_NAME)
        _write_duplicates(sources, len(done), job.decisions, folder / DUPLICATES_NAME)
    return {name: FileInfo(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name)) for name in names}


def _require_unchanged(path: Path, info: FileInfo) -> None:
    if sha256_of(path) != info.sha256:
        raise DataError(
            f"{path} has changed since its task was done; remove {path.parent} and run the same command again"
        )


def _write_duplicates(sources: CorpusSources, tasks: int, decisions: Path, path: Path) -> None:
    with TableWriter(path, DUPLICATES) as table:
        for number in range(tasks):
            file = repeats_file(decisions, number)
            if file.exists():
                is_exact, ranges, places, first_tasks, first_ranges, first_places = read_columns(file)
                of, first = sources.of_ranges(number, ranges), sources.of_ranges(first_tasks, first_ranges)
                table.append(of, places, first, first_places, is_exact)


@dataclass(frozen=True)
class RepeatedExamples:
    """Says of a document that was left out as a duplicate which document it repeats.

    Attributes:
        decisions: folder of the decisions about duplicates; None when all are kept.
    """

    sources: CorpusSources
    decisions: Path | None

    def __call__(self, task: Task, example: Example) -> str:
        """Why a document was left out."""
        if self.decisions is None or example.place is None:
            return example.why
        _, ranges, places, first_tasks, first_ranges, first_places = read_columns(
            repeats_file(self.decisions, task.number)
        )
        (found,) = np.flatnonzero((ranges == example.file_range) & (places == example.place))
        first = self.sources.tasks[first_tasks[found]].ranges[first_ranges[found]]
        return f"repeats {shown_place(first.shown, first.kind, int(first_places[found]))} ({example.why})"
