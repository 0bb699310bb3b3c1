"""Whether the inputs were read completely enough for an output: broken files, inputs without documents, unreadable records."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from data_pipeline.dedup import CAUSES
from data_pipeline.errors import DataError
from data_pipeline.manifest import TRAIN, Manifest
from data_pipeline.packing.pack_plan import lacks_text
from data_pipeline.readers.file_ranges import FileRange
from data_pipeline.readers.inputs import Input
from data_pipeline.rejects import BrokenFile, Cause, listed, wrong_key
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.task import Task
from data_pipeline.tasks.task_records import CorpusCounts, RecordCounts, TaskRecord

# Records that should have been texts. Empty texts, and what filters and the search for duplicates leave out, are not.
UNREADABLE = (
    Cause.BROKEN_JSON,
    Cause.NOT_UTF8,
    Cause.NOT_TEXT,
    Cause.MISSING_KEY,
    Cause.NOT_A_STRING,
    Cause.NO_ID,
)
# These count files, not records.
OF_FILES = (Cause.BROKEN_FILE, Cause.TRAILING_BYTES)
# Options that give the key which records lack.
KEYS = {Cause.MISSING_KEY: "--text-key", Cause.NO_ID: "--id-key"}
# What a reader rejects, so what `--strict` stops at.
NOT_READ = (*UNREADABLE, Cause.EMPTY, *OF_FILES)
MAX_LISTED = 50
ACCEPT = "--accept-broken-files"


def require_complete(
    inputs: Sequence[Input],
    tasks: Sequence[Task],
    counts: Sequence[RecordCounts],
    corpus: CorpusCounts,
    options: Options,
) -> None:
    """Check what all tasks together have read.

    Args:
        counts: of each task.
        corpus: of all tasks.

    Raises:
        DataError: no record of an input has the text key, a file is broken, an input gives no document, or too many records
            are unreadable, and the options do not accept it. Names all of this.
    """
    of_inputs = _of_inputs(len(inputs), tasks, counts)
    for found, of_input in zip(inputs, of_inputs, strict=True):
        if lacks_the_key(of_input):
            example = of_input.examples[Cause.MISSING_KEY][0]
            raise wrong_key(options.text_key, of_input.other_keys, example, found.value)
    problems = []
    if not options.accept_broken_files:
        problems += _broken_files(corpus)
        problems += _without_documents(inputs, of_inputs)
    problems += _unreadable_records(corpus, options.max_rejected)
    if problems:
        raise DataError("the inputs were not read completely, so no output is written:\n" + "\n".join(problems))


def require_rows(done: Sequence[TaskRecord], options: Options) -> None:
    """Raise DataError when a split will have no row, or the training split less text than one, by the records of all tasks."""
    for split in options.splits:
        parts = [record.shards[split] for record in done if split in record.shards]
        documents, tokens = sum(part.documents for part in parts), sum(part.tokens for part in parts)
        if lacks_text(split, tokens, options.row_format):
            raise DataError(_explain_no_rows(split, documents, tokens, options))


def _explain_no_rows(split: str, documents: int, tokens: int, options: Options) -> str:
    problem = (
        f"the {split} split has {tokens:,} tokens in {documents:,} documents, fewer than one row of {options.seq_len:,}"
    )
    if split == TRAIN:
        share = options.validation_fraction
        smaller = f", a smaller --validation-fraction (now {share:g})" if share else ""
        return f"{problem}; give more text{smaller} or a smaller --seq-len"
    return (
        f"{problem}; give more documents, a larger --validation-fraction (now {options.validation_fraction:g}), "
        "a smaller --seq-len, or --validation-fraction 0 for no validation split"
    )


def lacks_the_key(counts: CorpusCounts) -> bool:
    """Whether records lack the text key and no other has it, as far as they can be read."""
    unread = {Cause.MISSING_KEY, Cause.BROKEN_JSON, Cause.NOT_UTF8, *OF_FILES}
    return not counts.accepted and bool(counts.rejected[Cause.MISSING_KEY]) and set(counts.rejected) <= unread


def no_text(counts: CorpusCounts) -> DataError:
    """The error for inputs without any document, with an example of each cause."""
    rejected = ", ".join(f"{count} {cause}" for cause, count in counts.rejected.items())
    examples = "".join(f"\n    {shown[0]}" for shown in counts.examples.values())
    return DataError(f"the inputs hold no usable text ({rejected or 'no records at all'}){examples}")


def describe_broken(broken: Sequence[tuple[FileRange, BrokenFile]]) -> Iterator[str]:
    """A line for each broken file: what is wrong, what was kept, what is missing."""
    for file_range, each in islice(broken, MAX_LISTED):
        unit = "line" if file_range.kind == "lines" else "row"
        upto = "" if each.last is None else f", up to {unit} {each.last:,}"
        kept = f"kept {each.documents:,} documents{upto}" if each.documents else "kept nothing"
        yield f"    {file_range.shown}: {each.why}; {kept}; missing: {each.missing}"
    if len(broken) > MAX_LISTED:
        yield f"    and {len(broken) - MAX_LISTED:,} more"


def unaccepted(manifest: Manifest, options: Options) -> str | None:
    """What a prepared folder was accepted with that the options do not accept, in words; None if there is nothing."""
    broken, rejected = manifest.records.get(Cause.BROKEN_FILE, 0), _unreadable(manifest.records)
    # Where duplicates were left out, the manifest does not tell whether an input gave no other documents.
    has_duplicates = any(manifest.records.get(cause) for cause in CAUSES.values())
    # An input of empty files lacks nothing.
    with_content = [info for info in manifest.inputs if info.bytes or not info.files]
    empty = [info.input for info in with_content if not info.documents and not has_duplicates]
    if broken and not options.accept_broken_files:
        return f"with {broken:,} broken files; give {ACCEPT} again to use it as it is"
    if empty and not options.accept_broken_files:
        return f"without any document of the input {empty[0]}; give {ACCEPT} again to use it as it is"
    records = _records(sum(info.documents for info in manifest.inputs), manifest.records)
    if rejected > options.max_rejected * records:
        return f"with {rejected:,} of {records:,} records unreadable; give a larger --max-rejected to use it as it is"
    return None


def _of_inputs(count: int, tasks: Sequence[Task], counts: Sequence[RecordCounts]) -> list[CorpusCounts]:
    """The counts of each input."""
    parts: list[tuple[list[Task], list[RecordCounts]]] = [([], []) for _ in range(count)]
    for task, of_task in zip(tasks, counts, strict=True):
        parts[task.input][0].append(task)
        parts[task.input][1].append(of_task)
    return [CorpusCounts(*part) for part in parts]


def _broken_files(corpus: CorpusCounts) -> Iterator[str]:
    if corpus.broken:
        number = "1 file is" if len(corpus.broken) == 1 else f"{len(corpus.broken):,} files are"
        yield f"- {number} broken; repair or remove them, or accept what was kept with {ACCEPT}:"
        yield from describe_broken(corpus.broken)


def _without_documents(inputs: Sequence[Input], of_inputs: Sequence[CorpusCounts]) -> Iterator[str]:
    for found, counts in zip(inputs, of_inputs, strict=True):
        # The texts of duplicates are in the output. Of an empty file, nothing is missing.
        if not counts.accepted and not found.is_empty and not any(counts.rejected[cause] for cause in CAUSES.values()):
            rejected = ", ".join(f"{count:,} {cause}" for cause, count in counts.rejected.items()) or "no records"
            yield f"- --input {found.value} gives no document ({rejected}); remove it, or accept this with {ACCEPT}"


def _unreadable_records(corpus: CorpusCounts, limit: float) -> Iterator[str]:
    rejected, records = _unreadable(corpus.rejected), _records(corpus.accepted, corpus.rejected)
    if rejected <= limit * records:
        return
    repair = "repair them, "
    if sum(corpus.rejected[cause] for cause in KEYS) == rejected:
        keys = " or ".join(option for cause, option in KEYS.items() if corpus.rejected[cause])
        repair = f"give another {keys}, prepare files with other keys by themselves, "
    yield (
        f"- {rejected:,} of {records:,} records ({rejected / records:.2%}) are unreadable, more than --max-rejected {limit:g}; "
        f"{repair}or accept the share with a larger --max-rejected:"
    )
    for cause in UNREADABLE:
        if corpus.rejected[cause]:
            keys = f"; these records have {listed(corpus.other_keys)}" if cause in KEYS else ""
            yield f"    {cause}: {corpus.rejected[cause]:,}{keys}"
            yield from (f"        {example}" for example in corpus.examples[cause])


def _unreadable(rejected: Mapping[str, int]) -> int:
    return sum(rejected.get(cause, 0) for cause in UNREADABLE)


def _records(accepted: int, rejected: Mapping[str, int]) -> int:
    """All records."""
    return accepted + Counter(rejected).total() - sum(rejected.get(cause, 0) for cause in OF_FILES)
