"""Small corpora and a way to run the command in-process."""

import argparse
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipeline import prepare as prepare_verb
from data_pipeline import repack as repack_verb
from data_pipeline import verify as verify_verb
from data_pipeline.tokenizers.training import train_sentencepiece

TEXT = "the of loop mask token stream layer\tnaïve 12 345 == (x) — 漢字 return None # print lattice wood river"
WORDS = TEXT.split(" ")


def make_texts(count, seed=0):
    rng = random.Random(seed)
    lines = [["    " * rng.randrange(3) + " ".join(rng.choices(WORDS, k=12)) for _ in range(8)] for _ in range(count)]
    return [f"# {i}\n" + "\r\n".join(each) for i, each in enumerate(lines)]


def write_jsonl(path, texts, key="text"):
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def texts():
    return make_texts(300)


@pytest.fixture(scope="session")
def tokenizer_file(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train_sentencepiece(texts, 400, path)
    return path


@pytest.fixture
def jsonl(texts, tmp_path):
    return write_jsonl(tmp_path / "corpus.jsonl", texts)


@pytest.fixture
def several_tasks(texts, tmp_path):
    """A file of 12 MB of distinct documents: six tasks."""
    copies = ([f"{text} {i}" for text in texts] for i in range(40))
    return write_jsonl(tmp_path / "big.jsonl", [text for copy in copies for text in copy])


@pytest.fixture
def command(capsys):
    """Run a verb with the words of its command line; returns its exit status and what it printed."""

    def call(verb, words):
        parser = argparse.ArgumentParser()
        verb.add_arguments(parser)
        capsys.readouterr()
        code = verb.run(parser.parse_args([str(word) for word in words]))
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call


@pytest.fixture
def prepare(command, tokenizer_file):
    """Run `prepare`, with the small tokenizer unless one is trained."""

    def call(*words, train=False):
        words = [str(word) for word in words]
        words += [] if train or "--tokenizer" in words else ["--tokenizer", str(tokenizer_file)]
        words += [] if "--workers" in words else ["--workers", "1"]
        words += [] if "--seq-len" in words else ["--seq-len", "32"]
        return command(prepare_verb, words)

    return call


@pytest.fixture
def verify(command):
    """Run `verify`."""
    return lambda *words: command(verify_verb, words)


@pytest.fixture
def repack(command):
    """Run `repack`."""
    return lambda *words: command(repack_verb, words)


@pytest.fixture
def prepared(prepare, jsonl, tmp_path):
    result = prepare("--input", jsonl, "--output", tmp_path / "data")
    assert result.code == 0, result.err
    return tmp_path / "data"


@pytest.fixture
def leftovers(tmp_path):
    """Names in the test's folder that `prepare` could have left behind."""
    return lambda: sorted(path.name for path in Path(tmp_path).iterdir() if path.suffix != ".jsonl")
