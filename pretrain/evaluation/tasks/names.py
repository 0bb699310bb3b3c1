"""The values of `--tasks`: names of generated tasks, `generative`, files of questions, prepared folders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.dataset.blend import Blend
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.generators.arithmetic import Arithmetic
from data_pipeline.generators.generator import Generator
from data_pipeline.generators.lookup import Lookup
from data_pipeline.generators.names import KNOWN, find_generator
from data_pipeline.generators.sudoku import SudokuBoards
from data_pipeline.manifest import MANIFEST_NAME, InputInfo
from data_pipeline.tokenizers.tokenizers import PreparedTokenizer
from pretrain.errors import UserError
from pretrain.evaluation.causal_lm import check_scorer
from pretrain.evaluation.tasks.choices import ChoiceQuestion, ChoiceTask, choice_prompt
from pretrain.evaluation.tasks.documents import Documents, DocumentTask, documents_of
from pretrain.evaluation.tasks.generated import AnswerTask, HeldOut, SudokuTask
from pretrain.evaluation.tasks.generative import LEAST_SAMPLES, GenerativeTask
from pretrain.evaluation.tasks.question_file import read_prompt, read_questions
from pretrain.evaluation.tasks.questions import DEFAULT_PROMPT, DEFAULT_UNTIL, QuestionTask
from pretrain.evaluation.tasks.task import Task

GENERATIVE = "generative"
DEFAULT_SAMPLES = 256
"""Samples of tasks that draw from nothing."""
DEFAULT_ANSWER_LENGTH = 256
SHOWN_INPUTS = 3


@dataclass(frozen=True)
class TaskOptions:
    """Options of single tasks, see `loopmdm evaluate --help`.

    Attributes:
        limit: items to use; None for all, or `DEFAULT_SAMPLES`.
        few_shot, until, answer_length, given, likelihood, masks, stride, scorer: None where not given.
    """

    limit: int | None = None
    few_shot: Path | None = None
    until: tuple[str, ...] | None = None
    answer_length: int | None = None
    given: int | None = None
    likelihood: str | None = None
    masks: int | None = None
    stride: int | None = None
    scorer: Path | None = None


OPTIONS_OF = {
    "sudoku": ("given",),
    "answers": (),
    GENERATIVE: ("scorer",),
    "questions": ("few_shot", "until", "answer_length"),
    "choices": ("few_shot", "likelihood", "masks"),
    "documents": ("likelihood", "masks", "stride"),
}
"""Kind of task -> the options that it has, besides `limit`."""


@dataclass(frozen=True)
class TaskMaker:
    """Makes tasks for a run.

    Attributes:
        blend: the data whose validation split has held-out instances and texts; None if it is not there.
        split: its name.
        tokenizer, seq_len: of the run.
        seed: decides the cells that a puzzle gives.
    """

    options: TaskOptions
    blend: Blend | None
    split: str
    tokenizer: PreparedTokenizer
    seq_len: int
    seed: int

    def make(self, values: Sequence[str]) -> list[Task]:
        """The tasks of these values.

        Raises:
            UserError, DataError: an unknown task, a file or folder with a problem, or an option that no task has.
        """
        named = [split_value(value) for value in values]
        tasks = [self._named(name, self._task(source)) for name, source in named]
        used = {name for _, source in named for name in OPTIONS_OF[self._kind(source)]}
        given = [name for name, value in vars(self.options).items() if value is not None and name != "limit"]
        for name in given:
            if name not in used:
                kinds = " and ".join(kind for kind, names in OPTIONS_OF.items() if name in names)
                raise UserError(f"--{name.replace('_', '-')}: has no effect on these tasks, only on {kinds}")
        return tasks

    def _named(self, name: str, task: Task) -> Task:
        """The task under the name that its value gives it, if any."""
        if not name:
            return task
        if not isinstance(task, ChoiceTask | QuestionTask | DocumentTask):
            raise UserError(
                f"--tasks {name}:{task.name}: only a file or a folder can have another name; leave out {name}:"
            )
        return replace(task, name=name)

    def _kind(self, value: str) -> str:
        if value == GENERATIVE:
            return GENERATIVE
        if generator := find_generator(value):
            return "sudoku" if isinstance(generator, SudokuBoards) else "answers"
        path = Path(value)
        if (path / MANIFEST_NAME).is_file():
            return "documents"
        if path.is_file():
            return "choices" if isinstance(read_questions(path)[0], ChoiceQuestion) else "questions"
        if path.suffix:
            raise UserError(f"--tasks {value}: no such file")
        raise UserError(
            f"--tasks {value}: is not a task, a file or a prepared folder. Tasks are {KNOWN}, {GENERATIVE}, a file of questions "
            "(one JSON object with question and answer per line), and a prepared folder"
        )

    def _task(self, value: str) -> Task:
        match self._kind(value):
            case "sudoku":
                return self._sudoku(value)
            case "answers":
                question = find_generator(value)
                assert isinstance(question, (Arithmetic, Lookup))
                return AnswerTask(question, self._held_out(question, self._instances(value)))
            case "documents":
                return self._documents(Path(value))
            case "choices":
                return self._choices(Path(value))
            case "questions":
                return self._questions(Path(value))
        return self._generative()

    def _sudoku(self, value: str) -> SudokuTask:
        boards, given = find_generator(value), self.options.given or 0
        assert isinstance(boards, SudokuBoards)
        if given and not 0 < given < boards.length:
            raise UserError(f"--given {given}: {value} has {boards.length} cells, of which some must be left to fill")
        # Without given cells any text of the length will do.
        texts = self._instances(value) if given else [boards.text(0, 0)]
        count = self.options.limit or DEFAULT_SAMPLES
        return SudokuTask(boards, self._held_out(boards, texts), given, count, self.seed)

    def _held_out(self, generator: Generator, texts: Sequence[str]) -> HeldOut:
        """Instances that the model can hold and write.

        Raises:
            UserError: its rows are too short, or its tokenizer cannot write them.
        """
        if generator.length + 1 > self.seq_len:
            raise UserError(
                f"--tasks {generator.name}: has {generator.length + 1} tokens with the end of the document, more than the "
                f"{self.seq_len} of a row of the run; train with longer rows"
            )
        held_out = HeldOut(texts, self.tokenizer)
        try:
            _ = held_out.rows
        except UserError as error:
            raise UserError(f"--tasks {generator.name}: {error}") from None
        return held_out

    def _instances(self, name: str) -> list[str]:
        """The instances of a generator in the validation split, each once.

        Raises:
            UserError: there is none.
        """
        found: dict[str, None] = {}
        for corpus in self._require_blend(name).corpora:
            if self.split in corpus.manifest.splits and _has_inputs_of(name, corpus.manifest.inputs):
                documents = Documents(corpus.path, self.split)
                found |= dict.fromkeys(
                    text for text in map(documents.text, range(len(documents))) if _is_of(name, text)
                )
        if not found:
            raise UserError(
                f"--tasks {name}: the split {self.split!r} of {self._require_blend(name).path} has no {name}; with --data name a "
                f"folder that was prepared with --input {name}:COUNT"
            )
        return list(found)

    def _require_blend(self, name: str) -> Blend:
        if self.blend is None:
            raise UserError(
                f"--tasks {name}: the data of the run is not there; name the prepared folder with --data DIR"
            )
        return self.blend

    def _documents(self, folder: Path) -> DocumentTask:
        stride = self.options.stride or max(1, self.seq_len // 2)
        if stride > self.seq_len:
            raise UserError(f"--stride {stride}: a row has {self.seq_len} tokens")
        documents = documents_of(folder, self.split)
        return DocumentTask(
            folder.resolve().name, documents, stride, *self._likelihood(32), self.seq_len, self.tokenizer
        )

    def _likelihood(self, masks: int) -> tuple[str, int]:
        method = self.options.likelihood or "nelbo"
        if self.options.masks is not None and method != "nelbo":
            raise UserError(f"--masks: has no effect with --likelihood {method}")
        return method, self.options.masks or masks

    def _prompt(self) -> str:
        return DEFAULT_PROMPT if self.options.few_shot is None else read_prompt(self.options.few_shot)

    def _choices(self, path: Path) -> ChoiceTask:
        questions = read_questions(path)
        prompt = choice_prompt(self._prompt(), f"--few-shot {self.options.few_shot}")
        return ChoiceTask(path.stem, questions, prompt, *self._likelihood(128), self.seq_len, self.tokenizer)

    def _questions(self, path: Path) -> QuestionTask:
        until = DEFAULT_UNTIL if self.options.until is None else self.options.until
        length = self.options.answer_length or min(DEFAULT_ANSWER_LENGTH, self.seq_len // 2)
        questions = read_questions(path)
        return QuestionTask(path.stem, questions, self._prompt(), until, length, self.seq_len, self.tokenizer)

    def _generative(self) -> GenerativeTask:
        if self.options.scorer is None:
            raise UserError(
                f"--tasks {GENERATIVE}: give the folder of a Hugging Face causal language model with --scorer DIR"
            )
        check_scorer(self.options.scorer)
        blend = self._require_blend(GENERATIVE)
        if len(blend.corpora) > 1:
            raise UserError(
                f"--tasks {GENERATIVE}: {blend.path} mixes {len(blend.corpora)} corpora, and samples are compared with one; name "
                "the prepared folder to compare with by --data DIR"
            )
        corpus = blend.corpora[0]
        reference = PackedDataset(corpus.path, self.split, corpus.manifest)
        count = self.options.limit or min(DEFAULT_SAMPLES, reference.num_rows)
        if count > reference.num_rows:
            raise UserError(
                f"--limit {count}: the split {self.split!r} has only {reference.num_rows} rows to compare with"
            )
        if count < LEAST_SAMPLES:
            raise UserError(f"--limit {count}: a distance of distributions needs at least {LEAST_SAMPLES} samples")
        return GenerativeTask(self.options.scorer, reference, count, self.tokenizer)


def split_value(value: str) -> tuple[str, str]:
    """`gsm8k:test.jsonl` -> the name of the task, empty if none is given, and where it is.

    Raises:
        UserError: a name that cannot be part of the name of a file, or that is a task of its own.
    """
    name, colon, source = value.partition(":")
    if not colon or Path(value).exists():
        return "", value
    if name == GENERATIVE or find_generator(name):
        raise UserError(
            f"--tasks {value}: the instances of {name} are those of prepared data; write --tasks {name}, and --data DIR if it is "
            "not the data of the run"
        )
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"--tasks {value}: a name has only letters, digits, '_', '-' and '.'")
    return name, source


def untrained_task(value: str, run: Path, inputs: Sequence[InputInfo]) -> str:
    """A warning if a generated task is none of the inputs of the training data, else nothing."""
    if find_generator(value) is None or _has_inputs_of(value, inputs):
        return ""
    others = ", ".join(info.input for info in inputs[:SHOWN_INPUTS]) + ", ..." * (len(inputs) > SHOWN_INPUTS)
    return (
        f"warning: --tasks {value}: the data of {run} were not prepared with --input {value}:COUNT, but from {others}; a model "
        "that has not seen the format scores about 0"
    )


def _has_inputs_of(name: str, inputs: Sequence[InputInfo]) -> bool:
    wanted = find_generator(name)
    generators = [find_generator(info.input.partition(":")[0]) for info in inputs if info.kind == "generated"]
    return wanted is not None and any(each is not None and each.name == wanted.name for each in generators)


def _is_of(name: str, text: str) -> bool:
    """Whether a document is an instance of a generator: a folder may have several inputs."""
    generator = find_generator(name)
    return generator is not None and len(text) == generator.length and set(text) <= set(generator.alphabet)
