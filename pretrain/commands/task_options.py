"""Options of tasks."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.paths import user_input, user_path
from pretrain.errors import UserError

METHODS = ("nelbo", "left-to-right", "any-order")
TASK_OPTIONS = ("limit", "few_shot", "until", "answer_length", "given", "likelihood", "masks", "stride", "scorer")
"""Options that only tasks have."""

FOR_HARNESS = ("limit", "seed", "likelihood", "masks", "lm_eval_path", "num_fewshot")
OPTIONS_WITH = {"tasks": (*TASK_OPTIONS, "seed"), "lm_eval": FOR_HARNESS}
"""Option -> the options that need it, or one of the others."""

TASKS_HELP = """\
what to evaluate instead of the NELBO: sudoku4, sudoku6, sudoku9, additionD, multiplicationD and lookupH (instances of the
validation split; boards from nothing without --given), generative (samples from nothing under another model), a file of questions
(one JSON object with question and answer per line; with choices for multiple choice), a prepared folder (perplexity of its
documents). NAME:FILE gives the result of a file or folder another name than its own; several are separated by commas or spaces"""


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `TaskOptions`. Their defaults are None, so that what was not given can be told."""
    group = parser.add_argument_group("tasks")
    add = group.add_argument
    add("--tasks", type=task_values, nargs="+", metavar="NAME|[NAME:]FILE|[NAME:]DIR", help=TASKS_HELP)
    add(
        "--lm-eval",
        nargs="+",
        metavar="TASK",
        help="tasks of lm-eval instead; choices, documents and sampler options apply",
    )
    add("--lm-eval-path", type=user_path, metavar="DIR", help="folder of task files for lm-eval [its own tasks]")
    add("--num-fewshot", type=int, metavar="N", help="lm-eval: examples before a question [as the task says]")
    add("--limit", type=int, metavar="N", help="items of each task, evenly spread [all; 256 samples from nothing]")
    add("--seed", type=int, metavar="N", help="of samples and masks, from 0 [0]")
    add(
        "--few-shot", type=user_path, metavar="FILE",
        help="questions: the text before an answer, with examples and {question} where the question goes, and for "
        "multiple choice {choice} [Question: {question}\\nAnswer: {choice}]",
    )  # fmt: skip
    add("--until", nargs="+", metavar="TEXT", help="questions: an answer ends before these texts [Question:]")
    add("--answer-length", type=int, metavar="N", help="questions: tokens of an answer [256, at most half a row]")
    add("--given", type=int, metavar="N", help="sudoku: cells that are given, and more until one solution is left [0]")
    add(
        "--likelihood", choices=METHODS,
        help="choices, documents: an estimate of the bound, or exactly for the order from left to right (as many forward passes "
        "as tokens) or a random order (at most 12 tokens) [nelbo]",
    )  # fmt: skip
    add("--masks", type=int, metavar="N", help="nelbo: random masks per text [128; documents 32]")
    add("--stride", type=int, metavar="N", help="documents: new tokens of each window after the first [half a row]")
    add("--scorer", type=user_path, metavar="DIR", help="generative: folder of a Hugging Face causal language model")


def task_values(word: str) -> list[str]:
    """`sudoku6,gsm8k:~/test.jsonl` -> the values that it names, with `~` replaced; the name of a file may contain commas.

    Raises:
        ArgumentTypeError: one of them is empty.
    """
    whole = user_input(word)
    parts = [whole] if Path(whole).exists() else [part.strip() for part in word.split(",")]
    named = [part.partition(":") for part in map(user_input, parts)]
    return [f"{name}:{user_input(path)}" if colon else name for name, colon, path in named]


def check_task_options(given: Mapping[str, Any]) -> None:
    """Check what the user gave, None for an option that was not given.

    Raises:
        UserError: an option without tasks, or a number that means nothing.
    """
    if given["tasks"] and given["lm_eval"]:
        raise UserError("--tasks and --lm-eval: give one of them at a time")
    for name in (*TASK_OPTIONS, "seed", "lm_eval_path", "num_fewshot"):
        wanted = [option for option, names in OPTIONS_WITH.items() if name in names]
        if given[name] is not None and not any(given[option] for option in wanted):
            needed = " or ".join(f"--{option.replace('_', '-')}" for option in wanted)
            raise UserError(f"--{name.replace('_', '-')}: has no effect without {needed}")
    least = {"num_fewshot": 0, "limit": 1, "answer_length": 1, "given": 0, "masks": 1, "stride": 1, "seed": 0}
    for name, smallest in least.items():
        value = given[name]
        if value is not None and value < smallest:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {smallest}")
    for name, limit in (("seed", 63), ("masks", 20), ("limit", 20)):
        if (given[name] or 0) >= 2**limit:
            raise UserError(f"--{name} {given[name]}: must be below 2^{limit}")
    if any(not text for text in given["until"] or ()):
        raise UserError("--until: a text is empty; an answer would end at once")
