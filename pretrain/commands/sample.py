"""`loopmdm sample RUN`: draw text by the ancestral reverse process, print it and save it."""

import argparse
import os
import time
from typing import TYPE_CHECKING

from pretrain.commands.options import add_layout_arguments, add_run_arguments, check_options
from pretrain.machine.versions import require_supported_versions

if TYPE_CHECKING:
    from torch import Tensor

    from data_pipeline.tokenizers.tokenizers import Tokenizer
    from pretrain.commands.load_run import LoadedRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_run_arguments(parser)
    parser.add_argument("--loops", type=int, default=4, metavar="S", help="S, passes of the looped block [4]")
    parser.add_argument("--steps", type=int, default=32, help="denoising steps [32]")
    parser.add_argument("--prompt", default="", help="text that every sample begins with")
    parser.add_argument("--num-samples", type=int, default=2, help="number of samples [2]")
    parser.add_argument("--length", type=int, help="tokens per sample, including the prompt [the run's row length]")
    parser.add_argument("--seed", type=int, default=0, help="random seed, from 0 to 2^63 - 1 [0]")
    add_layout_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Sample, print the texts, write `samples/*.json`."""
    require_supported_versions()
    from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
    from pretrain.commands.load_run import open_run
    from pretrain.evaluation.result_files import keep_result

    _check(arguments)
    loaded = open_run(arguments.folder, arguments.weights, arguments.tensor, arguments.pipeline)
    tokenizer = load_prepared_tokenizer(loaded.tokenizer_folder, loaded.manifest)
    begin = time.perf_counter()
    rows = draw(loaded, _masked_rows(arguments, loaded, tokenizer), arguments.loops, arguments.steps, arguments.seed)
    seconds = time.perf_counter() - begin
    if not loaded.world.is_main:
        return 0
    texts = [tokenizer.decode(row) for row in rows]
    settings = {
        "loops": arguments.loops, "denoising_steps": arguments.steps, "seed": arguments.seed, "prompt": arguments.prompt,
        "num_samples": len(rows), "length": len(rows[0]),
    }  # fmt: skip
    record = {
        "step": loaded.step, "weights": loaded.weights, **settings, "settings": settings, "seconds": seconds, "tokens": rows,
        "texts": texts,
    }  # fmt: skip
    stem = f"step_{loaded.step}_{loaded.weights}_loops_{arguments.loops}_steps_{arguments.steps}_seed_{arguments.seed}"
    for number, text in enumerate(texts, 1):
        print(f"--- sample {number} of {len(texts)}, S={arguments.loops}, {arguments.steps} denoising steps\n{text}")
    saved = keep_result(arguments.folder / "samples", stem, record, arguments.output)
    print(f"--- {len(rows)} samples in {seconds:.1f} s\n{saved}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError for a value that means nothing, and read the prompt as UTF-8 whatever the locale is."""
    from pretrain.errors import UserError

    check_options(arguments, {"loops": 1, "steps": 1, "num_samples": 1, "length": 1, "seed": 0})
    if arguments.seed >= 2**63:
        raise UserError(f"--seed {arguments.seed}: must be below 2^63")
    try:
        arguments.prompt.encode("utf-8")
    except UnicodeEncodeError:  # bytes that the locale does not know
        try:
            arguments.prompt = os.fsencode(arguments.prompt).decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
            raise UserError(f"--prompt: {byte} is not UTF-8; convert it, for example with iconv") from None


def draw(loaded: "LoadedRun", tokens: "Tensor", loops: int, denoising_steps: int, seed: int) -> list[list[int]]:
    """Fill the [MASK] tokens of int64 [b, s]; returns a list of token ids per row, without any [MASK]."""
    import torch

    from model.sampler import ancestral_sample

    device = loaded.world.device
    generator = torch.Generator(device=device).manual_seed(seed)

    def denoise(noisy: "Tensor", logit_positions: "Tensor") -> "Tensor":
        return loaded.whole_logits(noisy, logit_positions, loops)

    filled = ancestral_sample(denoise, tokens.to(device), loaded.settings.model.mask_id, denoising_steps, generator)
    return filled.tolist()


def _masked_rows(arguments: argparse.Namespace, loaded: "LoadedRun", tokenizer: "Tokenizer") -> "Tensor":
    """Rows of the prompt followed by [MASK], int64 [samples, length]."""
    import torch

    from pretrain.errors import UserError

    length = loaded.settings.data.seq_len if arguments.length is None else arguments.length
    prompt = torch.from_numpy(tokenizer.encode_batch([arguments.prompt])[0].astype("int64"))
    if len(prompt) >= length:
        raise UserError(
            f"--prompt: its {len(prompt)} tokens leave no room in a sample of {length}; shorten it or raise --length"
        )
    tokens = torch.full((arguments.num_samples, length), loaded.settings.model.mask_id)
    tokens[:, : len(prompt)] = prompt
    return tokens
