"""The blend as a function of the sample index: exact shares, caps, the corpus's own order, no start-up pass."""

import hashlib
import json
import shutil
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dataset.blend import load_blend
from data_pipeline.dataset.blend_schedule import MAX_CYCLE, BlendSchedule, fair_order
from data_pipeline.dataset.samples import Samples
from data_pipeline.dataset.shuffle import SampleOrder
from data_pipeline.errors import DataError


def deviations(order, counts):
    """(samples of each corpus among the first n) - (its share of n), [corpora, n + 1]."""
    slots = np.arange(len(order) + 1)
    taken = np.cumsum(np.asarray(order)[None] == np.arange(len(counts))[:, None], axis=1)
    return np.pad(taken, ((0, 0), (1, 0))) - np.outer(counts, slots) / sum(counts)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_every_share_is_exact_to_one_sample_from_the_start_and_to_two_in_any_window(counts):
    order = fair_order(counts)
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    error = deviations(order, counts)
    bound = 1 - 1 / (2 * len(counts) - 2) if len(counts) > 1 else 0
    assert np.abs(error).max() <= bound + 1e-9
    # The order repeats with no deviation at its ends, so windows across them are no worse than these.
    assert (error.max(axis=1) - error.min(axis=1)).max() <= 2 * bound + 1e-9


def test_windows_of_two_corpora_are_exact_to_one_sample_and_repetition_keeps_it():
    for counts in ([7, 3], [1, 999], [499, 500]):
        order = np.tile(fair_order(counts), 3)
        error = deviations(order, counts)
        for length in (1, 2, 3, 17, sum(counts), sum(counts) + 5):
            assert np.abs(error[:, length:] - error[:, :-length]).max() <= 1 + 1e-9


weights_and_caps = st.lists(
    st.tuples(st.integers(1, 30), st.one_of(st.none(), st.integers(1, 90))), min_size=1, max_size=6
)


@given(weights_and_caps)
@settings(max_examples=200, deadline=None)
def test_caps_hold_and_leave_their_share_to_the_others(parts):
    weights, caps = [Fraction(w, 7) for w, _ in parts], [cap for _, cap in parts]
    schedule = BlendSchedule(weights, caps)
    total = 1500 if schedule.num_samples is None else schedule.num_samples
    assert (schedule.num_samples is None) == (None in caps)
    corpus, count = schedule.locate(np.arange(total))
    for k, cap in enumerate(caps):
        # The n-th sample of a corpus has the number n, through every interval.
        assert np.array_equal(count[corpus == k], np.arange(np.sum(corpus == k)))
        if schedule.num_samples is not None:
            assert np.sum(corpus == k) == cap
        elif cap is not None:
            assert np.sum(corpus == k) <= cap
    start, taken = 0, np.zeros(len(parts), int)
    while start < total:  # in each interval the corpora that are left keep their shares
        left = [w if cap is None or taken[k] < cap else 0 for k, (w, cap) in enumerate(zip(weights, caps, strict=True))]
        ends = [
            np.flatnonzero(corpus == k)[cap - 1] + 1
            for k, cap in enumerate(caps)
            if cap and left[k] and np.sum(corpus == k) == cap
        ]
        end = min([*ends, total])
        error = deviations(corpus[start:end], [float(w) for w in left])
        assert np.abs(error).max() < 1
        start, taken = end, np.bincount(corpus[:end], minlength=len(parts))
        assert np.array_equal(schedule.counts(end), taken)


@given(weights_and_caps, st.lists(st.integers(0, 3000), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_sample_depends_on_its_index_alone(parts, indices):
    schedule = BlendSchedule(
        [Fraction(w) for w, _ in parts], [None if i == 0 else cap for i, (_, cap) in enumerate(parts)]
    )
    corpus, count = schedule.locate(np.arange(3001))
    some, numbers = schedule.locate(np.array(indices))
    assert np.array_equal(some, corpus[indices]) and np.array_equal(numbers, count[indices])


def test_what_a_schedule_refuses():
    with pytest.raises(DataError, match=r"the weight 0\.001 of corpus 1 is less than one part in 200,000"):
        BlendSchedule([Fraction(1, 1000), Fraction(300)], [None, None])
    with pytest.raises(IndexError):
        BlendSchedule([Fraction(1)], [5]).locate(np.array([5]))
    with pytest.raises(IndexError):
        BlendSchedule([Fraction(1)], [None]).locate(np.array([-1]))
    assert BlendSchedule([Fraction(0.5)], [5]).num_samples == 5


class Counting:
    """A corpus whose row i is [number, i, ...]; of any size."""

    has_padding = False

    def __init__(self, number, num_rows, seq_len=4):
        self.number, self.num_rows, self.seq_len = number, num_rows, seq_len

    def rows(self, indices):
        return np.stack([np.full(len(indices), self.number), *[indices] * (self.seq_len - 1)], axis=1)

    def lengths(self, indices):
        return np.full(len(indices), self.seq_len)


def test_rows_of_each_corpus_come_in_its_own_shuffled_epochs():
    source = Samples([Counting(0, 50), Counting(1, 7)], BlendSchedule([Fraction(3), Fraction(1)], [None, None]), seed=9)
    rows = source.rows(np.arange(400))
    for number, size, taken in ((0, 50, 300), (1, 7, 100)):
        visited = rows[rows[:, 0] == number, 1]
        assert np.array_equal(visited, SampleOrder(9, size).rows(np.arange(taken)))
    shuffled = np.random.default_rng(0).permutation(400)
    assert np.array_equal(source.rows(shuffled), rows[shuffled])


def test_one_corpus_is_visited_as_before_there_were_mixtures(prepared):
    source, order = Samples.of(load_blend(prepared), 5), SampleOrder(5, load_blend(prepared).corpora[0].rows)
    corpus, rows = source.locate(np.arange(1000))
    assert not corpus.any() and np.array_equal(rows, order.rows(np.arange(1000)))


FIRST_BATCH = """
import resource, time
from fractions import Fraction
import numpy as np
from data_pipeline.dataset.samples import Samples
from data_pipeline.dataset.blend_schedule import BlendSchedule
from test_mixture import Counting
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def batches(rows):
    begin = time.perf_counter()
    weights, caps = [Fraction(w) for w in ("0.6177", "0.2521", "0.1302")], [None, None, rows]
    source = Samples([Counting(k, rows) for k in range(3)], BlendSchedule(weights, caps), 0)
    source.rows(np.arange(512))
    first = time.perf_counter() - begin
    source.rows(np.arange(10**12, 10**12 + 512))
    return first
batches(1000)
before = peak()
print(batches(10**9), peak() - before)
"""


def test_the_first_batch_of_a_billion_rows_takes_no_time_and_no_memory():
    done = subprocess.run(
        [sys.executable, "-c", FIRST_BATCH], capture_output=True, text=True, timeout=60, check=True, cwd=__file__.rsplit("/", 1)[0],
    )  # fmt: skip
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 1 and megabytes < 8


def sparse_billion(folder, prepared):
    """A prepared folder of 10^9 documents of two tokens each, in best-fit rows of two: 44 GB, nearly all of them holes."""
    from data_pipeline.indexed import DTYPE_CODES, HEADER, MAGIC, VERSION
    from data_pipeline.packing.pack_plan import ARRAYS, PlanCounts, plan_files

    rows = 10**9
    shutil.copytree(prepared, folder)
    with (folder / "train.bin").open("wb") as file:
        file.truncate(4 * rows)
        file.seek(4 * (rows - 1))
        file.write(np.array([7, 8], np.uint16).tobytes())
    with (folder / "train.idx").open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, DTYPE_CODES[np.dtype(np.uint16)], rows, rows + 1))
        file.truncate(HEADER.size + 20 * rows + 8)
        file.seek(HEADER.size + 4 * (rows - 1))
        file.write(np.array([2], np.int32).tobytes())
        file.seek(HEADER.size + 4 * rows + 8 * (rows - 1))
        file.write(np.array([4 * (rows - 1)], np.int64).tobytes())
    counts, *paths = (folder / name for name in plan_files("train", "best_fit", 2))
    for path, name, kind in zip(paths, ARRAYS, (np.int64, np.int64, np.int32), strict=True):
        array = np.lib.format.open_memmap(path, "w+", kind, (rows + (name == "row_starts"),))
        array[-2:] = {"row_starts": [rows - 1, rows], "starts": [0, 2 * (rows - 1)], "lengths": [0, 2]}[name]
    plan = PlanCounts(strategy="best_fit", seq_len=2, rows=rows, tokens=2 * rows, dropped_tokens=0, padded_tokens=0)
    counts.write_text(plan.model_dump_json())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"seq_len": 2, "packing": "best_fit", "shuffle": False}
    names = ["train.bin", "train.idx", *(path.name for path in (counts, *paths))]
    sizes = {name: (folder / name).stat().st_size for name in names}
    hashed = hashlib.sha256(counts.read_bytes()).hexdigest()
    files = {name: {"bytes": size, "sha256": hashed if name == counts.name else ""} for name, size in sizes.items()}
    manifest["splits"] = {"train": manifest["splits"]["train"] | {"rows": rows, "shards": ["train"], "files": files}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_billion_rows_on_disk_are_mapped_not_read(prepared, tmp_path):
    sparse_billion(tmp_path / "large", prepared)
    code = (
        "import resource, time, numpy as np; from data_pipeline.dataset.packed_dataset import PackedDataset as D;"
        f"D({str(prepared)!r}, 'train').rows(np.arange(9));"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        f"before, begin = peak(), time.perf_counter(); large = D({str(tmp_path / 'large')!r}, 'train');"
        "print(large.rows(np.array([10**9 - 1])).tolist(), large.document_ids(np.array([10**9 - 1])).tolist());"
        "large.lengths(np.full(512, 10**9 - 1)); print(time.perf_counter() - begin, peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    row, figures = done.stdout.splitlines()
    seconds, megabytes = map(float, figures.split())
    assert row == "[[7, 8]] [[0, 0]]"
    assert seconds < 1 and megabytes < 64  # pages of files that were touched count as resident


def blend_of(tmp_path, text):
    (tmp_path / "blend.yaml").write_text(text)
    return load_blend(tmp_path / "blend.yaml")


@pytest.fixture
def two(prepare, jsonl, tmp_path):
    for name in ("web", "code"):
        assert prepare("--input", jsonl, "--output", tmp_path / name).code == 0
    return tmp_path


def test_the_files_are_checked_once_for_all_ranks(two, monkeypatch):
    """The main rank calls `Blend.check`; the ranks then look at no file but those that they read."""
    from pretrain.evaluation.sets import evaluation_sets

    blend = blend_of(two, "corpora:\n- {path: web, weight: 0.7}\n- {path: code, weight: 0.3}\n")
    blend.check(1)
    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.manifest.check_size", lambda *args: pytest.fail("checked again"))
        patch.setattr("data_pipeline.manifest.check_hash", lambda *args: pytest.fail("checked again"))
        samples = Samples.of(blend, 0)
        sets = evaluation_sets(blend, "validation", check=False)
        assert samples.rows(np.arange(3)).shape == (3, 32) and sets[0].rows.num_rows
    (two / "code" / "validation-00000.bin").write_bytes(b"")
    for check in (lambda: blend.check(1), lambda: evaluation_sets(blend, "validation")):
        with pytest.raises(DataError, match=r"validation-00000\.bin has 0 bytes"):
            check()


def test_a_blend_file_gives_weights_and_caps(two):
    blend = blend_of(two, "corpora:\n- {path: web, weight: 0.7}\n- {path: code, weight: 0.3, max_epochs: 1.5}\n")
    web, code = blend.corpora
    assert (web.weight, code.weight) == (Fraction(7, 10), Fraction(3, 10))
    assert web.cap is None and code.cap == int(1.5 * code.rows)
    blend.check(10**6)
    assert np.bincount(blend.schedule.locate(np.arange(100))[0]).tolist() == [70, 30]
    one = load_blend(two / "web")
    assert one.identity().keys() == {"tokenizer", "tokens", "rows"}
    assert [blend.identity()[f"corpus {k} tokens"] for k in (1, 2)] == [one.identity()["tokens"]] * 2
    assert blend.identity()["corpus 2 share"].startswith("3/10, at most")


def test_words_of_a_blend_file_mean_what_they_say(two, monkeypatch):
    """Names of digits and dates are names; a leading zero is decimal; home and environment are expanded."""
    monkeypatch.setenv("HOME", str(two))
    for name in ("2024-06-01", "1e3"):
        (two / "web").rename(two / name)
        blend = blend_of(
            two, f"corpora: [{{path: {name}, weight: 010, max_epochs: null}}, {{path: ~/code, weight: 1e1}}]"
        )
        assert [corpus.path for corpus in blend.corpora] == [two / name, two / "code"]
        assert [corpus.weight for corpus in blend.corpora] == [10, 10] and blend.corpora[0].cap is None
        (two / name).rename(two / "web")
    assert blend_of(two, "corpora: [{path: $HOME/web, weight: .5}]").corpora[0].path == two / "web"


def test_a_run_longer_than_its_caps_is_refused(two):
    blend = blend_of(two, "corpora: [{path: web, weight: 1, max_epochs: 1}, {path: code, weight: 1, max_epochs: 2}]")
    available = blend.corpora[0].rows * 3
    blend.check(available)
    with pytest.raises(DataError, match=f"has {available:,} samples until .*the run needs {available + 1:,}"):
        blend.check(available + 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpora: [", "not valid YAML"),
        ("", "a blend is written as corpora: "),
        ("corpora: []", "corpora: List should have at least 1 item"),
        (
            "corpora: [{path: web}, {path: code, weight: 1}]",
            r"blend\.yaml: web has no weight; give every corpus a weight",
        ),
        ("corpora: [{path: web}]\ntemperature: 0", r"line 2: temperature=0: should be greater than 0"),
        ("corpora: [{path: web, weight: -1}]", r"line 1: corpora\.0\.weight=-1 of web: should be greater than 0"),
        ("corpora: [{path: web, weight: .inf}]", r"corpora\.0\.weight=.inf of web: should be a finite number"),
        (
            "corpora: [{path: web, weight: 1, epochs: 2}]",
            r"corpora\.0\.epochs=2 of web: unknown key; did you mean max_epochs\?",
        ),
        (
            "corpora:\n- path: web\n  weight: yes",
            r"line 3: corpora\.0\.weight=yes of web: should be a number, such as 0.5",
        ),
        (
            "corpora: [{path: web, weight: 1_0}]",
            r"corpora\.0\.weight=1_0 of web: should be a number in decimal digits; write 10",
        ),
        ("corpora:\n- path: web\n  weight: 1\n  weight: 2", r"line 4: corpora\.weight is already on line 3; keep one"),
        ("corpora: [{path: $NOT_SET_HERE/x, weight: 1}]", r"the environment variable NOT_SET_HERE is not set"),
        ("corpora: [{path: web, weight: 010}, {path: ~nobody_here, weight: 1}]", r"corpora\.1\.path=~nobody_here: "),
        ("corpora: [{path: web, weight: 1}, {path: ./web, weight: 2}]", "is listed twice"),
        (
            "corpora: [{path: web, max_tokens: 1.5}]",
            r"max_tokens=1\.5 of web: should be a whole number, without a fraction",
        ),
        ("corpora: [{path: web, max_tokens: 0}]", r"max_tokens=0 of web: should be greater than 0"),
        ("corpora: [web]", r"line 1: corpora\.0=web: should be written as {path: FOLDER}; "),
        ("[web]", r"should be keys and values; a blend is written as"),
        ("corpora: [{path: none, weight: 1}]", r"blend\.yaml: no prepared data folder"),
        (
            "corpora: [{path: web, weights: 1}, {path: x, weight: 0}]",
            r"0\.weights=1 of web: unknown key; did you mean weight\?.*1\.weight=0 of x: should be greater than 0",
        ),
    ],
)
def test_a_broken_blend_file_is_named(two, text, message):
    with pytest.raises(DataError, match=message) as raised:
        blend_of(two, text)
    assert "blend.yaml" in str(raised.value)


def test_a_blend_file_that_is_not_there_is_called_one(tmp_path):
    with pytest.raises(DataError, match=r"no blend file at .*mix\.yml; a blend is written as corpora: "):
        load_blend(tmp_path / "mix.yml")


def test_corpora_that_differ_are_named(two, prepare, jsonl, repack):
    text = "corpora: [{path: web, weight: 1}, {path: code, weight: 1}]"
    repack(two / "code", "--seq-len", 64)
    with pytest.raises(
        DataError, match=r"code has rows of 64 tokens, .*web of 32; .*loopmdm repack .*code --seq-len 32"
    ):
        blend_of(two, text)
    repack(two / "code", "--seq-len", 32, "--pack", "best_fit")
    blend_of(two, text)  # another packing is fine
    prepare("--input", jsonl, "--output", two / "code", "--overwrite", "--vocab-size", 380, train=True)
    with pytest.raises(DataError, match=r"another tokenizer than .*--tokenizer .*web/tokenizer\.model"):
        blend_of(two, text)


def shares(blend):
    return [int(count) / MAX_CYCLE for count in blend.schedule.counts(MAX_CYCLE)]


@given(st.lists(st.fractions(Fraction(1, 10**6), 1), min_size=2, max_size=8))
@settings(max_examples=15, deadline=None)
def test_weights_of_any_numbers_are_rounded_to_a_cycle(weights):
    weights = [weight + Fraction(1, 1000) for weight in weights]
    counts = BlendSchedule(weights, [None] * len(weights)).counts(MAX_CYCLE)
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - weight / sum(weights) * MAX_CYCLE) < 2  # one of rounding, one of the order of the slots


def test_token_counts_are_weights(two):
    text = "corpora: [{path: web, weight: 153784221}, {path: code, weight: 98332117}]"
    assert shares(blend_of(two, text)) == pytest.approx([0.609969, 0.390031], abs=1e-5)
    blend = blend_of(two, "corpora: [{path: web}, {path: code}]")
    assert [corpus.weight for corpus in blend.corpora] == [
        corpus.manifest.splits["train"].tokens for corpus in blend.corpora
    ]
    with pytest.raises(DataError, match=r"blend.yaml: the weight 1e-07 of corpus .*/web is less than one part"):
        blend_of(two, "corpora: [{path: web, weight: 1e-7}, {path: code, weight: 1}]").check(1)


def test_temperature_flattens_the_weights(two):
    text = "corpora: [{path: web, weight: 900}, {path: code, weight: 100}]"
    for temperature, ratio in ((1, 9), (2, 3), (0.5, 81), (10 / 3, 9**0.3)):
        found = shares(blend_of(two, f"{text}\ntemperature: {temperature}"))
        assert found == pytest.approx([ratio / (1 + ratio), 1 / (1 + ratio)], abs=2e-5)


def test_a_limit_in_tokens(two, repack):
    text = "corpora: [{path: web, weight: 1}, {path: code, weight: 1, max_tokens: 40000, max_epochs: 100}]"
    assert blend_of(two, text).corpora[1].cap == 40000 // 32
    text = text.replace("max_epochs: 100", "max_epochs: 0.01")
    blend = blend_of(two, text)
    assert blend.corpora[1].cap == int(0.01 * blend.corpora[1].rows) < 40000 // 32
    repack(two / "code", "--seq-len", 32, "--pack", "best_fit")
    code = blend_of(two, text.replace("0.01", "100")).corpora[1]
    info = code.manifest.splits["train"]
    mean = (32 * info.rows - info.padded_tokens) / info.rows  # tokens of a row
    assert info.padded_tokens and code.cap == int(40000 / mean) > 40000 // 32
