"""Words and options in any order, and wrong options with the right spelling."""

import pytest

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


def test_errors_are_printed_by_rank_0_alone(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, shown in {"0": True, "1": False}.items():
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit):
            parsed([])
        assert ("error: the following arguments are required: --config" in capsys.readouterr().err) == shown


@pytest.mark.parametrize("words", [["--help"], ["train", "x=1", "--help"], ["plan", "-h"], ["evaluate", "--help"]])
def test_help_shows_options_and_words(words, capsys):
    with pytest.raises(SystemExit) as ended:
        loopmdm(words)
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "usage: loopmdm" in shown
    if words[0] in ("train", "plan"):
        assert "key=value" in shown and "override a key of the recipe" in shown


@pytest.mark.parametrize("words", [[], ["learn"], ["--config", "smoke"]])
def test_a_verb_that_does_not_exist(words, capsys):
    with pytest.raises(SystemExit) as ended:
        loopmdm(words)
    assert ended.value.code == 2 and capsys.readouterr().err.count("error:") == 1
