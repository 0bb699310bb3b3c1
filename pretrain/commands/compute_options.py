"""Options that choose how much a sampler computes."""

import argparse

from pretrain.evaluation.compute_settings import THRESHOLDS
from pretrain.evaluation.sampler_settings import OPTIONS_OF


def add_compute_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ComputeSettings.of`."""
    group = parser.add_argument_group("compute")
    group.add_argument(
        "--loops", default="4", metavar="S",
        help="passes of the looped block: a number; S-S-S: at equally spaced shares of masked tokens from all to none, such as "
        "1-6-1; adaptive or adaptive:MIN-MAX: of each row until it has settled, at most the largest S of training [4]",
    )  # fmt: skip
    add_network_arguments(group)


def share_threshold(arguments: argparse.Namespace) -> None:
    """Take `--threshold` for `--loop-threshold` where the loops are adaptive and the sampler has no threshold, in place."""
    loops = [arguments.loops] if isinstance(arguments.loops, str) else arguments.loops or []
    is_adaptive = any(text.startswith("adaptive") for text in loops)
    if (
        is_adaptive
        and arguments.loop_threshold is None
        and "threshold" not in OPTIONS_OF[arguments.sampler or "ancestral"]
    ):
        arguments.loop_threshold, arguments.threshold = arguments.threshold, None


def add_network_arguments(group: argparse._ArgumentGroup) -> None:
    """Those besides `--loops`. Their defaults are None, so that what was not given can be told."""
    add = group.add_argument
    add(
        "--loop-criterion", choices=tuple(THRESHOLDS),
        help="adaptive: what must settle at the tokens to predict: the prediction (KL; costs the tail and the LM head in every "
        "pass); logit-lens: the same without the tail; the direction of the hidden state; the state itself (relative change) "
        "[logit-lens]",
    )  # fmt: skip
    add(
        "--loop-threshold", type=float, metavar="X",
        help="adaptive: mean change in a pass below which a row has settled; the same as --threshold with samplers without one "
        f"[{', '.join(f'{name} {value:g}' for name, value in THRESHOLDS.items())}]",
    )  # fmt: skip
    add(
        "--warm-start", action="store_true", default=None,
        help="start the loop from the states of the previous step, at tokens that have not changed",
    )  # fmt: skip
    add(
        "--cache", choices=("prefix", "dual"),
        help="keep keys and values from earlier steps, an approximation: prefix: of all tokens before the first masked one; dual: "
        "of all but the tokens to predict and those just revealed [none]",
    )  # fmt: skip
    add(
        "--refresh", type=float, metavar="N|P",
        help="compute whole rows in every N-th step, or (below 1) where the surest token has a probability below P, and when a "
        "block begins [when a block begins]",
    )  # fmt: skip
