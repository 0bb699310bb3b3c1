"""From inputs to the shards of a prepared folder, in phases.

`start` makes what every task needs (the tokenizer, the decisions about duplicates), `tokens` does the tasks, and `join`
(`data_pipeline.tasks.join`) puts their shards together. Each phase does only what is missing in the work folder. Several processes
may run `tokens` at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from data_pipeline.dedup import METHOD
from data_pipeline.errors import DataError
from data_pipeline.indexed import token_dtype
from data_pipeline.manifest import TokenizerInfo, sha256_of
from data_pipeline.readers.inputs import Input
from data_pipeline.rejects import Cause, advice, wrong_key
from data_pipeline.tasks.addresses import content_address, software
from data_pipeline.tasks.completeness import NOT_READ, lacks_the_key, no_text, require_rows
from data_pipeline.tasks.encode import TokenJob
from data_pipeline.tasks.first_texts import first_texts
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.report import say_tokenizer
from data_pipeline.tasks.results import DigestJob, ResultJob
from data_pipeline.tasks.sampling import SampleJob, TextSample, collect_sample
from data_pipeline.tasks.sharing import do_tasks
from data_pipeline.tasks.signatures import SignatureJob, describe_found, find_duplicates
from data_pipeline.tasks.task import Task, cut_against, cut_into_tasks
from data_pipeline.tasks.task_records import CorpusCounts, TaskRecord
from data_pipeline.tasks.work import DECISIONS, TOKENIZERS, Work, remove_partial, require_space, result_folder
from data_pipeline.tokenizers.characters import character_tokenizer
from data_pipeline.tokenizers.special_tokens import CONFIG_NAME, config_of
from data_pipeline.tokenizers.tokenizers import (
    BYTES_FILE_CONTENT,
    LEAST_SAMPLE_CHARS,
    SentencePieceTokenizer,
    find_tokenizer_file,
    load_tokenizer,
)
from data_pipeline.tokenizers.training import train_sentencepiece

Phase = Literal["all", "start", "tokens", "join"]
# Ordinary text has three to five bytes per token; the lower figure gives the larger estimate of the space needed.
ASSUMED_BYTES_PER_TOKEN = 3


@dataclass(frozen=True)
class Share:
    """Where one of several machines begins: all of them do tasks until none is left.

    Attributes:
        index, count: it begins `index / count` of the way through the tasks.
    """

    index: int = 0
    count: int = 1

    def in_order(self, tasks: Sequence[Task]) -> list[Task]:
        """All tasks, in the order in which this machine looks at them."""
        begin = len(tasks) * self.index // self.count
        return [*tasks[begin:], *tasks[:begin]]


@dataclass(frozen=True)
class Build:
    """One run of the command.

    Attributes:
        work: the work folder.
        workers: number of processes.
        against: texts of other corpora; documents that repeat them are duplicates.
    """

    work: Work
    inputs: Sequence[Input]
    options: Options
    workers: int
    against: Sequence[Input] = ()

    @cached_property
    def against_tasks(self) -> list[Task]:
        """The tasks of the texts that are compared with and not written."""
        return cut_against(self.inputs, self.against)

    def start(self, tasks: Sequence[Task]) -> None:
        """Put the tokenizer into the work folder, trained if none is given, and find duplicates if asked for.

        Raises:
            DataError: no usable text, or a vocabulary size that does not fit the text.
        """
        self.make_tokenizer(tasks)
        if self.options.duplicates != "keep":
            self.find_duplicates(tasks)

    def make_tokenizer(self, tasks: Sequence[Task]) -> None:
        """Put the tokenizer into the work folder; see `start`."""
        if self.options.trains_tokenizer:
            self._train(tasks)
        else:
            self._place_tokenizer()

    def tokens(self, tasks: Sequence[Task], share: Share) -> None:
        """Do the tasks that are not done; returns when all are, by this process or others.

        Raises:
            DataError: a split will have no row, or as `do_token_tasks` does.
        """
        self.do_token_tasks(tasks, share)
        job = self.token_job(tasks)
        self._require_rows([job.record(task) for task in tasks])

    def do_token_tasks(self, tasks: Sequence[Task], share: Share) -> None:
        """Do the tasks that are not done, whatever they give.

        Raises:
            DataError: a record was rejected under `strict`, tasks were set aside, or the disk has too little space.
        """
        job = self.token_job(tasks)
        self.compare(job, tasks)
        missing = [task for task in share.in_order(tasks) if not job.is_done(task)]
        if missing:
            job = self._after_first_texts(job, tasks)
        # The results of the tasks stay until their tokens have been joined.
        joined = _token_bytes(tasks, job.vocab_size) if len(tasks) > 1 else 0
        require_space(self.work.folder, _token_bytes(missing, job.vocab_size) + joined)
        do_tasks(self.work, job, missing, len(tasks), self.workers, "tokenizing")

    def _require_rows(self, done: Sequence[TaskRecord | None]) -> None:
        """Say now, and not only at the join, that a split has no row. Where texts were not read, the join says more."""
        counts = [record.counts for record in done if record]
        was_read = all(each.rejected.keys().isdisjoint(NOT_READ) for each in counts)
        if len(counts) == len(done) and was_read and any(each.accepted for each in counts):
            require_rows(done, self.options)

    def _after_first_texts(self, job: TokenJob, tasks: Sequence[Task]) -> TokenJob:
        """Look at some texts, choose the faster way to encode them, and say what the tokenizer does to them."""
        tokenizer = load_tokenizer(job.tokenizer_file)
        is_large = sum(task.num_bytes for task in tasks) >= LEAST_SAMPLE_CHARS
        chooses = isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.keeps_words and is_large
        texts = first_texts(tasks, self.options) if chooses or not tokenizer.is_lossless else []
        if chooses:
            tokenizer.choose_method(texts)
            job = replace(job, keeps_words=tokenizer.keeps_words)
        say_tokenizer(job.tokenizer.file, tokenizer, texts)
        return job

    def compare(self, job: ResultJob, tasks: Sequence[Task]) -> None:
        """Read the documents of the finished tasks whose files have other modification times than when they were done."""
        if unsure := [task for task in tasks if job.needs_comparison(task)]:
            verb = "comparing with finished tasks"
            do_tasks(self.work, DigestJob(self.work.folder, self.options), unsure, len(unsure), self.workers, verb)

    def token_job(self, tasks: Sequence[Task]) -> TokenJob:
        """The job of the tokenizer in the work folder.

        Raises:
            DataError: there is none, or it was trained on other inputs.
        """
        folder = self._tokenizer_folder(tasks)
        if folder is None or not folder.is_dir():
            raise DataError(
                f"{self.work.folder} has no tokenizer for these inputs and options yet; run --stage start first"
            )
        decisions = None
        if self.options.duplicates != "keep":
            decisions = self._decisions_folder(tasks)
            if decisions is None or not decisions.is_dir():
                raise DataError(
                    f"{self.work.folder} has no decisions about duplicates in these inputs yet; run --stage start first"
                )
        path = find_tokenizer_file(folder)
        tokenizer, vocab_size = describe_tokenizer(path)
        return TokenJob(self.work.folder, self.options, path, tokenizer, vocab_size, decisions)

    def _tokenizer_folder(self, tasks: Sequence[Task]) -> Path | None:
        """Where the tokenizer is or will be; None while the documents that it is trained on have not been read."""
        if not self.options.trains_tokenizer:
            configured = self.options.configured_tokens
            identity = self.options.record()["tokenizer_sha256"], *([configured] if configured else [])
            return self.work.folder / TOKENIZERS / content_address(*identity)
        found = collect_sample(self.work.folder, self.options, tasks, lambda job, wave: None)
        return found and self._trained_folder(found[0])

    def _trained_folder(self, sample: TextSample) -> Path:
        address = content_address(sample.digest, self.options.of_training(), software("sentencepiece"))
        return self.work.folder / TOKENIZERS / address

    def _decisions_folder(self, tasks: Sequence[Task]) -> Path | None:
        """Where the decisions are or will be; None while the documents have not been read."""
        corpus = self._corpus([*self.against_tasks, *tasks])
        # The same tasks may be an input in one run and compared with in another, which decides and numbers otherwise.
        return corpus and self.work.folder / DECISIONS / content_address(
            corpus, len(self.against_tasks), self.options.of_documents(), METHOD, software("rensa")
        )

    def _corpus(self, tasks: Sequence[Task]) -> str | None:
        """Hash of all documents, in order; None while some have not been read."""
        job = DigestJob(self.work.folder, self.options)
        digests = [job.digest(task) for task in tasks]
        return None if None in digests else content_address([task.identity for task in tasks], digests)

    def _place_tokenizer(self) -> None:
        suffix, content = ".bytes", BYTES_FILE_CONTENT
        if self.options.tokenizer is None:
            suffix, content = ".json", character_tokenizer(self.options.alphabet).encode()
        elif not self.options.uses_bytes:
            source = find_tokenizer_file(self.options.tokenizer)
            suffix, content = source.suffix, source.read_bytes()
        folder = self._tokenizer_folder([])
        if not folder.is_dir():
            with result_folder(folder, lambda: True) as partial:
                (partial / f"tokenizer{suffix}").write_bytes(content)
                if configured := self.options.configured_tokens:
                    (partial / CONFIG_NAME).write_text(config_of(configured), encoding="utf-8")

    def _train(self, tasks: Sequence[Task]) -> None:
        """Train a tokenizer on a sample of the training split."""
        if (folder := self._tokenizer_folder(tasks)) and folder.is_dir():
            return
        require_space(self.work.folder, _token_bytes(tasks, self.options.vocab_size))
        sample, counts = collect_sample(self.work.folder, self.options, tasks, self._do_samples)
        folder = self._trained_folder(sample)
        if folder.is_dir():
            return
        require_text(CorpusCounts([task for task, _ in counts], [of_task for _, of_task in counts]), self.options)
        with result_folder(folder, lambda: True) as partial:
            train_sentencepiece(
                sample.in_order(), self.options.vocab_size, partial / "tokenizer.model", self.options.model_type
            )

    def _do_samples(self, job: SampleJob, tasks: Sequence[Task]) -> None:
        if missing := [task for task in tasks if not job.is_done(task)]:
            do_tasks(self.work, job, missing, len(tasks), self.workers, "reading for the tokenizer")

    def find_duplicates(self, tasks: Sequence[Task]) -> None:
        """Put the decisions about duplicates into the work folder."""
        if (folder := self._decisions_folder(tasks)) and folder.is_dir():
            print(describe_found(folder, self.options.duplicates), flush=True)
            return
        job = SignatureJob(self.work.folder, self.options)
        if self.against:
            self._do_missing("reading what to compare with", job, self.against_tasks)
            job.require_documents(self.against, self.against_tasks)
        self._do_missing("looking for duplicates", job, tasks)
        folder = self._decisions_folder(tasks)
        if not folder.is_dir():
            remove_partial(folder)  # of a process that was killed: its files may be large
            with result_folder(folder, lambda: True) as partial:
                print(f"comparing the signatures of {len(tasks):,} tasks to find duplicates", flush=True)
                find_duplicates(job, self.against_tasks, tasks, partial, self.workers)
        print(describe_found(folder, self.options.duplicates), flush=True)

    def _do_missing(self, verb: str, job: ResultJob, tasks: Sequence[Task]) -> None:
        """Do the tasks that are not done."""
        self.compare(job, tasks)
        missing = [task for task in tasks if not job.is_done(task)]
        do_tasks(self.work, job, missing, len(tasks), self.workers, verb)


def _token_bytes(tasks: Sequence[Task], vocab_size: int) -> int:
    """Space that the tokens of some tasks need, roughly."""
    return sum(task.num_bytes for task in tasks) // ASSUMED_BYTES_PER_TOKEN * token_dtype(vocab_size).itemsize


def run_phases(build: Build, phase: Phase, share: Share) -> list[Task]:
    """Run one phase, or all before `join`; returns the tasks."""
    tasks = cut_into_tasks(build.inputs)
    needs_whole_corpus = build.options.trains_tokenizer or build.options.duplicates != "keep"
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
        raise wrong_key(options.text_key, counts.other_keys, counts.examples[Cause.MISSING_KEY][0])
    if options.filters.id_key and counts.rejected[Cause.NO_ID] and counts.other_keys:
        hint = advice("--id-key", options.filters.id_key, list(counts.other_keys))
        raise DataError(f"{no_text(counts)}\n    {hint}")
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
