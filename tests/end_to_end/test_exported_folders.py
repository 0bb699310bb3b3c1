"""Exported folders in the hands of transformers: logits of every layout, samplers, token ids; imported runs in ours.

The client runs in each Python of `LOOPMDM_TRANSFORMERS` (paths with `:` between them), for example of virtual environments
that hold only torch and transformers, else in this one if it has transformers.
"""

import itertools
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
from model.denoiser import Inputs
from model.reference import reference_logits
from pretrain.cli import main
from pretrain.commands.load_run import open_run
from pretrain.main import main as train
from tests.checkpoints import weights_of
from tests.exports import KINDS, ODD_TEXTS, TEXTS, files_of, make_run
from tests.launching import BIN, ROOT, free_port, run

pytestmark = pytest.mark.end_to_end
LAYOUTS = {
    "TP2": ["parallel.tensor=2", "parallel.sequence=true"],
    "PP2": ["parallel.pipeline=2"],
    "ZeRO-3": ["parallel.zero_stage=3"],
}
PYTHONS = [p for p in os.environ.get("LOOPMDM_TRANSFORMERS", "").split(":") if p]
PYTHONS += [sys.executable] if not PYTHONS and find_spec("transformers") else []
needs_transformers = pytest.mark.skipif(
    not PYTHONS, reason="needs transformers: set LOOPMDM_TRANSFORMERS to a Python that has it"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus):
    """Runs with every kind of tokenizer, one with a norm between passes, and one of every layout, trained in one launch."""
    folder = tmp_path_factory.mktemp("runs")
    made = {kind: make_run(folder / kind, kind) for kind in KINDS}
    made["norm"] = make_run(folder / "norm", "bytes", model__loop__norm="true")
    common = [f"data.path={corpus}", f"run.dir={folder}", "train.steps=2", "optim.warmup_steps=0", "optim.lr=0.02"]
    layouts = [[*common, f"run.name={name}", *words] for name, words in LAYOUTS.items()]
    (folder / "layouts.json").write_text(json.dumps(layouts))
    script = ["tests/distributed/ranks.py", ROOT / "tests" / "tiny.yaml", folder / "layouts.json"]
    torchrun = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = run([*torchrun, *script], PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    return made | {name: folder / name for name in LAYOUTS}


@pytest.fixture(scope="module")
def exports(runs, tmp_path_factory):
    """Run -> its exported folder."""
    folder = tmp_path_factory.mktemp("exports")
    for name, path in runs.items():
        assert main(["export", str(path), str(folder / name)]) == 0
    return {name: folder / name for name in runs}


def tokens_of(model):
    """Rows with few and many [MASK], the last with none."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.mask_id, (4, 17), generator=generator)
    masked = torch.rand(tokens.shape, generator=generator) < torch.tensor([[0.2], [0.6], [0.95], [0.0]])
    return tokens.masked_fill(masked, model.mask_id), tokens[:2, :5].contiguous()


def logits_everywhere(loaded, tokens, loops):
    """Logits of all tokens, fp32 [b, s, padded vocabulary]."""
    (logits,) = loaded.logits([Inputs(tokens, torch.arange(tokens.numel()))], loops)
    return logits.view(*tokens.shape, -1)


def changes_of_direction(loaded, tokens, loops):
    """Per pass and row, how far the pass turned the hidden states of the [MASK] tokens (of all tokens if there are none)."""
    states, mid = [], loaded.model.mid.layers
    first = loaded.model.mid.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    last = mid[str(len(mid) - 1)].register_forward_hook(lambda _, __, output: states.append(output[0]))
    logits_everywhere(loaded, tokens, loops)
    first.remove(), last.remove()
    units = [state.transpose(0, 1) / state.transpose(0, 1).norm(dim=-1, keepdim=True) for state in states]
    masked = tokens == loaded.settings.model.mask_id
    masked |= ~masked.any(dim=-1, keepdim=True)
    pairs = itertools.pairwise(units)  # H(k - 1), H(k)
    return torch.stack([((new - old).norm(dim=-1) * masked).sum(-1) / masked.sum(-1) for old, new in pairs])


def settled_after(changes, tolerance):
    """The first pass of each row that changes less than the tolerance, else the last."""
    below = changes < tolerance
    return torch.where(below.any(0), below.int().argmax(0) + 1, len(changes)).tolist()


@pytest.fixture(scope="module")
def ours(world, runs):
    """Run -> our logits and ids."""
    answers = {}
    for name, path in runs.items():
        loaded = open_run(path, None)
        tokens, prompt = tokens_of(loaded.settings.model)
        logits = {loops: logits_everywhere(loaded, tokens, loops) for loops in (1, 3, 4, 6)}
        weights = weights_of(loaded.checkpoint, "ema", loaded.settings.model)
        changes = changes_of_direction(loaded, tokens, 8)
        ordered = changes.flatten().sort().values
        tolerances = ((ordered[1:] + ordered[:-1]) / 2)[[6, 16, 26]].tolist()
        tokenizer = load_prepared_tokenizer(loaded.tokenizer_folder, loaded.manifest)
        answers[name] = {
            "tokens": tokens, "prompt": prompt, "logits": logits, "weights": weights, "model": loaded.settings.model,
            "changes": changes, "tolerances": tolerances, "tokenizer": tokenizer, "info": loaded.manifest.tokenizer,
        }  # fmt: skip
    return answers


@pytest.fixture(scope="module", params=PYTHONS or ["none"], ids=lambda path: Path(path).parent.parent.name)
def theirs(request, exports, ours, tmp_path_factory):
    """(tensors, texts) that the client answered, with nothing of this project on its path."""
    folder = tmp_path_factory.mktemp("client")
    questions = {}
    for name, path in exports.items():
        asked = {"tokens": ours[name]["tokens"], "prompt": ours[name]["prompt"]}
        save_file(asked | {"tolerances": torch.tensor(ours[name]["tolerances"])}, folder / f"{name}.in")
        questions[name] = {"folder": str(path), "tensors": str(folder / f"{name}.in")}
        questions[name] |= {"texts": ODD_TEXTS + TEXTS[:3]} if name in KINDS else {}
    (folder / "questions.json").write_text(json.dumps(questions))
    client = ROOT / "tests" / "end_to_end" / "export_client.py"
    home = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    done = run([request.param, "-I", client, folder / "questions.json", folder / "out.safetensors"], cwd=folder, **home)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "out.safetensors"), json.loads((folder / "out.json").read_text())


def close(theirs, ours, mask_id, limit=1e-5):
    """Equal logits of all tokens but [MASK], which is never drawn."""
    assert theirs.shape[:-1] == ours.shape[:-1] and theirs.shape[-1] == mask_id + 1
    assert (theirs[..., :mask_id] - ours[..., :mask_id]).abs().max() < limit * ours[..., :mask_id].abs().max()
    assert theirs.isfinite().all() and (theirs.softmax(dim=-1)[..., mask_id] == 0).all()


@needs_transformers
@pytest.mark.distributed
@pytest.mark.parametrize("name", [*KINDS, *LAYOUTS, "norm"])
def test_logits_are_ours(ours, theirs, name):
    mine, tensors = ours[name], {k.split("/")[1]: v for k, v in theirs[0].items() if k.startswith(f"{name}/")}
    mask_id = mine["model"].mask_id
    for loops in (1, 3, 6):
        close(tensors[f"logits {loops}"], mine["logits"][loops], mask_id)
    close(tensors["default"], mine["logits"][4], mask_id)
    assert tensors["default loops"].tolist() == [4] * 4  # S_max
    assert torch.equal(tensors["tuple"], tensors["logits 3"])
    for padded in ("padded", "padded square"):
        close(tensors[padded], mine["logits"][3], mask_id)
    rounded, exact = tensors["bf16"][..., :mask_id], mine["logits"][3][..., :mask_id]
    assert (rounded - exact).abs().mean() < 0.05 * exact.std()
    reference = reference_logits(mine["weights"], mine["model"], mine["tokens"], 3)
    close(tensors["logits 3"], reference, mask_id)


@needs_transformers
@pytest.mark.distributed
@pytest.mark.parametrize("name", ["bytes", "TP2", "norm"])
def test_adaptive_loops_stop_where_the_direction_settles(ours, theirs, name):
    """As many passes as our model needs, the logits of so many passes, and the same for a row alone."""
    mine, seen = ours[name], set()
    weights, model, tokens = mine["weights"], mine["model"], mine["tokens"]
    for i, tolerance in enumerate(mine["tolerances"]):
        expected = settled_after(mine["changes"], tolerance)
        assert theirs[0][f"{name}/adaptive loops {i}"].tolist() == expected
        logits = torch.cat(
            [reference_logits(weights, model, row[None], s) for row, s in zip(tokens, expected, strict=True)]
        )
        # These wide weights turn a normalized state far: 8 passes in fp32 are 1.4e-5 off from double precision by themselves.
        limit = 5e-5 if name == "norm" else 1e-5
        close(theirs[0][f"{name}/adaptive {i}"], logits, model.mask_id, limit)
        close(theirs[0][f"{name}/adaptive alone {i}"], logits, model.mask_id, limit)
        seen |= set(expected)
    assert len(seen) > 2, seen


@needs_transformers
@pytest.mark.distributed
@pytest.mark.parametrize("name", KINDS)
def test_public_samplers_and_likelihoods_run(ours, theirs, name):
    mine, mask_id = ours[name], ours[name]["model"].mask_id
    for how in ("greedy", "drawn", "guided"):
        rows = theirs[0][f"{name}/{how}"]
        assert rows.shape == (2, 17) and torch.equal(rows[:, :5], mine["prompt"])
        assert rows.max() < mask_id and rows.min() >= 0
    one, several = theirs[0][f"{name}/likelihood"].tolist()
    row = torch.cat([mine["prompt"][0], torch.tensor([mask_id])])[None]
    log_p = reference_logits(mine["weights"], mine["model"], row, 4).log_softmax(-1)
    assert one == pytest.approx(log_p[0, 5, mine["prompt"][1, 0]].item(), rel=1e-5)
    assert several < 0


@needs_transformers
@pytest.mark.distributed
@pytest.mark.parametrize("name", KINDS)
def test_token_ids_are_ours(ours, theirs, name):
    mine, found = ours[name], theirs[1][name]
    if "error" in found:
        assert name in ("unigram", "llama") and "pip install sentencepiece" in found["error"]
        pytest.skip("this Python has no sentencepiece, which such tokenizers need")
    texts, info = ODD_TEXTS + TEXTS[:3], mine["info"]
    wanted = [ids.tolist() for ids in mine["tokenizer"].encode_batch(texts)]
    for text, ids, got in zip(texts, wanted, found["ids"], strict=True):
        assert got == ids, text
    assert found["decoded"] == [mine["tokenizer"].decode(ids) for ids in wanted]
    assert found["special"] == [info.mask_id, info.eod_id, info.pad_id]
    assert found["named"] == [info.mask_id] and found["size"] == info.mask_id + 1
    assert found["saved again"] == mine["tokenizer"].encode_batch(["[MASK] a  b"])[0].tolist()


@pytest.mark.distributed
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_comes_back_from_its_export(runs, exports, world, corpus, capsys, tmp_path, name):
    """Its weights bit for bit; the imported run is evaluated, sampled and exported, and does not resume."""
    imported = tmp_path / "run"
    assert main(["import", str(exports[name]), str(imported)]) == 0
    returned = weights_of(imported / "checkpoints/step_2", "ema")
    for weight, values in weights_of(runs[name] / "checkpoints/step_2", "ema").items():
        assert torch.equal(returned[weight][: len(values)], values) and not returned[weight][len(values) :].any()
    assert main(["export", str(imported), str(tmp_path / "again")]) == 0
    assert files_of(tmp_path / "again") == files_of(exports[name])
    if name != "ZeRO-3":
        return
    capsys.readouterr()
    assert main(["status", str(imported)]) == 0
    origin = f"imported (from {exports[name].resolve()}: ema weights of step 2 of {runs[name].name}) since 20"
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"{'state':<12}{origin}") and lines[2] == f"{'step':<12}2" and len(lines) == 4
    tables = []
    for folder in (runs[name], imported):
        capsys.readouterr()
        assert main(["evaluate", str(folder), "--data", str(corpus), "--loops", "1,3", "--rows", "8"]) == 0
        assert main(["sample", str(folder), "--steps", "2", "--length", "8", "--num-samples", "1"]) == 0
        tables.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("S=")])
    assert len(tables[0]) == 2 and tables[0] == tables[1]
    capsys.readouterr()
    assert main(["evaluate", str(imported), "--loops", "1"]) == 2
    assert "name the prepared folder with --data DIR" in capsys.readouterr().err
    assert train(["--config", str(imported / "config.yaml"), f"data.path={corpus}"]) == 2
    error = capsys.readouterr().err
    assert "step_2: has only weights, as `loopmdm import` writes them" in error and "another run.name" in error
