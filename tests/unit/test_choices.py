"""Multiple choice: likelihoods, tokens and bytes of the choices."""

import numpy as np
import pytest

from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
from pretrain.errors import UserError
from pretrain.evaluation.likelihood import Text, chain_rule
from pretrain.evaluation.tasks.choices import ChoiceQuestion, ChoiceTask, choice_prompt
from pretrain.evaluation.tasks.runner import run_task
from tests.exports import make_run
from tests.toy_denoisers import HashedDenoiser
from tests.toy_tasks import toy_model, toy_tokenizer

LETTERS = "".join(chr(code) for code in range(32, 127)) + "\n"


@pytest.fixture
def letters(tmp_path):
    return toy_tokenizer(tmp_path, LETTERS)


@pytest.mark.parametrize("method", ["nelbo", "left-to-right", "any-order"])
def test_choices_by_likelihood(world, letters, method):
    """Exactly as the likelihoods of the choices say, and the same with other questions beside them."""
    questions = [ChoiceQuestion(f"f:{i}", f"{i}?", ("ab", "c", "dea"), i % 3) for i in range(6)]
    task = ChoiceTask("f", questions, "{question} {choice}", method, 64, 64, letters)
    model = toy_model(world, letters, HashedDenoiser(letters.vocab_size - 1))
    records = run_task(task, model, range(6), None, print)
    figures = task.figures(model, records)
    for record, question in zip(records, questions, strict=True):
        texts = [
            Text.after(*(ids.tolist() for ids in letters.encode_batch([question.text, f" {choice}"])))
            for choice in question.choices
        ]
        if method == "left-to-right":
            assert record["nats"] == pytest.approx(chain_rule(model.scorer, texts).tolist(), rel=1e-6)
        assert record["correct"] == float(np.argmin(record["nats"]) == question.answer)
        per_byte = np.array(record["nats"]) / [2, 1, 3]
        assert record["correct_per_byte"] == float(np.argmin(per_byte) == question.answer)
    assert figures["accuracy"] == np.mean([record["correct"] for record in records])
    assert run_task(task, model, [4], None, print) == [records[4]]
    assert task.settings != ChoiceTask("f", questions[:5], "{question} {choice}", method, 64, 64, letters).settings


def test_bytes_of_choices_are_without_the_space_before_them(letters):
    task = ChoiceTask(
        "f", [ChoiceQuestion("f:1", "1?", ("ab", "c"), 0)], "{question} {choice}", "nelbo", 1, 64, letters
    )
    record = task._record(0, np.array([2.4, 1.4]))
    assert (record["correct"], record["correct_per_byte"]) == (0, 1) and task.sizes is task.sizes


def test_choices_are_tokenized_with_their_prompt(tmp_path):
    """A tokenizer that adds a space before every text, as Llama's, adds none before a choice."""
    tokenizer = toy_tokenizer(tmp_path, LETTERS, normalizer={"type": "Prepend", "prepend": " "})
    question = ChoiceQuestion("f:1", "1?", ("ab", "c"), 0)
    task = ChoiceTask("f", [question], "{question} {choice}", "nelbo", 1, 64, tokenizer)
    assert [tokenizer.decode(text.tokens) for text in task._texts[0]] == [" 1? ab", " 1? c"]
    assert [tokenizer.decode(text.tokens[text.targets]) for text in task._texts[0]] == [" ab", " c"]


def test_a_choice_that_is_joined_with_its_prompt_is_refused(tmp_path):
    folder = make_run(tmp_path / "run") / "tokenizer"
    tokenizer = load_prepared_tokenizer(folder, load_manifest(folder))
    pairs = [f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij"]
    pair = next(p for p, ids in zip(pairs, tokenizer.encode_batch(pairs), strict=True) if len(ids) == 1)
    question = ChoiceQuestion("f:1", pair[0], ("\n", pair[1]), 0)
    task = ChoiceTask("f", [question], "{question}{choice}", "nelbo", 1, 64, tokenizer)
    with pytest.raises(
        UserError, match=rf"^f:1: the tokens of the choice '{pair[1]}' are joined with those of the prompt"
    ):
        _ = task.sizes


def test_prompts_of_choices(letters):
    assert choice_prompt("Q: {question} A:", "o") == "Q: {question} A: {choice}"
    assert choice_prompt("{question}={choice}", "o") == "{question}={choice}"
    with pytest.raises(UserError, match=r"^--few-shot f: {choice} must be at the end, once"):
        choice_prompt("{choice} {question} {choice}", "--few-shot f")
    question = ChoiceQuestion("f:1", "1 {choice}", ("ab", "c"), 0)
    for prompt, given, scored in (
        ("{question}={choice}", "1 {choice}=", "c"),
        ("{question}  {choice}", "1 {choice}", "  c"),
    ):
        text = ChoiceTask("f", [question], prompt, "nelbo", 4, 64, letters)._texts[0][1]
        assert letters.decode(text.tokens) == given + scored and len(text.targets) == len(scored)
