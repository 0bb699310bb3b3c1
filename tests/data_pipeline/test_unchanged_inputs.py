"""What is done again after inputs were touched, copied, edited, added or removed: only what must be."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from conftest import make_texts, write_jsonl
from test_prepare import token_documents

from data_pipeline.readers.inputs import resolve_input
from data_pipeline.tasks import addresses, build
from data_pipeline.tasks import task as task_module
from data_pipeline.tasks.encode import TokenJob
from data_pipeline.tasks.results import DigestJob
from data_pipeline.tasks.sampling import SampleJob
from data_pipeline.tasks.task import cut_into_tasks

pytestmark = pytest.mark.slow
TASK_BYTES = 400_000


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A file of several tasks, each larger than what a probe reads, and a folder of small files."""
    monkeypatch.setattr(task_module, "_task_size", lambda total: TASK_BYTES)
    (tmp_path / "in" / "small").mkdir(parents=True)
    write_jsonl(tmp_path / "in" / "big.jsonl", make_texts(2000, seed=1))
    for i, text in enumerate(make_texts(300, seed=2)):
        (tmp_path / "in" / "small" / f"{i:03}.txt").write_text(text * 9)
    return tmp_path / "in"


@pytest.fixture
def work(corpus, prepare, tmp_path, monkeypatch):
    """Run `--stage tokens` in this process; returns how many tasks were tokenized, compared, sampled and trained on."""
    counts = SimpleNamespace()

    def counted(owner, name, count):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            setattr(counts, count, getattr(counts, count) + 1)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(TokenJob, "_write", "tokenized")
    counted(DigestJob, "__call__", "compared")
    counted(SampleJob, "__call__", "sampled")
    counted(build, "train_sentencepiece", "trained")

    def call(*inputs, stages=("tokens",), train=False, more=()):
        counts.tokenized = counts.compared = counts.sampled = counts.trained = 0
        inputs = inputs or (corpus / "big.jsonl", corpus / "small")
        words = ["--input", *inputs, "--output", tmp_path / "data"]
        words += [*(["--vocab-size", 400] if train else []), *more]
        for stage in stages:
            result = prepare(*words, "--stage", stage, train=train)
            assert result.code == 0, result.err
        return counts.tokenized, counts.compared, counts.sampled, counts.trained

    return call


def num_tasks(*inputs):
    return len(cut_into_tasks([resolve_input(str(value)) for value in inputs]))


def test_touched_and_copied_inputs_are_not_tokenized_again(work, corpus, tmp_path):
    big, small = corpus / "big.jsonl", corpus / "small"
    count = num_tasks(big, small)
    assert count > 6 and work() == (count, 0, 0, 0)
    assert work() == (0, 0, 0, 0)
    big.chmod(0o600)
    (tmp_path / "link").hardlink_to(big)
    if os.getuid() == 0:
        os.chown(big, 1, 1)
    subprocess.run(["cp", "-rp", corpus, tmp_path / "kept"], check=True)
    assert work() == (0, 0, 0, 0)
    assert work(tmp_path / "kept" / "big.jsonl", tmp_path / "kept" / "small") == (0, 0, 0, 0)
    assert work(tmp_path / "kept" / "small", tmp_path / "kept" / "big.jsonl") == (0, 0, 0, 0)
    big.touch()
    of_big = num_tasks(big)
    assert work() == (0, of_big, 0, 0)
    assert work() == (0, 0, 0, 0)
    shutil.copyfile(big, tmp_path / "copy.jsonl")
    (tmp_path / "copy.jsonl").touch()
    assert work(tmp_path / "copy.jsonl", small) == (0, of_big, 0, 0)
    assert work() == (0, 0, 0, 0)  # both times are known


def edit_the_middle_of_a_task(path, number):
    """Change one letter of a text far from the beginning and the end of task `number`; the size stays."""
    content = bytearray(path.read_bytes())
    at = content.index(b"lattice", number * TASK_BYTES + TASK_BYTES // 2)
    content[at : at + 7] = b"LATTICE"
    path.write_bytes(content)


def test_an_edit_that_keeps_the_size_is_noticed(work, corpus, prepare, tmp_path):
    big = corpus / "big.jsonl"
    identities = [task.identity for task in cut_into_tasks([resolve_input(str(big))])]
    work(big)
    edit_the_middle_of_a_task(big, 1)
    assert [task.identity for task in cut_into_tasks([resolve_input(str(big))])] == identities  # no probe sees it
    assert work(big) == (1, num_tasks(big), 0, 0)
    assert work(big, stages=("join",)) == (0, 0, 0, 0)
    assert prepare("--input", big, "--output", tmp_path / "fresh").code == 0
    for path in sorted((tmp_path / "fresh").iterdir()):
        assert (tmp_path / "data" / path.name).read_bytes() == path.read_bytes()


def test_a_trained_tokenizer_depends_on_the_content(work, corpus):
    big, stages = corpus / "big.jsonl", ("start", "tokens")
    count = num_tasks(big)
    assert work(big, stages=stages, train=True) == (count, 0, count, 1)
    big.touch()
    assert work(big, stages=stages, train=True) == (0, count, count, 0)  # the same sample
    edit_the_middle_of_a_task(big, 1)
    assert work(big, stages=stages, train=True)[1:] == (count, count, 1)
    assert work(big, stages=stages, train=True, more=["--vocab-size", 410]) == (count, 0, 0, 1)
    assert work(big, stages=stages, train=True) == (0, 0, 0, 0)  # the first is still there


def test_duplicates_are_decided_again_only_where_they_change(work, corpus):
    more, stages = ("--duplicates", "exact"), ("start", "tokens")
    big, small = corpus / "big.jsonl", corpus / "small"
    count = num_tasks(big, small)
    assert work(stages=stages, more=more) == (count, 0, 0, 0)
    big.touch()
    assert work(stages=stages, more=more) == (0, num_tasks(big), 0, 0)
    # Given twice, the second time everything is a duplicate: other results of the same tasks.
    assert work(big, small, big, stages=stages, more=more) == (num_tasks(big), 0, 0, 0)


def test_adding_and_removing_inputs_leaves_the_others_alone(work, corpus, tmp_path):
    big, small = corpus / "big.jsonl", corpus / "small"
    added = write_jsonl(tmp_path / "added.jsonl", make_texts(30, seed=5))
    work()
    assert work(added, big, small) == (1, 0, 0, 0)
    assert work(small) == (0, 0, 0, 0)
    assert work(small, big, added) == (0, 0, 0, 0)
    assert work(big, big) == (0, 0, 0, 0)


def test_the_size_of_tasks_depends_on_their_own_input(tmp_path):
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for path, size in zip(files, (30 << 20, 3 << 30), strict=True):
        with path.open("wb") as file:
            file.truncate(size)
    alone = [task.ranges for task in cut_into_tasks([resolve_input(str(files[0]))])]
    both = [task.ranges for task in cut_into_tasks([resolve_input(str(path)) for path in files])]
    assert both[: len(alone)] == alone and len(both) - len(alone) == (3 << 30) // (16 << 20)


@pytest.mark.parametrize("change", ["add", "remove", "grow"])
def test_adding_and_removing_a_file_changes_the_groups_near_it(work, corpus, change):
    small = corpus / "small"
    before = {task.identity for task in cut_into_tasks([resolve_input(str(small))])}
    assert work(small) == (len(before), 0, 0, 0) and len(before) >= 4
    middle = small / "140.txt"
    if change == "add":
        (small / "140a.txt").write_bytes(middle.read_bytes())
    elif change == "remove":
        middle.unlink()
    else:
        middle.write_bytes(middle.read_bytes() * 2)
    tasks = cut_into_tasks([resolve_input(str(small))])
    changed = sum(task.identity not in before for task in tasks)
    assert 1 <= changed <= 2 < len(tasks)
    assert work(small) == (changed, 0, 0, 0)


def test_groups_do_not_depend_on_where_the_folder_is(corpus, tmp_path, monkeypatch):
    values = [corpus / "small", corpus / "small" / "*.txt"]
    before = [[task.identity for task in cut_into_tasks([resolve_input(str(value))])] for value in values]
    assert before[0] == before[1]
    corpus.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for value in (tmp_path / "moved" / "small", "moved/small", "moved/small/*.txt"):
        assert [task.identity for task in cut_into_tasks([resolve_input(str(value))])] == before[0]


def test_other_software_does_the_tasks_again(work, corpus, monkeypatch, request):
    big = corpus / "big.jsonl"
    request.addfinalizer(addresses.software.cache_clear)
    work(big)
    for package, tokenized in (("tokenizers", 0), ("sentencepiece", num_tasks(big))):
        known = addresses.version
        monkeypatch.setattr(addresses, "version", lambda name: "9.9" if name == package else known(name))  # noqa: B023
        addresses.software.cache_clear()
        assert work(big) == (tokenized, 0, 0, 0)
        monkeypatch.setattr(addresses, "version", known)
    monkeypatch.setattr(addresses, "FORMAT", 10**6)
    addresses.software.cache_clear()
    assert work(big)[0] == num_tasks(big)


def test_files_that_look_the_same_are_told_apart(corpus, prepare, work, tmp_path):
    """Same size, beginning, end and modification time."""
    big, edited = corpus / "big.jsonl", tmp_path / "edited.jsonl"
    shutil.copy2(big, edited)
    edit_the_middle_of_a_task(edited, 1)
    shutil.copystat(big, edited)
    work(big, edited)
    work(big, edited, stages=("join",))
    assert prepare("--input", edited, "--output", tmp_path / "alone").code == 0
    for split in ("train", "validation"):
        of_both, alone = (token_documents(tmp_path / name, split) for name in ("data", "alone"))
        assert all((a == b).all() for a, b in zip(of_both[-len(alone) :], alone, strict=True))


def test_a_file_that_changes_while_it_is_read_is_named(corpus, prepare, tmp_path, monkeypatch):
    original = TokenJob._write

    def write(self, task, folder, report):
        record = original(self, task, folder, report)
        (corpus / "big.jsonl").touch()
        return record

    monkeypatch.setattr(TokenJob, "_write", write)
    result = prepare("--input", corpus / "big.jsonl", "--output", tmp_path / "data")
    assert result.code == 2 and "big.jsonl was modified while it was read" in result.err
    assert not (tmp_path / "data").exists()


def test_formats_with_the_same_bytes_are_different_tasks(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", make_texts(3))
    identities = set()
    for name in ("x.jsonl", "x.txt", "x.jsonl.gz", "x.parquet"):
        if name != "x.jsonl":
            shutil.copy2(tmp_path / "x.jsonl", tmp_path / name)
        (task,) = cut_into_tasks([resolve_input(str(tmp_path / name))])
        identities.add(task.identity)
    assert len(identities) == 4
