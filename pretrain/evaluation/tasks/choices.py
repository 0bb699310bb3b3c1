"""Multiple choice: the likeliest of some continuations, by likelihoods with the same random numbers for every choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_pipeline.tokenizers.tokenizers import PreparedTokenizer
from pretrain.errors import UserError
from pretrain.evaluation.likelihood import Text
from pretrain.evaluation.statistics import proportion
from pretrain.evaluation.tasks.questions import QUESTION
from pretrain.evaluation.tasks.rows import digest, nats_of_texts
from pretrain.evaluation.tasks.task import Record, TaskModel

CHOICE = "{choice}"


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with choices; `answer` is the index of the right one."""

    source: str
    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceTask:
    """Questions of a file.

    Attributes:
        name: of the file.
        prompt: as of `QuestionTask`, with `{choice}` at its end. Spaces before it are scored with the choice. Both are tokenized
            as one text; the tokens of the choice are those after as many as the prompt has alone, as in lm-eval.
        method, masks: see `nats_of_texts`.
    """

    name: str
    questions: Sequence[ChoiceQuestion]
    prompt: str
    method: str
    masks: int
    seq_len: int
    tokenizer: PreparedTokenizer
    metric: str = "accuracy"
    samples: bool = False

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Task`."""
        items = [[question.text, list(question.choices), question.answer] for question in self.questions]
        masks = {"masks": self.masks} if self.method == "nelbo" else {}
        return {
            "task": self.name,
            "prompt": self.prompt,
            "likelihood": self.method,
            **masks,
            "items_sha256": digest(items),
            "tokens_sha256": digest([[text.tokens.tolist() for text in texts] for texts in self._texts]),
        }

    @cached_property
    def sizes(self) -> Sequence[int]:
        """See `Task`."""
        return [max(len(text.tokens) for text in texts) for texts in self._texts]

    @cached_property
    def _texts(self) -> list[list[Text]]:
        """Every choice of every question after its prompt."""
        return [self._texts_of(question) for question in self.questions]

    @property
    def _space(self) -> str:
        """The spaces before a choice."""
        before = self.prompt.removesuffix(CHOICE)
        return before[len(before.rstrip(" ")) :]

    def _texts_of(self, question: ChoiceQuestion) -> list[Text]:
        prompt = self.prompt.removesuffix(CHOICE).rstrip(" ").replace(QUESTION, question.text)
        wholes = [prompt + self._space + choice for choice in question.choices]
        given, *encoded = (ids.tolist() for ids in self.tokenizer.encode_batch([prompt, *wholes]))
        choices = [ids[len(given) :] for ids in encoded]
        if not all(choices):
            raise UserError(
                f"{question.source}: the tokens of the choice {question.choices[choices.index([])]!r} are joined with those of "
                f"the prompt; put a space before {CHOICE}"
            )
        longest = len(given) + max(map(len, choices))
        if longest > self.seq_len:
            raise UserError(
                f"{question.source}: has {longest} tokens, more than the {self.seq_len} of a row; shorten it"
            )
        return [Text.after(given, choice) for choice in choices]

    def run(self, model: TaskModel, items: Sequence[int]) -> list[Record]:
        """See `Task`."""
        texts = [(item, text) for item in items for text in self._texts[item]]
        nats = nats_of_texts(model, [text for _, text in texts], [item for item, _ in texts], self.method, self.masks)
        found: dict[int, list[float]] = {item: [] for item in items}
        for (item, _), one in zip(texts, nats.tolist(), strict=True):
            found[item].append(one)
        return [self._record(item, np.array(of_item)) for item, of_item in found.items()]

    def _record(self, item: int, nats: np.ndarray) -> Record:
        question = self.questions[item]
        per_byte = nats / np.array([len(choice.encode()) for choice in question.choices])
        right = [float(scores.argmin() == question.answer) for scores in (nats, per_byte)]
        return {"item": item, "correct": right[0], "correct_per_byte": right[1], "nats": nats.tolist()}

    def figures(self, model: TaskModel, records: Sequence[Record]) -> dict[str, float | None]:
        """See `Task`. `accuracy_per_byte` divides a choice's nats by its bytes, as lm-eval's `acc_bytes`."""
        normalized = proportion("accuracy_per_byte", [record["correct_per_byte"] for record in records])
        return proportion("accuracy", self.values(records)) | normalized

    def values(self, records: Sequence[Record]) -> np.ndarray:
        """See `Task`."""
        return np.array([record["correct"] for record in records])


def choice_prompt(prompt: str, option: str) -> str:
    """The prompt with `{choice}` at its end, after a space if it has none.

    Raises:
        UserError: it has one elsewhere.
    """
    if CHOICE in prompt.removesuffix(CHOICE):
        raise UserError(f"{option}: {CHOICE} must be at the end, once")
    return prompt if prompt.endswith(CHOICE) else f"{prompt} {CHOICE}"


def choice_question(source: str, question: str, choices: object, answer: object) -> ChoiceQuestion:
    """A question of a file.

    Raises:
        UserError: fewer than two choices, one that is empty or no text, or an answer that is none of them.
    """
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f"{source}: choices must be a list of at least two texts")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise UserError(f"{source}: every choice must be a text that is not empty")
    index = choices.index(answer) if isinstance(answer, str) and answer in choices else answer
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
        raise UserError(
            f"{source}: answer must be one of the choices, or its index from 0 to {len(choices) - 1}, not {answer!r}"
        )
    return ChoiceQuestion(source, question, tuple(choices), index)
