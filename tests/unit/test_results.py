"""Figures of few rows, the JSON of results, the files they are written to, and the folder of a run."""

import argparse
import errno
import fcntl
import json
import math
import warnings
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.atomic_files import write_atomic
from data_pipeline.dataset.blend import load_blend
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.errors import DataError
from data_pipeline.json_text import json_text
from data_pipeline.manifest import TextLoss
from pretrain.commands.load_run import find_data
from pretrain.commands.options import check_options
from pretrain.config.load import load_settings
from pretrain.config.validation_split import require_validation_split
from pretrain.errors import ConfigError, UserError
from pretrain.evaluation.comparison import add_comparison, format_comparison
from pretrain.evaluation.nelbo import freeze_noise
from pretrain.evaluation.report import figures_of, format_table, format_timesteps, short_figures
from pretrain.evaluation.result_files import keep_result, save_result
from pretrain.evaluation.sets import EvaluationSet, mixed_figures
from pretrain.evaluation.statistics import estimate_from_rows, unigram_entropy
from pretrain.training import run_folder
from tests.launching import ROOT


def strictly(text):
    """Parse JSON as readers do that know no NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_what_is_not_finite_becomes_null():
    value = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": np.float64("nan")}, "d": "NaN", "e": True}
    assert strictly(json_text(value)) == {"a": [1.5, None, [None, None]], "b": {"c": None}, "d": "NaN", "e": True}


def test_names_that_are_not_utf8_can_be_written():
    text = json_text({"run": "bl\udce9 é"})
    assert text.encode("utf-8") == b'{"run": "bl\\udce9 \xc3\xa9"}' and json.loads(text) == {"run": "bl\udce9 é"}


def figures(corpus, rows, loss=None):
    """Figures of the first rows of a split at two numbers of loops, and whatever numpy had to say."""
    dataset = PackedDataset(corpus, "validation")
    dataset.manifest = dataset.manifest.model_copy(update={"text_loss": loss})
    noise = freeze_noise(dataset, rows)
    nats = np.random.default_rng(0).uniform(4, 5, (2, len(noise.rows)))
    shares = noise.masked_counts / noise.lengths
    estimates = [estimate_from_rows(s, n, noise.weights, shares) for s, n in zip((1, 2), nats, strict=True)]
    return {"name": ""} | figures_of(dataset, noise, estimates, unigram_entropy(dataset))


def test_one_row_has_no_error_bar(corpus):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = figures(corpus, 1), figures(corpus, 2)
    for row in one["loops"]:
        assert [row[key] for key in ("nats_per_token_se", "bits_per_byte_se", "change_from_first_se")] == [None] * 3
        assert row["change_from_first"] == pytest.approx(row["nats_per_token"] - one["loops"][0]["nats_per_token"])
    for text in (format_table(one), short_figures(one)):
        assert "no error bar, which needs at least 2 rows" in text and "±" not in text and "nan" not in text
    assert all(row["nats_per_token_se"] > 0 for row in two["loops"]) and two["loops"][1]["change_from_first_se"] > 0
    assert "no error bar" not in format_table(two) + short_figures(two) and format_table(two).count("±") == 5
    widths = [len(line) for line in format_table(one).splitlines()[:3]]
    assert widths == [len(line) for line in format_table(two).splitlines()[:3]]


def test_bits_per_byte_of_a_lossy_tokenizer_say_so(corpus):
    plain = figures(corpus, 4)
    assert "text_loss" not in plain and "bits/byte count" not in format_table(plain)
    loss = TextLoss(texts=20, changed=3, tokens=200, unknown=5)
    lossy = figures(corpus, 4, loss)
    assert lossy["text_loss"] == loss.model_dump() and lossy["loops"] == plain["loops"]
    assert format_table(lossy).endswith(
        "bits/byte count what the tokenizer loses as nothing: 3 of 20 sampled texts do not come back from their tokens, "
        "2.5% of the tokens are unknown"
    )


def test_figures_by_timestep(corpus):
    """Against the rows of each interval, and the whole: the bins' rows are all rows."""
    dataset = PackedDataset(corpus, "validation")
    noise, found = freeze_noise(dataset, 40), figures(corpus, 40)
    nats = np.random.default_rng(0).uniform(4, 5, (2, len(noise.rows)))
    t = noise.masked_counts / noise.lengths
    for of_loops, values in zip(found["loops"], nats, strict=True):
        bins = of_loops["by_timestep"]
        assert [b["t"] for b in bins] == [[i / 10, (i + 1) / 10] for i in range(10)]
        for b in bins:
            inside = (t > b["t"][0]) & (t <= b["t"][1])
            assert b["rows"] == inside.sum()
            expected = np.average(values[inside], weights=noise.weights[inside])
            assert b["nats_per_token"] == pytest.approx(expected) and 0 < b["nats_per_token_se"] < 0.5
        assert sum(b["rows"] for b in bins) == len(noise.rows)
    few = figures(corpus, 3)
    empty = [b for b in few["loops"][0]["by_timestep"] if not b["rows"]]
    assert len(empty) == 7 and all(b["nats_per_token"] is None for b in empty)
    table = format_timesteps(found).splitlines()
    assert len(table) == 11 and table[0].split() == ["t", "rows", "S=1", "S=2"] and table[1].count("±") == 2
    assert len(format_timesteps(few).splitlines()) == 11 and "None" not in format_timesteps(few)


def test_paired_differences_of_two_runs(corpus):
    """Their error is that of the rows' differences, far below that of either run."""
    dataset = PackedDataset(corpus, "validation")
    noise, rng = freeze_noise(dataset, 40), np.random.default_rng(1)
    shares, nats = noise.masked_counts / noise.lengths, rng.uniform(2, 6, len(noise.rows))
    better = nats - 0.1 + rng.normal(0, 0.01, len(nats))
    own, other = (estimate_from_rows(1, one, noise.weights, shares) for one in (better, nats))
    result = {"name": ""} | figures_of(dataset, noise, [own], unigram_entropy(dataset))
    sets = [EvaluationSet("", dataset, 1.0)]
    add_comparison([result], sets, [[own]], [[other]])
    compared = result["loops"][0]["compared"]
    assert compared["nats_per_token"] == other.nats_per_token
    assert compared["difference"] == pytest.approx(own.nats_per_token - other.nats_per_token)
    assert compared["difference_se"] == pytest.approx(0.01 / math.sqrt(len(nats)), rel=0.3)
    assert compared["difference_se"] < own.standard_error / 20
    assert "-0.1" in format_comparison(result, "other") and format_comparison(result, "other").count("±") == 2
    both = [result, json.loads(json.dumps(result)), {"loops": [{"loops": 1}]}]
    add_comparison(
        both, [EvaluationSet(n, dataset, w) for n, w in (("a", 3.0), ("b", 1.0))], [[own], [other]], [[other], [other]]
    )
    mixed = both[2]["loops"][0]["compared"]
    assert mixed["difference"] == pytest.approx(0.75 * compared["difference"])
    assert mixed["difference_se"] == pytest.approx(0.75 * compared["difference_se"])


def test_a_mixture_with_a_corpus_of_one_row_has_no_error_bar(corpus):
    sets = [EvaluationSet(name, PackedDataset(corpus, "validation"), 1.0) for name in "ab"]
    mixed = mixed_figures(sets, [figures(corpus, 1), figures(corpus, 2)])
    assert [row["nats_per_token_se"] for row in mixed["loops"]] == [None, None]
    assert all(row["nats_per_token_se"] > 0 for row in mixed_figures(sets, [figures(corpus, 2)] * 2)["loops"])


def test_results_of_other_settings_are_kept(tmp_path):
    def save(loops, value):
        return save_result(tmp_path / "eval", "step_1", {"settings": {"loops": (loops,)}, "value": value}).name

    assert [save(1, 0.5), save(2, 0.6), save(1, 0.7), save(3, math.nan)] == [
        "step_1.json", "step_1_2.json", "step_1.json", "step_1_3.json",
    ]  # fmt: skip
    assert strictly((tmp_path / "eval" / "step_1.json").read_text())["value"] == 0.7
    assert strictly((tmp_path / "eval" / "step_1_3.json").read_text())["value"] is None
    for content in ('{"value": 1}', "[1]", '{"settings": '):  # of an earlier version, of somebody else, cut off
        (tmp_path / "eval" / "step_2.json").write_text(content)
        path = save_result(tmp_path / "eval", "step_2", {"settings": {}})
        assert path.name == "step_2_2.json" and (tmp_path / "eval" / "step_2.json").read_text() == content


def test_results_written_at_the_same_time_are_all_kept(tmp_path, monkeypatch):
    """As jobs of an array do: when each looked, the file of the others was not there yet."""
    monkeypatch.setattr(Path, "exists", lambda path: False)
    names = [save_result(tmp_path, "s", {"settings": number}).name for number in range(3)]
    assert names == ["s.json", "s_2.json", "s_3.json"]
    assert [strictly((tmp_path / name).read_text())["settings"] for name in names] == [0, 1, 2]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_loses_no_result(tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, "cannot be written here")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        line = keep_result(tmp_path / "run" / "eval", "s", {"settings": 1})
        assert line.startswith(f"not saved: {tmp_path}/run/eval cannot be written (cannot be written here)")
        assert "--output FILE.json" in line and "\n" not in line
    assert keep_result(tmp_path, "s", {"settings": 1}, tmp_path / "new" / "o.json") == f"wrote {tmp_path}/new/o.json"
    monkeypatch.setattr("data_pipeline.atomic_files.write_atomic", refuse)
    with pytest.raises(DataError, match=r"--output .*o.json: cannot be written \(cannot be written here\)"):
        keep_result(tmp_path, "s", {"settings": 1}, tmp_path / "o.json")


def test_options_that_mean_nothing(tmp_path, monkeypatch):
    def check(**options):
        defaults = {"tensor": 1, "pipeline": 1, "output": None, "length": None, "output_suffixes": (".json",)}
        check_options(argparse.Namespace(**defaults | options), {"length": 1})

    check()
    check(length=1, output=tmp_path / "new" / "o.json")
    for options in ({"length": 0}, {"length": -5}, {"tensor": 0}, {"pipeline": -1}):
        ((name, value),) = options.items()
        with pytest.raises(UserError, match=rf"^--{name} {value}: must be at least 1$"):
            check(**options)
    (tmp_path / "folder.json").mkdir()
    for output, why in (("o.txt", "a name that ends in .json"), ("folder.json", "is a folder; give a file name")):
        with pytest.raises(UserError, match=rf"--output {tmp_path / output}: .*{why}"):
            check(output=tmp_path / output)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"cannot be written .*; choose another file"):
        check(output=tmp_path / "o.json")


def test_validation_without_a_validation_split_is_refused(corpus):
    blend = load_blend(corpus)
    only = {"train": blend.manifest.splits["train"]}
    bare = replace(blend.corpora[0], manifest=blend.manifest.model_copy(update={"splits": only}))
    without = replace(blend, corpora=(bare,))
    mixture = replace(blend, corpora=(bare, replace(blend.corpora[0], weight=Fraction(1))))
    on, off = (load_settings(str(ROOT / "tests/tiny.yaml"), [f"eval.every={every}"]) for every in ("10", "null"))
    require_validation_split(on, blend)
    require_validation_split(on, mixture)
    require_validation_split(off, without)
    with pytest.raises(
        ConfigError, match=r"eval.every=10: .* no validation split; set eval.every=null, or .*--validation-frac"
    ):
        require_validation_split(on, without)


@pytest.mark.parametrize("recorded", ["absolute", "relative"])
def test_data_of_a_run_is_found_from_anywhere(corpus, tmp_path, monkeypatch, recorded):
    """Recorded paths are absolute now; runs of earlier versions have those of their recipe."""
    project = tmp_path / "project"
    (project / "runs" / "q").mkdir(parents=True)
    (project / "data").symlink_to(corpus)
    base = project if recorded == "absolute" else Path()
    settings = load_settings(
        str(ROOT / "tests/tiny.yaml"), [f"data.path={base / 'data'}", f"run.dir={base / 'runs'}", "run.name=q"]
    )

    def found(folder):
        return find_data(SimpleNamespace(folder=Path(folder), settings=settings)).resolve()

    for here, folder in (
        (project, "runs/q"),
        (project / "runs", "q"),
        (project / "runs" / "q", "."),
        ("/", project / "runs/q"),
    ):
        monkeypatch.chdir(here)
        assert found(folder) == corpus, (here, folder)
    (tmp_path / "link").symlink_to(project / "runs" / "q")
    assert found(tmp_path / "link") == corpus
    project.rename(tmp_path / "moved")
    assert found(tmp_path / "moved" / "runs" / "q") == corpus
    (tmp_path / "alone").mkdir()
    with pytest.raises(
        UserError, match=r"alone: its data, .*data, is not at .*; name the prepared folder with --data DIR"
    ):
        found(tmp_path / "alone")


def test_a_file_system_without_locks_is_told_once(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        for resume in (True, False):
            with ExitStack() as held:
                run_folder.claim_folder(tmp_path / f"run{number}", resume, held)
            printed = capsys.readouterr()
            assert printed.err.count("warning: ") == 1 and "no locks (no locks here)" in printed.err
            assert "write to" not in printed.err and ("moved" in printed.out) != resume
    assert len(list(tmp_path.glob("run*.old-*"))) == 3


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, resume):
    def claim():
        with ExitStack() as held:
            run_folder.claim_folder(tmp_path / "run", resume, held)

    claim()
    real = run_folder.os.access
    for name in ("checkpoints", "logs"):
        (tmp_path / "run" / name).mkdir(exist_ok=True)
        if resume:
            with monkeypatch.context() as patch:
                patch.setattr(
                    run_folder.os, "access", lambda path, mode, name=name: path.name != name and real(path, mode)
                )
                with pytest.raises(UserError, match=rf"{name}: cannot be written \(Permission denied\); set run.dir"):
                    claim()
    monkeypatch.setattr(run_folder, "locked", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only", "F")))
    with pytest.raises(UserError, match=r"F: cannot be written \(Read-only\); set run.dir or run.name"):
        claim()


def test_a_folder_that_is_no_run_is_neither_moved_nor_filled(tmp_path):
    """With run.dir=data run.name=stdlib, --no-resume would move the prepared data away."""

    def claim(name, resume, *data):
        with ExitStack() as held:
            run_folder.claim_folder(tmp_path / name, resume, held, data)

    for file in ("stdlib/manifest.json", "thesis/chapter1.tex", "all/stdlib/manifest.json"):
        write_atomic(tmp_path / file, "")
    for resume in (True, False):
        with pytest.raises(
            UserError, match=r"stdlib: holds prepared data, and a run needs a folder of its own; set an"
        ):
            claim("stdlib", resume)
    with pytest.raises(UserError, match=r"thesis: has chapter1.tex and no config.yaml, so it is no run, which --no-re"):
        claim("thesis", False)
    claim("all", True, tmp_path / "all" / "stdlib")
    with pytest.raises(
        UserError, match=r"all: --no-resume would move .*all/stdlib along with it, the data of the run;"
    ):
        claim("all", False, tmp_path / "all" / "stdlib")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "stdlib", "thesis"]
    (tmp_path / "empty").mkdir()
    claim("empty", False)
    assert len(list(tmp_path.glob("empty.old-*"))) == 1


@pytest.mark.parametrize(
    ("first", "again", "another"),
    [
        (
            {"SLURM_JOB_ID": "7"},
            {"SLURM_RESTART_COUNT": "1"},
            {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"},
        ),
        (
            {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "0"},
            {"TORCHELASTIC_RESTART_COUNT": "1"},
            {"TORCHELASTIC_RUN_ID": "b"},
        ),
    ],
    ids=["SLURM", "torchrun"],
)
def test_no_resume_counts_for_the_first_start_of_a_launcher(
    tmp_path, monkeypatch, world, capsys, first, again, another
):
    """A requeue would otherwise begin anew each time, and the run would never end."""

    def start(changes):
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        with ExitStack() as held:
            run_folder.claim_folder(tmp_path / "run", False, held)
            with run_folder.recorded_status(tmp_path / "run", world):
                pass
        return len(list(tmp_path.glob("run.old-*")))

    def clock(form):
        times.append(form)
        return f"{len(times)}"

    times = []
    monkeypatch.setattr(run_folder.time, "strftime", clock)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert [start(changes) for changes in (first, {}, again, {}, another)] == [0, 1, 1, 1, 2]
    assert capsys.readouterr().out.count("goes on with") == 2


def test_a_run_folder_in_use_says_who_trains_there(tmp_path):
    with ExitStack() as held, ExitStack() as second:
        run_folder.claim_folder(tmp_path / "run", True, held)
        for resume in (True, False):
            with pytest.raises(
                UserError,
                match=rf"training here \(.+, process {run_folder.os.getpid()}, since [\d-]+ [\d:]+\); wait for it",
            ):
                run_folder.claim_folder(tmp_path / "run", resume, second)
