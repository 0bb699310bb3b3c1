"""`loopmdm evaluate RUN`: validation NELBO with its standard error at several numbers of loops."""

import argparse
from typing import TYPE_CHECKING, Any

from data_pipeline.paths import user_path
from pretrain.commands.options import add_layout_arguments, add_run_arguments, check_options
from pretrain.machine.versions import require_supported_versions

if TYPE_CHECKING:
    from data_pipeline.dataset.blend import Blend
    from pretrain.commands.load_run import LoadedRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_run_arguments(parser)
    parser.add_argument(
        "--loops",
        type=loop_list,
        default=[1, 2, 4, 8],
        metavar="S,S,...",
        help="numbers of loops to evaluate at [1,2,4,8]",
    )
    parser.add_argument("--rows", type=int, default=1024, help="validation rows to use; all if there are fewer [1024]")
    parser.add_argument("--batch-size", type=int, default=32, help="rows per forward pass [32]")
    parser.add_argument(
        "--data", type=user_path, metavar="DIR", help="prepared folder or blend file to evaluate on [the run's]"
    )
    parser.add_argument("--split", default="validation", help="split of the folder [validation]")
    add_layout_arguments(parser)


def loop_list(text: str) -> list[int]:
    """`1,2,4` -> [1, 2, 4]."""
    try:
        loops = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,2,4") from None
    if min(loops) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: the number of loops must be at least 1")
    return loops


def run(arguments: argparse.Namespace) -> int:
    """Evaluate every corpus, print the tables, write `eval/step_N_WEIGHTS[_WHAT].json`."""
    require_supported_versions()
    from data_pipeline.dataset.blend import load_blend
    from pretrain.commands.load_run import find_data, open_run
    from pretrain.errors import UserError
    from pretrain.evaluation.nelbo import Evaluator
    from pretrain.evaluation.sets import evaluate_sets, evaluation_sets

    check_options(arguments, {"batch_size": 1})
    if arguments.rows < 2:
        raise UserError(f"--rows {arguments.rows}: a standard error needs at least 2 rows")
    loaded = open_run(arguments.folder, arguments.weights, arguments.tensor, arguments.pipeline)
    blend = load_blend(arguments.data or find_data(loaded))
    if blend.manifest.tokenizer != loaded.manifest.tokenizer:
        raise UserError(
            f"{blend.path}: was prepared with a different tokenizer than that of {arguments.folder}; prepare it again with "
            f"--tokenizer {loaded.tokenizer_folder / loaded.manifest.tokenizer.file}"
        )
    attention = loaded.settings.train.attention
    evaluator = Evaluator(loaded.logits, loaded.world, attention, arguments.rows, arguments.batch_size)
    results = evaluate_sets(evaluator, evaluation_sets(blend, arguments.split), arguments.loops)
    if loaded.world.is_main:
        _report(arguments, loaded, blend, results)
    return 0


def _report(arguments: argparse.Namespace, loaded: "LoadedRun", blend: "Blend", results: list[dict[str, Any]]) -> None:
    """Print every table, and save it."""
    from pretrain.evaluation.report import evaluation_settings
    from pretrain.evaluation.result_files import keep_result

    about = {
        "step": loaded.step,
        "weights": loaded.weights,
        "data": str(blend.path),
        "settings": evaluation_settings(blend, arguments.split, arguments.loops, arguments.rows),
    }
    print(f"{arguments.folder}, step {loaded.step}, {loaded.weights} weights, {arguments.split} of {blend.path}")
    saved = []
    for figures in results:
        print(_shown(figures))
        name = figures["name"] and f"_{figures['name']}"
        content = {key: value for key, value in figures.items() if key != "name"} | about
        output = arguments.output and arguments.output.with_stem(arguments.output.stem + name)
        saved.append(keep_result(arguments.folder / "eval", _stem(arguments, loaded) + name, content, output))
    print("\n".join(dict.fromkeys(saved)))  # a folder that cannot be written is mentioned once


def _shown(figures: dict[str, Any]) -> str:
    """A table for a corpus, one line for the mixture, which has no text of its own to compare with."""
    from pretrain.evaluation.report import format_table, short_figures

    if "corpora" in figures:
        return f"{figures['name']}, nats/token: {short_figures(figures)}"
    return f"{figures['name'] and figures['name'] + ', '}{figures['rows']} rows\n{format_table(figures)}"


def _stem(arguments: argparse.Namespace, loaded: "LoadedRun") -> str:
    """Name of the file, without the name of the set. Figures of other data or another split get a file of their own."""
    split = arguments.split if arguments.split != "validation" else ""
    parts = (arguments.data.resolve().stem if arguments.data else "", split)
    return f"step_{loaded.step}_{loaded.weights}" + "".join(f"_{part}" for part in parts if part)
