"""`loopmdm report`: the page says what the run folders hold, and a browser shows it without an error or a request."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
from pretrain.cli import main as loopmdm
from pretrain.inspection.charts import Line, line_chart
from tests.launching import ROOT

CONFIG = "model: {hidden_size: 32, loop: {head: 1, mid: 1, tail: 1, max: 3}}\ntrain: {loops: uniform}\n"


HARNESS = {
    "results": {"board": {"alias": "board", "acc,none": 0.5, "acc_stderr,none": 0.125, "acc_norm,none": 0.25}},
    "n_shot": {"board": 3},
    "n_samples": {"board": {"original": 8, "effective": 8}},
    "settings": {"lm_eval": ["board"], "loops": 4},
}


def task_result(sampler: str, points: list[tuple[str, float, float | None]]) -> dict:
    """As `loopmdm evaluate --tasks sudoku4` writes it: loops, FLOPs per token and valid boards of each point."""
    rows = [
        {"loops": loops, "valid_boards": value, "valid_boards_se": 0.05, "cost": {"flops_per_token": flops}}
        for loops, flops, value in points
    ]
    settings = {"task": "sudoku4", "sampler": {"sampler": sampler, "threshold": 0.9, "temperature": 1.0, "stop": False}}
    return {"task": "sudoku4", "metric": "valid_boards", "items": 1000, "loops": rows, "settings": settings}


def evaluation(rows: list[dict], data: str = "d", weights: str = "ema", split: str = "validation") -> dict:
    """As `loopmdm evaluate` writes it."""
    loops = [row["loops"] for row in rows]
    settings = {"split": split, "loops": loops, "rows": 8, "data_sha256": data}
    return {"rows": 8, "loops": rows, "weights": weights, "settings": settings}


def run_folder(folder: Path, loss: float, corpus: Path | None = None) -> Path:
    """A run as training, evaluate, probe and sample leave it; with `corpus`, a tokenizer and the steps of a sample."""
    folder.mkdir(parents=True)
    sample = {"texts": ["<script>alert(1)</script>", "two"]}
    if corpus is not None:
        shutil.copytree(corpus, folder / "tokenizer")
        tokenizer = load_prepared_tokenizer(corpus, load_manifest(corpus))
        (ids,) = tokenizer.encode_batch(["given <b>drawn</b> é"])
        sample |= {"tokens": [ids.tolist()], "revealed_at_step": [[-1, *range(len(ids) - 2, -1, -1)]]}
    (folder / "config.yaml").write_text(CONFIG)
    steps = [
        {"step": s, "tokens": 1000 * s, "flops": 1e9 * s, "loss": loss - s / 100, "tokens_per_second": 500.0,
         "loss_by_timestep": [None, loss, loss + 0.1]}
        for s in (10, 20, 20)
    ]  # fmt: skip
    rows = [{"loops": s, "nats_per_token": loss - s / 50, "nats_per_token_se": 0.01} for s in (1, 2)]
    steps.append({"step": 20, "tokens": 20_000, "validation": {"loops": rows}})
    steps.append({"step": 20, "tokens": 20_000, "texts": {"drawn": ["one"]}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in steps) + '{"step": 30, "lo')
    names = ("attention", "attention_over_share", "relative_change", "change_of_direction", "norm")
    measured = {name: {"mean": [0.5, 0.6], "standard_error": [0.1, 0.1]} for name in names}
    for name, content in {
        "eval/step_20_ema": evaluation(rows),
        "eval/probe_step_20_ema_loops_2": {"timesteps": [{"t": 0.5, **measured}]},
        "eval/step_20_ema_sudoku4": task_result(
            "threshold", [("1", 1e6, 0.25), ("4", 4e6, 0.5), ("adaptive:1-4", 2e6, 0.5)]
        ),
        "eval/step_20_ema_sudoku4_wino": task_result("wino", [("4", 2.5e7, 0.75), ("8", 5e7, None)]),
        "eval/step_20_ema_lm_eval_board": HARNESS,
        "samples/step_20_ema": sample,
    }.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def test_the_page_has_the_figures_of_all_runs(tmp_path):
    one, two = run_folder(tmp_path / "one", 3.0), run_folder(tmp_path / "two", 2.0)
    assert loopmdm(["report", str(one), str(two), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "-1.0000 ± 0.0141" in page, "difference of the runs with its error"
    assert page.count('<svg class="chart"') == 9
    assert not re.search(r"https?://(?!www\.w3\.org)", page), "the page asks no host"
    assert "not a bound" not in page


def test_the_loss_of_an_autoregressive_model_is_not_called_a_bound(tmp_path):
    causal, noisy = run_folder(tmp_path / "causal", 3.0), run_folder(tmp_path / "noisy", 2.0)
    (causal / "config.yaml").write_text(CONFIG.replace("hidden_size", "causal: true, hidden_size"))
    page = tmp_path / "page.html"
    assert loopmdm(["report", str(causal), "--html", str(page)]) == 0
    alone = page.read_text()
    assert "NELBO" not in alone and "Loss by timestep" not in alone and "next-token loss by loops" in alone
    assert loopmdm(["report", str(causal), str(noisy), "--html", str(page)]) == 0
    both = page.read_text()
    assert "<h2>loss by loops</h2>" in both and "Loss by timestep" in both
    assert "noisy is not compared with causal: one of them is autoregressive" in both and "1.0000 ±" not in both


def add_evaluation(run: Path, name: str, age: int, content: dict) -> None:
    """`eval/NAME.json` from some seconds before the others."""
    path = run / "eval" / f"{name}.json"
    path.write_text(json.dumps(content))
    now = (run / "config.yaml").stat().st_mtime
    os.utime(path, (now - age, now - age))


def differences(runs: list[Path], folder: Path) -> str:
    """The text under the heading of the NELBO by loops, without the charts."""
    page = folder / "page.html"
    assert loopmdm(["report", *map(str, runs), "--html", str(page)]) == 0
    (part,) = re.findall(r"<h2>NELBO by loops</h2>(.*?)</section>", page.read_text(), re.DOTALL)
    return re.sub(r"<[^>]*>", " ", re.sub(r"<svg.*?</svg>", "", part, flags=re.DOTALL))


def figures(value: float, loops: tuple[int, ...] = (1, 2)) -> list[dict]:
    return [{"loops": s, "nats_per_token": value, "nats_per_token_se": 0.01} for s in loops]


def test_the_evaluation_with_most_rows_is_drawn(tmp_path):
    """Not a later one of fewer rows, and none of older weights."""
    folder = run_folder(tmp_path / "one", 3.0)
    for age, (name, step, rows) in enumerate([("quick", 20, 8), ("full", 20, 500), ("old", 10, 900)], -10):
        content = evaluation(figures(2.0)) | {"step": step, "rows": rows}
        add_evaluation(folder, f"step_{step}_ema_{name}", age, content)
    others = {"raw": {"weights": "raw"}, "data": {"data": "other"}}
    for name, words in others.items():
        add_evaluation(folder, f"step_20_{name}", 5, evaluation(figures(2.0), **words) | {"step": 20, "rows": 900})
    text = differences([folder], tmp_path)
    assert "one, step_20_ema_full" in text and not any(f"_{name}" in text for name in ("quick", "old", "raw", "data"))


def test_only_evaluations_of_the_same_data_are_subtracted(tmp_path):
    """The newest pair that agrees counts, and a run without such a pair is named with what differs."""
    runs = [run_folder(tmp_path / name, 3.0) for name in ("one", "two", "three", "four", "five")]
    one, two, three, four, five = runs
    add_evaluation(one, "step_20_ema_other", -10, evaluation(figures(9.0), data="other"))
    add_evaluation(two, "step_20_ema_test", -10, evaluation(figures(8.0), split="test"))
    add_evaluation(two, "step_10_ema", 10, evaluation(figures(7.0)))
    for run, content in {
        three: evaluation(figures(5.0), weights="raw"),
        four: evaluation(figures(5.0), data="third", split="test"),
        five: evaluation(figures(5.0, loops=(4,)), data="other"),
    }.items():
        add_evaluation(run, "step_20_ema", 0, content)
    text = differences(runs, tmp_path)
    assert re.findall(r"(\w+)\s+(\d)\s+([+-][\d.]+) ± 0.0141", text) == [
        ("two", "1", "+0.0000"),
        ("two", "2", "+0.0000"),
    ]
    assert (
        "three is not compared with one: their most similar evaluations differ in weights; evaluate both with" in text
    )
    assert "four is not compared with one: their most similar evaluations differ in data, split;" in text
    assert "five is not compared with one: their most similar evaluations differ in loops;" in text


def test_an_evaluation_that_does_not_name_its_data_is_not_subtracted(tmp_path):
    one, two = run_folder(tmp_path / "one", 3.0), run_folder(tmp_path / "two", 2.0)
    for run in (one, two):
        add_evaluation(run, "step_20_ema", 0, {"rows": 8, "loops": figures(3.0)})
    text = differences([one, two], tmp_path)
    assert "±" not in text and "evaluations differ in data, which neither names;" in text


def test_of_a_blend_the_mixture_counts(tmp_path):
    one, two = run_folder(tmp_path / "one", 3.0), run_folder(tmp_path / "two", 2.0)
    for run, value in ((one, 3.0), (two, 2.0)):
        (run / "eval" / "step_20_ema.json").unlink()
        corpus, mixture = evaluation(figures(value * 7), data="blend"), evaluation(figures(value), data="blend")
        del mixture["rows"]
        add_evaluation(run, "step_20_ema_1_web", 0, corpus)
        add_evaluation(run, "step_20_ema_2_code", -1, corpus)
        add_evaluation(run, "step_20_ema_mixture", 0, mixture | {"corpora": ["1_web", "2_code"], "shares": [0.5, 0.5]})
    text = differences([one, two], tmp_path)
    assert text.count("-1.0000 ± 0.0141") == 2 and "-7.0000" not in text
    assert "one, step_20_ema_mixture" in (tmp_path / "page.html").read_text()


def test_a_uniform_loss_weight_is_no_bound(tmp_path):
    run = run_folder(tmp_path / "plain", 3.0)
    (run / "config.yaml").write_text(CONFIG.replace("loops: uniform", "loops: uniform, loss_weight: uniform"))
    assert loopmdm(["report", str(run), "--html", str(tmp_path / "page.html")]) == 0
    assert "The loss is the mean cross-entropy of masked tokens, not a bound." in (tmp_path / "page.html").read_text()


def cells(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table after a heading, without tags."""
    rows = re.search(rf"<h3>{heading}</h3>.*?<table>(.*?)</table>", page, re.DOTALL)[1].split("</tr>")
    return [re.findall(r"<t[hd][^>]*>(?:<span[^>]*>)?(.*?)(?:</span>)?</t[hd]>", row) for row in rows if row.strip()]


def test_tasks_are_shown_against_their_flops(tmp_path):
    assert loopmdm(["report", str(run_folder(tmp_path / "run", 3.0)), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert cells(page, "sudoku4, 1,000 items: valid boards") == [
        ["sampler", "loops", "valid boards", "FLOPs per token"],
        ["threshold 0.9", "1", "0.2500 ± 0.0500", "1M"],
        ["threshold 0.9", "4", "0.5000 ± 0.0500", "4M"],
        ["threshold 0.9", "adaptive:1-4", "0.5000 ± 0.0500", "2M"],
        ["wino, threshold 0.9", "4", "0.7500 ± 0.0500", "25M"],
        ["wino, threshold 0.9", "8", "none", "50M"],
    ]
    (chart,) = re.findall(r'aria-label="valid boards against FLOPs per token">.*?</svg>', page)
    assert chart.count("<polyline") == 3, "fixed S, adaptive loops and the other sampler"
    across = {title: float(x) for x, title in re.findall(r'cx="([\d.]+)"[^>]*><title>([^<]*)<', chart)}
    one, two, four = (
        next(x for title, x in across.items() if f", {place}: " in title) for place in ("1e6", "2e6", "4e6")
    )
    assert four - two == pytest.approx(two - one, abs=0.11), "equal factors are equally far apart"
    assert cells(page, "lm-eval board, 3-shot, 8 items: acc")[1:] == [["4", "0.5000 ± 0.1250"]]
    assert cells(page, "lm-eval board, 3-shot, 8 items: acc_norm")[1:] == [["4", "0.2500"]]


def test_a_sample_is_shown_as_it_was_unmasked(tmp_path, corpus):
    run = run_folder(tmp_path / "run", 3.0, corpus)
    assert loopmdm(["report", str(run), "--html", str(tmp_path / "page.html")]) == 0
    strip = re.search(r'<div class="text strip">(.*?)</div>', (tmp_path / "page.html").read_text(), re.DOTALL)[1]
    pieces = re.findall(r'<i style="--a:(\d+)%" title="([^"]*)">([^<]*(?:<u>.</u>)?[^<]*)</i>', strip)
    assert "".join(text for _, _, text in pieces) == "given &lt;b&gt;drawn&lt;/b&gt; é"
    steps = [title for _, title, _ in pieces]
    assert steps[0] == "given" and steps[-1] == "step 1" and pieces[0][0] == "0"
    assert [int(step.split()[1]) for step in steps[1:]] == sorted((int(s.split()[1]) for s in steps[1:]), reverse=True)
    shades = [int(shade) for shade, _, _ in pieces[1:]]
    assert shades == sorted(shades, reverse=True) and shades[0] == 72, "what was revealed later has a stronger colour"


def test_what_is_missing_is_said_with_the_command_that_makes_it(tmp_path):
    run = run_folder(tmp_path / "run", 3.0)
    shutil.rmtree(run / "eval")
    shutil.rmtree(run / "samples")
    (run / "metrics.jsonl").unlink()
    assert loopmdm(["report", str(run), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    for verb in ("evaluate", "probe", "sample"):
        assert f"loopmdm {verb} RUN" in page


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), "not a run folder"),
        (lambda run: (run / "config.yaml").write_text("model: ["), "config.yaml: cannot be read (while parsing"),
        (lambda run: (run / "config.yaml").write_text(""), "config.yaml: has no sections `model` and `train`"),
        (lambda run: (run / "eval" / "step_20_ema.json").write_text("{"), "step_20_ema.json: not JSON"),
        (lambda run: (run / "metrics.jsonl").write_text("{\n{}\n"), "metrics.jsonl, line 1: not JSON"),
    ],
)
def test_broken_folders_are_named(tmp_path, capsys, break_it, message):
    run = run_folder(tmp_path / "run", 3.0)
    break_it(run)
    assert loopmdm(["report", str(run), "--html", str(tmp_path / "page.html")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 0.0], [-3.0, 4.0], [1e-9, 2e-9], [1e12, 3e12]])
def test_every_point_is_inside_its_chart(values):
    chart = line_chart([Line("a", [(x, y, 0.1 * abs(y)) for x, y in enumerate(values)])], "x", "y", whole=True)
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', chart)]
    assert len(heights) == len(values) and all(0 <= y <= 280 for y in heights)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_page_without_errors(tmp_path, corpus):
    page = tmp_path / "page.html"
    assert loopmdm(["report", str(run_folder(tmp_path / "run", 3.0, corpus)), "--html", str(page)]) == 0
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--enable-logging=stderr", "--v=0", "--window-size=400,900", f"--screenshot={tmp_path / 'page.png'}"]  # fmt: skip
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert (tmp_path / "page.png").stat().st_size > 10_000, done.stderr
    assert "CONSOLE" not in done.stderr
