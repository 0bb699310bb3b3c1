"""What `loopmdm sample` prints and saves."""

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.atomic_files import write_output
from data_pipeline.json_text import json_text
from data_pipeline.tokenizers.tokenizers import Tokenizer
from model.sampling.tally import Cost
from pretrain.commands.load_run import LoadedRun
from pretrain.commands.prompts import Prompt
from pretrain.evaluation.compute_settings import ComputeSettings
from pretrain.evaluation.result_files import keep_result
from pretrain.evaluation.sampler_settings import SamplerSettings
from pretrain.evaluation.sampling import Sample

COLUMNS = ("tokens", "revealed_at_step")
"""Lists with an entry per sample, beside the texts, in a JSON result."""


def describe(
    prompts: Sequence[Prompt],
    rows: Sequence[Sequence[int]],
    samples: Sequence[Sample],
    spent: Sequence[Sequence[float]],
    tokenizer: Tokenizer,
    mask_id: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """What is told of each sample: its prompt, seed and number, text, tokens, the steps that revealed them, and what it cost.

    Args:
        rows: token ids of each prompt's samples before they were filled.
        samples: of the first prompt, of the second, ..., as many of each.
        spent: forward passes, loops and passes of the looped block of each sample.
    """
    count = len(samples) // len(prompts)
    for index, sample in enumerate(samples):
        prompt, row = prompts[index // count], rows[index // count]
        about = {"template" if prompt.is_template else "prompt": prompt.text, "seed": seed, "index": index % count}
        about["text"] = tokenizer.decode(sample.tokens)
        if not prompt.is_template:
            given = max((i + 1 for i, token in enumerate(row) if token != mask_id), default=0)
            about["completion"] = tokenizer.decode(sample.tokens[given:])
        about |= {"tokens": sample.tokens, "revealed_at_step": sample.steps}
        forwards, loops, passes = spent[index]
        about |= {
            "forwards": int(forwards),
            "block_passes": passes,
            "loops_per_forward": loops / (forwards or math.nan),
        }
        yield about | ({"input": prompt.record} if prompt.record else {})


def report(
    arguments: argparse.Namespace,
    loaded: LoadedRun,
    settings: SamplerSettings,
    compute: ComputeSettings,
    samples: Sequence[dict[str, Any]],
    cost: Cost,
) -> None:
    """Print every text, and save them: one JSON object, or one per line (.jsonl).

    Args:
        samples: as from `describe`.
    """
    count, how = arguments.num_samples, f"S={compute.loops_name}, {settings.describe()}"
    for index, sample in enumerate(samples):
        of_prompt = f" (prompt {index // count + 1})" if arguments.prompts else ""
        print(f"--- sample {index + 1} of {len(samples)}{of_prompt}, {how}\n{sample['text']}")
    print(f"--- {len(samples)} samples: {cost.describe()}")
    asked = {**compute.record(), **settings.record(), "seed": arguments.seed, "num_samples": count}
    asked["length"] = arguments.length or loaded.settings.data.seq_len
    about = {"step": loaded.step, "weights": loaded.weights}
    if arguments.output is not None and arguments.output.suffix == ".jsonl":
        lines = (json_text(sample | about | {"settings": asked}) + "\n" for sample in samples)
        write_output("--output", arguments.output, "".join(lines))
        print(f"wrote {arguments.output}")
        return
    asked |= _prompts(arguments, samples)
    record = (
        about
        | asked
        | {
            "settings": asked,
            "seconds": cost.seconds,
            "cost": cost.record(),
            "texts": [sample["text"] for sample in samples],
        }
    )
    record |= {key: [sample[key] for sample in samples] for key in COLUMNS}
    print(
        keep_result(
            arguments.folder / "samples", _stem(loaded, settings, compute, arguments.seed), record, arguments.output
        )
    )


def _stem(loaded: LoadedRun, settings: SamplerSettings, compute: ComputeSettings, seed: int) -> str:
    """Name of the file. Results that differ in other settings are numbered."""
    loops = compute.loops_name.replace(":", "_")
    kind = "" if settings.sampler == "ancestral" else f"_{settings.sampler}"
    steps = "" if settings.steps is None else f"_steps_{settings.steps}"
    return f"step_{loaded.step}_{loaded.weights}_loops_{loops}{kind}{steps}_seed_{seed}"


def _prompts(arguments: argparse.Namespace, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The prompts, by their texts."""
    if arguments.prompts is None:
        return {key: samples[0][key] for key in ("prompt", "template") if key in samples[0]}
    return {"prompts": [sample.get("prompt", sample.get("template")) for sample in samples[:: arguments.num_samples]]}
