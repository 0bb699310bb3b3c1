"""A word in a recipe or an override means what it says, by the type of its key, or is refused as it was typed."""

import pytest

from pretrain.config.keys import flatten
from pretrain.config.load import dump_settings, load_settings
from pretrain.errors import ConfigError, UserError
from tests.launching import ROOT

TINY = ROOT / "tests" / "tiny.yaml"


def value_of(key, word):
    """The value of a key given as an override, which must be the same as in a recipe and after a round through config.yaml."""
    return flatten(load_settings(str(TINY), ["optim.warmup_steps=0", f"{key}={word}"]))[key]


@pytest.fixture
def in_recipe(tmp_path):
    """The value of `section.leaf: word` in a recipe, read again from the dumped configuration."""

    def read(key, word):
        section, leaf = key.split(".")
        tree = {"train": {"steps": "5000"}, "optim": {"warmup_steps": "0"}}
        tree.setdefault(section, {})[leaf] = word
        recipe, dumped = tmp_path / "recipe.yaml", tmp_path / "config.yaml"
        lines = (f"{name}:\n" + "".join(f"  {k}: {v}\n" for k, v in keys.items()) for name, keys in tree.items())
        recipe.write_text("".join(lines))
        settings = load_settings(str(recipe))
        dumped.write_text(dump_settings(settings))
        assert load_settings(str(dumped)) == settings
        return flatten(settings)[key]

    return read


NAMES = (
    "on",
    "20240601",
    "1e3",
    "007",
    "null",
    "2024-06-01",
    "1:30".replace(":", "."),
    "0x10",
    "1_0",
    "no",
    "1.0",
    "true",
    "été",
)
MEANT = [
    *[("run.seed", word, number) for word, number in {"007": 7, "008": 8, "009": 9, "010": 10, "0": 0, "1e3": 1000}.items()],
    *[("train.steps", word, number) for word, number in {"0012": 12, "1e3": 1000, "1.0": 1, "5e9": 5 * 10**9, "+7": 7}.items()],
    *[("optim.lr", word, number) for word, number in {"2e-3": 2e-3, "1e-3": 1e-3, ".5": 0.5, "5.": 5.0, "010": 10.0}.items()],
    *[("log.tensorboard", word, False) for word in ("off", "no", "false", "False", "OFF", "0")],
    *[("log.tensorboard", word, True) for word in ("on", "yes", "true", "True", "1")],
    *[("run.name", name, name) for name in NAMES],
    *[("eval.loops", word, [1, 2, 10]) for word in ("1,2,10", "[1, 2, 10]", "[01, 2e0, 010]")],
    *[("eval.every", word, None) for word in ("null", "~", "")],
    ("eval.loops", "010", [10]),
    ("train.loops", "02", 2),
    ("parallel.zero_stage", "01", 1),
    ("train.max_flops", "1e12", 1e12),
    ("data.path", "2024-06-01", "2024-06-01"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "word", "meant"), MEANT)
def test_a_word_means_what_it_says(key, word, meant, in_recipe):
    assert value_of(key, word) == meant
    assert in_recipe(key, word) == meant


REFUSED = {
    ("train.steps", "1_0"): "should be a whole number in decimal digits; write 10",
    ("train.steps", "10,000"): "should be a whole number in decimal digits; write 10000",
    ("train.steps", "1,50"): "should be a whole number, such as 20 or 1e3",
    ("train.steps", "0x10"): "should be a whole number in decimal digits; write 16",
    ("train.steps", "0o10"): "should be a whole number in decimal digits; write 8",
    ("train.steps", "0b1"): "should be a whole number in decimal digits; write 1",
    ("train.steps", "1:30"): "should be a whole number, such as 20 or 1e3",
    ("train.steps", "1.5"): "should be a whole number, without a fraction",
    ("train.steps", "1e99"): "should be a whole number below 2^63",
    ("train.steps", "yes"): "should be a whole number, such as 20 or 1e3",
    ("train.steps", ".inf"): "should be a whole number, such as 20 or 1e3",
    ("run.seed", "null"): "should be a whole number, such as 20 or 1e3",
    ("train.loops", "yes"): "should be a whole number or 'uniform' or 'inverse_flops'",
    ("train.loops", "1_0"): "should be a whole number in decimal digits; write 10",
    ("train.loops", "1,2"): "should be a whole number, such as 20 or 1e3",
    ("eval.loops", "1 2"): "should be a list such as 1,2,4, with commas",
    ("train.loops", "true"): "should be a whole number or 'uniform' or 'inverse_flops'",
    ("optim.lr", "1_0.5"): "should be a number, such as 0.5 or 1e-3",
    ("optim.lr", "1,5"): "should be a number, such as 0.5 or 1e-3",
    ("optim.lr", "1 5"): "should be a number, such as 0.5 or 1e-3",
    ("optim.lr", "off"): "should be a number, such as 0.5 or 1e-3",
    ("optim.lr", ".inf"): "should be a finite number",
    ("optim.lr", ".nan"): "should be a finite number",
    ("optim.lr", "1e999"): "should be a finite number; this one is too large",
    ("optim.lr", "1:30"): "should be a number, such as 0.5 or 1e-3",
    ("train.global_batch_size", "1e12"): "should be less than or equal to 10000000",
    ("optim.clip_norm", "-0.5"): "should be greater than or equal to 0",
    ("log.tensorboard", "2"): "should be true or false",
    ("log.tensorboard", "maybe"): "should be true or false",
    ("parallel.zero_stage", "5"): "should be 0, 1, 2 or 3",
    ("optim.schedule", "on"): "should be 'constant', 'cosine' or 'wsd'",
    ("parallel.recompute", "off"): "should be 'none', 'full' or 'loop'",
    ("run.name", ".."): "may hold letters, digits, `_`, `-` and `.`, and not dots alone",
    ("data.path", "$NOT_SET_HERE/x"): "the environment variable NOT_SET_HERE is not set; set it or write the path out",
    ("data.path", "~nobody_here/x"): "~nobody_here is not the home of a user; write the path out",
}


@pytest.mark.parametrize(("key", "word"), REFUSED)
def test_what_is_not_plainly_of_the_type_is_refused_as_typed(key, word, in_recipe):
    with pytest.raises(ConfigError) as caught:
        value_of(key, word)
    expected = f"{key}={word}: {REFUSED[key, word]}"
    assert [str(problem) for problem in caught.value.problems] == [expected]
    with pytest.raises(ConfigError) as caught:
        in_recipe(key, word)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"{expected} (line ") and str(problem).endswith("recipe.yaml)")


@pytest.mark.parametrize("word", ["", "''"])
def test_a_key_that_needs_a_value_says_so(word):
    for key in ("optim.lr", "data.path", "train.loops"):
        with pytest.raises(ConfigError, match=f"{key}: has no value; give it one or leave the key out"):
            value_of(key, word)


def test_names_that_yaml_takes_for_other_things_are_refused_only_for_their_letters():
    with pytest.raises(ConfigError, match=r"run.name=1:30: may hold letters, digits, `_`, `-` and `.`"):
        value_of("run.name", "1:30")


def test_a_list_for_one_value_and_a_section_for_a_key_are_refused():
    for word, text in {"[1, 2]": "should be one value, not a list", "{a: 1}": "should be a number"}.items():
        with pytest.raises(ConfigError, match=f"optim.lr.*: {text}"):
            value_of("optim.lr", word)


def test_paths_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch space")
    for word, meant in {"~/d": f"{tmp_path}/d", "${SCRATCH}/d": "/scratch space/d", "$HOME/d": f"{tmp_path}/d"}.items():
        for key in ("data.path", "run.dir"):
            assert value_of(key, word) == meant
    (tmp_path / "ds.json").write_text("{}")
    assert value_of("parallel.ds_config", "~/ds.json") == f"{tmp_path}/ds.json"
    (tmp_path / "mine.yaml").write_text(TINY.read_text())
    assert load_settings("~/mine.yaml").run.name == "mine"
    with pytest.raises(UserError, match=r"--config .*: is a folder; give a YAML file"):
        load_settings(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "name"), [("my recipe", "my_recipe"), ("été", "été"), ("a+b (1)", "a_b_1_"), ("...", "run")]
)
def test_any_file_name_gives_a_legal_run_name(tmp_path, file, name):
    recipe = tmp_path / f"{file}.yaml"
    recipe.write_text(TINY.read_text())
    assert load_settings(str(recipe)).run.name == name == load_settings(str(recipe), ["run.name="]).run.name


SPELLINGS = {
    ("optim.lr", "=", "1e-3"): "'optim.lr = 1e-3': write optim.lr=1e-3, without spaces",
    ("optim.lr = 1e-3",): "'optim.lr = 1e-3': write optim.lr=1e-3, without spaces",
    ("optim.lr=", "1e-3"): "'optim.lr= 1e-3': write optim.lr=1e-3, without spaces",
    ("optim.lr", "=1e-3"): "'optim.lr =1e-3': write optim.lr=1e-3, without spaces",
    ("optim.lr:", "1e-3"): "'optim.lr:': is not of the form key=value, such as optim.lr=3e-4",
    ("optim.lr:1e-3",): "'optim.lr:1e-3': is written as in a YAML file; write optim.lr=1e-3",
    ("optim.lr: 1e-3",): "'optim.lr: 1e-3': is written as in a YAML file; write optim.lr=1e-3",
    ("=5",): "'=5': is not of the form key=value, such as optim.lr=3e-4",
}


@pytest.mark.parametrize("words", SPELLINGS)
def test_other_spellings_of_an_override_are_told_the_right_one(words):
    with pytest.raises(ConfigError) as caught:
        load_settings(str(TINY), words)
    assert str(caught.value.problems[0]) == SPELLINGS[words]


def test_of_a_key_given_twice_the_last_override_counts():
    assert load_settings(str(TINY), ["optim.lr=1", "run.seed=3", "optim.lr=2"]).optim.lr == 2
    assert load_settings(str(TINY), ["optim={lr: 1, beta2: .5}", "optim.lr=2"]).optim.beta2 == 0.5


def test_quotation_marks_that_reach_us_are_removed():
    assert load_settings(str(TINY), ['run.name="on"', "optim.lr='1e-3'"]).run.name == "on"


def test_a_section_in_braces_is_read_as_strictly_as_a_recipe():
    for word, text in {
        "optim={lr: 1, lr: 2}": "optim={lr: 1, lr: 2}: lr is already on line 1; keep one of them",
        "optim={lr: 1": "optim={lr: 1: the brackets or quotation marks are not closed; correct the value",
        "optim={learning_rate: 1}": "optim.learning_rate: unknown key; did you mean optim.lr?",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load_settings(str(TINY), [word])
        assert [str(problem) for problem in caught.value.problems] == [text]


AUTO = ["parallel=auto", "parallel.auto=true", "parallel={auto: on}"]


@pytest.mark.parametrize("auto", AUTO)
@pytest.mark.parametrize("auto_in_recipe", [True, False])
@pytest.mark.parametrize("other_in_recipe", [True, False])
def test_auto_and_another_key_of_its_section_are_both_kept(tmp_path, auto, auto_in_recipe, other_in_recipe):
    lines = ["  auto: yes"] * auto_in_recipe + ["  timeout_minutes: 5", "  offload: optimizer"] * other_in_recipe
    recipe = tmp_path / "r.yaml"
    recipe.write_text(TINY.read_text() + ("parallel:\n" + "\n".join(lines) + "\n" if lines else ""))
    words = [auto] * (not auto_in_recipe)
    more = ["parallel.timeout_minutes=5", "parallel.offload=optimizer"] * (not other_in_recipe)
    for overrides in (words + more, more + words):
        parallel = load_settings(str(recipe), overrides).parallel
        assert (parallel.auto, parallel.timeout_minutes, parallel.offload) == (True, 5, "optimizer")
    for overrides in (["parallel.tensor=2", *words], [*words, "parallel.tensor=2"]):
        with pytest.raises(
            ConfigError, match=r"parallel.auto=true: chooses .* but parallel.tensor=2 is given; leave one"
        ):
            load_settings(str(recipe), overrides)


def test_auto_does_not_replace_a_default_that_was_typed_beside_it(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(TINY.read_text() + "parallel: {zero_stage: 1, mid_replicas: null}\n")
    assert load_settings(str(recipe), ["parallel=auto"]).parallel.auto
    for words in (["parallel=auto", "parallel.tensor=1"], ["parallel.tensor=1", "parallel=auto"]):
        with pytest.raises(
            ConfigError, match=r"auto=true: chooses parallel.tensor itself, but parallel.tensor=1 is given"
        ):
            load_settings(str(TINY), words)
    recipe.write_text(TINY.read_text() + "parallel: {zero_stage: 1, auto: true}\n")
    with pytest.raises(ConfigError, match=r"but parallel.zero_stage=1 is given; leave one .*line 21 of .*r.yaml"):
        load_settings(str(recipe))
