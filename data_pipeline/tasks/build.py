"""From inputs to the shards of a prepared folder, in phases.

`start` makes what every task needs (the tokenizer, the decisions about duplicates), `tokens` does the tasks, or one share of
them, and `join` (`data_pipeline.tasks.join`) puts their shards together. Each phase does only what is missing in the work
folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.atomic_files import write_atomic
from data_pipeline.errors import DataError
from data_pipeline.indexed import token_dtype
from data_pipeline.manifest import TokenizerInfo, sha256_of
from data_pipeline.readers.file_ranges import is_compressed
from data_pipeline.readers.inputs import Input
from data_pipeline.rejects import wrong_key
from data_pipeline.tasks.completeness import lacks_the_key, no_text
from data_pipeline.tasks.encode import TokenJob
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.processes import run_tasks
from data_pipeline.tasks.report import Progress, say_method
from data_pipeline.tasks.sampling import HashSample, SampleJob
from data_pipeline.tasks.signatures import SignatureJob, find_duplicates
from data_pipeline.tasks.task import Task, cut_into_tasks
from data_pipeline.tasks.task_records import CorpusCounts
from data_pipeline.tasks.work import DECISIONS, SAMPLES, SIGNATURES, TOKENS, remove_partial, require_space
from data_pipeline.tokenizers.tokenizers import (
    BYTES_FILE_CONTENT,
    TOKENIZER_SUFFIXES,
    find_tokenizer_file,
    load_tokenizer,
)
from data_pipeline.tokenizers.training import train_sentencepiece

Phase = Literal["all", "start", "tokens", "join"]
# Ordinary text has three to five bytes per token; the lower figure gives the larger estimate of the space needed.
ASSUMED_BYTES_PER_TOKEN = 3
# Files with the content addresses of the trained tokenizer and of the decisions about duplicates.
TRAINED_ADDRESS = "tokenizer.address"
DECIDED_ADDRESS = "decisions.address"


@dataclass(frozen=True)
class Share:
    """Every `count`-th task from `index` on: the part of one of several machines."""

    index: int = 0
    count: int = 1

    def of(self, tasks: Sequence[Task]) -> list[Task]:
        """The share's tasks."""
        return list(tasks[self.index :: self.count])

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


@dataclass(frozen=True)
class Build:
    """One run of the command.

    Attributes:
        work: the work folder.
        workers: number of processes.
    """

    work: Path
    inputs: Sequence[Input]
    options: Options
    workers: int

    def start(self, tasks: Sequence[Task]) -> None:
        """Put the tokenizer into the work folder, trained if none is given, and find duplicates if asked for.

        Raises:
            DataError: no usable text, or a vocabulary size that does not fit the text.
        """
        options = self.options
        if options.uses_bytes:
            self._place_tokenizer(".bytes", BYTES_FILE_CONTENT)
        elif options.tokenizer:
            source = find_tokenizer_file(options.tokenizer)
            self._place_tokenizer(source.suffix, source.read_bytes())
        elif not self._is_trained(tasks):
            require_space(self.work, self._estimate(options.vocab_size))
            self._train(tasks)
        self._find_duplicates(tasks)

    def tokens(self, tasks: Sequence[Task], share: Share) -> None:
        """Do the tasks of a share that are not done.

        Raises:
            DataError: a record was rejected under `strict`, a worker died, or the disk has too little space.
        """
        job = self.token_job(tasks)
        say_method(job.tokenizer_file)
        remove_partial(self.work, {task.number for task in share.of(tasks)})
        missing = [task for task in share.of(tasks) if not job.record(task)]
        left = sum(task.num_bytes for task in missing) / max(1, sum(task.num_bytes for task in tasks))
        require_space(self.work, int(left * self._estimate(job.vocab_size)))
        progress = Progress("tokenizing", self._expected_text_bytes(missing), len(missing), len(share.of(tasks)))
        for _ in run_tasks(job, missing, self.workers, progress.update):
            progress.task_done()
        progress.close()

    def token_job(self, tasks: Sequence[Task]) -> TokenJob:
        """The job of the tokenizer in the work folder.

        Raises:
            DataError: there is none, or it was trained on other inputs.
        """
        if not self.options.tokenizer and not self._is_trained(tasks):
            raise DataError(f"{self.work} has no tokenizer for these inputs and options yet; run --stage start first")
        deduplicate = self.options.duplicates != "keep"
        if deduplicate and not self._are_decided(tasks):
            raise DataError(
                f"{self.work} has no decisions about duplicates in these inputs yet; run --stage start first"
            )
        path = find_tokenizer_file(self.work)
        tokenizer, vocab_size = describe_tokenizer(path)
        decisions = self.work / DECISIONS if deduplicate else None
        return TokenJob(self.work / TOKENS, path, tokenizer, vocab_size, self.options, decisions)

    def _place_tokenizer(self, suffix: str, content: bytes) -> None:
        for other in TOKENIZER_SUFFIXES:
            if other != suffix:
                (self.work / f"tokenizer{other}").unlink(missing_ok=True)
        path = self.work / f"tokenizer{suffix}"
        if not path.is_file() or path.read_bytes() != content:
            write_atomic(path, content)

    def _train(self, tasks: Sequence[Task]) -> None:
        """Train a tokenizer on a sample of the training split."""
        job = SampleJob(self.work / SAMPLES, self.options)
        self._do_missing("reading for the tokenizer", job, tasks)
        sample, counts = HashSample(), []
        for result in map(job.result, tasks):
            counts.append(result.counts)
            for document in result.documents:
                sample.add(document)
        require_text(CorpusCounts(tasks, counts), self.options)
        (self.work / TRAINED_ADDRESS).unlink(missing_ok=True)
        path = self.work / "tokenizer.model"
        train_sentencepiece(sample.texts(), self.options.vocab_size, path, self.options.model_type)
        write_atomic(self.work / TRAINED_ADDRESS, self._training_address(tasks))

    def _find_duplicates(self, tasks: Sequence[Task]) -> None:
        if self.options.duplicates == "keep" or self._are_decided(tasks):
            return
        job = SignatureJob(self.work / SIGNATURES, self.options)
        self._do_missing("looking for duplicates", job, tasks)
        (self.work / DECIDED_ADDRESS).unlink(missing_ok=True)
        find_duplicates(job, tasks, self.work / DECISIONS)
        write_atomic(self.work / DECIDED_ADDRESS, self._address(tasks, self.options.of_documents()))

    def _do_missing(self, verb: str, job: SampleJob | SignatureJob, tasks: Sequence[Task]) -> None:
        """Do the tasks that are not done."""
        remove_partial(self.work, {task.number for task in tasks})
        missing = [task for task in tasks if not job.is_done(task)]
        progress = Progress(verb, self._expected_text_bytes(missing), len(missing), len(tasks))
        for _ in run_tasks(job, missing, self.workers, progress.update):
            progress.task_done()
        progress.close()

    def _are_decided(self, tasks: Sequence[Task]) -> bool:
        path = self.work / DECIDED_ADDRESS
        return path.is_file() and path.read_text() == self._address(tasks, self.options.of_documents())

    def _training_address(self, tasks: Sequence[Task]) -> str:
        return self._address(tasks, self.options.of_training())

    def _address(self, tasks: Sequence[Task], settings: object) -> str:
        """Content address of a result that depends on all tasks."""
        return Task(0, 0, (), "".join(task.identity for task in tasks)).address(settings)

    def _is_trained(self, tasks: Sequence[Task]) -> bool:
        path = self.work / TRAINED_ADDRESS
        exists = path.is_file() and (self.work / "tokenizer.model").is_file()
        return exists and path.read_text() == self._training_address(tasks)

    def _expected_text_bytes(self, tasks: Sequence[Task]) -> int | None:
        """Bytes on disk as an estimate of the bytes of text; None where files are compressed."""
        kinds = {each.kind for task in tasks for each in task.ranges}
        compressed = any(is_compressed(Path(each.source)) for task in tasks for each in task.ranges)
        return None if compressed or kinds & {"parquet", "dataset"} else sum(task.num_bytes for task in tasks)

    def _estimate(self, vocab_size: int) -> int:
        text_bytes = sum(found.num_bytes for found in self.inputs)
        return text_bytes // ASSUMED_BYTES_PER_TOKEN * token_dtype(vocab_size).itemsize


def run_phases(build: Build, phase: Phase, share: Share) -> list[Task]:
    """Run one phase, or all before `join`; returns the tasks."""
    tasks = cut_into_tasks(build.inputs)
    needs_whole_corpus = build.options.tokenizer is None or build.options.duplicates != "keep"
    if phase in ("all", "start") or not needs_whole_corpus:
        build.start(tasks)
    if phase in ("all", "tokens"):
        build.tokens(tasks, share)
    return tasks


def require_text(counts: CorpusCounts, options: Options) -> None:
    """Raise DataError when the inputs hold no document."""
    if counts.accepted:
        return
    if lacks_the_key(counts):
        raise wrong_key(options.text_key, counts.other_keys)
    raise no_text(counts)


def describe_tokenizer(path: Path) -> tuple[TokenizerInfo, int]:
    """Ids of a tokenizer, and the vocabulary size after an EOD, if it has none, and [MASK] are added."""
    base = load_tokenizer(path)
    eod_id = base.vocab_size if base.eod_id is None else base.eod_id
    mask_id = max(base.vocab_size, eod_id + 1)
    info = TokenizerInfo(
        kind=base.kind,
        file=path.name,
        sha256=sha256_of(path),
        vocab_size=base.vocab_size,
        eod_id=eod_id,
        mask_id=mask_id,
        pad_id=eod_id if base.pad_id is None else base.pad_id,
    )
    return info, mask_id + 1
