"""Recipe files as editors and other systems write them."""

import pytest

from data_pipeline.yaml_files import YamlError, parse_yaml
from pretrain.config.keys import flatten
from pretrain.config.load import load_settings
from pretrain.errors import ConfigError, UserError
from tests.launching import ROOT

TINY = (ROOT / "tests" / "tiny.yaml").read_text()


@pytest.fixture
def recipe(tmp_path):
    """Path of a recipe with the given content."""

    def write(content):
        path = tmp_path / "mine.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


REFUSED = {
    "optim:\n  lr: 1\n  beta1: 0.5\n  lr: 2\n": "line 4: optim.lr is already on line 2; keep one of them",
    "optim: {lr: 1}\ntrain: {steps: 3}\noptim: {beta1: 0}\n": "line 3: optim is already on line 1; keep one of them",
    "model:\n  loop: {max: 4, max: 5}\n": "line 2: model.loop.max is already on line 2; keep one of them",
    'optim:\n  lr: 1\n  "lr": 2\n': "line 3: optim.lr is already on line 2; keep one of them",
    "optim.lr: 1\noptim:\n  lr: 2\n": "optim.lr is on line 1 of .* and on line 3 of .*; keep one of them",
    "optim:\n\tlr: 1\n": "line 2: not valid YAML: a tab, which YAML does not allow there; indent with spaces",
    "optim:\n  lr: 1\n   beta1: 2\n": "line 3: not valid YAML: ",
    "train: {steps: 5\n": "line 2: not valid YAML: ",
    "train: {steps: 5}\n---\noptim: {lr: 1}\n": "line 2: a second document begins; a file may have one",
    "train:\n  steps: !!int 5\n": "line 2: tags such as !!int are not supported; remove it",
    "train: !!python/object:os.system {}\n": "line 1: tags such as .*os.system are not supported",
    "train:\n  steps: \x01\n": "line 2: not valid YAML: a control character; remove it",
    "? [a, b]\n: 1\n": "line 1: a key must be a word",
    "train: &a\n  steps: *a\n": "line 1: train.steps contains itself; remove the alias",
    "train: *nowhere\n": "line 1: not valid YAML: found undefined alias",
    "train:\n  <<: 5\n": "line 2: `<<` must name sections",
    "- a\n": "must hold sections such as `train:`, not a list",
    "steps\n": "must hold sections such as `train:`, not a single value",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_file_that_cannot_be_read_without_a_guess_is_refused(recipe, text):
    with pytest.raises(UserError, match=rf"mine\.yaml(: |, ){REFUSED[text]}"):
        load_settings(recipe(text))


def test_several_repeated_keys_are_told_at_once():
    with pytest.raises(YamlError) as caught:
        parse_yaml("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n", "f")
    assert str(caught.value) == (
        "f, line 4: b.c is already on line 3; keep one of them; f, line 5: a is already on line 1; keep one of them"
    )


def test_encodings_and_line_ends_of_other_systems(recipe):
    expected = flatten(load_settings(recipe(TINY)))
    for content in (
        b"\xef\xbb\xbf" + TINY.replace("\n", "\r\n").encode(),
        TINY.encode("utf-16"),
        b"---\n" + TINY.encode() + b"\n...\n",
    ):
        assert flatten(load_settings(recipe(content))) == expected
    with pytest.raises(UserError, match=r"mine\.yaml, line 2: is not UTF-8 text; save the file as UTF-8"):
        load_settings(recipe("run:\n  name: été\n".encode("latin-1")))


def test_anchors_aliases_and_merged_sections(recipe):
    text = TINY.replace("optim:\n", "optim: &o\n").replace("log: {", "log: {<<: {every: 7, tensorboard: true}, ")
    assert load_settings(recipe(text)).log.every == 1
    text = TINY.replace("every: 1, tensorboard", "<<: [{every: 7}, {every: 8}], tensorboard")
    assert load_settings(recipe(text)).log.every == 7
    text = TINY.replace("num_heads: 4", "num_heads: &n 4").replace("steps: 20", "steps: *n")
    assert load_settings(recipe(text), ["optim.warmup_steps=1"]).train.steps == 4


@pytest.mark.parametrize("eval_", ["eval:\n  # every: 10\n", "eval: {}\n", "eval: null\n", "eval: ~\n", ""])
@pytest.mark.parametrize("log", ["log:\n", ""])
def test_an_empty_section_has_its_defaults(recipe, eval_, log):
    text = TINY[: TINY.index("checkpoint:")] + eval_ + log
    plain = load_settings(recipe(TINY[: TINY.index("checkpoint:")]))
    assert load_settings(recipe(text)) == plain


def test_an_empty_file_lists_what_is_missing(recipe):
    for text in ("", "# nothing\n", "---\n"):
        with pytest.raises(ConfigError, match=r"1 problem in the configuration:\n  - train.steps: is empty, and so is"):
            load_settings(recipe(text))


WRONG = {
    "optim: 3\n": "optim: is a section and has no value; set one of its keys, such as optim.name (line 1 of {path})",
    "optim: [lr, 3]\n": "optim: is a section and has no value; set one of its keys, such as optim.name (line 1 of {path})",
    "optim:\n  lr:1e-3\n": "optim: is a section; write its keys as `lr: 1e-3`, with a space after the colon (line 1 of {path})",
    "optim:\n  lr = 1e-3\n": "optim: is a section; write its keys as `lr: 1e-3`, with a space after the colon (line 1 of {path})",
    "optim:\n  lr: {x: 1}\n": "optim.lr: should be one value, not a section (line 2 of {path})",
    "optim:\n  learning_rate: 1\n": "optim.learning_rate: unknown key; did you mean optim.lr? (line 2 of {path})",
    "optimizer:\n  lr: 1\n": "optimizer.lr: unknown key; did you mean optim.lr? (line 2 of {path})",
    "optimizer:\n": "optimizer: unknown key; did you mean the section optim? (line 1 of {path})",
    "Optim:\n": "Optim: unknown key; did you mean the section optim? (line 1 of {path})",
    "models:\n": "models: unknown key; did you mean the section model? (line 1 of {path})",
    "Optim: {LR: 1}\n": "Optim.LR: unknown key; did you mean optim.lr? (line 1 of {path})",
    "optim: {warmup-steps: 1}\n": "optim.warmup-steps: unknown key; did you mean optim.warmup_steps? (line 1 of {path})",
    "optimizer: {}\n": "optimizer: unknown key; did you mean the section optim? (line 1 of {path})",
    "training: {batch_size: 3}\n": "training.batch_size: unknown key; did you mean train.global_batch_size? (line 1 of {path})",
    "evaluation: {every: 3}\n": "evaluation.every: unknown key; did you mean eval.every? (line 1 of {path})",
    "logging: {interval: 3}\n": "logging.interval: unknown key; did you mean log.every? (line 1 of {path})",
    "model: {loop: {maxx: 3}}\n": "model.loop.maxx: unknown key; did you mean model.loop.max? (line 1 of {path})",
    "zzz: {interval_of_nothing: 3}\n": "zzz.interval_of_nothing: unknown key; `--help` lists all keys (line 1 of {path})",
    "run: {names: x}\n": "run.names: unknown key; did you mean run.name? (line 1 of {path})",
    "optim: {lr: 0}\n": "optim.lr=0: should be greater than 0 (line 1 of {path})",
    "eval: {loops: [1, 0]}\n": "eval.loops=0: should be greater than or equal to 1 (line 1 of {path})",
    "eval: {loops: []}\n": "eval.loops: should have at least 1 item (line 1 of {path})",
    "eval: {loops: {a: 1}}\n": "eval.loops: should be a list such as 1,2,4, not a section (line 1 of {path})",
    "optim: {lr: [1]}\n": "optim.lr: should be one value, not a list (line 1 of {path})",
    "model: {num_heads: 5}\n": "model.num_heads=5: does not divide model.hidden_size=768; set it to 4 or 6 (line 1 of {path})",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_in_a_recipe_is_told_with_its_line(recipe, text):
    path = recipe(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, ["train.steps=3000"])
    assert [str(problem) for problem in caught.value.problems] == [WRONG[text].format(path=path)]


def test_an_override_of_a_recipes_mistake_is_told_without_a_line(recipe):
    with pytest.raises(ConfigError) as caught:
        load_settings(recipe(TINY.replace("lr: 1.0e-3", "lr: quick")), ["optim.lr=fast"])
    assert [str(problem) for problem in caught.value.problems] == [
        "optim.lr=fast: should be a number, such as 0.5 or 1e-3"
    ]
