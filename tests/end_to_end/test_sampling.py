"""`loopmdm sample`: every sampler on a tiny run, prompts and templates, and the files of results."""

import json
import shutil

import pytest

from data_pipeline.dataset.blend import load_blend
from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
from pretrain.cli import main as loopmdm
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.evaluation.sampler_settings import OPTIONS_OF
from pretrain.training.start import run_training
from tests.launching import ROOT

pytestmark = pytest.mark.end_to_end
OPTIONS = {
    **{name: ["--sampler", name] for name in OPTIONS_OF},
    "remask 0.2": ["--sampler", "remask", "--remask", "0.2", "--steps", "9"],
    "draft": ["--sampler", "entropy", "--draft", "4", "--block-length", "5"],
    "steps": ["--sampler", "confidence", "--steps", "7", "--temperature", "0"],
    "all": ["--sampler", "threshold", "--threshold", "0.02", "--block-length", "6", "--temperature", "0.7",
            "--top-k", "50", "--top-p", "0.9", "--guidance", "0.5", "--stop"],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(world, corpus, tmp_path_factory):
    """Two steps of training."""
    folder = tmp_path_factory.mktemp("sampling")
    words = [f"data.path={corpus}", f"run.dir={folder}", "run.name=run", "train.steps=2", "optim.warmup_steps=0"]
    settings = load_settings(str(ROOT / "tests" / "tiny.yaml"), words)
    blend = load_blend(settings.data.path)
    assert run_training(make_run_plan(settings, blend.manifest, 1), blend, resume=True) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def tokenizer(run):
    return load_prepared_tokenizer(run / "tokenizer", load_manifest(run / "tokenizer"))


@pytest.fixture
def sample(run, capsys, tmp_path):
    """Run the verb in this process; returns its status, output, errors and result (None without one)."""

    def call(*words, output="result.json"):
        path = tmp_path / output
        path.unlink(missing_ok=True)
        capsys.readouterr()
        status = loopmdm(["sample", str(run), "--loops", "2", "--output", str(path), *map(str, words)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        lines = path.read_text().splitlines() if path.exists() else []
        read = json.loads if path.suffix == ".json" else lambda text: [json.loads(line) for line in text.splitlines()]
        return status, printed.out, printed.err, read("\n".join(lines)) if lines else None

    return call


@pytest.mark.parametrize("name", OPTIONS)
def test_sample_1_is_the_same_alone_and_among_others(name, sample, tokenizer):
    words = [*OPTIONS[name], "--prompt", "ab ab", "--length", "20"]
    several = sample(*words, "--num-samples", "5", "--batch-size", "3")[3]
    alone = sample(*words, "--num-samples", "1")[3]
    assert alone["tokens"][0] == several["tokens"][0]
    assert len({tuple(row) for row in several["tokens"]}) > 1 or name == "steps"
    for text, row, steps in zip(several["texts"], several["tokens"], several["revealed_at_step"], strict=True):
        assert text.startswith("ab ab") and text == tokenizer.decode(row)
        assert tokenizer.mask_id not in row and len(row) == len(steps)
        assert len(row) == 20 or "--stop" in words
    sampler = words[words.index("--sampler") + 1]
    assert several["settings"]["sampler"] == several["sampler"] == sampler


def test_self_speculative_decoding_prints_the_text_of_one_token_per_step(sample):
    plain = sample("--sampler", "confidence")[3]
    for words in (("--sampler", "confidence", "--draft", "4"), ("--sampler", "self_speculative")):
        faster = sample(*words)[3]
        assert faster["tokens"] == plain["tokens"]
        assert max(faster["revealed_at_step"][0]) < max(plain["revealed_at_step"][0])


def test_a_threshold_without_a_sampler_that_has_one_is_that_of_adaptive_loops(sample):
    words = ("--loops", "adaptive:1-3", "--loop-criterion", "direction")
    shared, own = sample(*words, "--threshold", "1e9")[3], sample(*words, "--loop-threshold", "1e9")[3]
    assert (
        shared["loop_threshold"] == 1e9 and shared["settings"] == own["settings"] and shared["tokens"] == own["tokens"]
    )
    assert shared["cost"]["loops_per_forward"] == 1
    assert shared["cost"]["block_passes"] == shared["cost"]["forwards"]
    both = sample(*words, "--sampler", "threshold", "--threshold", "0.3")[3]
    assert both["threshold"] == 0.3 and both["loop_threshold"] == 0.065


def test_gaps_are_filled_and_the_rest_is_kept(sample, tokenizer, tmp_path):
    (tmp_path / "t.txt").write_text("ab[MASK:3]cd[MASK] ef\n")
    status, _, _, result = sample("--template", tmp_path / "t.txt", "--sampler", "margin")
    ab, cd, ef = (ids.tolist() for ids in tokenizer.encode_batch(["ab", "cd", " ef"]))
    assert status == 0 and result["template"] == "ab[MASK:3]cd[MASK] ef"
    for row in result["tokens"]:
        assert len(row) == len(ab + cd + ef) + 4
        assert row[: len(ab)] == ab and row[len(ab) + 3 : len(ab) + 3 + len(cd)] == cd and row[-len(ef) :] == ef
    infilled = sample("--prompt", "ab[MASK:3]cd", "--length", "16")[3]["tokens"][0]
    assert infilled[: len(ab)] == ab and infilled[len(ab) + 3 : len(ab) + 3 + len(cd)] == cd and len(infilled) == 16


def test_prompts_and_results_as_json_lines(sample, tmp_path):
    """Templates have other lengths, so they are filled in other batches; the results come in the order of the prompts."""
    lines = [{"prompt": "ab", "id": 1}, {"template": "ab[MASK] cd[MASK:2]"}, {"prompt": "cd", "id": 3}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("--prompts", tmp_path / "p.jsonl", "--length", "16")
    status, out, _, results = sample(*words, "--num-samples", "2", output="out.jsonl")
    assert status == 0 and "--- sample 4 of 6 (prompt 2), S=2, 32 denoising steps" in out
    assert [(r["input"], r["index"]) for r in results] == [(line, k) for line in lines for k in (0, 1)]
    assert results[0]["text"] == "ab" + results[0]["completion"]
    assert all(r["settings"]["seed"] == r["seed"] == 0 and r["step"] == 2 for r in results)
    # 14 or 15 tokens to fill; a step that reveals none of a row's needs no forward pass of it.
    assert all(1 < r["forwards"] <= 15 and r["loops_per_forward"] == 2 for r in results)
    assert all(r["block_passes"] == 2 * r["forwards"] for r in results)
    assert not any("prompts" in r["settings"] for r in results)  # each line has its own
    # The second prompt's first sample does not depend on how many samples the first prompt has.
    assert sample(*words, "--num-samples", "1", output="out.jsonl")[3][1]["tokens"] == results[2]["tokens"]


def test_stop_ends_the_text_at_the_end_of_document(sample, tokenizer, run):
    """With 320 tokens and hardly any training some of 60 samples of 32 tokens contain the token."""
    words = ("--sampler", "left_to_right", "--tokens-per-step", "8", "--num-samples", "60")
    plain, stopped = sample(*words)[3]["tokens"], sample(*words, "--stop")[3]
    end = tokenizer.eod_id
    assert any(end in row for row in plain)
    assert all(end not in row for row in stopped["tokens"]) and not any("<|eod|>" in text for text in stopped["texts"])
    assert {len(row) for row in stopped["tokens"]} > {32}


REFUSED = {
    ("--sampler", "best"): "argument --sampler: invalid choice: 'best'",
    ("--threshold", "0.5"): "--threshold: has no effect with --sampler ancestral",
    ("--loops", "1248"): "--loops 1248: must be at most 1,000",
    ("--batch-size", "0"): "--batch-size 0: must be at least 1",
    ("--length", "99999999999999"): "--length 99999999999999: must be at most 1,048,576",
    ("--num-samples", "9999999999"): "--num-samples 9999999999: must be at most 1,048,576",
    ("--steps", "3", "--block-length", "8"): "--steps 3: the 4 blocks of a sample of --prompt need at least one step each",
    ("--guidance", "1"): "--prompt: --guidance strengthens the prompt, and this one is empty; leave it out",
    ("--prompt", "a", "--template", "t"): "argument --template: not allowed with argument --prompt",
    ("--template", "none"): "--template none: no such file",
    ("--prompts", "none"): "--prompts none: no such file",
    ("--prompt", "[MASK:40]"): "--prompt: its 40 tokens leave no room in a sample of 32; shorten it or raise --length",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_means_nothing_is_refused(words, sample, capsys):
    try:
        status, out, error, result = sample(*words)
    except SystemExit as exit:  # argparse
        status, out, error, result = exit.code, "", capsys.readouterr().err, None
    assert (status, out, result) == (2, "", None)
    assert f"error: {REFUSED[words]}" in error


def test_longer_texts_than_rows_are_warned_of(sample):
    assert "--length" not in sample("--num-samples", "1", "--length", "32")[2]
    status, _, error, result = sample("--num-samples", "1", "--length", "33")
    assert status == 0 and len(result["tokens"][0]) == 33
    assert "warning: --length 33: the run was trained on rows of 32 tokens" in error


def test_damaged_weights_are_named(run, sample, monkeypatch):
    from pretrain.commands.load_run import LoadedRun

    original = LoadedRun.denoiser
    monkeypatch.setattr(LoadedRun, "denoiser", lambda *args: lambda query: original(*args)(query) * float("nan"))
    status, _, error, _ = sample()
    assert status == 2 and "logits are not numbers (NaN): its weights are damaged" in error


def test_a_checkpoint_that_training_removes_meanwhile_is_replaced_by_the_next(run, tmp_path, monkeypatch, capsys):
    """As when a run in progress prunes the newest checkpoint that was there, between its listing and its loading."""
    from pretrain.commands import load_run

    shutil.copytree(run, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / "step_2", checkpoints / "step_9")
    original, tried = load_run.load_into, []

    def load_into(model, checkpoint, *rest):
        tried.append(checkpoint.name)
        if checkpoint.name == "step_9":
            shutil.rmtree(checkpoint)
        original(model, checkpoint, *rest)

    monkeypatch.setattr(load_run, "load_into", load_into)
    assert loopmdm(["sample", str(tmp_path / "run"), "--num-samples", "1"]) == 0
    assert tried == ["step_9", "step_2"]
    assert "samples/step_2_ema" in capsys.readouterr().out
    shutil.rmtree(checkpoints / "step_2")
    assert loopmdm(["sample", str(tmp_path / "run")]) == 2
    assert "no complete checkpoint in" in capsys.readouterr().err
