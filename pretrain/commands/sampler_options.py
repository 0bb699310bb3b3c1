"""Options that choose a sampler."""

import argparse

from pretrain.evaluation.sampler_settings import DEFAULTS, OPTIONS_OF

SAMPLERS_HELP = """\
which tokens are revealed first: ancestral (the reverse process of the training noise; MDLM), remask (the same, masking some again;
ReMDM); one or more per step: left_to_right, random, confidence (probability of the drawn token; LLaDA), margin (probability of the
likeliest minus the second), entropy (lowest); as many per step as are sure enough: threshold (Fast-dLLM), entropy_bound
(EB-Sampler), wino (draft at a low threshold, verify, mask doubtful tokens again); self_speculative (the result of confidence with
one token per step, in fewer passes) [ancestral]"""


def add_sampler_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `SamplerSettings.of`. Their defaults are None, so that what was not given can be told."""
    group = parser.add_argument_group("sampler")
    add = group.add_argument
    add("--sampler", choices=tuple(OPTIONS_OF), help=SAMPLERS_HELP)
    add(
        "--steps", type=int, metavar="T",
        help=f"denoising steps, shared out to the blocks: ancestral, remask [{DEFAULTS['ancestral']['steps']}]; in orders of "
        "one or more per step equal shares of the tokens",
    )  # fmt: skip
    add("--tokens-per-step", type=int, metavar="N", help="left_to_right, random, confidence, margin, entropy [1]")
    add(
        "--draft", type=int, metavar="N",
        help="orders of one token per step: guess N further tokens and verify them in the same forward pass, as N more rows: the "
        f"same result in fewer passes (self-speculative decoding) [none; self_speculative {DEFAULTS['self_speculative']['draft']}]",
    )  # fmt: skip
    add(
        "--threshold", type=float, metavar="P",
        help=f"least probability of a token: threshold [{DEFAULTS['threshold']['threshold']}]; to draft one: wino "
        f"[{DEFAULTS['wino']['threshold']}]",
    )  # fmt: skip
    add(
        "--verify-threshold", type=float, metavar="P",
        help=f"wino: least probability to keep a drafted token [{DEFAULTS['wino']['verify_threshold']}]",
    )  # fmt: skip
    add(
        "--entropy-bound", type=float, metavar="NATS",
        help="entropy_bound: largest sum of the entropies revealed in a step, without the largest "
        f"[{DEFAULTS['entropy_bound']['entropy_bound']}]",
    )  # fmt: skip
    add(
        "--remask", type=float, metavar="P",
        help="remask: probability, at most, that a step masks a revealed token again (capped schedule) "
        f"[{DEFAULTS['remask']['remask']}]",
    )  # fmt: skip
    add("--block-length", type=int, metavar="N", help="fill N tokens after the other, from left to right [all at once]")
    add("--temperature", type=float, metavar="X", help="0 takes the likeliest token [1]")
    add("--top-k", type=int, metavar="K", help="draw among the K likeliest tokens [all]")
    add("--top-p", type=float, metavar="P", help="draw among the likeliest tokens that together have probability P [1]")
    add(
        "--guidance", type=float, metavar="X",
        help="classifier-free guidance: logits + X (logits - logits without the prompt); twice the forward passes [0]",
    )  # fmt: skip
    add("--stop", action="store_true", default=None, help="end a sample at its first end-of-document token")
