"""`loopmdm evaluate RUN`: validation NELBO with its standard error at several numbers of loops."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.commands.load_run import LoadedRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder, such as runs/quickstart")
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
        "--weights", choices=("ema", "raw"), help="moving average or raw weights [ema if the run keeps it]"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="prepared folder or blend file to evaluate on [the run's]"
    )
    parser.add_argument("--split", default="validation", help="split of the folder [validation]")
    add_layout_arguments(parser)


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of a layout. Ranks beyond tensor x pipeline share the rows."""
    parser.add_argument(
        "--tensor", type=int, default=1, help="tensor-parallel size; start with a launcher if above 1 [1]"
    )
    parser.add_argument("--pipeline", type=int, default=1, help="pipeline stages; start with a launcher if above 1 [1]")


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
    from data_pipeline.dataset.blend import load_blend
    from pretrain.commands.load_run import open_run
    from pretrain.errors import UserError
    from pretrain.evaluation.nelbo import Evaluator
    from pretrain.evaluation.report import write_figures
    from pretrain.evaluation.sets import evaluate_sets, evaluation_sets

    if arguments.rows < 2:
        raise UserError(f"--rows {arguments.rows}: a standard error needs at least 2 rows")
    loaded = open_run(arguments.folder, arguments.weights, arguments.tensor, arguments.pipeline)
    blend = load_blend(arguments.data or loaded.settings.data.path)
    if blend.manifest.tokenizer != loaded.manifest.tokenizer:
        raise UserError(
            f"{blend.path}: was prepared with a different tokenizer than that of {arguments.folder}; prepare it again with "
            f"--tokenizer {loaded.tokenizer_folder / loaded.manifest.tokenizer.file}"
        )
    attention = loaded.settings.train.attention
    evaluator = Evaluator(loaded.logits, loaded.world, attention, arguments.rows, arguments.batch_size)
    results = evaluate_sets(evaluator, evaluation_sets(blend, arguments.split), arguments.loops)
    if not loaded.world.is_main:
        return 0
    about = {"step": loaded.step, "weights": loaded.weights, "data": str(blend.path)}
    print(f"{arguments.folder}, step {loaded.step}, {loaded.weights} weights, {arguments.split} of {blend.path}")
    for figures in results:
        print(_shown(figures))
        print(f"wrote {write_figures(arguments.folder, _stem(arguments, loaded), figures | about)}")
    return 0


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
