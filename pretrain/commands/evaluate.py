"""`loopmdm evaluate RUN`: validation NELBO with its standard error at several numbers of loops."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder, such as runs/quickstart")
    parser.add_argument(
        "--loops", type=loop_list, default=[1, 2, 4, 8], metavar="S,S,...", help="passes to evaluate at [1,2,4,8]"
    )
    parser.add_argument(
        "--rows", type=int, default=1024, help="validation rows to use; all when there are fewer [1024]"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="rows per forward pass [32]")
    parser.add_argument(
        "--weights", choices=("ema", "raw"), help="moving average or raw weights [ema where the run keeps it]"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="prepared folder or blend file to evaluate on [the run's]"
    )
    parser.add_argument("--split", default="validation", help="split of the folder [validation]")
    add_layout_arguments(parser)


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of a layout; ranks beyond tensor x pipeline share the rows."""
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel size, under a launcher [1]")
    parser.add_argument("--pipeline", type=int, default=1, help="pipeline stages, under a launcher [1]")


def loop_list(text: str) -> list[int]:
    """`1,2,4` -> [1, 2, 4]."""
    try:
        loops = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,2,4") from None
    if min(loops) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: the looped block runs at least once")
    return loops


def run(arguments: argparse.Namespace) -> int:
    """Evaluate every corpus, print the tables, write `eval/step_N_WEIGHTS[_WHAT].json`."""
    from data_pipeline.dataset.blend import load_blend
    from pretrain.commands.load_run import open_run
    from pretrain.errors import UserError
    from pretrain.evaluation.nelbo import evaluate_loops, evaluation_sets, mixed_figures, short_figures

    if arguments.rows < 2:
        raise UserError(f"--rows {arguments.rows}: a standard error needs at least 2 rows")
    trained = open_run(arguments.folder, arguments.weights, arguments.tensor, arguments.pipeline)
    blend = load_blend(arguments.data or trained.settings.data.path)
    if blend.manifest.tokenizer != trained.manifest.tokenizer:
        raise UserError(
            f"{blend.path}: prepared with another tokenizer than {arguments.folder} was trained with; prepare it with "
            f"--tokenizer {trained.tokenizer_folder / trained.manifest.tokenizer.file}"
        )
    sets = evaluation_sets(blend, arguments.split)
    attention, sizes = trained.settings.train.attention, (arguments.rows, arguments.batch_size)
    figures = [
        evaluate_loops(trained.logits, one.rows, attention, arguments.loops, *sizes, trained.world) for one in sets
    ]
    if not trained.world.is_main:
        return 0
    about = {"step": trained.step, "weights": trained.weights, "data": str(blend.path)}
    print(f"{arguments.folder}, step {trained.step}, {trained.weights} weights, {arguments.split} of {blend.path}")
    for one, found in zip(sets, figures, strict=True):
        print(f"{one.name + ', ' if one.name else ''}{found['rows']} rows\n{format_table(found)}")
        _write(arguments, found | about, one.name)
    if len(sets) > 1:
        mixture = mixed_figures(sets, figures)
        print(f"mixture, nats/token: {short_figures(mixture)}")
        _write(arguments, mixture | about, "mixture")
    return 0


def _write(arguments: argparse.Namespace, figures: dict[str, Any], name: str) -> None:
    """Figures of other data or another split than usual have a file of their own."""
    from data_pipeline.atomic_files import write_atomic

    split = arguments.split if arguments.split != "validation" else ""
    parts = (arguments.data.resolve().stem if arguments.data else "", split, name)
    suffix = "".join(f"_{part}" for part in parts if part)
    path = arguments.folder / "eval" / f"step_{figures['step']}_{figures['weights']}{suffix}.json"
    write_atomic(path, json.dumps(figures, indent=2) + "\n")
    print(f"wrote {path}")


def format_table(figures: dict[str, Any]) -> str:
    """The figures as a table, the unigram entropy of the same text in its last row."""
    unigram = figures["unigram_entropy"]
    first = figures["loops"][0]["loops"]
    lines = [f"{'loops':<8}{'nats/token':>20}{'bits/byte':>20}{'vs unigram':>12}{f'vs S={first}, nats/token':>26}"]
    for row in figures["loops"]:
        change = f"{row['change_from_first']:+.4f} ± {row['change_from_first_se']:.4f}" if row["loops"] != first else ""
        ratio = row["bits_per_byte"] / unigram["bits_per_byte"] - 1
        lines.append(
            f"S={row['loops']:<6}{row['nats_per_token']:>11.4f} ± {row['nats_per_token_se']:.4f}"
            f"{row['bits_per_byte']:>11.4f} ± {row['bits_per_byte_se']:.4f}{ratio:>+12.1%}{change:>26}"
        )
    lines.append(f"{'unigram':<8}{unigram['nats_per_token']:>11.4f}{'':9}{unigram['bits_per_byte']:>11.4f}")
    return "\n".join(lines)
