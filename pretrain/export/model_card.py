"""`README.md` of an exported folder: the model card."""

from typing import Any

from data_pipeline.manifest import Manifest
from pretrain.export.evaluations import result_lines
from pretrain.export.record import RunRecord
from pretrain.export.tokenizer_files import Written

FRONT_MATTER = """\
---
library_name: transformers
pipeline_tag: fill-mask
tags:
- loopmdm
- masked-diffusion
- looped-transformer
---
"""
USE = """\
```python
import torch
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
text = tokenizer("Once upon a time", return_tensors="pt").input_ids
mask = text.new_full((1, 16), tokenizer.mask_token_id)
logits = model(torch.cat([text, mask], dim=1), loops={loops}).logits  # [batch, length, vocabulary]
```
"""
NOTES = """\
- `loops` is the number of passes through the looped layers; without it, `config.loops` = {loops}. Training used up to {max_loops}.
- `loop_tolerance=0.1` stops the loop of a row once a pass changes the direction of its hidden states by less than that; off by
  default. The output's `loops` says how many passes each row took.
- `attention_mask` is 1 for tokens and 0 for padding.
- The logit of [MASK] is the lowest finite number, so it is never drawn, and differences of logits stay finite (guidance).
- Samplers and likelihood scripts for LLaDA-like models take this model with `mask_id={mask_id}` (`config.mask_id`).
- In a text, "{mask_token}" is text, as in training. `tokenizer(text, split_special_tokens=False)` makes it the id {mask_id}.
- `loopmdm import FOLDER` makes a run folder of it.
"""


def model_card(record: RunRecord, manifest: Manifest, loops: int, tokenizer: Written) -> str:
    """The card as Markdown.

    Args:
        loops: the default S of the export.
        tokenizer: as from `write_tokenizer`.
    """
    settings, info = record.settings, manifest.tokenizer
    largest, mask = settings["model.loop.max"], tokenizer.mask_token
    notes = NOTES.format(loops=loops, max_loops=largest, mask_id=info.mask_id, mask_token=mask)
    if tokenizer.needs_sentencepiece:
        notes += "- The tokenizer needs the package `sentencepiece`.\n"
    results = [line for name, result in record.evaluations.items() for line in result_lines(name, result)]
    parts = [
        FRONT_MATTER,
        f"# {settings['run.name'] or 'LoopMDM'}\n",
        "A looped masked diffusion language model ([arXiv 2605.26106](https://arxiv.org/abs/2605.26106)), trained with LoopMDM.\n",
        "## Use\n",
        USE.format(loops=loops),
        notes,
        "## Training\n",
        _table(_training(record, manifest)),
        "## Evaluation\n",
        "NELBO: an upper bound on the negative log-likelihood; ± is one standard error.\n"
        if results
        else "None yet.\n",
        "\n".join(results),
        "All settings and results are in `loopmdm/run.json`. The code in this folder has the Apache-2.0 license.\n",
    ]
    return "\n".join(part for part in parts if part)


def _training(record: RunRecord, manifest: Manifest) -> dict[str, str]:
    """What was trained, how long and on what."""
    settings, progress, architecture = record.settings, record.state["progress"], record.architecture
    split, count = architecture.loop, sum(architecture.parameter_count().values())
    batch, length = settings["train.global_batch_size"], manifest.seq_len
    ranks = record.state["layout"]["world_size"]
    average = f" (decay {settings['optim.ema_decay']:g})" if record.weights == "ema" else ""
    return {
        "layers": f"{split.head} + {split.mid} x S + {split.tail}",
        "width": f"{architecture.hidden_size}, {architecture.num_heads} heads, {architecture.kv_heads} key-value heads",
        "parameters": f"{count:,}; executed at S = {split.max}: {architecture.executed_parameters(split.max):,}",
        "S in training": f"{settings['train.loops']}, up to {split.max}",
        "steps": f"{record.step:,} of {batch:,} rows of {length:,} tokens",
        "tokens": f"{record.step * batch * length:,}",
        "FLOPs": f"{progress['flops']:.4g}",
        "time": f"{progress['elapsed'] / 3600:.2f} hours on {ranks} rank{'s' * (ranks != 1)}",
        "schedule": f"{settings['optim.lr']:g}, {settings['optim.schedule']}; warm-up {settings['optim.warmup_steps']:,} steps",
        "precision": str(settings["train.precision"]),
        "attention, noise": f"per {settings['train.attention']}, per {settings['train.noise']}",
        "weights": f"{'moving average' + average if record.weights == 'ema' else 'raw'}, saved in fp32",
        "data": _data(record, manifest),
        "vocabulary": f"{manifest.vocab_size:,} ids, {manifest.tokenizer.kind}",
    }


def _data(record: RunRecord, manifest: Manifest) -> str:
    """The inputs. Of a mixture, a run keeps only the first corpus' manifest."""
    shown = ", ".join(f"{i.input} ({i.documents:,} documents)" for i in manifest.inputs)
    corpora = {key.split()[1] for key in record.state.get("data", {}) if key.startswith("corpus ")}
    return f"a mixture of {len(corpora)} corpora; the first: {shown}" if corpora else shown


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items()), ""])
