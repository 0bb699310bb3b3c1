"""`loopmdm probe RUN`: what every pass of the looped block changes, and where masked tokens look."""

import argparse
import math
from typing import Any

from data_pipeline.paths import user_path
from pretrain.commands.options import add_run_arguments, check_options
from pretrain.config.run_folder import check_run_folder
from pretrain.errors import UserError
from pretrain.evaluation.compute_settings import check_loops


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_run_arguments(parser)
    parser.add_argument("--loops", type=int, metavar="S", help="S, passes of the looped block [the run's S_max]")
    parser.add_argument("--timesteps", type=_timesteps, default=[0.2, 0.5, 0.8, 0.95], metavar="T,T,...",
                        help="shares of masked tokens to measure at [0.2,0.5,0.8,0.95]")  # fmt: skip
    parser.add_argument("--rows", type=int, default=64, help="validation rows to use; all if there are fewer [64]")
    parser.add_argument("--batch-size", type=int, default=16, help="rows per forward pass [16]")
    parser.add_argument("--data", type=user_path, metavar="DIR", help="prepared folder or blend file [the run's]")


def _timesteps(text: str) -> list[float]:
    """`0.2,0.5` -> [0.2, 0.5]."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.2,0.5") from None
    if not all(0 < value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: every t must be above 0 and at most 1")
    return values


def run(arguments: argparse.Namespace) -> int:
    """Measure, print a table for every t, write `eval/probe_step_N_WEIGHTS_loops_S.json`."""
    arguments.tensor = arguments.pipeline = 1
    check_options(arguments, {"batch_size": 1})
    if arguments.loops is not None:
        check_loops(arguments.loops, arguments.loops)
    if arguments.rows < 2:
        raise UserError(f"--rows {arguments.rows}: a standard error needs at least 2 rows")
    check_run_folder(arguments.folder)
    from pretrain.commands.load_run import check_tokenizer, data_of, open_run
    from pretrain.evaluation.probe import probe
    from pretrain.evaluation.report import evaluation_settings
    from pretrain.evaluation.result_files import keep_result
    from pretrain.evaluation.scoring import NOT_NUMBERS
    from pretrain.evaluation.sets import evaluation_sets

    loaded = open_run(arguments.folder, arguments.weights, step=arguments.checkpoint)
    blend = data_of(loaded, arguments.data)
    check_tokenizer(blend, loaded)
    loops = arguments.loops or loaded.settings.model.loop.max
    title = f"{arguments.folder}, step {loaded.step}, {loaded.weights} weights, validation of {blend.path}, S={loops}"
    asked = evaluation_settings(blend, "validation", [loops], arguments.rows)
    settings = asked | {"loops": loops, "timesteps": arguments.timesteps, "data": str(blend.path)}
    for one in evaluation_sets(blend, "validation"):
        documents = loaded.settings.train.attention == "document"
        measured = probe(
            loaded.model, one.rows, arguments.timesteps, loops, arguments.rows, arguments.batch_size, documents
        )
        if all(math.isnan(norm) for figures in measured for norm in figures["norm"]["mean"]):
            raise UserError(f"{loaded.checkpoint}: {NOT_NUMBERS}")
        print("\n".join([f"{title}{one.name and ', '}{one.name}", *map(format_probe, measured)]))
        record = {"step": loaded.step, "weights": loaded.weights, "settings": settings, "timesteps": measured}
        name = f"_{one.name}" if one.name else ""
        output = arguments.output and arguments.output.with_stem(arguments.output.stem + name)
        stem = f"probe_step_{loaded.step}_{loaded.weights}_loops_{loops}{name}"
        print(keep_result(arguments.folder / "eval", stem, record, output))
    return 0


def format_probe(figures: dict[str, Any]) -> str:
    """One line per pass."""
    columns = ("attention", "attention_over_share", "relative_change", "change_of_direction")
    heads = ("attention to masked", "divided by share", "relative change", "change of direction")
    lines = [
        f"t={figures['t']:g}, {figures['rows']} rows, {figures['masked_share']:.1%} of the tokens masked"
        " (attention divided by their share: 1 if it is uniform)",
        "pass  " + "  ".join(f"{head:>19}" for head in heads) + f"  {'norm':>8}",
    ]
    for k, norm in enumerate(figures["norm"]["mean"]):
        pairs = [(figures[name]["mean"][k], figures[name]["standard_error"][k]) for name in columns]
        lines.append(
            f"{k + 1:>4}  " + "  ".join(f"{mean:>10.4f} ± {error:.4f}" for mean, error in pairs) + f"  {norm:>8.2f}"
        )
    return "\n".join(lines)
