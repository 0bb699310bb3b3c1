"""One tiny run, evaluated and sampled from other places, without permission to write, and with odd options."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from data_pipeline.dataset.blend import load_blend
from pretrain.checkpoints.folder import MARK
from pretrain.cli import main as loopmdm
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.training.start import run_training
from tests.checkpoints import weights_of
from tests.launching import BIN, ROOT, environment, free_port, records, run, train

pytestmark = pytest.mark.end_to_end
RECIPE = ROOT / "tests" / "tiny.yaml"
ONE_SAMPLE = ("--steps", "2", "--length", "8", "--num-samples", "1")


@pytest.fixture(scope="module")
def trained(world, corpus, tmp_path_factory):
    """Two steps, with a DeepSpeed file of its own that is gone afterwards."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(ROOT / "ds_configs" / "zero2.json", folder / "ds.json")
    words = [f"data.path={corpus}", f"run.dir={folder}", "run.name=run", "train.steps=2", "optim.warmup_steps=0"]
    words += ["parallel.zero_stage=2", f"parallel.ds_config={folder / 'ds.json'}"]
    settings = load_settings(str(RECIPE), words)
    blend = load_blend(settings.data.path)
    assert run_training(make_run_plan(settings, blend.manifest, 1), blend, resume=True) == 0
    (folder / "ds.json").unlink()
    return folder / "run"


@pytest.fixture
def loop(capsys):
    """Run a verb in this process; returns its status, output and errors."""

    def call(*words):
        capsys.readouterr()
        status = loopmdm([str(word) for word in words])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.out, printed.err

    return call


def test_a_run_is_used_from_another_folder_and_through_a_link(trained, loop, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "a copy [1] é")
    (tmp_path / "link").symlink_to(tmp_path / "a copy [1] é")
    monkeypatch.setenv("HOME", str(tmp_path))
    for here, folder in ((tmp_path, "a copy [1] é"), (tmp_path / "link", "."), ("/", "~/link"), ("/", trained)):
        monkeypatch.chdir(here)
        assert loop("evaluate", folder, "--loops", "1", "--rows", "8")[0] == 0
        assert loop("sample", folder, *ONE_SAMPLE)[0] == 0
    assert not (tmp_path / "~").exists()


def test_data_that_is_gone_is_named(trained, loop, corpus, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(corpus), "data/elsewhere"))
    status, _, error = loop("evaluate", tmp_path / "run", "--loops", "1", "--rows", "8")
    assert status == 2 and "its data, data/elsewhere, is not at" in error and "with --data DIR" in error
    assert "prepare" not in error.replace("prepared folder", "")
    assert loop("evaluate", tmp_path / "run", "--loops", "1", "--rows", "8", "--data", corpus)[0] == 0


def test_data_that_were_prepared_again_are_told(trained, loop, corpus, tmp_path):
    """Their validation rows may be texts that the run was trained on."""
    run, data = shutil.copytree(trained, tmp_path / "run"), tmp_path / "data"
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(corpus), str(data)))
    rng = random.Random(5)
    texts = (" ".join(rng.choices("abcdefghij", k=80)) for _ in range(100))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["--input", tmp_path / "t.jsonl", "--output", data, "--tokenizer", corpus / "tokenizer.model"]
    assert loop("prepare", *words, "--seq-len", "32", "--validation-fraction", "0.2", "--workers", "1")[0] == 0
    warning = (
        f"warning: {data} is not what {run} was trained on (tokens changed): some of its held-out rows may have been"
    )
    for verb in ("evaluate", "probe"):
        status, _, error = loop(verb, run, "--loops", "1", "--rows", "8")
        assert status == 0 and error.startswith(warning) and error.count("\n") == 1
        assert loop(verb, run, "--loops", "1", "--rows", "8", "--data", data)[2] == "", "they were asked for"
        assert loop(verb, trained, "--loops", "1", "--rows", "8")[2] == "", "they are the same"
    assert loop("repack", data, "--seq-len", "16")[0] == 0
    assert error in loop("evaluate", run, "--loops", "1", "--rows", "8")[2]


def test_probing_on_data_of_another_tokenizer_is_refused(trained, loop, one_row):
    status, out, error = loop("probe", trained, "--data", one_row)
    assert status == 2 and out == "" and f"{one_row}: was prepared with a different tokenizer than that of" in error


@pytest.mark.parametrize("verb", ["evaluate", "probe"])
def test_weights_that_are_not_numbers_are_an_error(trained, loop, tmp_path, verb):
    checkpoint = shutil.copytree(trained, tmp_path / "run") / "checkpoints" / "step_2"
    use_raw_weights_as_average(checkpoint)
    weights = {name: weight * float("nan") for name, weight in load_file(checkpoint / "ema.safetensors").items()}
    save_file(weights, checkpoint / "ema.safetensors")
    status, out, error = loop(verb, tmp_path / "run", "--loops", "2", "--rows", "8")
    assert status == 2 and out == "" and error.startswith(f"error: {checkpoint}: the model's logits are not numbers")
    assert loop("evaluate", trained, "--loops", "2", "--rows", "8", "--compare", tmp_path / "run")[0] == 2


def test_results_of_other_settings_are_kept(trained, loop, tmp_path):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("eval", "samples"))
    for prompt in ("abc", "de", "", "abc"):
        assert loop("sample", tmp_path / "run", *ONE_SAMPLE, "--prompt", prompt)[0] == 0
    prompts = [json.loads(path.read_text())["prompt"] for path in (tmp_path / "run" / "samples").iterdir()]
    assert sorted(prompts) == ["", "abc", "de"]
    for loops, rows in (("1,2", 8), ("3", 8), ("1,2", 9), ("1,2", 8)):
        assert loop("evaluate", tmp_path / "run", "--loops", loops, "--rows", rows)[0] == 0
    names = sorted(path.name for path in (tmp_path / "run" / "eval").iterdir())
    assert names == [f"step_2_ema_loops_{what}.json" for what in ("1-2_rows_8", "1-2_rows_9", "3_rows_8")]
    found = [json.loads((tmp_path / "run" / "eval" / name).read_text())["settings"] for name in names]
    assert sorted((tuple(one["loops"]), one["rows"]) for one in found) == [((1, 2), 8), ((1, 2), 9), ((3,), 8)]


def test_a_run_that_cannot_be_written(trained, loop, tmp_path, monkeypatch):
    """As on a read-only disk: the result is printed, and one line says why it was not saved."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("eval", "samples"))
    original = Path.mkdir

    def mkdir(path, *args, **kwargs):
        if path.parent == tmp_path / "run":
            raise OSError(30, "Read-only file system", str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    evaluate = ("evaluate", tmp_path / "run", "--loops", "1,2", "--rows", "8")
    sample = ("sample", tmp_path / "run", *ONE_SAMPLE)
    for words, result in ((evaluate, "S=2 "), (sample, "--- sample 1 of 1")):
        status, out, err = loop(*words)
        assert status == 0 and err == "" and result in out
        assert out.count("not saved: ") == 1 and "(Read-only file system)" in out and "--output FILE.json" in out
        status, out, _ = loop(*words, "--output", tmp_path / "out" / f"{words[0]}.json")
        assert status == 0 and f"wrote {tmp_path}/out/{words[0]}.json" in out and "not saved" not in out
        assert json.loads((tmp_path / "out" / f"{words[0]}.json").read_text())["settings"]


def use_raw_weights_as_average(checkpoint):
    """Write a checkpoint of the older format, which has both in files of their own."""
    weights = weights_of(
        checkpoint,
        architecture=load_settings(str(checkpoint.parents[1] / "config.yaml"), ["parallel.ds_config=null"]).model,
    )
    for name in ("index.json", "rank_00000.safetensors"):
        (checkpoint / name).unlink()
    for name in ("weights.safetensors", "ema.safetensors"):
        save_file(weights, checkpoint / name)
    (checkpoint / MARK).write_text("This checkpoint is whole.\n")  # that format's mark names no files


def test_a_run_without_its_tokenizer(trained, loop, tmp_path):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("tokenizer"))
    for verb in (("sample",), ("evaluate",), ("export", tmp_path / "exported")):
        status, _, error = loop(verb[0], tmp_path / "run", *verb[1:])
        expected = f"error: {tmp_path}/run/tokenizer/manifest.json: is missing; copy the folder tokenizer/ again"
        assert status == 2 and error.startswith(expected)


def test_the_passes_of_a_run(trained, loop, tmp_path):
    """`probe` writes what its table says."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    status, out, _ = loop("probe", tmp_path / "run", "--rows", "9", "--loops", "3", "--timesteps", "0.3,1")
    (path,) = (tmp_path / "run" / "eval").glob("probe_step_2_ema_loops_3.json")
    some, all_masked = json.loads(path.read_text())["timesteps"]
    assert status == 0 and (some["t"], some["rows"], all_masked["masked_share"]) == (0.3, 9, 1)
    assert f"{some['attention']['mean'][2]:.4f} ± {some['attention']['standard_error'][2]:.4f}" in out
    assert all_masked["attention"]["mean"] == pytest.approx([1, 1, 1]), "there is nothing else to attend to"
    over = [
        a / s for a, s in zip(all_masked["attention"]["mean"], all_masked["attention_over_share"]["mean"], strict=True)
    ]
    assert over == pytest.approx([1, 1, 1])


def test_two_runs_on_the_same_rows(trained, loop, tmp_path):
    """A run against a copy of itself: no difference at all; against its raw weights, one that is known well."""
    shutil.copytree(trained, tmp_path / "copy")
    use_raw_weights_as_average(tmp_path / "copy" / "checkpoints" / "step_2")
    words = ("evaluate", tmp_path / "copy", "--loops", "1,2", "--rows", "30", "--compare")
    assert loop(*words, tmp_path / "copy")[0] == 0
    status, out, _ = loop(*words, trained)
    assert status == 0 and "run, step 2, nats/token" in out
    names = ("copy", "run")
    files = [tmp_path / "copy" / "eval" / f"step_2_ema_loops_1-2_rows_30_vs_{name}_step_2.json" for name in names]
    same, other = (json.loads(path.read_text()) for path in files)
    for row in same["loops"]:
        assert row["compared"]["nats_per_token"] == row["nats_per_token"]
        assert row["compared"]["difference"] == row["compared"]["difference_se"] == 0
    for row in other["loops"]:
        compared = row["compared"]
        assert compared["difference"] == pytest.approx(row["nats_per_token"] - compared["nats_per_token"], abs=1e-12)
        assert 0 < compared["difference_se"] < row["nats_per_token_se"] / 2
    assert other["settings"]["compared_with"] == {"run": str(trained), "step": 2, "weights": "ema"}
    status, _, error = loop(*words, tmp_path / "none")
    assert status == 2 and error.startswith(f"error: {tmp_path}/none: no such folder")


def test_a_checkpoint_that_training_removes_while_it_is_read(trained, loop, tmp_path, monkeypatch):
    """The next one is taken; without one, the error says so. Folders with other names beside them are ignored."""
    from pretrain.commands import load_run

    shutil.copytree(trained, tmp_path / "run")
    checkpoints, original = tmp_path / "run" / "checkpoints", load_run.load_into
    for other in ("step_10.good", "step_900_best"):
        shutil.copytree(checkpoints / "step_2", checkpoints / other)

    def remove_first(model, checkpoint, *rest):
        if checkpoint.name == "step_2":
            checkpoint.rename(checkpoint.with_name("step_3"))
        original(model, checkpoint, *rest)

    monkeypatch.setattr(load_run, "load_into", remove_first)
    status, out, _ = loop("evaluate", tmp_path / "run", "--loops", "1", "--rows", "8")
    assert status == 0 and "step 3, ema weights" in out
    monkeypatch.setattr(
        load_run, "load_into", lambda model, path, *rest: shutil.rmtree(path) or original(model, path, *rest)
    )
    status, _, error = loop("evaluate", tmp_path / "run", "--loops", "1", "--rows", "8")
    assert status == 2 and "run: no complete checkpoint in" in error and error.count("\n") == 1


def test_a_read_only_mount(trained, corpus):
    """The real thing, where mounting is allowed; training there is refused."""
    sampling = f"{sys.executable} -m pretrain.cli sample {trained} {' '.join(ONE_SAMPLE)}"
    words = f"data.path={corpus} run.dir={trained.parent} run.name=run parallel.zero_stage=2 train.steps=9 optim.warmup_steps=0"
    training = f"{sys.executable} pretrain/main.py --config {RECIPE} {words}"
    script = f"mount --bind {trained} {trained} && mount -o remount,bind,ro {trained} || exit 9; {sampling}; echo s=$?; {training}"
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script], cwd=ROOT, env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode in (1, 9):
        pytest.skip("mounting is not allowed here")
    assert "--- sample 1 of 1" in done.stdout and "s=0" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("not saved: ") == 1
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: {trained}/.lock: cannot be written (Read-only file system); set run.dir" in done.stderr


ODD = {
    ("evaluate", "--batch-size", "0"): "--batch-size 0: must be at least 1",
    ("evaluate", "--batch-size", "-1"): "--batch-size -1: must be at least 1",
    ("evaluate", "--rows", "0"): "--rows 0: ",
    ("evaluate", "--tensor", "0"): "--tensor 0: must be at least 1",
    ("evaluate", "--output", "x.txt"): "--output x.txt: the result is JSON",
    ("sample", "--length", "0"): "--length 0: must be at least 1",
    ("sample", "--length", "-5"): "--length -5: must be at least 1",
    ("sample", "--loops", "0"): "--loops 0: must be at least 1",
    ("sample", "--num-samples", "0"): "--num-samples 0: must be at least 1",
    ("sample", "--steps", "0"): "--steps 0: must be at least 1",
    ("sample", "--temperature", "inf"): "--temperature inf: must be finite and at least 0",
    ("sample", "--prompts", "x.json"): "--prompts x.json: write one JSON object per line",
    ("sample", "--seed", "-1"): "--seed -1: must be at least 0",
    ("sample", "--seed", str(2**64)): f"--seed {2**64}: must be below 2^63",
    ("probe", "--timesteps", "0.001", "--rows", "3"): "--timesteps 0.001: masks tokens in 0 of 3 rows",
    ("probe", "--rows", "1"): "--rows 1: a standard error needs at least 2 rows",
    ("probe", "--loops", "124816"): "--loops 124816: must be at most 1,000",
    ("probe", "--loops", "0"): "--loops 0: must be at least 1",
    ("sample", "--prompt", "\udce9t\udce9"): "--prompt: byte 0xe9 at position 0 is not UTF-8",
}


@pytest.mark.parametrize("words", ODD, ids=lambda words: " ".join(words).encode("ascii", "replace").decode())
def test_odd_options_are_refused_by_name(trained, loop, words):
    status, out, error = loop(words[0], trained, *words[1:])
    assert status == 2 and out == "" and error.startswith(f"error: {ODD[words]}") and error.count("\n") == 1


@pytest.mark.distributed
def test_the_same_figures_with_any_batch_size_and_on_two_ranks(trained, loop):
    """As printed."""
    words = ("evaluate", trained, "--loops", "1,2", "--rows", "50", "--batch-size")
    outputs = [loop(*words, size)[1] for size in (1, 7, 64)]
    launcher = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}", "-m", "pretrain.cli"]
    outputs.append(run([*launcher, *words, 7], PYTHONPATH=str(ROOT)).stdout)
    tables = [[line for line in output.splitlines() if line.startswith("S=")] for output in outputs]
    assert len(tables[0]) == 2 and tables[0] == tables[1] == tables[2] == tables[3]


@pytest.fixture(scope="module")
def one_row(tmp_path_factory):
    """A prepared folder whose validation split is one row."""
    folder = tmp_path_factory.mktemp("one_row")
    rng = random.Random(0)
    texts = ("".join(rng.choices("abcdefghij ", k=60)) for _ in range(60))
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["--input", folder / "t.jsonl", "--output", folder / "data", "--tokenizer", "bytes", "--seq-len", "40"]
    words += ["--validation-fraction", "0.02", "--workers", "1"]
    assert loopmdm(["prepare", *map(str, words)]) == 0
    assert load_blend(folder / "data").manifest.splits["validation"].rows == 1
    return folder / "data"


@pytest.mark.distributed
def test_one_validation_row_on_two_ranks(one_row, loop, tmp_path):
    """One rank has no row of its own; nothing that is called JSON holds NaN."""
    words = ["--config", RECIPE, f"data.path={one_row}", f"run.dir={tmp_path}", "run.name=one", "train.steps=2"]
    done = train(*words, "optim.warmup_steps=0", "eval.every=1", "eval.loops=1,2", ranks=2)
    assert "no error bar, which needs at least 2 rows" in done.stdout and "Warning: " not in done.stderr
    during = [record["validation"] for record in records(tmp_path / "one") if "validation" in record][-1]["loops"]
    assert [row["change_from_first_se"] for row in during] == [None, None]
    status, out, _ = loop("evaluate", tmp_path / "one", "--loops", "1,2", "--weights", "raw")
    assert status == 0 and "no error bar" in out and "nan" not in out
    after = json.loads((tmp_path / "one" / "eval" / "step_2_raw_loops_1-2.json").read_text())["loops"]
    assert [row["nats_per_token"] for row in after] == pytest.approx(
        [row["nats_per_token"] for row in during], rel=1e-5
    )
    texts = [path.read_text() for path in tmp_path.rglob("*.json")]
    for text in texts + (tmp_path / "one" / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda word, text=text: pytest.fail(f"{word} in {text}"))


def test_a_run_without_a_validation_split_is_refused_at_once(one_row, tmp_path, capsys):
    from pretrain.main import main

    words = [
        "--input",
        one_row.parent / "t.jsonl",
        "--output",
        tmp_path / "none",
        "--tokenizer",
        "bytes",
        "--seq-len",
        "40",
    ]
    assert loopmdm(["prepare", *map(str, words), "--validation-fraction", "0", "--workers", "1"]) == 0
    capsys.readouterr()
    assert (
        main(["--config", str(RECIPE), f"data.path={tmp_path}/none", f"run.dir={tmp_path}/runs", "eval.every=10"]) == 2
    )
    error = capsys.readouterr().err
    assert "eval.every=10: " in error and "set eval.every=null, or prepare" in error
    assert not (tmp_path / "runs").exists()
