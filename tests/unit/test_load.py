"""Recipes, overrides and their errors: every message with its key and its fix, all at once, without torch."""

import json
import subprocess
import sys

import pytest
import yaml

from pretrain.config.load import RECIPES, describe_keys, dump_settings, flatten, load_settings
from pretrain.errors import ConfigError, UserError
from tests.launching import ROOT

TINY = str(ROOT / "tests" / "tiny.yaml")


def problems(*words: str, recipe: str = TINY) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(recipe, words)
    return caught.value.problems


ONE_MISTAKE = {
    "optm.lr=1": "optm.lr: unknown key; did you mean optim.lr?",
    "train.step=5": "train.step: unknown key; did you mean train.steps?",
    "zzz=1": "zzz: unknown key; `--help` lists the keys",
    "nonsense": "'nonsense': not of the form key=value, such as optim.lr=3e-4",
    "optim=3": "optim: is a section, not a value; give one of its keys, such as optim.lr",
    "optim.lr=[": "optim.lr=[: the value is not valid YAML; quote it",
    "optim.lr=fast": "optim.lr=fast: should be a valid number, unable to parse string as a number",
    "optim.lr=-1": "optim.lr=-1: should be greater than 0",
    "train.steps=1.5": "train.steps=1.5: should be a valid integer, got a number with a fractional part",
    "train.loops=0": "train.loops=0: should be greater than or equal to 1",
    "train.precision=fp8": "train.precision=fp8: should be 'fp32' or 'bf16'",
    "run.name=a/b": "run.name=a/b:",
    "eval.loops=1,x": "eval.loops=x: should be a valid integer",
    "model.num_layers=5": "model.num_layers=5: model.loop has 1 + 2 + 1 = 4 layers (head + mid + tail); make them equal",
    "model.num_heads=6": "model.num_heads=6: does not divide model.hidden_size=32; pick a divisor",
    "model.num_heads=32": "model.num_heads=32: heads of width 1 have no pairs for RoPE to rotate",
    "model.num_kv_heads=3": "model.num_kv_heads=3: does not divide model.num_heads=4; pick a divisor",
    "train.steps=null": "train.steps: neither it nor train.max_flops is given, so the run would not end; give one",
    "train.loops=9": "train.loops=9: is above model.loop.max=4; raise model.loop.max",
    "train.micro_batch_size=3": "train.global_batch_size=8: is no multiple of train.micro_batch_size=3; change one of them",
    "optim.warmup_steps=20": "optim.warmup_steps=20: the run has only train.steps=20; lower the warm-up or train longer",
    "parallel.tensor=3": "parallel.tensor=3: does not divide model.num_kv_heads=2 and model.ffn_hidden_size=128; pick a divisor",
    "parallel.sequence=true": "parallel.sequence=True: shares the sequence inside tensor-parallel groups; raise parallel.tensor",
    "parallel.ds_config=none.json": "parallel.ds_config=none.json: cannot be read (No such file or directory)",
}


@pytest.mark.parametrize("word", ONE_MISTAKE)
def test_one_mistake_one_message(word):
    told = problems(word)
    assert len(told) == 1
    assert told[0].startswith(ONE_MISTAKE[word])


def test_all_mistakes_at_once():
    told = problems("optm.lr=1", "train.steps=abc", "model.num_heads=6", "foo")
    assert len(told) == 4
    assert all(any(key in line for line in told) for key in ("optm.lr", "train.steps", "model.num_heads", "foo"))


def test_bf16_without_zero_is_refused_with_the_reason():
    told = problems("train.precision=bf16", "parallel.zero_stage=0")
    assert told == [
        "parallel.zero_stage=0: DeepSpeed sums bf16 gradients in bf16 without ZeRO, and this project does not train on such "
        "sums; set parallel.zero_stage=1 (fp32 sums) or train.precision=fp32"
    ]


REFUSED = {
    "parallel.pipeline=2 parallel.zero_stage=2": "parallel.zero_stage=2: reduces gradients inside DeepSpeed's own backward pass",
    "parallel.pipeline=2 parallel.zero_stage=3": "parallel.zero_stage=3: reduces gradients inside DeepSpeed's own backward pass",
    "parallel.pipeline=2 parallel.offload=optimizer": "parallel.offload=optimizer: DeepSpeed offloads in its own backward pass",
    "parallel.zero_stage=0 parallel.offload=optimizer": "parallel.offload=optimizer: is part of ZeRO",
    "parallel.zero_stage=2 parallel.offload=parameters": "parallel.offload=parameters: only ZeRO-3 shards weights, not ZeRO-2",
    "parallel.pipeline=4 parallel.mid_replicas=3": "parallel.mid_replicas=3: does not divide parallel.pipeline=4",
    "parallel.pipeline=2 parallel.mid_replicas=2 parallel.pipeline_split=contiguous": "parallel.mid_replicas=2: the contiguous",
    "parallel.tensor=2 parallel.sequence=true data.seq_len=33": "parallel.sequence=True: data.seq_len=33 is no multiple",
}


@pytest.mark.parametrize("words", REFUSED)
def test_layouts_that_the_libraries_cannot_run_are_refused_with_the_reason(words):
    told = problems(*words.split())
    assert len(told) == 1
    assert told[0].startswith(REFUSED[words])


def test_ramp_without_steps():
    told = problems("train.steps=null", "train.max_flops=1e12", "train.loop_ramp=0.5")
    assert told == ["train.loop_ramp: is a share of train.steps, which is empty; give train.steps"]


@pytest.mark.parametrize("key", ["train_batch_size", "gradient_clipping", "bf16", "optimizer"])
def test_derived_deepspeed_keys_are_refused(tmp_path, key):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({key: 1}))
    assert problems(f"parallel.ds_config={path}")[0].startswith(f"parallel.ds_config={path}: key {key!r} follows from ")


def test_contradicting_deepspeed_stage_is_refused(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    assert "has ZeRO stage 2, but parallel.zero_stage=1" in problems(f"parallel.ds_config={path}")[0]


def test_broken_deepspeed_file(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text("{")
    assert "not valid JSON" in problems(f"parallel.ds_config={path}")[0]


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


def test_words_win_over_the_recipe_from_left_to_right():
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
