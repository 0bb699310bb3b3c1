"""Tasks against what the toy network's distribution says, and files of questions."""

import json
import math
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_pipeline.generators.names import find_generator
from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
from pretrain.errors import UserError
from pretrain.evaluation.distribution import kernel_distance, repetition, token_entropy
from pretrain.evaluation.item_files import ItemFile
from pretrain.evaluation.likelihood import Text, chain_rule
from pretrain.evaluation.statistics import ratio_and_error
from pretrain.evaluation.tasks.choices import ChoiceQuestion, ChoiceTask
from pretrain.evaluation.tasks.documents import Documents, DocumentTask
from pretrain.evaluation.tasks.generated import AnswerTask, HeldOut, SudokuTask
from pretrain.evaluation.tasks.names import untrained_task
from pretrain.evaluation.tasks.question_file import read_prompt, read_questions
from pretrain.evaluation.tasks.questions import Question, QuestionTask, last_number
from pretrain.evaluation.tasks.report import format_task
from pretrain.evaluation.tasks.rows import answer_row
from pretrain.evaluation.tasks.runner import chosen_items, run_task
from pretrain.proportions import with_error
from tests.toy_denoisers import HashedDenoiser
from tests.toy_tasks import toy_model, toy_tokenizer

LETTERS = "".join(chr(code) for code in range(32, 127)) + "\n"


class Dictated:
    """Puts its probability on the tokens of given rows: logits of the row that agrees with the unmasked tokens."""

    def __init__(self, rows, mask_id, vocabulary):
        self.rows, self.mask_id, self.vocabulary = rows, mask_id, vocabulary

    def __call__(self, query):
        logits = torch.zeros(*query.tokens.shape, self.vocabulary)
        for number, tokens in enumerate(query.tokens):
            for row in map(torch.tensor, self.rows):
                if len(row) == len(tokens) and ((tokens == self.mask_id) | (tokens == row)).all():
                    logits[number, torch.arange(len(row)), row] = 30.0
                    break
        return logits.flatten(0, 1)[query.positions]


@pytest.fixture
def letters(tmp_path):
    return toy_tokenizer(tmp_path, LETTERS)


def run(task, model, items=None, kept=None):
    records = run_task(task, model, items or range(len(task.sizes)), kept, lambda line: None)
    return task.figures(model, records), records


@pytest.mark.parametrize(
    ("text", "number"),
    [("it is 1,234.50 dollars", "1234.5"), ("3 + 4 = 7.", "7"), ("#### -12", "-12"), ("18.0", "18"), ("x .5", "0.5"),
     ("1,000", "1000"), ("none", None), ("9-3", "-3"), ("-$12", "-12"), ("$-1,250.00", "-1250"), ("\u22127", "-7"),
     ("1,2,3", "3"), ("x=3,y=12,345", "12345"), ("12,3456", "3456"), ("-0", "0"), ("12 $", "12"), ("1,234,", "1234"),
     ("12,34,567", "1234567"), ("$3-$5", "5"), ("10\u22123", "3"), ("3 - $5", "5")],
)  # fmt: skip
def test_the_last_number(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_long_numbers_are_compared_to_their_last_digit():
    """Products of numbers of 20 digits have 40."""
    digits = "1234567890" * 4
    assert last_number(f"= {digits}") == last_number(f"{digits}.0") != last_number(digits[:-1] + "1")
    assert str(last_number(f"{digits[:-1]}1")) == digits[:-1] + "1"


def test_questions_are_right_when_the_last_number_is(world, letters):
    questions = [
        Question("f:1", "2+2?", "so it is #### 4"), Question("f:2", "3+3?", "#### 6"), Question("f:3", "1+1?", "#### 2"),
    ]  # fmt: skip
    task = QuestionTask("f", questions, "Q: {question} A:", ("Q:",), 20, 64, letters)
    answers = [" first 1, then 4. Q: 5+5? A: 10", " 7", " I do not know"]
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        ids = letters.encode_batch([f"Q: {question.text} A:{answer}"])[0].tolist()
        rows.append((ids + [letters.eod_id] * 32)[:32])
    model = toy_model(
        world, letters, Dictated(rows, letters.mask_id, letters.vocab_size), temperature=0.0, sampler="left_to_right"
    )
    figures, records = run(task, model)
    assert figures["exact_match"] == pytest.approx(1 / 3) and figures["with_a_number"] == pytest.approx(2 / 3)
    assert figures["exact_match_se"] == pytest.approx(1 / 3)
    assert [record["answer"] for record in records] == [" first 1, then 4. ", " 7", " I do not know"]
    assert all(size % 32 == 0 for size in task.sizes)


def test_a_prompt_that_leaves_no_room_is_named(letters):
    assert len(answer_row([1] * 10, 20, 64, 9, "f:1")) == 32 and len(answer_row([1] * 50, 5, 60, 9, "f:1")) == 60
    task = QuestionTask("f", [Question("f:7", "x" * 50, "1")], "{question}", (), 20, 64, letters)
    with pytest.raises(
        UserError, match=r"^f:7: the prompt has 50 tokens, which leaves less than 20 of the 64 of a row"
    ):
        _ = task.sizes
    choices = ChoiceTask(
        "f", [ChoiceQuestion("f:8", "x", ("a", "b" * 80), 0)], "{question} {choice}", "nelbo", 4, 64, letters
    )
    with pytest.raises(UserError, match=r"^f:8: has 82 tokens, more than the 64 of a row"):
        _ = choices.sizes


@pytest.fixture(scope="module")
def boards():
    return find_generator("sudoku4")


def test_sudoku_from_nothing_and_from_given_cells(world, boards, tmp_path):
    tokenizer = toy_tokenizer(tmp_path, boards.alphabet)
    texts = [boards.text(0, i) for i in range(4)]
    rows = HeldOut(texts, tokenizer).rows
    network = Dictated(rows[:3], tokenizer.mask_id, tokenizer.vocab_size - 1)
    model = toy_model(world, tokenizer, network, temperature=0.0)
    from_nothing = SudokuTask(boards, HeldOut(texts[:1], tokenizer), 0, 5, 0)
    figures, records = run(from_nothing, model)
    interval = {"valid_boards_low": pytest.approx(0.5655175), "valid_boards_high": 1.0}
    assert figures == {"valid_boards": 1.0, "valid_boards_se": 0.0, **interval}
    assert {r["board"] for r in records} == {texts[0]}
    task = SudokuTask(boards, HeldOut(texts, tokenizer), 5, 0, 0)
    figures, records = run(task, model)
    assert task.name == "sudoku4_given_5" and [record["exact"] for record in records[:3]] == [1.0, 1.0, 1.0]
    assert figures["exact_solutions"] == pytest.approx(np.mean([record["exact"] for record in records]))
    assert figures["given_cells"] >= 5 and figures["valid_boards_se"] is not None
    random = toy_model(world, tokenizer, HashedDenoiser(4), seed=1)
    assert run(SudokuTask(boards, HeldOut(texts[:1], tokenizer), 0, 40, 0), random)[0]["valid_boards"] < 0.2


@pytest.mark.parametrize("name", ["addition2", "multiplication2", "lookup3"])
def test_answers(world, tmp_path, name):
    question = find_generator(name)
    tokenizer = toy_tokenizer(tmp_path, question.alphabet)
    texts = [question.text(0, i) for i in range(4)]
    held_out = HeldOut(texts, tokenizer)
    row = held_out.rows[2]
    answer = row[-2]
    other = [*row[:-2], (answer + 1) % 10, row[-1]]  # the last character of the third answer is wrong
    rows = [*held_out.rows[:2], other, held_out.rows[3]]
    model = toy_model(world, tokenizer, Dictated(rows, tokenizer.mask_id, tokenizer.vocab_size - 1), temperature=0.0)
    figures, records = run(AnswerTask(question, held_out), model)
    assert [record["correct"] for record in records] == [1.0, 1.0, 0.0, 1.0]
    interval = {"exact_answers_low": pytest.approx(0.3006418), "exact_answers_high": pytest.approx(0.9544127)}
    assert figures == {"exact_answers": 0.75, "exact_answers_se": pytest.approx(0.25), **interval}
    given = question.length - question.answer_length
    assert records[2]["text"][:given] == texts[2][:given] and texts[2][given - 1] in "=>"


def test_a_tokenizer_that_joins_characters_is_refused(corpus):
    tokenizer = load_prepared_tokenizer(corpus, load_manifest(corpus))
    with pytest.raises(UserError, match=r"'aaaa bbbb' has \d tokens for 9 characters: the tokenizer of the run joins"):
        _ = HeldOut(["aaaa bbbb"], tokenizer).rows


def test_characters_without_a_token_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"^'1234': .*tokenizer.json: has no token for '34'; .*; train on a folder that was"
    ):
        _ = HeldOut(["1234"], toy_tokenizer(tmp_path, "12")).rows
    with_unknown = SimpleNamespace(
        eod_id=9,
        encode_batch=lambda texts: [np.zeros(len(text), int) for text in texts],
        decode=lambda ids: "?" * len(ids),
    )
    with pytest.raises(
        UserError, match=r"^'1234': the tokenizer of the run turns it into '\?\?\?\?'; train on a folder"
    ):
        _ = HeldOut(["1234"], with_unknown).rows


def test_inputs_of_training_that_are_other_tasks():
    inputs = [
        SimpleNamespace(kind="generated", input="sudoku6:99@3"),
        *[SimpleNamespace(kind="file", input="sudoku4:x")] * 3,
    ]
    assert untrained_task("sudoku6", Path("r"), inputs) == untrained_task("q.jsonl", Path("r"), inputs) == ""
    expected = (
        "warning: --tasks sudoku4: the data of r were not prepared with --input sudoku4:COUNT, but from sudoku6:99@3, "
    )
    assert untrained_task("sudoku4", Path("r"), inputs).startswith(f"{expected}sudoku4:x, sudoku4:x, ...; a model")


@pytest.mark.parametrize("retokenized", [False, True])
def test_perplexity_of_documents(world, short_documents, tmp_path, retokenized):
    """Windows of 8 tokens, against the chain rule over each window; once with another tokenizer than the folder's."""
    own = load_prepared_tokenizer(short_documents, load_manifest(short_documents))
    tokenizer = toy_tokenizer(tmp_path, "abcdefghij ") if retokenized else own
    task = DocumentTask("d", Documents(short_documents, "validation"), 4, "left-to-right", 1, 8, tokenizer)
    model = toy_model(world, tokenizer, HashedDenoiser(tokenizer.vocab_size - 1), seq_len=8)
    figures, records = run(task, model, list(range(12)))
    texts = [task.documents.text(i) for i in range(12)]
    for record, text in zip(records, texts, strict=True):
        ids = [*tokenizer.encode_batch([text])[0].tolist(), tokenizer.eod_id]
        assert record["tokens"] == len(ids) and record["bytes"] == len(text)
        total, start = 0.0, 0
        for stop in [*range(8, len(ids), 4), len(ids)] if len(ids) > 8 else [len(ids)]:
            first = max(0, stop - 8)
            total += chain_rule(
                model.scorer, [Text(np.array(ids[first:stop]), np.arange(start - first, stop - first))]
            )[0]
            start = stop
        assert record["nats"] == pytest.approx(total, rel=1e-6)
    nats, tokens, size = (sum(record[key] for record in records) for key in ("nats", "tokens", "bytes"))
    assert figures["nats_per_token"] == pytest.approx(nats / tokens)
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert figures["perplexity"] == pytest.approx(math.exp(nats / tokens)) and figures["nats_per_token_se"] > 0
    assert task.values(records).mean() == pytest.approx(figures["bits_per_byte"])


def test_error_of_a_ratio_is_its_spread():
    rng = np.random.default_rng(0)
    ratios, errors = [], []
    for _ in range(2000):
        by = rng.integers(5, 50, 60).astype(float)
        ratio, error = ratio_and_error(by * 2 + rng.normal(0, by), by)
        ratios.append(ratio)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.05) and np.mean(ratios) == pytest.approx(2, rel=0.01)


def test_a_ratio_of_nothing_is_none():
    zeros = np.zeros(3)
    assert np.isnan(ratio_and_error(zeros, zeros)).all()
    assert with_error(*ratio_and_error(zeros, zeros)) == with_error(math.nan, None, (0, 1), "+") == "none"


def test_a_stopped_task_goes_on(world, letters, tmp_path):
    """Items that were done are not put to the model again; a line that was cut off is done again."""
    questions = [ChoiceQuestion(f"f:{i}", f"{i}?", ("ab", "c"), 0) for i in range(25)]
    task = ChoiceTask("f", questions, "{question} {choice}", "nelbo", 3, 64, letters)
    model = toy_model(world, letters, HashedDenoiser(letters.vocab_size - 1), batch_size=5)
    settings = {"a": 1}
    whole = run(task, model, kept=ItemFile(tmp_path, "s", settings))[1]
    content = (tmp_path / "s.items.jsonl").read_text()
    assert content.count('"item"') == 25 and content.count('"spent"') == 3
    kept_lines = content.splitlines(keepends=True)[:12]
    (tmp_path / "s.items.jsonl").write_text("".join(kept_lines) + '{"item": 24, "cor')
    again, asked = ItemFile(tmp_path, "s", settings), []
    assert len(again.records) == 10 and len(again.spent) == 1
    watched = SimpleNamespace(
        name="w", sizes=task.sizes, run=lambda model, items: asked.extend(items) or task.run(model, items)
    )
    assert run_task(watched, model, range(25), again, print) == whole and len(asked) == 15
    assert len(ItemFile(tmp_path, "s", settings).records) == 25
    other = ItemFile(tmp_path, "s", {"a": 2})
    assert other.path.name == "s_2.items.jsonl" and not other.records


def test_answers_may_have_line_separators(tmp_path):
    records = [{"item": 0, "answer": "a\u2028b\u2029c\x85d"}, {"item": 1, "answer": "e"}]
    ItemFile(tmp_path, "s", {}).add(records, [1.0])
    again = ItemFile(tmp_path, "s", {})
    assert list(again.records.values()) == records and again.path.name == "s.items.jsonl"


def test_the_sizes_of_a_task_are_asked_for_once(world, letters):
    """They may be made anew whenever they are asked for."""

    class Counted:
        name, asked = "w", 0

        @property
        def sizes(self):
            self.asked += 1
            return [3, 1, 2, 1]

        def run(self, model, items):
            return [{"item": item} for item in items]

    task = Counted()
    records = run_task(task, toy_model(world, letters, None, batch_size=1), range(4), None, print)
    assert [record["item"] for record in records] == [0, 1, 2, 3] and task.asked == 1


def test_a_folder_that_cannot_be_written_keeps_items_in_memory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    kept = ItemFile(tmp_path / "file" / "eval", "s", {})
    kept.add([{"item": 3}], [1.0])
    assert kept.path is None and kept.records == {3: {"item": 3}} and kept.spent == [[1.0]]


def test_items_are_spread_evenly():
    assert chosen_items(10, None) == list(range(10)) == chosen_items(10, 99)
    assert chosen_items(10, 3) == [0, 3, 6] and chosen_items(0, 5) == []


WRONG_QUESTIONS = {
    "": "has no question; write one JSON object per line",
    "x": r"1: is not JSON",
    "[" * 100_000: r"1: is not JSON",
    "[1]": r'1: must be an object such as {"question"',
    '{"question": "a"}': "1: has no key 'answer'",
    '{"question": 3, "answer": "1"}': "1: question must be a text, not int",
    '{"question": "a", "answer": "none"}': "1: the answer has no number",
    '{"question": "a", "answer": "#### 1/2"}': "1: only '2' of the answer '1/2' would be compared; write it as a decimal number",
    '{"question": "a", "answer": "10 / 4"}': "only '4' of the answer '10 / 4' would be compared",
    '{"question": "a", "answer": "1.5e-5"}': "only '-5' of the answer '1.5e-5' would be compared",
    '{"question": "a", "answer": "2e+5 m"}': "only '5' of the answer '2e+5' would be compared",
    '{"question": "a", "answer": "at 2:30"}': "only '30' of the answer '2:30' would be compared",
    '{"question": "a", "answer": "10^5"}': "only '5' of the answer '10^5' would be compared",
    '{"question": "a", "answer": "1"}\n\n{"question": "a", "answer": "1", "choices": []}': "3: has choices, unlike the first",
    '{"question": "a", "answer": 0, "choices": ["x"]}': "1: choices must be a list of at least two texts",
    '{"question": "a", "answer": 0, "choices": ["x", ""]}': "1: every choice must be a text that is not empty",
    '{"question": "a", "answer": 2, "choices": ["x", "y"]}': "1: answer must be one of the choices, or its index from 0 to 1",
    '{"question": "a", "answer": true, "choices": ["x", "y"]}': "1: answer must be one of the choices",
    '{"question": "\\ud800", "answer": "1"}': "1: question has half of a surrogate pair",
}  # fmt: skip


@pytest.mark.parametrize(
    "content", WRONG_QUESTIONS, ids=lambda content: content[:40].encode("ascii", "replace").decode()
)
def test_wrong_files_of_questions(content, tmp_path):
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(UserError) as caught:
        read_questions(tmp_path / "q.jsonl")
    assert f"{tmp_path}/q.jsonl" in str(caught.value) and WRONG_QUESTIONS[content] in str(caught.value)


def test_files_of_questions(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a", "answer": "x #### 5"}\r\n\r\n{"question": "b", "answer": "6"}')
    assert [(q.source, q.text) for q in read_questions(path)] == [(f"{path}:1", "a"), (f"{path}:3", "b")]
    path.write_text(json.dumps({"question": "a", "choices": ["x", "y"], "answer": "y"}))
    assert read_questions(path)[0].answer == 1
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"--tasks .*q.jsonl: byte 0xff at position 0 is not UTF-8"):
        read_questions(path)
    path.write_text("no place for it")
    with pytest.raises(UserError, match=r"--few-shot .*: has 0 times {question}; write it once"):
        read_prompt(path)
    path.write_text("Q: 1+1? A: 2\nQ: {question} A:\n")
    assert read_prompt(path) == "Q: 1+1? A: 2\nQ: {question} A:"


def test_kernel_distance():
    """0 on average for equal distributions, and its error is its spread; clearly positive for others."""
    rng = np.random.default_rng(0)
    same = [kernel_distance(rng.normal(size=(40, 6)), rng.normal(size=(40, 6))) for _ in range(300)]
    values, errors = np.array(same).T
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(300)
    assert 0.7 * values.std() < errors.mean() < 3 * values.std()
    other = [kernel_distance(rng.normal(size=(40, 6)), rng.normal(0.8, 1, (40, 6))) for _ in range(200)]
    values, errors = np.array(other).T
    assert values.min() > 0 and errors.mean() == pytest.approx(values.std(), rel=0.25)
    collapsed = kernel_distance(np.repeat(rng.normal(size=(1, 6)), 40, axis=0), rng.normal(size=(40, 6)))
    assert collapsed[0] > 3 * collapsed[1]


def test_entropy_and_repetition():
    assert token_entropy([1, 1, 2, 2]) == pytest.approx(math.log(2)) and token_entropy([5]) == 0
    assert repetition([1, 2, 3, 4, 5]) == 0 and repetition([1] * 13) == pytest.approx(0.9) and repetition([1, 2]) == 0


def test_a_table():
    rows = [
        {"loops": 1, "accuracy": 0.5, "accuracy_se": 0.1, "change_from_first": 0.0, "change_from_first_se": 0.0},
        {"loops": 4, "accuracy": 0.75, "accuracy_se": None, "change_from_first": 0.25, "change_from_first_se": 0.05,
         "compared": {"accuracy": 0.6, "accuracy_se": 0.1, "difference": 0.15, "difference_se": 0.07}},
    ]  # fmt: skip
    rows[0]["compared"] = rows[1]["compared"]
    table = format_task({"task": "t", "metric": "accuracy", "items": 1234, "loops": rows}, ["other, step 5"])
    assert table.splitlines() == [
        "t: 1,234 items",
        "S=1    accuracy 0.5000 ± 0.1000",
        "       accuracy of other, step 5: 0.6000 ± 0.1000; this run minus it: +0.1500 ± 0.0700",
        "S=4    accuracy 0.7500",
        "       accuracy against S=1: +0.2500 ± 0.0500",
        "       accuracy of other, step 5: 0.6000 ± 0.1000; this run minus it: +0.1500 ± 0.0700",
    ]
