"""`loopmdm evaluate RUN` without tasks: NELBO with its standard error, and the difference to another run."""

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.dataset.blend import Blend
    from pretrain.commands.load_run import LoadedRun

DEFAULT_LOOPS, DEFAULT_ROWS, DEFAULT_SPLIT = [1, 2, 4, 8], 1024, "validation"


def run_nelbo(arguments: argparse.Namespace) -> int:
    """Evaluate every corpus, print the tables, write `eval/step_N_WEIGHTS[_WHAT].json`."""
    from pretrain.commands.load_run import check_tokenizer, data_of, open_runs
    from pretrain.errors import UserError

    for text in arguments.loops or ():
        if not text.isdecimal():
            raise UserError(f"--loops {text}: the NELBO is measured at fixed numbers of loops, such as 1,2,4")
    arguments.loops = [int(text) for text in arguments.loops] if arguments.loops else DEFAULT_LOOPS
    arguments.rows = arguments.rows or DEFAULT_ROWS
    runs = open_runs(arguments, may_be_causal=True)
    blend = data_of(runs[0], arguments.data)
    for loaded in runs:
        check_tokenizer(blend, loaded)
    if runs[0].world.is_main:
        _warn_of_row_length(runs, blend)
    results = _measure(arguments, runs, blend)
    if runs[0].world.is_main:
        _report(arguments, runs, blend, results)
    return 0


def _warn_of_row_length(runs: "list[LoadedRun]", blend: "Blend") -> None:
    for one in runs:
        trained, given = one.settings.data.seq_len, blend.manifest.seq_len
        if trained not in (None, given):
            print(
                f"warning: {blend.path} has rows of {given:,} tokens, but {one.folder} was trained on rows of {trained:,}",
                file=sys.stderr,
            )


def _measure(arguments: argparse.Namespace, runs: "list[LoadedRun]", blend: "Blend") -> list[dict[str, Any]]:
    """Figures of every set, with those of the run to compare with. Collective; empty but on the main rank.

    Raises:
        UserError: on all ranks; a run has no figure at any number of loops. At some of them a model may overflow.
    """
    from pretrain.errors import UserError
    from pretrain.evaluation.comparison import add_comparison
    from pretrain.evaluation.nelbo import Evaluator
    from pretrain.evaluation.scoring import NOT_NUMBERS
    from pretrain.evaluation.sets import estimates_of_sets, evaluation_sets, figures_of_sets

    sets = evaluation_sets(blend, arguments.split)
    evaluators = [
        Evaluator(
            one.logits,
            one.world,
            one.settings.train.attention,
            arguments.rows,
            arguments.batch_size,
            causal=one.settings.model.causal,
        )
        for one in runs
    ]
    estimates = [estimates_of_sets(evaluator, sets, arguments.loops) for evaluator in evaluators]
    for one, of_run in zip(runs, estimates, strict=True):
        if all(math.isnan(estimate.nats_per_token) for of_set in of_run for estimate in of_set):
            raise UserError(f"{one.checkpoint}: {NOT_NUMBERS}")
    if not runs[0].world.is_main:
        return []
    results = figures_of_sets(evaluators[0], sets, estimates[0])
    for other in estimates[1:]:
        add_comparison(results, sets, estimates[0], other)
    return results


def _report(
    arguments: argparse.Namespace, runs: "list[LoadedRun]", blend: "Blend", results: list[dict[str, Any]]
) -> None:
    """Print every table, and save it."""
    from pretrain.evaluation.report import evaluation_settings
    from pretrain.evaluation.result_files import keep_result

    loaded, settings = runs[0], evaluation_settings(blend, arguments.split, arguments.loops, arguments.rows)
    for other in runs[1:]:
        settings["compared_with"] = {"run": str(other.folder), "step": other.step, "weights": other.weights}
    about = {"step": loaded.step, "weights": loaded.weights, "data": str(blend.path), "settings": settings}
    print(f"{arguments.folder}, step {loaded.step}, {loaded.weights} weights, {arguments.split} of {blend.path}")
    saved = []
    for figures in results:
        print(_shown(figures, [f"{one.folder.resolve().name}, step {one.step}" for one in runs[1:]]))
        name = figures["name"] and f"_{figures['name']}"
        content = {key: value for key, value in figures.items() if key != "name"} | about
        output = arguments.output and arguments.output.with_stem(arguments.output.stem + name)
        saved.append(keep_result(arguments.folder / "eval", _stem(arguments, runs) + name, content, output))
    print("\n".join(dict.fromkeys(saved)))  # a folder that cannot be written is mentioned once


def _shown(figures: dict[str, Any], others: list[str]) -> str:
    """Tables for a corpus, one line for the mixture, which has no text of its own to compare with."""
    from pretrain.evaluation.comparison import format_comparison
    from pretrain.evaluation.report import format_table, format_timesteps, short_figures

    compared = "".join(f"\n{format_comparison(figures, other)}" for other in others)
    if "corpora" in figures:
        return f"{figures['name']}, nats/token: {short_figures(figures)}{compared}"
    title = f"{figures['name'] and figures['name'] + ', '}{figures['rows']} row{'s' * (figures['rows'] != 1)}"
    by_t = f"mean -log p of a masked token in nats, by t\n{format_timesteps(figures)}"
    return f"{title}\n{format_table(figures)}{compared}\n{by_t}"


def _stem(arguments: argparse.Namespace, runs: "list[LoadedRun]") -> str:
    """Name of the file, without the name of the set: what differs from the defaults is in it."""
    parts = [f"step_{runs[0].step}_{runs[0].weights}"]
    parts += [arguments.data.resolve().stem] if arguments.data else []
    parts += [arguments.split] if arguments.split != DEFAULT_SPLIT else []
    parts += [f"loops_{'-'.join(map(str, arguments.loops))}"] if arguments.loops != DEFAULT_LOOPS else []
    parts += [f"rows_{arguments.rows}"] if arguments.rows != DEFAULT_ROWS else []
    parts += [f"vs_{one.folder.resolve().name}_step_{one.step}" for one in runs[1:]]
    return "_".join(parts)
