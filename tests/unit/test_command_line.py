"""Words and options in any order, and wrong options with the right spelling."""

import re

import pytest

from pretrain import command_line
from pretrain.cli import main as loopmdm
from pretrain.command_line import CommandLine, parse
from pretrain.main import add_arguments
from pretrain.planning import command as plan

WORDS = [
    "--config smoke a.b=1 --no-resume c.d=2",
    "a.b=1 --no-resume c.d=2 --config=smoke",
    "a.b=1 c.d=2 --config smoke --no-resume",
]
WORDS += ["--no-resume --config smoke a.b=1 c.d=2", "--no-resume a.b=1 --config smoke --local_rank=0 c.d=2"]
WORDS += ["--local-rank=0 --no-resume a.b=1 --config smoke c.d=2"]  # of torch.distributed.launch


def parsed(words, module_arguments=add_arguments):
    parser = CommandLine(prog="train")
    module_arguments(parser)
    return parse(parser, words)


@pytest.mark.parametrize("words", WORDS)
def test_overrides_stand_before_between_and_after_options(words):
    arguments = parsed(words.split())
    assert (arguments.config, arguments.resume, arguments.overrides) == ("smoke", False, ["a.b=1", "c.d=2"])


def test_the_other_verbs_take_them_too():
    arguments = parsed(["a.b=1", "--ranks", "2", "c.d=2", "--config", "smoke", "--all", "e.f=-3"], plan.add_arguments)
    assert (arguments.ranks, arguments.all, arguments.overrides) == (2, True, ["a.b=1", "c.d=2", "e.f=-3"])


WRONG = {
    "--optim.lr=3e-4": "--optim.lr: keys are written without dashes; write optim.lr=3e-4",
    "--optim.lr 3e-4": "--optim.lr: keys are written without dashes; write optim.lr=3e-4",
    "-optim.lr 3e-4": "-optim.lr: keys are written without dashes; write optim.lr=3e-4",
    "--optim.warmup-steps=3": "--optim.warmup-steps: keys are written without dashes; write optim.warmup_steps=3",
    "--optim.learning_rate=3": "--optim.learning_rate: no such option or key; did you mean optim.lr=3?",
    "--lr 3e-4": "--lr: no such option or key; did you mean optim.lr=3e-4?",
    "--batch-size 16": "--batch-size: no such option or key; did you mean train.global_batch_size=16?",
    "--resumed": "--resumed: no such option; did you mean --resume?",
    "--config quickstart": "--config: is given twice; give one recipe, and override its keys with key=value",
    "--qqq": "--qqq: no such option; --help lists all options",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_option_names_the_right_spelling(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(["--config", "smoke", *words.split()])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {WRONG[words]}"


@pytest.mark.parametrize(
    ("verb", "error"),
    [
        ("samples", "no command 'samples': did you mean sample?"),
        ("qqq", "argument VERB: invalid choice: 'qqq' (choose from"),
    ],
)
def test_a_wrong_verb_names_the_right_one_or_all(verb, error, capsys):
    with pytest.raises(SystemExit) as ended:
        loopmdm([verb])
    assert ended.value.code == 2 and capsys.readouterr().err.splitlines()[-1].startswith(f"error: {error}")


def test_an_error_on_one_of_several_ranks_is_reported_to_the_others(monkeypatch, capsys):
    """Started ranks: `tests/distributed/test_start_errors.py`."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    told = []

    def end(error):
        told.append(str(error))
        raise SystemExit(2)

    monkeypatch.setattr(command_line, "end_with_error", end)
    with pytest.raises(SystemExit):
        parsed([])
    assert capsys.readouterr().err == ""
    assert told[0].startswith("the following arguments are required: --config\nusage: train [-h] --config RECIPE")


@pytest.mark.parametrize("words", [["--help"], ["train", "x=1", "--help"], ["plan", "-h"], ["evaluate", "--help"]])
def test_help_shows_options_and_words(words, capsys):
    with pytest.raises(SystemExit) as ended:
        loopmdm(words)
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "usage: loopmdm" in shown
    if words[0] in ("train", "plan"):
        assert "key=value" in shown and "override a key of the recipe" in shown


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "a command is missing: prepare, verify, .*doctor; loopmdm --help explains them"),
        (["sample", "run", "--step", "9"], "--step: no such option; did you mean --steps?"),
        (["evaluate", "run", "--check", "9"], "--check: no such option; did you mean --checkpoint?"),
        (["train", "quickstart"], "--config is missing: did you mean --config quickstart?"),
        (["train", "train.steps=3", "own.yaml"], "--config is missing: did you mean --config own.yaml?"),
        (["probe", "run", "--loops", "1-4"], "argument --loops: '1-4' is not a whole number"),
        (["sample", "run", "--top-p", "x"], "argument --top-p: 'x' is not a number"),
        (["evaluate", "run", "--tasks", "sudoku4,sums:"], "argument --tasks: the path is empty; .*"),
        (["sample", "run", "--sampler", "best"], "argument --sampler: invalid choice: 'best' .*"),
    ],
)
def test_what_is_said_is_one_line(words, error, capsys):
    with pytest.raises(SystemExit) as ended:
        loopmdm(words)
    assert ended.value.code == 2
    assert re.fullmatch(f"error: {error.replace('?', '[?]')}\n", capsys.readouterr().err)


@pytest.mark.parametrize("words", [[], ["learn"], ["--config", "smoke"]])
def test_a_verb_that_does_not_exist(words, capsys):
    with pytest.raises(SystemExit) as ended:
        loopmdm(words)
    assert ended.value.code == 2 and capsys.readouterr().err.count("error:") == 1
