"""`loopmdm inspect`: what is shown is what is stored and what training would see."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dataset.blend import load_blend
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.dataset.samples import Samples
from data_pipeline.manifest import load_manifest
from data_pipeline.packing.shuffled import document_order
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
from model.noise import masks
from pretrain.cli import main
from pretrain.inspection.pieces import pieces_of
from tests.launching import ROOT


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory) -> Path:
    """Documents of every kind of character, whole in rows of 64."""
    base = tmp_path_factory.mktemp("inspected")
    texts = ['<b>bold</b> & "quoted"\tTab\r\n漢字 🙂 naïve ▁ ' + "abc def " * i for i in range(60)]
    (base / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = [
        "--input",
        str(base / "text.jsonl"),
        "--output",
        str(base / "data"),
        "--seq-len",
        "64",
        "--pack",
        "best_fit",
    ]
    assert main(["prepare", *words, "--tokenizer", str(corpus / "tokenizer.model"), "--workers", "1"]) == 0
    return base / "data"


def inspect(capsys, *words) -> str:
    capsys.readouterr()
    assert main(["inspect", *map(str, words)]) == 0
    return capsys.readouterr().out


class Page(HTMLParser):
    """Tags in order, which must close; text and draws of the tokens of every row."""

    VOID = ("meta", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.links, self.kind, self.text = [], [], [], "", ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [value for name, value in attributes.items() if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)
        if attributes.get("class") == "row":
            self.rows.append([])
        if tag == "i" and "data-u" in attributes:
            self.rows[-1].append((float(attributes["data-u"]), int(attributes.get("data-n", 1))))

    def handle_startendtag(self, tag, attributes):
        assert tag == "line"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


@given(st.text(max_size=60))
@settings(max_examples=80, deadline=None)
def test_pieces_are_the_whole_text_and_none_is_half_a_character(corpus, text):
    manifest = load_blend(corpus).manifest
    tokenizer = load_prepared_tokenizer(corpus, manifest)
    if text.encode("utf-8", "replace").decode() != text:
        return  # half of a surrogate pair is not valid text
    ids = [*tokenizer.encode_batch([text])[0].tolist(), manifest.tokenizer.eod_id]
    draws = np.random.default_rng(0).random(len(ids))
    pieces = pieces_of(tokenizer, ids, draws)
    assert "".join(piece.text for piece in pieces) == text + "<|eod|>"
    assert sum(piece.tokens for piece in pieces) == len(ids)
    assert [piece.special for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    starts = np.cumsum([0] + [piece.tokens for piece in pieces])
    assert [p.draw for p in pieces] == [draws[a:b].min() for a, b in pairwise(starts)]


def test_terminal_shows_documents_rows_boundaries_and_counts(folder, capsys):
    out = inspect(capsys, folder, "--row", 3, "--documents", 1, "--max-tokens", 64)
    dataset = PackedDataset(folder, "train")
    documents = int(dataset.document_ids(np.array([3])).max()) + 1
    assert out.count("┌ document ") == 2 * documents  # clean and masked
    real = int(dataset.lengths(np.array([3]))[0])
    assert f"row 3 of {dataset.num_rows} in train: {real} tokens, {64 - real} padding" in out
    assert "<b>bold</b>" in out and "漢字 🙂" in out and "→Tab␍↵" in out and "<|eod|>" in out
    assert "best_fit rows of 64" in out and "masked at t = 0.5" in out and "text.jsonl" in out and "100.0%" in out
    assert "\x1b" not in out
    lengths = dataset.manifest.splits["train"]
    table = [
        int(n.replace(",", "")) for n in re.findall(r"^[\d,]+(?: to [\d,]+)? +([\d,]+) +[\d.]+%", out, re.MULTILINE)
    ]
    assert sum(table) == lengths.documents


def test_sources_share_tokens_or_documents_where_those_were_not_counted(folder, tmp_path, capsys):
    assert "share of tokens" in inspect(capsys, folder)
    older = shutil.copytree(folder, tmp_path / "older")
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["inputs"][0]["tokens"]
    (older / "manifest.json").write_text(json.dumps(manifest))
    assert "share of documents" in inspect(capsys, older)


@pytest.mark.parametrize("timestep", [0, 0.3, 1])
def test_masks_are_those_of_training(corpus, capsys, timestep):
    """A row of one-character tokens would be easy; here the blocks are counted through the page's draws."""
    page = corpus.parent / "page.html"
    inspect(capsys, corpus, "--sample", 11, "--sample", 4, "--seed", 7, "--html", page, "--t", timestep)
    source = Samples.of(load_blend(corpus), 7)
    expected = masks(7, np.array([11, 4]), np.full((2, source.rows(np.array([11])).shape[1]), timestep))
    for row, masked, sample in zip(Page(page.read_text()).rows, expected, (11, 4), strict=True):
        starts = np.cumsum([0] + [tokens for _, tokens in row])
        assert starts[-1] == len(masked)
        # The page has six digits of a draw.
        sure = [(draw < timestep, a, b) for (draw, _), a, b in zip(row, starts, starts[1:], strict=False)]
        assert [on for on, *_ in sure] == [bool(masked[a:b].any()) for _, a, b in sure]
        assert str(source.locate(np.array([sample]))[1][0]) in Page(page.read_text()).text


@pytest.mark.parametrize("timestep", [0, 0.2, 1])
def test_the_terminal_masks_the_same_tokens(corpus, capsys, timestep):
    """Blocks as wide as the text that they hide."""
    out = inspect(capsys, corpus, "--row", 9, "--documents", 0, "--t", timestep)
    manifest, index = load_blend(corpus).manifest, np.array([9])
    ids = PackedDataset(corpus, "train").rows(index)[0]
    masked = masks(0, index, np.full((1, len(ids)), timestep))[0]
    tokenizer = load_prepared_tokenizer(corpus, manifest)
    hidden = sum(len(tokenizer.decode([token])) for token in ids[masked].tolist())
    assert out.count("░") == hidden and (hidden > 0) == (timestep > 0)


def test_the_page_is_whole_and_needs_nothing_else(folder, tmp_path, capsys):
    dataset = PackedDataset(folder, "train")
    padded = int(dataset.lengths(np.arange(dataset.num_rows)).argmin())
    rows = ["--row", 0, "--row", 5, "--row", padded]
    out = inspect(capsys, folder, "--html", tmp_path / "page.html", "--documents", 3, *rows)
    assert out == f"wrote {tmp_path / 'page.html'}\n"
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.links == [] and "url(" not in text and "@import" not in text
    assert len(page.rows) == 3 and '<b>bold</b> & "quoted"' in page.text and "<b>bold" not in text
    assert "Tokens per document" in page.text and "padding tokens: never masked" in page.text


def test_a_document_that_spans_rows_is_marked(corpus, capsys):
    out = inspect(capsys, corpus, "--row", 1, "--documents", 0)
    assert "begins in another row" in out
    whole = inspect(capsys, corpus, "--row", 0, "--documents", 0)
    first = document_order(np.arange(1), load_manifest(corpus).splits["train"].documents)[0]
    assert f"┌ document {first:,}, 32 tokens; continues in another row" in whole


def test_nothing_to_show_but_figures(corpus, tmp_path, capsys):
    out = inspect(capsys, corpus, "--documents", 0, "--rows", 0, "--split", "validation")
    assert "document 0" not in out and "documents of validation" in out
    inspect(capsys, corpus, "--documents", 0, "--rows", 0, "--html", tmp_path / "page.html")
    assert "<script" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row", "99999"], "--row 99999: the train split has rows 0 to"),
        (["--row", "-1"], "--row -1: the train split"),
        (["--sample", "-1"], "--sample -1: samples are numbered from 0"),
        (["--t", "1.5"], "--t 1.5: the timestep is the fraction"),
        (["--max-tokens", "0"], "--max-tokens 0: must be at least 1"),
        (["--split", "test"], "no split 'test'; it has: train, validation"),
    ],
)
def test_a_wrong_argument_is_named(corpus, capsys, words, message):
    assert main(["inspect", str(corpus), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_prepared_or_damaged_is_named(corpus, tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert "no prepared data folder" in capsys.readouterr().err
    shutil.copytree(corpus, tmp_path / "data")
    (tmp_path / "data" / "train-00000.bin").write_bytes(b"")
    assert main(["inspect", str(tmp_path / "data")]) == 2
    assert "train-00000.bin has 0 bytes" in capsys.readouterr().err


def test_a_blend_file_shows_its_shares(corpus, tmp_path, capsys):
    shutil.copytree(corpus, tmp_path / "other")
    blend = tmp_path / "blend.yaml"
    blend.write_text(
        f"corpora: [{{path: {corpus}, weight: 3}}, {{path: other, weight: 1, max_epochs: 2, max_tokens: 9000}}]"
    )
    assert main(["inspect", str(blend), "--sample", "3"]) == 2
    assert "which has no rows of its own" in capsys.readouterr().err
    assert main(["inspect", str(corpus), "--html", str(tmp_path)]) == 2
    assert f"--html {tmp_path}: is a folder" in capsys.readouterr().err
    out = inspect(capsys, blend)
    rows = PackedDataset(corpus, "train").num_rows
    assert "rows of 32 tokens" in out and "never ends" in out
    lines = [line.split()[1:] for line in out.splitlines()[2:]]
    assert lines == [
        ["75.00%", f"{rows:,}", "0.00%", f"{rows * 4 // 3:,}", "none"],
        ["25.00%", f"{rows:,}", "0.00%", f"{rows * 4:,}", "2", "epochs", "or", "9,000", "tokens"],
    ]


def test_inspect_imports_no_torch(corpus):
    code = (
        f"import sys; from pretrain.cli import main; main(['inspect', {str(corpus)!r}]); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.endswith("False\n")
