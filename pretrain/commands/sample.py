"""`loopmdm sample RUN`: draw text with a sampler, print it and save it."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipeline.paths import user_path
from pretrain.commands.compute_options import add_compute_arguments, share_threshold
from pretrain.commands.options import add_layout_arguments, add_run_arguments, check_options
from pretrain.commands.sampler_options import add_sampler_arguments
from pretrain.config.run_folder import check_run_folder
from pretrain.machine.versions import require_supported_versions

if TYPE_CHECKING:
    from model.sampling.query import Denoise
    from model.sampling.tally import Cost
    from pretrain.commands.load_run import LoadedRun
    from pretrain.commands.prompts import Prompt
    from pretrain.evaluation.compute_settings import ComputeSettings
    from pretrain.evaluation.sampler_settings import SamplerSettings
    from pretrain.evaluation.sampling import Sample

PROMPT_SHIFT = 32
"""Sample k of prompt p has the number p * 2^32 + k: it does not change with the number of samples per prompt."""

LARGEST = 2**20
"""Of numbers for which memory is allocated."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_run_arguments(parser, (".json", ".jsonl"))
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--prompt", default="", metavar="TEXT",
        help="text that every sample begins with; [MASK] in it is one token to fill, [MASK:20] is 20",
    )  # fmt: skip
    given.add_argument(
        "--prompts", type=user_path, metavar="FILE",
        help='several prompts, one per line, or in a .jsonl file {"prompt": TEXT} or {"template": TEXT}',
    )  # fmt: skip
    given.add_argument(
        "--template", type=user_path, metavar="FILE", help="text of the whole sample, with [MASK] where it is to be filled"
    )  # fmt: skip
    parser.add_argument("--num-samples", type=int, default=2, help="samples per prompt [2]")
    parser.add_argument(
        "--length", type=int, help="tokens per sample with its prompt; of a template, at most [the run's row length]"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed, from 0 to 2^63 - 1 [0]")
    parser.add_argument("--batch-size", type=int, default=32, help="samples that are drawn at once [32]")
    add_layout_arguments(parser)
    add_sampler_arguments(parser)
    add_compute_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Sample, print the texts, write `samples/*.json`."""
    require_supported_versions()
    _check(arguments)
    share_threshold(arguments)
    check_run_folder(arguments.folder)
    from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
    from pretrain.commands.load_run import open_run
    from pretrain.commands.sample_results import describe, report
    from pretrain.evaluation.compute_settings import ComputeSettings
    from pretrain.evaluation.sampler_settings import SamplerSettings

    settings, compute = SamplerSettings.of(vars(arguments)), ComputeSettings.of(vars(arguments))
    compute.check_layout(arguments.pipeline)
    prompts = _prompts(arguments)
    loaded = open_run(
        arguments.folder, arguments.weights, arguments.tensor, arguments.pipeline, step=arguments.checkpoint
    )
    tokenizer = load_prepared_tokenizer(loaded.tokenizer_folder, loaded.manifest)
    mask_id = loaded.settings.model.mask_id
    length = _length(arguments.length, loaded)
    rows = [prompt.row(tokenizer, mask_id, length) for prompt in prompts]
    _check_rows(settings, prompts, rows, mask_id)
    compute = compute.resolved(loaded.settings.model.loop.max)
    samples, spent, cost = draw(loaded, rows, settings, compute, arguments)
    if loaded.world.is_main:
        described = list(describe(prompts, rows, samples, spent, tokenizer, mask_id, arguments.seed))
        report(arguments, loaded, settings, compute, described, cost)
    return 0


def draw(
    loaded: "LoadedRun",
    rows: Sequence[Sequence[int]],
    settings: "SamplerSettings",
    compute: "ComputeSettings",
    arguments: argparse.Namespace,
) -> tuple[list["Sample"], list[list[float]], "Cost"]:
    """Draw `arguments.num_samples` samples of each row. Collective.

    Returns:
        The samples; the forward passes, loops and passes of the looped block of each; the cost of all.
    """
    import torch

    from model.sampling.tally import Cost, Tally
    from pretrain.evaluation.sampling import fill_rows

    count, tally, begin = arguments.num_samples, Tally(), time.perf_counter()

    def network() -> "Denoise":
        return loaded.denoiser(compute.compute(arguments.batch_size), tally)

    numbers = [(prompt << PROMPT_SHIFT) + sample for prompt in range(len(rows)) for sample in range(count)]
    samples = fill_rows(
        loaded.world,
        network(),
        [row for row in rows for _ in range(count)],
        numbers,
        settings.plan(network, loaded.manifest.tokenizer.eod_id),
        loaded.settings.model.mask_id,
        arguments.seed,
        arguments.batch_size,
    )
    seconds, holds_loss = time.perf_counter() - begin, loaded.world.holds_loss
    work = loaded.world.sum(tally.values() * holds_loss)
    of_samples = torch.tensor([tally.of_samples.get(number, (0, 0, 0)) for number in numbers], dtype=torch.float64)
    spent = loaded.world.sum(of_samples * holds_loss).tolist()
    return samples, spent, Cost.of(work, sum(len(s.steps) - s.steps.count(-1) for s in samples), seconds)


def _length(asked: int | None, loaded: "LoadedRun") -> int:
    """Tokens per sample; warns of more than a row of training has."""
    trained = loaded.settings.data.seq_len
    if asked is not None and asked > trained and loaded.world.is_main:
        print(
            f"warning: --length {asked:,}: the run was trained on rows of {trained:,} tokens; longer texts may be worse",
            file=sys.stderr,
        )
    return trained if asked is None else asked


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError for a value that means nothing, and read the prompt as UTF-8 whatever the locale is."""
    from pretrain.errors import UserError
    from pretrain.evaluation.text_files import not_utf8

    check_options(arguments, {"num_samples": 1, "length": 1, "seed": 0, "batch_size": 1})
    if arguments.seed >= 2**63:
        raise UserError(f"--seed {arguments.seed}: must be below 2^63")
    for name in ("num_samples", "length", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value > LARGEST:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at most {LARGEST:,}")
    try:
        arguments.prompt.encode("utf-8")
    except UnicodeEncodeError:  # bytes that the locale does not know
        try:
            arguments.prompt = os.fsencode(arguments.prompt).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"--prompt: {not_utf8(error)}") from None


def _prompts(arguments: argparse.Namespace) -> list["Prompt"]:
    from pretrain.commands.prompts import Prompt, read_prompts, read_template

    if arguments.prompts is not None:
        return read_prompts(arguments.prompts)
    if arguments.template is not None:
        return [read_template(arguments.template)]
    return [Prompt(arguments.prompt, "--prompt")]


def _check_rows(
    settings: "SamplerSettings", prompts: Sequence["Prompt"], rows: Sequence[Sequence[int]], mask_id: int
) -> None:
    """Raise UserError for options that do not go with a prompt."""
    from pretrain.errors import UserError
    from pretrain.evaluation.sampling import require_steps

    for prompt, row in zip(prompts, rows, strict=True):
        unknown = row.count(mask_id)
        if settings.guidance and unknown == len(row):
            raise UserError(f"{prompt.source}: --guidance strengthens the prompt, and this one is empty; leave it out")
        require_steps(settings, unknown, prompt.source)
