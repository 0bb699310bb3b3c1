"""Generated tasks: what is drawn, how it is split, and the folder that `loopmdm prepare` makes of it."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.errors import DataError
from data_pipeline.generators.boards import EMPTY, Sudoku
from data_pipeline.generators.generator import below, permutation, words
from data_pipeline.generators.names import find_generator, parse_generated
from data_pipeline.generators.sudoku import ascending_boards
from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
from pretrain.cli import main as loopmdm
from tests.toy_denoisers import p_value


def test_every_4x4_board_is_found_once_and_drawn_equally_often():
    """Against all 2 x 2 boxes of permutations: 288 boards."""
    generator = find_generator("sudoku4")
    rows = list(itertools.permutations(range(4)))
    boards = {
        sum(four, ())
        for four in itertools.product(rows, repeat=4)
        if all(len(set(column)) == 4 for column in zip(*four, strict=True))
        and all(len({*four[r][c : c + 2], *four[r + 1][c : c + 2]}) == 4 for r in (0, 2) for c in (0, 2))
    }
    assert len(boards) == 288 and all(map(generator.sudoku.is_valid, boards))
    assert {tuple(board) for board in generator.sudoku.solutions([EMPTY] * 16)} == boards
    counts = Counter(generator.text(0, i) for i in range(6000))
    assert set(counts) == {generator.text_of(board) for board in boards}
    assert p_value(torch.tensor(list(counts.values())), torch.full((288,), 1 / 288, dtype=torch.float64)) > 1e-3


def test_all_6x6_boards_are_drawn_from():
    """28,200,960 boards exist, 6! of each first row."""
    generator = find_generator("sudoku6")
    assert len(ascending_boards(generator.sudoku)) * 720 == 28_200_960
    texts = [generator.text(3, i) for i in range(300)]
    assert all(generator.sudoku.is_valid(generator.board_of(text)) for text in texts) and len(set(texts)) == 300
    assert texts[7] == find_generator("sudoku6").text(3, 7) != generator.text(4, 7)
    first_cell = torch.tensor([sum(text[0] == digit for text in texts) for digit in generator.alphabet])
    assert p_value(first_cell, torch.full((6,), 1 / 6, dtype=torch.float64)) > 1e-3


@pytest.mark.parametrize(
    ("name", "same"), [("addition", "addition3"), ("multiplication", "multiplication2"), ("lookup", "lookup2")]
)
def test_a_name_without_a_number_is_a_usual_size(name, same):
    assert parse_generated(f"{name}:10") == parse_generated(f"{same}:10")
    assert parse_generated(f"{name}:10").generator.name == same


@pytest.mark.parametrize(("name", "given"), [("sudoku4", 4), ("sudoku6", 9), ("sudoku9", 30)])
def test_a_puzzle_has_one_solution(name, given):
    generator = find_generator(name)
    for index in range(3):
        board = generator.board_of(generator.text(0, index))
        assert generator.sudoku.is_valid(board)
        kept = generator.puzzle(board, given, 0, index)
        assert len(kept) >= given and kept == generator.puzzle(board, given, 0, index)
        partial = [symbol if cell in kept else EMPTY for cell, symbol in enumerate(board)]
        assert list(generator.sudoku.solutions(partial)) == [board]
    assert generator.board_of("0" * generator.length) is None and generator.board_of("1") is None


def test_what_is_no_board_has_no_solution():
    sudoku = Sudoku(2, 2)
    assert list(sudoku.solutions([0, 0] + [EMPTY] * 14)) == []
    assert not sudoku.is_valid([0] * 16) and not sudoku.is_valid([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("name", "sign", "result"), [("addition2", "+", int.__add__), ("multiplication2", "*", int.__mul__)]
)
def test_results_are_right_and_in_one_order(name, sign, result):
    generator = find_generator(name)
    texts = [generator.text(0, i) for i in range(5_000)]
    pairs = Counter()
    for text in texts:
        first, second, third = (int(part) for part in text.replace("=", sign).split(sign))
        assert len(text) == generator.length and result(first, second) == third and first <= second
        assert len(text.partition("=")[2]) == generator.answer_length
        pairs[first == second] += 1
    assert set("".join(texts)) == set(generator.alphabet) and "".join(sorted(generator.alphabet)) == generator.alphabet
    assert p_value(torch.tensor([pairs[False], pairs[True]]), torch.tensor([0.99, 0.01]).double()) > 1e-3


@pytest.mark.parametrize("hops", [1, 3])
def test_look_ups_follow_the_table(hops):
    generator = find_generator(f"lookup{hops}")
    texts = [generator.text(0, i) for i in range(2_000)]
    for text in texts:
        table, at, answer = text[:10], text[11], text[13]
        for _ in range(hops):
            at = table[int(at)]
        assert sorted(table) == list("0123456789") and at == answer and len(text) == generator.length
    assert set("".join(texts)) == set(generator.alphabet) and "".join(sorted(generator.alphabet)) == generator.alphabet
    for place in (0, 11, 13):  # the table, the start and the answer are uniform
        counts = torch.tensor([sum(text[place] == digit for text in texts) for digit in "0123456789"])
        assert p_value(counts, torch.full((10,), 0.1, dtype=torch.float64)) > 1e-3


def test_random_numbers():
    drawn = np.array([below(word, 10) for word in words(1, 2, 5000)])
    assert p_value(torch.from_numpy(np.bincount(drawn)), torch.full((10,), 0.1, dtype=torch.float64)) > 1e-3
    assert below(2**64 - 1, 3) == 2 and below(0, 3) == 0
    assert sorted(permutation(words(0, 0, 9))) == list(range(9))
    assert words(0, 1, 4).tolist() != words(0, 0, 8)[4:].tolist()


WRONG = {
    "sudoku5:10": "no generator 'sudoku5'; there are sudoku4, sudoku6, sudoku9, additionD and multiplicationD for D",
    "sudoku:10": "no generator 'sudoku'",
    "addition0:10": "no generator 'addition0'",
    "addition99:10": "no generator 'addition99'",
    "addition02:10": "no generator 'addition02'",
    "lookup0:10": "no generator 'lookup0'",
    "multiplication19:10": "no generator 'multiplication19'",
    "sudoku6:": "expected sudoku6:COUNT or sudoku6:COUNT@SEED",
    "sudoku6:1e5": "expected sudoku6:COUNT",
    "sudoku6:0": "the count must be from 1 to",
    "sudoku6:-3": "expected sudoku6:COUNT",
    "sudoku6:3@x": "expected sudoku6:COUNT",
    f"sudoku6:3@{2**63}": "the seed must be below 2^63",
}


@pytest.mark.parametrize("value", WRONG)
def test_what_names_no_instances_is_refused(value):
    with pytest.raises(DataError) as caught:
        parse_generated(value)
    assert str(caught.value).startswith(f"--input {value}: ") and WRONG[value] in str(caught.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Boards of 4x4 as a folder: more documents than boards."""
    folder = tmp_path_factory.mktemp("sudoku4") / "data"
    words = ["prepare", "--input", "sudoku4:600@5", "--output", str(folder), "--validation-fraction", "0.1"]
    assert loopmdm([*words, "--workers", "1"]) == 0
    return folder


def texts_of(folder, split):
    manifest = load_manifest(folder)
    tokenizer, dataset = load_prepared_tokenizer(folder, manifest), PackedDataset(folder, split)
    return [tokenizer.decode(row) for row in dataset.rows(np.arange(dataset.num_rows))]


def test_a_prepared_folder_of_boards(prepared):
    manifest = load_manifest(prepared)
    assert (manifest.vocab_size, manifest.tokenizer.eod_id, manifest.tokenizer.mask_id, manifest.seq_len) == (
        6,
        4,
        5,
        17,
    )
    train, validation = texts_of(prepared, "train"), texts_of(prepared, "validation")
    expected = [f"{find_generator('sudoku4').text(5, i)}<|eod|>" for i in range(600)]
    assert Counter(train + validation) == Counter(expected)
    assert validation and not set(train) & set(validation)
    assert manifest.inputs[0].model_dump(exclude={"digest"}) == {
        "input": "sudoku4:600@5", "kind": "generated", "files": 0, "bytes": 0, "documents": 600, "tokens": 10_200,
        "rejected": {},
    }  # fmt: skip


def test_the_same_command_has_nothing_to_do_and_another_seed_is_told(prepared, capsys):
    words = ["prepare", "--output", str(prepared), "--validation-fraction", "0.1", "--input"]
    assert loopmdm([*words, "sudoku4:600@5"]) == 0 and "nothing to do" in capsys.readouterr().out
    assert loopmdm([*words, "sudoku4:600@6"]) == 2
    assert "already prepared, but from the inputs sudoku4:600@5" in capsys.readouterr().err
    assert loopmdm([*words, "sudoku4x:600"]) == 2
    assert "no such file or folder; the generators are sudoku4" in capsys.readouterr().err


def test_tasks_share_a_vocabulary_and_a_character_without_a_token_is_named(tmp_path, capsys):
    words = [
        "prepare",
        "--input",
        "sudoku4:40",
        "addition2:40",
        "--output",
        str(tmp_path / "both"),
        "--pack",
        "best_fit",
    ]
    assert loopmdm([*words, "--validation-fraction", "0", "--workers", "2"]) == 0
    manifest = load_manifest(tmp_path / "both")
    assert manifest.vocab_size == 14 and manifest.seq_len == 17
    tokenizer = load_prepared_tokenizer(tmp_path / "both", manifest)
    with pytest.raises(DataError, match=r"tokenizer.json: has no token for 'ab'"):
        tokenizer.encode_batch(["12", "1a2b"])
    (tmp_path / "a.txt").write_text("1a")
    words = ["prepare", "--input", str(tmp_path / "a.txt"), "--tokenizer", str(tmp_path / "both"), "--seq-len", "2"]
    capsys.readouterr()
    assert loopmdm([*words, "--output", str(tmp_path / "text"), "--validation-fraction", "0", "--workers", "1"]) == 2
    assert "has no token for 'a'" in capsys.readouterr().err
