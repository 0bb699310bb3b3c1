"""Exported folders: weights, tokenizers, model card, and what an import makes of them."""

import json
import os
import re
import shutil
from functools import partial

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from data_pipeline.manifest import load_manifest, sha256_of
from data_pipeline.tokenizers.characters import character_tokenizer
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer, load_tokenizer
from model.architecture import Architecture, LoopSplit
from model.reference import reference_logits
from pretrain.cli import main
from pretrain.config.load import load_settings
from pretrain.export import tokenizer_files
from pretrain.export.weights import exported_shapes, exported_weights, imported_weights
from tests.exports import KINDS, ODD_TEXTS, TEXTS, add_checkpoint, call_verb, copy_run, draw_weights, files_of, make_run

TO_JSON = ("sentencepiece", "bytes", "huggingface")
"""Kinds that become a `tokenizer.json`; the others keep their SentencePiece model."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Kind -> a run with a tokenizer of this kind."""
    folder = tmp_path_factory.mktemp("runs")
    return {kind: make_run(folder / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def exports(runs, tmp_path_factory):
    """Kind -> its exported folder."""
    folder = tmp_path_factory.mktemp("exports")
    for kind, run in runs.items():
        assert main(["export", str(run), str(folder / kind)]) == 0
    return {kind: folder / kind for kind in runs}


@pytest.fixture
def call(capsys):
    """Run a verb; returns its status, output and errors."""
    return partial(call_verb, capsys)


ARCHITECTURES = {
    "1-2-1": Architecture(
        num_layers=4,
        hidden_size=32,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=51,
        loop=LoopSplit(head=1, mid=2, tail=1, max=4),
    ),
    "0-1-0": Architecture(
        num_layers=1,
        hidden_size=24,
        num_heads=4,
        num_kv_heads=1,
        vocab_size=64,
        loop=LoopSplit(head=0, mid=1, tail=0, max=1),
    ),
    "norm between passes": Architecture(
        num_layers=3,
        hidden_size=24,
        num_heads=4,
        vocab_size=51,
        loop=LoopSplit(head=1, mid=1, tail=1, max=2, norm=True),
    ),
    "all kv heads": Architecture(
        num_layers=3, hidden_size=32, num_heads=2, vocab_size=70, loop=LoopSplit(head=2, mid=1, tail=0, max=3)
    ),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_weights_go_there_and_back_with_the_same_bits(architecture):
    weights = draw_weights(architecture, 0)
    exported = exported_weights(architecture, weights.__getitem__)
    assert {name: tuple(w.shape) for name, w in exported.items()} == exported_shapes(architecture)
    assert sum(w.numel() for w in exported.values()) == sum(architecture.parameter_count().values())
    back = imported_weights(architecture, exported.__getitem__)
    assert back.keys() == weights.keys() and all(torch.equal(back[name], w) for name, w in weights.items())


def test_query_key_and_value_are_those_of_the_reference():
    """Queries of head 3, which uses the second key-value head, from the exported matrices and from the fused one."""
    architecture = ARCHITECTURES["1-2-1"]
    weights = draw_weights(architecture, 0)
    exported = exported_weights(architecture, weights.__getitem__)
    fused = weights["mid.layers.1.self_attention.linear_qkv.weight"].view(2, 4, 8, 32)  # groups, q q k v, width, hidden
    assert torch.equal(exported["layers.2.self_attn.q_proj.weight"].view(4, 8, 32)[3], fused[1, 1])
    assert torch.equal(exported["layers.2.self_attn.k_proj.weight"].view(2, 8, 32)[1], fused[1, 2])
    assert torch.equal(exported["layers.2.self_attn.v_proj.weight"].view(2, 8, 32)[0], fused[0, 3])


@pytest.mark.parametrize("kind", KINDS)
def test_export_import_export_gives_the_same_bytes(runs, exports, kind, call, tmp_path):
    imported = tmp_path / "run"
    assert call("import", exports[kind], imported)[0] == 0
    assert call("export", imported, tmp_path / "again")[0] == 0
    assert files_of(tmp_path / "again") == files_of(exports[kind])
    for name in (
        "checkpoints/step_3/ema.safetensors",
        f"tokenizer/{load_manifest(runs[kind] / 'tokenizer').tokenizer.file}",
    ):
        assert (imported / name).read_bytes() == (runs[kind] / name).read_bytes()
    assert not (imported / "checkpoints" / "step_3" / "weights.safetensors").exists()
    old, new = (load_settings(str(run / "config.yaml")) for run in (runs[kind], imported))
    assert (new.model, new.train, new.optim) == (old.model, old.train, old.optim) and new.run_folder == imported


def test_raw_weights_come_back_as_a_run_without_average(runs, call, tmp_path):
    assert call("export", runs["bytes"], tmp_path / "raw", "--weights", "raw", "--loops", "2")[0] == 0
    assert json.loads((tmp_path / "raw" / "config.json").read_text())["loops"] == 2
    assert call("import", tmp_path / "raw", tmp_path / "run")[0] == 0
    name = "checkpoints/step_3/weights.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (runs["bytes"] / name).read_bytes()
    assert load_settings(str(tmp_path / "run" / "config.yaml")).optim.ema_decay == 0
    assert call("export", tmp_path / "run", tmp_path / "again", "--loops", "2")[0] == 0
    assert files_of(tmp_path / "again") == files_of(tmp_path / "raw")


def test_exported_folders_hold_no_path_of_the_machine_that_trained(exports):
    for kind, folder in exports.items():
        for name, content in files_of(folder).items():
            assert b"/somewhere/else" not in content and str(folder.parent).encode() not in content, (kind, name)
        assert "a.txt (7 documents)" in (folder / "README.md").read_text()


def test_the_model_card_has_the_newest_results_of_these_weights(runs, call, tmp_path):
    run = copy_run(runs["bytes"], tmp_path / "run")
    (run / "eval").mkdir()
    figures = {"split": "validation", "rows": 8, "data": "/somewhere/else/data/mine", "weights": "ema", "step": 3}
    figures["settings"] = {
        "compared_with": {"run": "/somewhere/Jane Doe/runs/secret"},
        "prompt": "/ divides:\n{question}",
    }
    loops = [
        {"loops": 2, "nats_per_token": 3.25, "nats_per_token_se": 0.5, "bits_per_byte": 1.5, "bits_per_byte_se": None}
    ]
    for name, changed in {
        "step_3_ema": {"loops": loops}, "step_1_ema": {"step": 1, "loops": [loops[0] | {"nats_per_token": 9.0}]},
        "step_3_ema_task": {"accuracy": 0.5},
    }.items():  # fmt: skip
        (run / "eval" / f"{name}.json").write_text(json.dumps(figures | changed))
    (run / "eval" / "broken.json").write_text("{")
    assert call("export", run, tmp_path / "x")[0] == 0
    card = (tmp_path / "x" / "README.md").read_text()
    assert "| 2 | 3.2500 ± 0.5000 | 1.5000 |" in card and "mine, 8 rows" in card and "9.0" not in card
    assert "step_3_ema_task" in card and "/somewhere/else" not in card
    assert "| tokens | 768 |" in card and "| FLOPs | 1.5e+09 |" in card
    assert call("import", tmp_path / "x", tmp_path / "back")[0] == 0
    back = json.loads((tmp_path / "back" / "eval" / "step_3_ema.json").read_text())
    assert back["loops"] == loops and back["settings"] == {
        "compared_with": {"run": "secret"},
        "prompt": "/ divides:\n{question}",
    }
    assert call("export", tmp_path / "back", tmp_path / "again")[0] == 0
    assert files_of(tmp_path / "again") == files_of(tmp_path / "x")


# --- tokenizers


def loaded(folder):
    """The exported tokenizer as transformers uses it, with `split_special_tokens` of its configuration."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.encode_special_tokens = config["split_special_tokens"]
    return fast, config


@pytest.mark.parametrize("kind", TO_JSON)
def test_the_ids_are_ours(runs, exports, kind):
    manifest = load_manifest(runs[kind] / "tokenizer")
    ours = load_prepared_tokenizer(runs[kind] / "tokenizer", manifest)
    theirs, config = loaded(exports[kind])
    for text in ODD_TEXTS + TEXTS:
        ids = ours.encode_batch([text])[0].tolist()
        assert theirs.encode(text).ids == ids, text
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)
    info = manifest.tokenizer
    special = {"mask_token": info.mask_id, "eos_token": info.eod_id, "pad_token": info.pad_id}
    assert {key: theirs.token_to_id(config[key]) for key in special} == special
    assert theirs.get_vocab_size() == manifest.vocab_size
    assert (
        theirs.decode([info.mask_id, info.eod_id], skip_special_tokens=False)
        == config["mask_token"] + config["eos_token"]
    )
    theirs.encode_special_tokens = False  # for callers who want it
    assert theirs.encode(config["mask_token"]).ids == [info.mask_id]


_LOADED = {}


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("▁ \t\r\n[]<>|maskeod"), max_size=60))
def test_any_text_gives_our_ids(runs, exports, text):
    for kind in TO_JSON:
        if kind not in _LOADED:
            _LOADED[kind] = load_tokenizer(runs[kind] / "tokenizer"), loaded(exports[kind])[0]
        ours, theirs = _LOADED[kind]
        assert theirs.encode(text).ids == ours.encode_batch([text])[0].tolist()


@pytest.mark.parametrize("kind", ["unigram", "llama"])
def test_models_that_tokenizers_does_not_reproduce_keep_their_file(runs, exports, kind):
    assert not (exports[kind] / "tokenizer.json").exists()
    assert (exports[kind] / "tokenizer.model").read_bytes() == (
        runs[kind] / "tokenizer" / "tokenizer.model"
    ).read_bytes()
    assert (exports[kind] / "tokenization_loopmdm.py").is_file()
    assert "needs the package `sentencepiece`" in (exports[kind] / "README.md").read_text()


def test_a_conversion_that_gives_other_ids_is_noticed(runs, monkeypatch, tmp_path, call):
    """Merges in another order: the SentencePiece model is kept. For another kind of tokenizer the export is refused."""
    original = tokenizer_files.bpe_fields

    def reversed_merges(content):
        fields = original(content)
        fields.model["merges"].reverse()
        return fields

    monkeypatch.setattr(tokenizer_files, "bpe_fields", reversed_merges)
    assert call("export", runs["sentencepiece"], tmp_path / "x")[0] == 0
    assert (tmp_path / "x" / "tokenizer.model").is_file() and not (tmp_path / "x" / "tokenizer.json").exists()
    model = tokenizer_files._byte_model
    monkeypatch.setattr(
        tokenizer_files,
        "_byte_model",
        lambda: model() | {"merges": [["e", "f"]], "vocab": model()["vocab"] | {"ef": 256}},
    )
    status, _, error = call("export", runs["bytes"], tmp_path / "y")
    assert status == 2 and "tokenizer.bytes: cannot be exported" in error and "differently than training did" in error
    assert not (tmp_path / "y").exists() and len(list(tmp_path.iterdir())) == 1


def test_ids_with_gaps(tmp_path, call):
    """The library numbers new tokens by their count, so that a gap would move [MASK]."""
    run = make_run(tmp_path / "run", "huggingface")
    file = run / "tokenizer" / "tokenizer.json"
    fields = json.loads(file.read_text())
    fields["model"]["vocab"]["zzz"] = 305
    file.write_text(json.dumps(fields))
    manifest = json.loads((run / "tokenizer" / "manifest.json").read_text())
    manifest["tokenizer"] |= {"vocab_size": 306, "mask_id": 306, "sha256": sha256_of(file)}
    (run / "tokenizer" / "manifest.json").write_text(json.dumps(manifest | {"vocab_size": 307}))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("vocab_size: 301", "vocab_size: 307"))
    shutil.rmtree(run / "checkpoints")
    add_checkpoint(run, 3)
    assert call("export", run, tmp_path / "x")[0] == 0
    theirs, settings = loaded(tmp_path / "x")
    assert theirs.token_to_id(settings["mask_token"]) == 306 and theirs.get_vocab_size() == 307
    ours = load_tokenizer(file)
    for text in ODD_TEXTS:
        assert theirs.encode(text).ids == ours.encode_batch([text])[0].tolist()


def test_the_default_place_of_an_import(exports, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call("import", os.path.relpath(exports["bytes"]))
    assert (
        status == 0
        and "wrote runs/bytes: step 3, ema weights" in out
        and (tmp_path / "runs" / "bytes" / "config.yaml").is_file()
    )
    status, _, error = call("import", exports["bytes"])
    assert status == 2 and error.startswith(
        "error: the default RUN runs/bytes: exists and is not empty; name another folder"
    )


def test_imported_weights_give_the_logits_of_the_run(runs, exports, call, tmp_path):
    """By the plain reference, from the files."""
    assert call("import", exports["bytes"], tmp_path / "run")[0] == 0
    file = "checkpoints/step_3/ema.safetensors"
    model = load_settings(str(tmp_path / "run" / "config.yaml")).model
    tokens = torch.randint(0, model.mask_id + 1, (2, 9), generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        reference_logits(load_file(folder / file), model, tokens, 3) for folder in (runs["bytes"], tmp_path / "run")
    )
    assert torch.equal(ours, theirs) and ours.std() > 0.1


def test_the_code_in_an_export_imports_nothing_of_this_project(exports):
    for file in (exports["bytes"] / "modeling_loopmdm.py", exports["unigram"] / "tokenization_loopmdm.py"):
        text = file.read_text()
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
        found = set(re.findall(r"^(?:from|import) (\w+)", text, flags=re.MULTILINE))
        assert found <= {"dataclasses", "collections", "pathlib", "shutil", "torch", "transformers", "sentencepiece"}


def test_characters_of_a_task_alone(tmp_path, call):
    """The tokenizer of generated data has no token for other texts, and refuses them."""
    run = make_run(tmp_path / "run", "huggingface")
    file, path = run / "tokenizer" / "tokenizer.json", run / "tokenizer" / "manifest.json"
    file.write_text(character_tokenizer("1234"))
    manifest = json.loads(path.read_text())
    manifest["tokenizer"] |= {"vocab_size": 4, "eod_id": 4, "pad_id": 4, "mask_id": 5, "sha256": sha256_of(file)}
    path.write_text(json.dumps(manifest | {"vocab_size": 6}))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("vocab_size: 301", "vocab_size: 6"))
    shutil.rmtree(run / "checkpoints")
    add_checkpoint(run, 3)
    assert call("export", run, tmp_path / "x")[0] == 0
    theirs, settings = loaded(tmp_path / "x")
    assert theirs.encode("1432").ids == [0, 3, 2, 1] and theirs.token_to_id(settings["mask_token"]) == 5
