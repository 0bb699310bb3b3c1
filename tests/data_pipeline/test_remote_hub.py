"""Hub datasets are read by ranges from a local server that answers like the hub."""

import csv
import gzip
import json
import os
import subprocess
import sys

import datasets
import fake_hub
import pyarrow
import pytest
from conftest import write_jsonl
from fake_hub import NAME, hub
from pyarrow import parquet
from test_remote import output_bytes

from data_pipeline.errors import DataError
from data_pipeline.manifest import load_manifest
from data_pipeline.readers.hub_files import hub_files

pytestmark = pytest.mark.slow


@pytest.fixture
def repository(tmp_path):
    """The folder that the server serves."""
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    return folder


def write_parquet(folder, texts):
    rows = pyarrow.table({"text": [f"{text} {i}" for i in range(20) for text in texts], "id": range(20 * len(texts))})
    parquet.write_table(rows, folder / "train-00000-of-00002.parquet", row_group_size=500, compression="none")
    parquet.write_table(rows.slice(100, 400), folder / "train-00001-of-00002.parquet")
    parquet.write_table(rows.slice(0, 10), folder / "test-00000-of-00001.parquet")


def write_lines(folder, texts):
    packed = gzip.compress(write_jsonl(folder / "train.jsonl", texts).read_bytes())
    (folder / "train.jsonl").unlink()
    (folder / "train.jsonl.gz").write_bytes(packed)


def write_csv(folder, texts):
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])


def write_array(folder, texts):
    (folder / "train.json").write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")


def run(given, output, endpoint, *more, offline=False):
    words = ["--input", given, "--output", output, "--tokenizer", "bytes", "--seq-len", 32, "--workers", 1, *more]
    return start(output.parent, endpoint, "-m", "data_pipeline.prepare", *words, offline=offline)


def start(folder, endpoint, *words, offline=False):
    """Run Python with a cache of its own in a folder."""
    own = {"HF_HOME": folder / "hub-cache", "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": 1}
    own["HF_HUB_OFFLINE"] = int(offline)
    environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
    program = [sys.executable, *map(str, words)]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("write", [write_parquet, write_lines])
def test_files_of_records_are_read_from_the_hub(repository, texts, tmp_path, write):
    write(repository / "data", texts)
    with hub(repository) as (endpoint, requests):
        for given, output in (
            (f"{repository}/data/train*", "local"),
            (f"hf:{NAME}", "dataset"),
            (f"hf://datasets/{NAME}/data/train*", "files"),
        ):
            done = run(given, tmp_path / output, endpoint)
            assert done.returncode == 0, done.stderr
        again = run(f"hf:{NAME}", tmp_path / "dataset", endpoint)
        assert "already prepared" in again.stdout, again.stderr
    found = {name: output_bytes(tmp_path / name) for name in ("local", "dataset", "files")}
    for each in found.values():
        each["manifest.json"]["inputs"][0].pop("kind")
    assert found["dataset"] == found["files"] == found["local"]
    assert not list((tmp_path / "hub-cache").rglob("*.arrow"))
    if write is write_parquet:
        of_largest = [size < total for name, size, total in requests if name.endswith("00000-of-00002.parquet")]
        assert of_largest and all(of_largest)


@pytest.mark.parametrize("write", [write_csv, write_array])
def test_other_files_are_converted(repository, texts, tmp_path, write):
    write(repository / "data", texts)
    local = write_jsonl(tmp_path / "local.jsonl", texts)
    with hub(repository) as (endpoint, _):
        for given, output in ((local, "local"), (f"hf:{NAME}", "dataset")):
            done = run(given, tmp_path / output, endpoint)
            assert done.returncode == 0, done.stderr
    assert list((tmp_path / "hub-cache").rglob("*.arrow"))
    tokens = [(tmp_path / output / "train-00000.bin").read_bytes() for output in ("local", "dataset")]
    assert tokens[0] == tokens[1]


def test_other_splits_and_datasets_that_are_not_there(repository, texts, tmp_path):
    write_parquet(repository / "data", texts)
    with hub(repository) as (endpoint, _):
        part = run(f"hf:{NAME}@test", tmp_path / "part", endpoint, "--validation-fraction", 0)
        assert part.returncode == 0 and "10 " in part.stdout, part.stderr
        for given, problem in (
            (f"hf:{NAME}@none", "none"),
            ("hf:owner/nothing", "owner/nothing"),
            ("hf://datasets/owner/nothing/x.parquet", "no such file, folder or bucket"),
            (f"hf://datasets/{NAME}/nothing.parquet", "no such file, folder or bucket"),
        ):
            done = run(given, tmp_path / "data", endpoint)
            assert done.returncode == 2 and problem in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def converted(repository, texts, tmp_path):
    """A prepared folder from the copy of the dataset in the library's cache, read offline."""
    write_parquet(repository / "data", texts)
    with hub(repository) as (endpoint, _):
        load = f"import datasets; datasets.load_dataset('{NAME}')"
        assert start(tmp_path, endpoint, "-c", load).returncode == 0
    done = run(f"hf:{NAME}", tmp_path / "data", endpoint, offline=True)
    assert done.returncode == 0, done.stderr
    assert load_manifest(tmp_path / "data").inputs[0].kind == "datasets"
    return tmp_path / "data"


def test_what_was_converted_is_compared_with_the_hub(repository, texts, converted, monkeypatch):
    with hub(repository) as (endpoint, _):
        again = run(f"hf:{NAME}", converted, endpoint)
        assert again.returncode == 0 and "already prepared, nothing to do" in again.stdout, again.stderr
        monkeypatch.setattr(fake_hub, "COMMIT", "decade" * 6 + "beef")
        write_parquet(repository / "data", texts[1:])
        changed = run(f"hf:{NAME}", converted, endpoint)
        assert changed.returncode == 2 and f"the input hf:{NAME} has changed since" in changed.stderr
        assert run(f"hf:{NAME}", converted, endpoint, "--overwrite").returncode == 0
    assert load_manifest(converted).inputs[0].kind == "hub"
    offline = run(f"hf:{NAME}", converted, endpoint, offline=True)
    assert offline.returncode == 2 and "which is converted now (in offline mode" in offline.stderr, offline.stderr


def test_the_copy_in_the_cache_is_converted_in_offline_mode_only(repository, converted, monkeypatch):
    """Where the hub does not give a dataset, the library takes the copy, which is cut into other tasks."""
    monkeypatch.setattr(fake_hub, "NAME", "owner/other")
    with hub(repository) as (endpoint, _):
        done = run(f"hf:{NAME}", converted.with_name("new"), endpoint)
    assert done.returncode == 2 and f"--input hf:{NAME}: the hub does not answer, or has no such" in done.stderr
    assert "set HF_HUB_OFFLINE=1 on all machines" in done.stderr and not converted.with_name("new").exists()


@pytest.mark.parametrize(
    ("error", "hint"), [(ConnectionError("no route"), True), (datasets.exceptions.DatasetNotFoundError("none"), False)]
)
def test_a_hub_that_cannot_be_reached_is_an_error(monkeypatch, error, hint):
    def fail(*_):
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(DataError, match=f"--input hf:{NAME}: {type(error).__name__}: {error}") as raised:
        hub_files(f"hf:{NAME}")
    assert ("set HF_HUB_OFFLINE=1" in str(raised.value)) == hint
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert hub_files(f"hf:{NAME}") is None
