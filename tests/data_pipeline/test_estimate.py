"""`prepare --estimate`: what it says against what the job then does."""

import re

import pyarrow
import pyarrow.parquet
import pytest
from conftest import make_texts, write_jsonl

from data_pipeline.manifest import load_manifest
from data_pipeline.tasks import estimate as module


def numbers(out):
    """The numbers of documents and tokens, and the stated error of the tokens."""
    found = {
        name: (int(value.replace(",", "")), error and int(error))
        for name, value, error in re.findall(
            r"^(documents|tokens) +about ([\d,]+)(?: \(±(\d+)%\))?$", out, re.MULTILINE
        )
    }
    return found["documents"][0], found["tokens"][0], found["tokens"][1]


@pytest.fixture(params=["lines", "parquet", "text"])
def corpus(request, tmp_path):
    """About 6 MB in several tasks: JSON lines, row groups, or many files."""
    short = [f"{text} {i}" for i in range(30) for text in make_texts(300, seed=i)]
    texts = ["\n".join(short[i : i + 4]) for i in range(0, len(short), 4)]
    path = tmp_path / f"corpus.{request.param}"
    if request.param == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=100, compression="none")
    elif request.param == "lines":
        path = path.with_suffix(".jsonl")
        write_jsonl(path, texts)
    else:
        path.mkdir()
        for i, text in enumerate(texts):
            (path / f"{i}.txt").write_text(text, encoding="utf-8")
    return path


def test_a_sample_estimates_the_whole_job(prepare, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_BYTES", 3 << 20)
    monkeypatch.setattr(module, "PART_BYTES", 1 << 20)
    words = ("--input", corpus, "--output", tmp_path / "out" / "data", "--workers", 2)
    result = prepare(*words, "--estimate")
    assert result.code == 0, result.err
    documents, tokens, error = numbers(result.out)
    assert re.search(r"^estimate from parts of [34] of ", result.out), result.out
    assert not (tmp_path / "out").exists()
    assert prepare(*words).code == 0
    splits = load_manifest(tmp_path / "out" / "data").splits.values()
    assert documents == pytest.approx(sum(split.documents for split in splits), rel=0.03)
    assert tokens == pytest.approx(sum(split.tokens for split in splits), rel=0.03) and error <= 5
    size = sum(path.stat().st_size for path in (tmp_path / "out" / "data").glob("*.???"))
    disk = r"^disk +about ([\d.]+) MB for the output, [\d.]+ MB more until it is joined; .* free at"
    stated = float(re.search(disk, result.out, re.MULTILINE)[1])
    assert 1e6 * stated == pytest.approx(size, rel=0.05)


def test_an_estimate_of_everything_is_exact(prepare, jsonl, texts, tmp_path):
    words = ("--input", jsonl, jsonl, "--duplicates", "exact")
    result = prepare(*words, "--estimate", "--workers", 3)
    assert result.code == 0, result.err
    assert prepare(*words, "--output", tmp_path / "data").code == 0
    splits = load_manifest(tmp_path / "data").splits.values()
    tokens = sum(split.tokens for split in splits)
    assert numbers(result.out)[:2] == (len(texts), tokens) and "with 3 workers" in result.out
    assert "more until it is joined" in result.out and "may use 4GB" in result.out and "for 4 processes" in result.out


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_the_disk_for_the_rows_of_long_documents_is_estimated(prepare, tmp_path, packing):
    """Rows of 8 tokens, so that their plan is as large as the tokens."""
    path = write_jsonl(tmp_path / "long.jsonl", ["\n".join(make_texts(20, seed=i)) for i in range(40)])
    words = ("--input", path, "--output", tmp_path / "data", "--seq-len", 8, "--pack", packing)
    words += ("--validation-fraction", 0)
    stated = re.search(r"^disk +about ([\d.]+) MB for the output", prepare(*words, "--estimate").out, re.MULTILINE)
    assert prepare(*words).code == 0
    size = sum(each.stat().st_size for each in (tmp_path / "data").iterdir() if each.suffix in (".bin", ".npy"))
    assert 1e6 * float(stated[1]) == pytest.approx(size, rel=0.1)


def test_duplicates_are_estimated_from_parts_of_several_tasks(prepare, several_tasks, tmp_path, monkeypatch):
    """The parts are chosen by their hashes, so they are not in the order of the tasks, and some are missing."""
    monkeypatch.setattr(module, "SAMPLE_BYTES", 2 << 20)
    monkeypatch.setattr(module, "PART_BYTES", 1 << 20)
    for duplicates in ("exact", "near"):
        words = ("--input", several_tasks, "--output", tmp_path / "data", "--duplicates", duplicates)
        result = prepare(*words, "--estimate", "--workers", 2)
        assert result.code == 0, result.err
        assert "\nestimate from parts of 2 of 4 tasks" in result.out, result.out
        time = r"^time +about \S+ \(tokenizer \S+, duplicates \S+, tokens \S+, join \S+\) with 2 workers"
        assert re.search(time, result.out, re.MULTILINE), result.out


@pytest.mark.parametrize(("workers", "join"), [(1, "1:10"), (2, "0:50"), (64, "0:35")])
def test_what_does_not_grow_with_the_corpus_is_not_multiplied(workers, join):
    spent = module.Spent(tokenizer=5.0, duplicates=0.0, tokens=6.4, shards=4.0, loss=20.0, rest=1.0, memory=0)
    line = module._time(spent, scale=10.0, workers=workers)
    assert f"(tokenizer 0:05, tokens 0:{round(64 / workers):02}, join {join})".replace("0:64", "1:04") in line


def test_an_estimate_names_what_is_left_out(prepare, tmp_path):
    lines = [f'{{"text": "some words of text {i}"}}\n' if i % 4 else '{"body": "x"}\n' for i in range(400)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    result = prepare("--input", tmp_path / "a.jsonl", "--output", tmp_path / "data", "--estimate")
    assert result.code == 0 and numbers(result.out)[0] == 300
    assert "left out of the sample, key missing: 100" in result.out


def write_lines(path, lines):
    """Write a file of JSON lines, not all of them records."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("lines", "words", "why"),
    [
        (['{"body": "x"}'] * 5, (), "no record has the key 'text'"),
        ([], (), "hold no usable text"),
        (['{"text": "short"}'] * 5, ("--min-chars", 100), "hold no usable text"),
        (['{"text": "a b"}'] * 5, ("--validation-fraction", 1e-9), "the validation split has 0 tokens"),
    ],
)
def test_an_estimate_of_all_of_a_corpus_ends_as_the_job_would(prepare, tmp_path, lines, words, why):
    path = write_lines(tmp_path / "a.jsonl", lines)
    words = ("--input", path, "--output", tmp_path / "data", "--tokenizer", "bytes", "--seq-len", 4, *words)
    for result in (prepare(*words, "--estimate"), prepare(*words)):
        assert result.code == 2 and why in result.err and "Traceback" not in result.err


def test_a_sample_without_a_split_is_no_error(prepare, several_tasks, tmp_path, monkeypatch):
    """The validation split of the sample may get no document, as where documents are books."""
    monkeypatch.setattr(module, "SAMPLE_BYTES", 1 << 10)
    monkeypatch.setattr(module, "PART_BYTES", 1 << 10)
    words = ("--input", several_tasks, "--tokenizer", "bytes", "--seq-len", 4, "--validation-fraction", 1e-9)
    result = prepare(*words, "--estimate")
    assert result.code == 0 and "estimate from parts of 1 of 4 tasks" in result.out, result.err
    filtered = prepare(*words, "--estimate", "--min-chars", 10**9)
    assert filtered.code == 2 and "error: in a sample of " in filtered.err and "too short" in filtered.err


def test_an_estimate_tells_why_the_job_would_write_nothing(prepare, jsonl, tmp_path):
    other = write_lines(tmp_path / "other.jsonl", ['{"body": "x"}'] * 20)
    broken = write_lines(tmp_path / "broken.jsonl", ['{"text": "some words"}', "{"] * 20)
    for path, why in (
        (other, "no record of --input .*other.jsonl has the key 'text'"),
        (broken, "20 of .* unreadable"),
    ):
        result = prepare("--input", jsonl, path, "--output", tmp_path / "data", "--estimate")
        assert result.code == 0
        assert re.search(
            f"^warning: if the rest is like the sample, .*without output: (.*\n)*.*{why}", result.out, re.M
        )


def test_only_the_beginning_of_the_corpus_stops_an_estimate(prepare, jsonl, tmp_path, monkeypatch):
    """As of the job: the first file of the sample may be any other one."""
    bad = write_lines(tmp_path / "bad.jsonl", ['{"body": "x"}'] * 1500)
    monkeypatch.setattr(module, "MAX_STRATA", 1)
    for inputs in ((jsonl, bad), (jsonl, bad, jsonl), (jsonl, jsonl, bad)):
        assert prepare("--input", *inputs, "--output", tmp_path / "data", "--estimate").code == 0
    first = prepare("--input", bad, jsonl, "--output", tmp_path / "data", "--estimate")
    assert first.code == 2 and "no record has the key 'text'" in first.err
