"""`loopmdm sample RUN`: draw text with a sampler, print it and save it."""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data_pipeline.paths import user_path
from pretrain.commands.compute_options import add_compute_arguments
from pretrain.commands.options import add_layout_arguments, add_run_arguments, check_options
from pretrain.commands.sampler_options import add_sampler_arguments

if TYPE_CHECKING:
    from data_pipeline.tokenizers.tokenizers import Tokenizer
    from model.sampling.query import Denoise
    from model.sampling.tally import Cost
    from pretrain.commands.load_run import LoadedRun
    from pretrain.commands.prompts import Prompt
    from pretrain.evaluation.compute_settings import ComputeSettings
    from pretrain.evaluation.sampler_settings import SamplerSettings
    from pretrain.evaluation.sampling import Sample

PROMPT_SHIFT = 32
"""Sample k of prompt p has the number p * 2^32 + k: it does not change with the number of samples per prompt."""


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
    from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
    from pretrain.commands.load_run import open_run
    from pretrain.evaluation.compute_settings import ComputeSettings
    from pretrain.evaluation.sampler_settings import SamplerSettings

    _check(arguments)
    settings, compute = SamplerSettings.of(vars(arguments)), ComputeSettings.of(vars(arguments))
    compute.check_layout(arguments.pipeline)
    prompts = _prompts(arguments)
    loaded = open_run(arguments.folder, arguments.weights, arguments.tensor, arguments.pipeline)
    tokenizer = load_prepared_tokenizer(loaded.tokenizer_folder, loaded.manifest)
    mask_id = loaded.settings.model.mask_id
    length = loaded.settings.data.seq_len if arguments.length is None else arguments.length
    rows = [prompt.row(tokenizer, mask_id, length) for prompt in prompts]
    _check_rows(settings, prompts, rows, mask_id)
    compute = compute.resolved(loaded.settings.model.loop.max)
    samples, cost = draw(loaded, rows, settings, compute, arguments)
    if loaded.world.is_main:
        described = _described(prompts, rows, samples, tokenizer, mask_id)
        _report(arguments, loaded, settings, compute, described, cost)
    return 0


def draw(
    loaded: "LoadedRun",
    rows: Sequence[Sequence[int]],
    settings: "SamplerSettings",
    compute: "ComputeSettings",
    arguments: argparse.Namespace,
) -> tuple[list["Sample"], "Cost"]:
    """`arguments.num_samples` samples of each row, and what they cost. Collective."""
    from model.sampling.tally import Cost, Tally
    from pretrain.evaluation.sampling import fill_rows

    count, tally, begin = arguments.num_samples, Tally(), time.perf_counter()

    def network() -> "Denoise":
        return loaded.denoiser(compute.compute(arguments.batch_size), tally)

    samples = fill_rows(
        loaded.world,
        network(),
        [row for row in rows for _ in range(count)],
        [(prompt << PROMPT_SHIFT) + sample for prompt in range(len(rows)) for sample in range(count)],
        settings.plan(network, loaded.manifest.tokenizer.eod_id),
        loaded.settings.model.mask_id,
        arguments.seed,
        arguments.batch_size,
    )
    work = loaded.world.sum(tally.values() * loaded.world.holds_loss)
    return samples, Cost.of(work, sum(len(s.steps) - s.steps.count(-1) for s in samples), time.perf_counter() - begin)


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError for a value that means nothing, and read the prompt as UTF-8 whatever the locale is."""
    from pretrain.commands.prompts import not_utf8
    from pretrain.errors import UserError

    check_options(arguments, {"num_samples": 1, "length": 1, "seed": 0, "batch_size": 1})
    if arguments.seed >= 2**63:
        raise UserError(f"--seed {arguments.seed}: must be below 2^63")
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

    for prompt, row in zip(prompts, rows, strict=True):
        unknown = row.count(mask_id)
        if settings.guidance and unknown == len(row):
            raise UserError(f"{prompt.source}: --guidance strengthens the prompt, and this one is empty; leave it out")
        blocks = -(-unknown // (settings.block_length or unknown))
        if settings.steps is not None and settings.steps < blocks:
            raise UserError(
                f"--steps {settings.steps}: the {blocks} blocks of a sample of {prompt.source} need at least one step each; raise "
                "--steps or --block-length"
            )


def _described(
    prompts: Sequence["Prompt"],
    rows: Sequence[Sequence[int]],
    samples: Sequence["Sample"],
    tokenizer: "Tokenizer",
    mask_id: int,
) -> Iterator[dict[str, Any]]:
    """What is told of each sample: its prompt, number, text, tokens and the steps that revealed them."""
    count = len(samples) // len(prompts)
    for index, sample in enumerate(samples):
        prompt, row = prompts[index // count], rows[index // count]
        about = {"template" if prompt.is_template else "prompt": prompt.text, "sample": index % count + 1}
        about["text"] = tokenizer.decode(sample.tokens)
        if not prompt.is_template:  # what follows the prompt
            given = max((i + 1 for i, token in enumerate(row) if token != mask_id), default=0)
            about["completion"] = tokenizer.decode(sample.tokens[given:])
        about |= {"tokens": sample.tokens, "revealed_at_step": sample.steps}
        yield about | ({"input": prompt.record} if prompt.record else {})


def _report(
    arguments: argparse.Namespace,
    loaded: "LoadedRun",
    settings: "SamplerSettings",
    compute: "ComputeSettings",
    described: Iterator[dict[str, Any]],
    cost: "Cost",
) -> None:
    """Print every text, and save them."""
    samples = list(described)
    for number, sample in enumerate(samples, 1):
        of_prompt = f" (prompt {(number - 1) // arguments.num_samples + 1})" if arguments.prompts else ""
        about = f"S={compute.loops_name}, {settings.describe()}"
        print(f"--- sample {number} of {len(samples)}{of_prompt}, {about}\n{sample['text']}")
    print(
        f"--- {len(samples)} samples: {cost.describe()}\n{_saved(arguments, loaded, settings, compute, samples, cost)}"
    )


def _saved(
    arguments: argparse.Namespace,
    loaded: "LoadedRun",
    settings: "SamplerSettings",
    compute: "ComputeSettings",
    samples: Sequence[dict[str, Any]],
    cost: "Cost",
) -> str:
    """Save the samples: one JSON object, or one per line (.jsonl). Returns the line that says where."""
    from data_pipeline.atomic_files import write_output
    from data_pipeline.json_text import json_text
    from pretrain.evaluation.result_files import keep_result

    asked = {
        **compute.record(),
        **settings.record(),
        "seed": arguments.seed,
        **_asked_prompts(arguments, samples),
    }
    asked |= {"num_samples": arguments.num_samples, "length": arguments.length or loaded.settings.data.seq_len}
    about = {"step": loaded.step, "weights": loaded.weights}
    if arguments.output is not None and arguments.output.suffix == ".jsonl":
        lines = (json_text(sample | about | {"settings": asked}) + "\n" for sample in samples)
        write_output("--output", arguments.output, "".join(lines))
        return f"wrote {arguments.output}"
    keys = ("tokens", "revealed_at_step")
    columns = {"texts": [s["text"] for s in samples], **{key: [s[key] for s in samples] for key in keys}}
    record = about | asked | {"settings": asked, "seconds": cost.seconds, "cost": cost.record()} | columns
    kind = "" if settings.order == "ancestral" else f"_{settings.order}"
    steps = "" if settings.steps is None else f"_steps_{settings.steps}"
    loops = compute.loops_name.replace(":", "_")
    stem = f"step_{loaded.step}_{loaded.weights}_loops_{loops}{kind}{steps}_seed_{arguments.seed}"
    return keep_result(arguments.folder / "samples", stem, record, arguments.output)


def _asked_prompts(arguments: argparse.Namespace, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The prompts, by their texts."""
    if arguments.prompts is None:
        return {key: samples[0][key] for key in ("prompt", "template") if key in samples[0]}
    return {"prompts": [sample.get("prompt", sample.get("template")) for sample in samples[:: arguments.num_samples]]}
