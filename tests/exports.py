"""Run folders without training, for the tests of export and import: a tokenizer of any kind and drawn weights."""

import io
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import sentencepiece
import tokenizers
import torch
from safetensors.torch import save_file

from data_pipeline.manifest import Manifest, TokenizerInfo, sha256_of
from data_pipeline.tokenizers.tokenizers import BYTES_FILE_CONTENT, load_tokenizer
from data_pipeline.tokenizers.training import train_sentencepiece
from model.architecture import Architecture
from pretrain.checkpoints.folder import MARK
from pretrain.cli import main
from pretrain.config.keys import flatten
from pretrain.config.load import dump_settings, load_settings
from pretrain.export.weights import exported_shapes, imported_weights
from tests.launching import ROOT

_rng = random.Random(0)
_WORDS = ["".join(_rng.choices("abcdefghij", k=_rng.randint(2, 7))) for _ in range(200)] + [
    "naïve",
    "漢字",
    "\n\t",
    "==",
    "12",
]
TEXTS = [" ".join(_rng.choices(_WORDS, k=60)) for _ in range(30)]

ODD_TEXTS = [
    "", " ", "a", "   leading and trailing   ", "\tdef f():\n\t\treturn 1\n", "a\r\nb\rc\n\n\n\n", " " * 37, "\n" * 9, "\t \t",
    "▁", " ▁ ▁▁a▁", "a\x00b\x01\x1f\x7f", "e\u0301 é ﬁ \uff12 \u3000 \u00a0 \u200b \u2028 \ufeff", "12345 3.14e-10",
    "👨‍👩‍👧 🇩🇪 \U0010ffff \ud7ff ▅ ⁇ \ufffd", "مرحبا नमस्ते ไทย", "<|eod|> <unk> <s> </s> <0x41> [MASK] <|mask|> [PAD] <|endoftext|>",
    "[MASK]", "x[MASK]y", "<|eod|><|eod|>", "the loop of mask",
]  # fmt: skip
"""Whitespace runs, control characters, emoji, scripts, and special tokens written in the text."""

KINDS = ("sentencepiece", "unigram", "llama", "bytes", "huggingface")


def make_run(folder: Path, kind: str = "sentencepiece", step: int = 3, **settings: object) -> Path:
    """A run folder with one checkpoint; `settings` are overrides by dotted key, such as `optim__ema_decay=0`."""
    folder.mkdir(parents=True)
    manifest = _write_tokenizer(folder / "tokenizer", kind)
    words = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    words += [
        "data.path=/somewhere/else/data",
        "data.seq_len=32",
        f"run.dir={folder.parent}",
        f"run.name={folder.name}",
    ]
    chosen = load_settings(str(ROOT / "tests" / "tiny.yaml"), words)
    chosen = replace(chosen, model=replace(chosen.model, vocab_size=manifest.vocab_size))
    (folder / "config.yaml").write_text(dump_settings(chosen))
    add_checkpoint(folder, step)
    return folder


def add_checkpoint(folder: Path, step: int) -> Path:
    """Another checkpoint, whose weights depend on `step`."""
    settings = load_settings(str(folder / "config.yaml"))
    checkpoint = folder / "checkpoints" / f"step_{step}"
    checkpoint.mkdir(parents=True)
    save_file(draw_weights(settings.model, step), checkpoint / "weights.safetensors")
    if settings.optim.ema_decay:
        save_file(draw_weights(settings.model, step + 1), checkpoint / "ema.safetensors")
    state = {
        "progress": {"step": step, "flops": 1.5e9, "elapsed": 90.0}, "layout": {"world_size": 2}, "data": {"rows": "ab"},
        "torch": "2.13.0", "settings": flatten(settings),
    }  # fmt: skip
    (checkpoint / "state.json").write_text(json.dumps(state))
    (checkpoint / MARK).touch()
    return checkpoint


def draw_weights(architecture: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Weights under our names, so large that every part matters."""
    generator, shapes = torch.Generator().manual_seed(seed), exported_shapes(architecture)
    drawn = {name: torch.randn(shape, generator=generator) * 0.2 + (len(shape) == 1) for name, shape in shapes.items()}
    return imported_weights(architecture, drawn.__getitem__)


def _write_tokenizer(folder: Path, kind: str) -> Manifest:
    folder.mkdir()
    writer = {"bytes": _bytes, "huggingface": _huggingface}.get(kind, _sentencepiece)
    file = writer(folder, kind)
    base = load_tokenizer(file)
    eod = base.vocab_size if base.eod_id is None else base.eod_id
    mask = base.vocab_size + (base.eod_id is None)
    info = TokenizerInfo(
        kind=base.kind, file=file.name, sha256=sha256_of(file), vocab_size=base.vocab_size, eod_id=eod, mask_id=mask,
        pad_id=eod if base.pad_id is None else base.pad_id,
    )  # fmt: skip
    inputs = [
        {"input": "/somewhere/else/corpus/a.txt", "kind": "file", "files": 1, "bytes": 1, "documents": 7, "digest": "0"}
    ]
    manifest = Manifest(
        tokenizer=info,
        vocab_size=mask + 1,
        seq_len=32,
        packing="concat",
        splits={},
        inputs=inputs,
        options={},
        records={},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return manifest


def _bytes(folder: Path, _: str) -> Path:
    (folder / "tokenizer.bytes").write_bytes(BYTES_FILE_CONTENT)
    return folder / "tokenizer.bytes"


def _sentencepiece(folder: Path, kind: str) -> Path:
    """Our own BPE or unigram model, or one that adds a space before the text, as Llama's does."""
    file = folder / "tokenizer.model"
    if kind == "llama":
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter("".join(TEXTS).splitlines()), model_writer=model, model_type="bpe", vocab_size=340,
            byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
        )  # fmt: skip
        file.write_bytes(model.getvalue())
    else:
        train_sentencepiece(TEXTS, 340, file, "unigram" if kind == "unigram" else "bpe")
    return file


def _huggingface(folder: Path, _: str) -> Path:
    """A byte-level BPE with a template, truncation, and a [MASK] of its own that is not the pipeline's."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "[MASK]"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(TEXTS, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    model.enable_truncation(5)
    model.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def copy_run(run: Path, folder: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(run, folder))


def call_verb(capsys, *words: object) -> tuple[int, str, str]:
    """Run a verb in this process; returns its status, output and errors."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err
