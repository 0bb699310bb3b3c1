"""Recipes, overrides and their errors: every message with its key and its fix, all at once, without torch."""

import json
import subprocess
import sys

import pytest
import yaml

from data_pipeline.errors import DataError
from pretrain.config.keys import describe_keys, flatten
from pretrain.config.load import RECIPES, dump_settings, load_run, load_settings
from pretrain.errors import ConfigError, UserError
from tests.launching import ROOT

TINY = str(ROOT / "tests" / "tiny.yaml")


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(TINY, overrides)
    return [str(problem) for problem in caught.value.problems]


ONE_MISTAKE = {
    "optm.lr=1": "optm.lr: unknown key; did you mean optim.lr?",
    "train.step=5": "train.step: unknown key; did you mean train.steps?",
    "optim.learning_rate=1": "optim.learning_rate: unknown key; did you mean optim.lr?",
    "lr=1": "lr: unknown key; did you mean optim.lr?",
    "train.batch_size=4": "train.batch_size: unknown key; did you mean train.global_batch_size?",
    "zero_stage=1": "zero_stage: unknown key; did you mean parallel.zero_stage?",
    "zzz=1": "zzz: unknown key; `--help` lists all keys",
    "nonsense": "'nonsense': is not of the form key=value, such as optim.lr=3e-4",
    "optim=3": "optim: is a section and has no value; set one of its keys, such as optim.name",
    "optim.lr=[": "optim.lr=[: the brackets or quotation marks are not closed; correct the value",
    "optim.lr=fast": "optim.lr=fast: should be a number, such as 0.5 or 1e-3",
    "optim.lr=-1": "optim.lr=-1: should be greater than 0",
    "train.steps=1.5": "train.steps=1.5: should be a whole number, without a fraction",
    "train.loops=uniformm": "train.loops=uniformm: should be a whole number or 'uniform' or 'inverse_flops'",
    "eval.loops=[]": "eval.loops: should have at least 1 item",
    "eval.loops=1,1e12": "eval.loops=1000000000000: should be less than or equal to 100000",
    "train.loops=0": "train.loops=0: should be greater than or equal to 1",
    "optim.schedule=true": "optim.schedule=true: should be 'constant', 'cosine' or 'wsd'",
    "train.precision=fp8": "train.precision=fp8: should be 'fp32' or 'bf16'",
    "run.name=a/b": "run.name=a/b: may hold letters, digits, `_`, `-` and `.`, and not dots alone",
    "eval.loops=1,x": "eval.loops=x: should be a whole number, such as 20 or 1e3",
    "model.num_layers=5": "model.num_layers=5: model.loop has 1 + 2 + 1 = 4 layers (head + mid + tail); set it to 4",
    "model.num_heads=6": "model.num_heads=6: does not divide model.hidden_size=32; set it to 4 or 8",
    "model.num_heads=32": "model.num_heads=32: with model.hidden_size=32 a head has 1 components, but RoPE needs an even",
    "model.num_kv_heads=3": "model.num_kv_heads=3: does not divide model.num_heads=4; set it to 2 or 4",
    "model.loop.max=1e9": "model.loop.max=1e9: should be less than or equal to 100000",
    "train.steps=null": "train.steps: is empty, and so is train.max_flops, so the run would never end; set one of them",
    "train.loops=9": "train.loops=9: is larger than model.loop.max=4; set it to 4, or model.loop.max to 9",
    "train.micro_batch_size=3": "train.micro_batch_size=3: does not divide train.global_batch_size=8; set it to ",
    "optim.warmup_steps=20": "optim.warmup_steps=20: the run has only train.steps=20; set it to 19 or less, or train longer",
    "parallel.tensor=3": "parallel.tensor=3: does not divide model.num_kv_heads=2 and model.ffn_hidden_size=128; set it to 2",
    "parallel.sequence=true": "parallel.sequence=true: splits the sequence inside tensor-parallel groups, but parallel.tensor=1",
    "parallel.ds_config=none.json": "parallel.ds_config=none.json: cannot be read (No such file or directory)",
}


@pytest.mark.parametrize("word", ONE_MISTAKE)
def test_one_mistake_one_message(word):
    (message,) = problems(word)
    assert message.startswith(ONE_MISTAKE[word])


def test_a_rule_that_involves_a_reported_key_is_left_out():
    """Keys are compared, not texts: `train.step` is another key than `train.steps`, and a section covers its keys."""
    messages = problems("train.step=5", "optim.warmup_steps=20")
    assert [message.partition(":")[0] for message in messages] == ["train.step", "optim.warmup_steps=20"]
    assert len(problems("train.steps=abc", "optim.warmup_steps=20")) == 1
    assert len(problems("model.hidden_size=abc", "model.num_heads=7", "model.num_kv_heads=7")) == 1
    assert len(problems("model=3")) == 1


def test_a_problem_names_its_key_and_its_value():
    with pytest.raises(ConfigError) as caught:
        load_settings(TINY, ["train.micro_batch_size=3"])
    (problem,) = caught.value.problems
    assert (problem.key, problem.value) == ("train.micro_batch_size", 3)
    assert problem.involves("train.global_batch_size") and problem.involves("train")
    assert not problem.involves("train.micro_batch") and not problem.involves("model")
    assert str(caught.value) == f"1 problem in the configuration:\n  - {problem}"


def test_all_mistakes_at_once():
    messages = problems("optm.lr=1", "train.steps=abc", "model.num_heads=6", "foo")
    assert len(messages) == 4
    assert all(
        any(key in message for message in messages) for key in ("optm.lr", "train.steps", "model.num_heads", "foo")
    )


def test_bf16_without_zero_is_refused_with_the_reason():
    assert problems("train.precision=bf16", "parallel.zero_stage=0") == [
        "parallel.zero_stage=0: without ZeRO, DeepSpeed sums bf16 gradients in bf16, which this project does not support; set "
        "parallel.zero_stage=1 (sums in fp32) or train.precision=fp32"
    ]


PIPELINE = "parallel.pipeline=2 "
REDUCES = "ZeRO-2 and ZeRO-3 reduce gradients inside DeepSpeed's backward pass"
REFUSED = {
    f"{PIPELINE}parallel.zero_stage=2": f"parallel.zero_stage=2: {REDUCES}",
    f"{PIPELINE}parallel.zero_stage=3": f"parallel.zero_stage=3: {REDUCES}",
    f"{PIPELINE}parallel.offload=optimizer": "parallel.offload=optimizer: DeepSpeed offloads inside its own backward pass",
    f"{PIPELINE}parallel.mid_replicas=2 parallel.pipeline_split=contiguous": "parallel.mid_replicas=2: parallel.pipeline_split=c",
    "parallel.pipeline=4 parallel.mid_replicas=3": "parallel.mid_replicas=3: does not divide parallel.pipeline=4",
    "parallel.zero_stage=0 parallel.offload=optimizer": "parallel.offload=optimizer: offloading needs ZeRO; set parallel.zero",
    "parallel.zero_stage=2 parallel.offload=parameters": "parallel.offload=parameters: only ZeRO-3 can offload weights, and ",
    "parallel.tensor=2 parallel.sequence=true data.seq_len=33": "parallel.sequence=true: data.seq_len=33 is not a multiple of",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_layouts_that_the_libraries_cannot_run_are_refused_with_the_reason(overrides):
    (message,) = problems(*overrides.split())
    assert message.startswith(REFUSED[overrides])


@pytest.mark.parametrize("key", ["train_batch_size", "gradient_clipping", "bf16", "optimizer"])
def test_derived_deepspeed_keys_are_refused(tmp_path, key):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({key: 1}))
    assert problems(f"parallel.ds_config={path}")[0].startswith(
        f"parallel.ds_config={path}: line 1: the key {key!r} follows from "
    )


def test_contradicting_deepspeed_stage_is_refused(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    assert "has ZeRO stage 2, but parallel.zero_stage=1" in problems(f"parallel.ds_config={path}")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "the top level must be an object"),
        ('{"zero_optimization": 1}', "must be an object"),
    ],
)
def test_broken_deepspeed_file(tmp_path, text, message):
    path = tmp_path / "ds.json"
    path.write_text(text)
    assert message in problems(f"parallel.ds_config={path}")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "must hold sections"), ("a: [", "not valid YAML"), (None, "did you mean smoke?")],
)
def test_unreadable_recipe(tmp_path, text, message):
    path = tmp_path / "smoek" if text is None else tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_settings("smoek" if text is None else str(path))


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid_and_named_after_their_file(recipe):
    assert load_settings(recipe.stem).run.name == recipe.stem


def test_auto_may_be_given_in_the_recipe_or_as_an_override_and_keeps_the_keys_after_it(tmp_path):
    recipe = tmp_path / "auto.yaml"
    recipe.write_text((ROOT / "tests" / "tiny.yaml").read_text() + "parallel: auto\n")
    for parallel in (
        load_settings(str(recipe), ["parallel.timeout_minutes=5"]).parallel,
        load_settings(TINY, ["parallel=auto", "parallel.timeout_minutes=5"]).parallel,
    ):
        assert parallel.auto and parallel.timeout_minutes == 5


def test_overrides_win_over_the_recipe_from_left_to_right():
    settings = load_settings(TINY, ["optim.lr=1e-4", "optim.lr=3e-4", "eval.loops=1,2", "train.loops=3"])
    assert (settings.optim.lr, settings.eval.loops, settings.train.loops) == (3e-4, (1, 2), 3)


def test_resolved_settings_read_back_the_same(tmp_path):
    settings = load_settings(TINY, ["train.loops=inverse_flops", "run.name=x", "train.max_flops=1e15"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_settings(settings))
    assert load_settings(str(path)) == settings
    assert yaml.safe_load(path.read_text())["train"]["max_flops"] == 1e15


def test_every_key_has_a_meaning():
    keys = list(describe_keys())
    assert len(keys) == len(flatten(load_settings(TINY)))
    assert all(text and kind for _, kind, _, text in keys)
    defaults = {key: default for key, _, default, _ in keys}
    shown = ("eval.loops", "log.tensorboard", "optim.lr", "run.stop_after")
    assert [defaults[key] for key in shown] == ["1,2,4,8", "true", "0.0003", ""]


@pytest.mark.parametrize(
    "words", [["--help"], ["--config", TINY, "optm.lr=1"], ["--config", TINY, "data.path=nowhere"]]
)
def test_answers_without_importing_torch(words):
    """Importing torch alone takes longer than the 1.5 s that an answer may take."""
    code = "import sys; from pretrain.main import main\ntry: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert "AssertionError" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_loopmdm_help_imports_no_torch():
    code = (
        "import sys; from pretrain.cli import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert "AssertionError" not in done.stderr
    assert "prepare" in done.stdout


def test_missing_data_of_a_shipped_recipe_name_its_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"the data of this recipe: loopmdm prepare --input sudoku6:120000 --output data/sudoku6$"
    ):
        load_run("sudoku6")
    with pytest.raises(DataError, match=r"prepare one with: loopmdm prepare --input PATH... --output elsewhere$"):
        load_run("sudoku6", ["data.path=elsewhere"])
