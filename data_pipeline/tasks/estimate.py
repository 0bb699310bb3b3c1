"""How much work a corpus is: documents, tokens, time, memory and disk, from a sample of its tasks.

The sample is read, searched for duplicates, tokenized and joined in a temporary folder. Quantities grow with the bytes of the
input: each is the ratio of the sample times the bytes of all tasks, for each `--input` by itself if there are few.
"""

import resource
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

from data_pipeline.dedup import Decisions
from data_pipeline.errors import DataError
from data_pipeline.manifest import VALIDATION
from data_pipeline.packing.best_fit import PACKING_BYTES
from data_pipeline.packing.pack_plan import lacks_text
from data_pipeline.packing.shuffled import PACKED_DOCUMENTS
from data_pipeline.readers.file_ranges import FileRange
from data_pipeline.readers.inputs import Input
from data_pipeline.readers.kinds import is_compressed
from data_pipeline.tasks.build import Build, Share, require_text
from data_pipeline.tasks.completeness import require_complete, require_rows
from data_pipeline.tasks.duplicate_search import MEMORY_LIMIT
from data_pipeline.tasks.first_texts import loss_of_first_texts
from data_pipeline.tasks.join import write_output, write_shards
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.report import duration, rejections
from data_pipeline.tasks.shards import MOST_THREADS
from data_pipeline.tasks.signatures import SignatureJob
from data_pipeline.tasks.sources import CorpusSources
from data_pipeline.tasks.task import Task, cut_into_tasks
from data_pipeline.tasks.task_records import CorpusCounts, RecordCounts, TaskRecord
from data_pipeline.tasks.work import JOINED, open_work, partial_folder
from data_pipeline.tokenizers.tokenizers import load_tokenizer

SAMPLE_BYTES = 64 << 20
# Of one task: many parts of a corpus say more than one long part.
PART_BYTES = 4 << 20
# With more inputs they are not estimated one by one.
MAX_STRATA = 16


@dataclass(frozen=True)
class Part:
    """What a part of a task gave; `task.num_bytes` is its size in the input."""

    task: Task
    documents: int
    tokens: int
    output_bytes: int
    work_bytes: int
    counts: RecordCounts


@dataclass(frozen=True)
class Spent:
    """What the phases took on the sample, with one process, in seconds and bytes.

    Attributes:
        tokenizer, loss: of making the tokenizer, and of what it loses of the first texts: they do not grow with the corpus.
        shards: of copying tokens into shards, which several threads do.
        rest: of the rest of the join, which one thread does.
        memory: most bytes before the join.
    """

    tokenizer: float
    duplicates: float
    tokens: float
    shards: float
    loss: float
    rest: float
    memory: int


def estimate(inputs: Sequence[Input], options: Options, workers: int, output: Path | None) -> str:
    """The estimate of a whole job, in lines for the user. Writes nothing but a temporary folder.

    Raises:
        DataError: as the job itself, if the sample shows it.
    """
    tasks = cut_into_tasks(inputs)
    strata = _strata(tasks)
    sample = [part for stratum in strata for part in _sample(stratum, SAMPLE_BYTES // len(strata))]
    total, of_sample = (sum(task.num_bytes for task in each) for each in (tasks, sample))
    with TemporaryDirectory(prefix="estimate-") as folder:
        # Decisions about duplicates are by the numbers of the tasks, without gaps.
        numbered = [replace(task, number=i) for i, task in enumerate(sample)]
        with _naming_the_sample(of_sample, total):
            parts, spent = _measure(Path(folder) / "data", inputs, options, numbered, of_sample == total)
    by_number = {task.number: part for task, part in zip(sample, parts, strict=True)}
    found = [(stratum, [by_number[each.number] for each in stratum if each.number in by_number]) for stratum in strata]
    lines = [f"estimate from parts of {len(parts):,} of {len(tasks):,} tasks, {_size(of_sample)} of {_size(total)}"]
    for name in ("documents", "tokens"):
        value, error = _scaled(found, lambda part, name=name: getattr(part, name))
        lines.append(
            f"{name:10} about {value:,.0f}" + (f" (±{error / max(1, value):.0%})" if error is not None else "")
        )
    lines.append(_time(spent, total / max(1, of_sample), workers))
    lines.append(_memory(spent.memory, options, workers, _scaled(found, lambda part: part.documents)[0]))
    lines.append(_disk(found, output))
    if options.duplicates != "keep":
        lines.append("duplicates are those within the sample; a whole corpus has more")
    lines += (line.replace("left out", "left out of the sample", 1) for line in rejections(_counts(parts)))
    if problem := _incomplete(inputs, parts, options):
        lines.append(f"warning: if the rest is like the sample, the job will end without output: {problem}")
    return "\n".join(lines)


@contextmanager
def _naming_the_sample(of_sample: int, total: int) -> Iterator[None]:
    """Errors say that they are about the sample, unless its bytes are all."""
    try:
        yield
    except DataError as error:
        if of_sample == total:
            raise
        raise DataError(f"in a sample of {_size(of_sample)} of {_size(total)}: {error}") from error


def _incomplete(inputs: Sequence[Input], parts: Sequence[Part], options: Options) -> str | None:
    """Why the job would not accept what was read of the inputs, as far as they are in the sample; None if it would."""
    sampled = sorted({part.task.input for part in parts})
    tasks = [replace(part.task, input=sampled.index(part.task.input)) for part in parts]
    counts = [part.counts for part in parts]
    try:
        require_complete([inputs[i] for i in sampled], tasks, counts, CorpusCounts(tasks, counts), options)
    except DataError as error:
        return str(error)
    return None


def _counts(parts: Sequence[Part]) -> CorpusCounts:
    return CorpusCounts([part.task for part in parts], [part.counts for part in parts])


def _strata(tasks: Sequence[Task]) -> list[list[Task]]:
    """The tasks of each input, or all together where there are many inputs."""
    strata = defaultdict(list)
    many = len({task.input for task in tasks}) > MAX_STRATA
    for task in tasks:
        strata[0 if many else task.input].append(task)
    return list(strata.values())


def _sample(tasks: Sequence[Task], num_bytes: int) -> Iterator[Task]:
    """Parts of tasks that are chosen by their hashes, until there are enough bytes."""
    for task in sorted(tasks, key=lambda task: (task.identity, task.number)):
        part = _beginning(task)
        yield part
        num_bytes -= part.num_bytes
        if num_bytes <= 0:
            return


def _beginning(task: Task) -> Task:
    """A task that reads the first few megabytes of another, more where a file cannot be cut."""
    ranges: list[FileRange] = []
    left = PART_BYTES
    for each in task.ranges:
        if left <= 0:
            break
        ranges.append(_first_part(each, left))
        left -= ranges[-1].num_bytes
    return replace(task, ranges=tuple(ranges))


def _first_part(whole: FileRange, num_bytes: int) -> FileRange:
    if whole.num_bytes <= num_bytes or whole.kind == "text" or is_compressed(Path(whole.source)):
        return whole
    if whole.kind == "lines":
        return replace(whole, num_bytes=num_bytes, stop=whole.start + num_bytes)
    if whole.stop is None:
        return whole
    units = whole.stop - whole.start  # rows, or row groups
    kept = max(1, units * num_bytes // whole.num_bytes)
    return replace(whole, num_bytes=whole.num_bytes * kept // units, stop=whole.start + kept)


def _measure(
    output: Path, inputs: Sequence[Input], options: Options, tasks: Sequence[Task], is_all: bool
) -> tuple[list[Part], Spent]:
    """Do the phases in this process, for parts of tasks."""
    times = [time.monotonic()]
    with open_work(output, "all") as work:
        build = Build(work, inputs, options, workers=1)
        build.make_tokenizer(tasks)
        times.append(time.monotonic())
        if options.duplicates != "keep":
            build.find_duplicates(tasks)
        times.append(time.monotonic())
        build.do_token_tasks(tasks, Share())
        times.append(time.monotonic())
        job, signatures = build.token_job(tasks), SignatureJob(work.folder, options)
        done = [job.record(task) for task in tasks]
        parts = [_part(task, record, signatures) for task, record in zip(tasks, done, strict=True)]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        require_text(_counts(parts), options)
        build = replace(build, options=_with_rows(options, done, is_all))
        with partial_folder(work.folder / JOINED) as folder:
            write_shards(build, job, tasks, done)
            times.append(time.monotonic())
            loss_of_first_texts(load_tokenizer(job.tokenizer_file), tasks, options)
            times.append(time.monotonic())
            write_output(build, job, folder, CorpusSources.of(build, tasks), done, _counts(parts))
            times.append(time.monotonic())
    *seconds, loss, join = (end - begin for begin, end in pairwise(times))
    return parts, Spent(*seconds, loss, max(0, join - loss), memory)


def _with_rows(options: Options, done: Sequence[TaskRecord], is_all: bool) -> Options:
    """The options, without the validation split where a sample, which is not all of the corpus, has too little text of it.

    Raises:
        DataError: a split has no row all the same.
    """
    parts = [record.shards[VALIDATION] for record in done if VALIDATION in record.shards]
    if not is_all and lacks_text(VALIDATION, sum(part.tokens for part in parts), options.row_format):
        options = replace(options, validation_fraction=0)
    require_rows(done, options)
    return options


def _part(task: Task, record: TaskRecord, signatures: SignatureJob) -> Part:
    shards = record.shards.values()
    documents = sum(shard.documents for shard in shards)
    work_bytes = 0
    if signatures.options.duplicates != "keep":
        work_bytes = signatures.result(task).stat().st_size + documents * Decisions.SIZE
    tokens = sum(shard.tokens for shard in shards)
    output_bytes = sum(info.bytes for shard in shards for info in (*shard.files.values(), shard.places))
    output_bytes += _plan_bytes(documents, tokens, signatures.options)
    return Part(task, documents, tokens, output_bytes, work_bytes, record.counts)


def _plan_bytes(documents: int, tokens: int, options: Options) -> int:
    """Arrays of the pack plan (`data_pipeline.packing.pack_plan`), at most: 12 bytes per segment, 8 per row."""
    if options.packing == "concat" and not options.shuffle:
        return 0
    rows = tokens // options.seq_len
    # Also with best_fit: a long document is cut at each row that it fills.
    return 12 * (documents + rows) + 8 * rows


def _scaled(
    found: Sequence[tuple[Sequence[Task], Sequence[Part]]], quantity: Callable[[Part], int]
) -> tuple[float, float | None]:
    """The ratio estimate of a quantity of all tasks, and twice its standard error; None where it is not known.

    Cochran, "Sampling Techniques", 3rd edition, chapter 6.
    """
    value, variance, is_known = 0.0, 0.0, True
    for tasks, parts in found:
        total = sum(task.num_bytes for task in tasks)
        sizes = [part.task.num_bytes for part in parts]
        ratio = sum(map(quantity, parts)) / max(1, sum(sizes))
        value += ratio * total
        if len(parts) > 1:
            squares = sum((quantity(part) - ratio * size) ** 2 for part, size in zip(parts, sizes, strict=True))
            share = min(1, sum(sizes) / total)
            variance += (1 - share) * len(parts) / (len(parts) - 1) * squares / share**2
        is_known = is_known and (len(parts) > 1 or sum(sizes) == total)
    return value, 2 * sqrt(variance) if is_known else None


def _time(spent: Spent, scale: float, workers: int) -> str:
    """The time for `scale` times the sample."""
    duplicates, tokens = scale * spent.duplicates / workers, scale * spent.tokens / workers
    join = scale * (spent.shards / min(workers, MOST_THREADS) + spent.rest) + spent.loss
    whole = spent.tokenizer + duplicates + tokens + join
    phases = [f"tokenizer {duration(spent.tokenizer)}"]
    phases += [f"duplicates {duration(duplicates)}"] * bool(spent.duplicates > 0.01)
    phases += [f"tokens {duration(tokens)}", f"join {duration(join)}"]
    workers_shown = "1 worker" if workers == 1 else f"{workers:,} workers, if all are as fast as one here"
    return f"{'time':10} about {duration(whole)} ({', '.join(phases)}) with {workers_shown}; a disk may be slower"


def _memory(peak: int, options: Options, workers: int, documents: float) -> str:
    search = "" if options.duplicates == "keep" else f"; the search for duplicates may use {MEMORY_LIMIT}"
    packing = ""
    if options.packing == "best_fit":
        packing = f"; packing takes about {_size(PACKING_BYTES * min(documents, PACKED_DOCUMENTS))}"
    return f"{'memory':10} about {_size(peak * (workers + 1))} for {workers + 1} processes{search}{packing}"


def _disk(found: Sequence[tuple[Sequence[Task], Sequence[Part]]], output: Path | None) -> str:
    finished, _ = _scaled(found, lambda part: part.output_bytes)
    work, _ = _scaled(found, lambda part: part.work_bytes)
    line = f"{'disk':10} about {_size(finished)} for the output, {_size(finished + work)} more until it is joined"
    if output is None:
        return line
    place = next(parent for parent in (output, *output.parents) if parent.exists())
    return f"{line}; {_size(shutil.disk_usage(place).free)} free at {place}"


def _size(num_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1e6:,.1f} MB"
