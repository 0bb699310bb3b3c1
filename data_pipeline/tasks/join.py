"""Put the shards of all tasks together and write the pack plans and the manifest."""

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.indexed import Shard, token_dtype
from data_pipeline.manifest import (
    MANIFEST_NAME,
    FileInfo,
    InputInfo,
    Manifest,
    SplitInfo,
    sha256_of,
    write_manifest,
)
from data_pipeline.packing.pack_plan import plan_files, write_plan
from data_pipeline.replace import replace_folder
from data_pipeline.tasks.addresses import versions
from data_pipeline.tasks.build import Build, require_text
from data_pipeline.tasks.completeness import NOT_READ, require_complete, require_rows
from data_pipeline.tasks.encode import TokenJob
from data_pipeline.tasks.first_texts import loss_of_first_texts
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.results import DigestJob
from data_pipeline.tasks.shards import Part, ShardWriter, Source, WrittenShard, cut_into_shards
from data_pipeline.tasks.sources import CorpusSources, RepeatedExamples, write_provenance
from data_pipeline.tasks.task import Task, cut_into_tasks
from data_pipeline.tasks.task_records import CorpusCounts, TaskRecord
from data_pipeline.tasks.work import JOINED, JOINED_MANIFEST, REPLACED, partial_folder, remove_partial
from data_pipeline.tokenizers.tokenizers import load_tokenizer


def join(build: Build, output: Path) -> tuple[Manifest, CorpusCounts]:
    """Write `output` from the finished tasks of a work folder, all or nothing.

    Raises:
        DataError: tasks are missing, an input has changed since its task was done, a split has no row, or the inputs were
            not read completely, see `require_complete`.
    """
    # The manifest's modification time: an input that changes from here on is newer.
    inputs_read = time.time_ns()
    tasks = cut_into_tasks(build.inputs)
    job = build.token_job(tasks)
    build.compare(job, tasks)
    done = _require_all_done(job, tasks)
    sources = CorpusSources.of(build, tasks)
    counts = CorpusCounts(tasks, (record.counts for record in done), RepeatedExamples(sources, job.decisions))
    require_text(counts, build.options)
    _require_none_rejected(counts, build.options)
    require_complete(build.inputs, tasks, [record.counts for record in done], counts, build.options)
    require_rows(done, build.options)
    remove_partial(build.work.folder / JOINED)
    with partial_folder(build.work.folder / JOINED) as folder:
        manifest = write_output(build, job, folder, sources, done, counts)
        write_manifest(folder, manifest, inputs_read)
    (build.work.folder / JOINED_MANIFEST).write_text(sha256_of(folder / MANIFEST_NAME))
    replace_folder(folder, output, build.work.folder / REPLACED)
    return manifest, counts


def write_shards(
    build: Build, job: TokenJob, tasks: Sequence[Task], done: Sequence[TaskRecord]
) -> dict[str, list[list[Part]]]:
    """Write the shards of all splits into the work folder, as far as they are missing; returns what each is made of.

    Raises:
        DataError: the disk has too little space, or the files of a task have changed.
    """
    shards = {
        split: cut_into_shards(_sources(job, split, tasks, done), build.options.shard_size)
        for split in build.options.splits
    }
    ShardWriter(build.work.folder, build.workers).write([parts for of_split in shards.values() for parts in of_split])
    return shards


def write_output(
    build: Build, job: TokenJob, folder: Path, corpus: CorpusSources, done: Sequence[TaskRecord], counts: CorpusCounts
) -> Manifest:
    """Write everything but the manifest, which is returned."""
    tasks = corpus.tasks[: len(done)]  # without those that it was compared with
    _link(job.tokenizer_file, folder / job.tokenizer.file)
    sources = {split: _sources(job, split, tasks, done) for split in build.options.splits}
    shards, writer = write_shards(build, job, tasks, done), ShardWriter(build.work.folder, build.workers)
    files = {split: [writer.written(parts) for parts in of_split] for split, of_split in shards.items()}
    return Manifest(
        tokenizer=job.tokenizer,
        vocab_size=job.vocab_size,
        seq_len=build.options.seq_len,
        packing=build.options.packing,
        shuffle=build.options.shuffle,
        splits={
            split: _join_split(build.options, token_dtype(job.vocab_size), folder, split, sources[split], files[split])
            for split in sources
        },
        inputs=_describe_inputs(build, tasks, done),
        against=[_describe_compared(build, i) for i in range(len(build.against))],
        options=build.options.record(),
        records={str(cause): count for cause, count in sorted(counts.rejected.items())},
        provenance=write_provenance(corpus, job, done, build.options.splits, folder),
        versions=versions(),
        text_loss=loss_of_first_texts(load_tokenizer(job.tokenizer_file), tasks, build.options),
    )


def _require_all_done(job: TokenJob, tasks: Sequence[Task]) -> list[TaskRecord]:
    found = [job.record(task) for task in tasks]
    missing = [task.number for task, record in zip(tasks, found, strict=True) if record is None]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(tasks):,} tasks are not done, or their input has changed since (the first is task "
            f"{missing[0]}: {tasks[missing[0]].ranges[0].shown}); run the command again, or its --stage tokens"
        )
    return [record for record in found if record]


def _require_none_rejected(counts: CorpusCounts, options: Options) -> None:
    """Under `strict`, because tasks may have been done by a run without it. What filters and duplicates leave out is no error."""
    if options.strict and (cause := next((each for each in NOT_READ if counts.rejected[each]), None)):
        raise DataError(
            f"{counts.examples[cause][0]} ({cause}; without --strict such records are counted and left out)"
        )


def _sources(job: TokenJob, split: str, tasks: Sequence[Task], done: Sequence[TaskRecord]) -> list[Source]:
    """What each task has of a split, in order."""
    return [
        Source(job.path(task) / split, record.shards[split])
        for task, record in zip(tasks, done, strict=True)
        if split in record.shards
    ]


def _join_split(
    options: Options,
    dtype: np.dtype,
    folder: Path,
    split: str,
    sources: Sequence[Source],
    written: Sequence[WrittenShard],
) -> SplitInfo:
    """Link a split's shards into the folder, plan its rows, and describe its files."""
    shards, files = [], {}
    for number, (prefix, of_shard) in enumerate(written):
        stem = f"{split}-{number:05}"
        for suffix, info in of_shard.items():
            files[stem + suffix] = info
            _link(prefix.with_suffix(suffix), folder / (stem + suffix))
        shards.append(Shard.of_sizes(stem, dtype, of_shard[".bin"].bytes, of_shard[".idx"].bytes))
    documents, tokens = sum(source.info.documents for source in sources), sum(source.info.tokens for source in sources)
    plan = write_plan(folder, split, shards, *options.row_format)
    for name in plan_files(split, *options.row_format):
        files[name] = FileInfo(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
    return SplitInfo(
        documents=documents,
        tokens=tokens,
        bytes=sum(source.info.bytes for source in sources),
        shards=[shard.stem for shard in shards],
        rows=plan.rows,
        dropped_tokens=plan.dropped_tokens,
        padded_tokens=plan.padded_tokens,
        files=files,
    )


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, so that a run killed here loses nothing; copy it where the file system has no links or too many."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _describe_inputs(build: Build, tasks: Sequence[Task], done: Sequence[TaskRecord]) -> list[InputInfo]:
    described = []
    of_inputs: list[list[TaskRecord]] = [[] for _ in build.inputs]
    for task, record in zip(tasks, done, strict=True):
        of_inputs[task.input].append(record)
    for found, of_input in zip(build.inputs, of_inputs, strict=True):
        described.append(
            InputInfo(
                input=found.name,
                kind=found.kind,
                files=len(found.files),
                bytes=found.num_bytes,
                documents=sum(record.counts.accepted for record in of_input),
                tokens=sum(shard.tokens for record in of_input for shard in record.shards.values()),
                digest=input_digest(record.digest for record in of_input),
                versions=found.versions,
                rejected=dict(sorted(sum((Counter(record.counts.rejected) for record in of_input), Counter()).items())),
            )
        )
    return described


def _describe_compared(build: Build, number: int) -> InputInfo:
    found, digests = build.against[number], DigestJob(build.work.folder, build.options)
    tasks = [task for task in build.against_tasks if task.input == number]
    return InputInfo(
        input=found.name,
        kind=found.kind,
        files=len(found.files),
        bytes=found.num_bytes,
        documents=0,
        tokens=0,
        versions=found.versions,
        digest=input_digest(digests.digest(task) or "" for task in tasks),
    )


def input_digest(digests: Iterable[str]) -> str:
    """Digest of an input's documents from those of its tasks, in order."""
    return blake2b("".join(digests).encode(), digest_size=16).hexdigest()
