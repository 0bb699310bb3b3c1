"""Samples under a causal language model. Skipped where transformers is not installed, as it is optional."""

import importlib.util
import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.dataset.blend import Blend, Corpus
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.json_text import json_text
from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizers.characters import character_tokenizer
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
from pretrain.errors import UserError
from pretrain.evaluation.causal_lm import CausalLM
from pretrain.evaluation.distribution import kernel_distance
from pretrain.evaluation.tasks.generative import GenerativeTask
from pretrain.evaluation.tasks.names import TaskMaker, TaskOptions
from pretrain.evaluation.tasks.report import format_task
from pretrain.evaluation.tasks.runner import run_task
from tests.toy_denoisers import HashedDenoiser
from tests.toy_tasks import toy_model

needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
LETTERS = "abcdefghij \n"


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """A tiny GPT-2 over characters, whose last id begins texts."""
    from tokenizers import Tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("scorer")
    characters = Tokenizer.from_str(character_tokenizer(LETTERS))
    characters.add_special_tokens(["<s>"])
    PreTrainedTokenizerFast(tokenizer_object=characters, bos_token="<s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(LETTERS) + 1, n_positions=200, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@needs_transformers
def test_scores_are_those_of_the_model(scorer):
    from transformers import GPT2LMHeadModel

    text = "ab cab\nj"
    found = CausalLM(scorer, torch.device("cpu")).score(text)
    ids = torch.tensor([[len(LETTERS), *(LETTERS.index(character) for character in text)]])
    logits = GPT2LMHeadModel.from_pretrained(scorer).eval()(ids).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:], reduction="sum").item()
    assert (
        found.tokens == len(text) and found.nats == pytest.approx(expected, rel=1e-6) and found.features.shape == (8,)
    )
    assert CausalLM(scorer, torch.device("cpu")).score("").tokens == 0
    assert CausalLM(scorer, torch.device("cpu")).score("a" * 500).tokens == 199


@needs_transformers
def test_figures_of_samples_and_of_held_out_texts(scorer, short_documents, world):
    tokenizer = load_prepared_tokenizer(short_documents, load_manifest(short_documents))
    reference = PackedDataset(short_documents, "validation")
    task = GenerativeTask(scorer, reference, 12, tokenizer)
    letters = {i for i in range(tokenizer.vocab_size - 1) if set(tokenizer.decode([i])) <= set(LETTERS)}
    network = HashedDenoiser(tokenizer.vocab_size - 1)

    def only_letters(query):
        logits = network(query)
        return logits.masked_fill(torch.tensor([i not in letters for i in range(logits.shape[1])]), -math.inf)

    model = toy_model(world, tokenizer, only_letters, seq_len=32)
    records = run_task(task, model, range(12), None, print)
    figures = task.figures(model, records)
    scored = [CausalLM(scorer, world.device).score(record["text"]) for record in records]
    expected = sum(one.nats for one in scored) / sum(one.tokens for one in scored)
    assert figures["nats_per_token"] == pytest.approx(expected) == task.values(records).mean()
    assert figures["perplexity"] == pytest.approx(math.exp(expected))
    assert all(figures[f"{name}_se"] is not None for name in figures if not name.endswith("_se"))
    assert 0 < figures["nats_per_token_se"] < 0.2 and figures["perplexity_se"] > 0
    # Uniform random letters have a higher entropy than text, and another distribution.
    assert figures["entropy"] > figures["reference_entropy"] + 3 * figures["entropy_se"]
    assert figures["kernel_distance"] > 3 * figures["kernel_distance_se"]
    assert abs(figures["reference_kernel_distance"]) < 3 * figures["reference_kernel_distance_se"]
    numbers, judge = np.arange(12) * reference.num_rows // 12, CausalLM(scorer, world.device)
    rows = zip(reference.rows(numbers).tolist(), reference.lengths(numbers), strict=True)
    features = np.array([judge.score(task._text(row[:length])).features for row, length in rows])
    floor = kernel_distance(features[0::2], features[1::2])
    assert (figures["reference_kernel_distance"], figures["reference_kernel_distance_se"]) == pytest.approx(floor)
    ab, cd = (ids.tolist() for ids in tokenizer.encode_batch(["ab", "cd"]))
    assert task._text([*ab, tokenizer.eod_id, *cd, tokenizer.eod_id]) == "ab\n\ncd"


@needs_transformers
def test_samples_without_text_have_no_perplexity(scorer, short_documents, world):
    tokenizer = load_prepared_tokenizer(short_documents, load_manifest(short_documents))
    task = GenerativeTask(scorer, PackedDataset(short_documents, "validation"), 3, tokenizer)

    def only_ends(query):
        return torch.eye(tokenizer.vocab_size - 1)[tokenizer.eod_id].expand(len(query.positions), -1) * 60

    model = toy_model(world, tokenizer, only_ends, seq_len=32)
    records = run_task(task, model, range(3), None, print)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures, values = task.figures(model, records), task.values(records)
    written = json.loads(json_text(figures))
    assert [written[name] for name in ("nats_per_token", "nats_per_token_se", "perplexity", "entropy")] == [
        None
    ] * 3 + [0]
    assert np.isnan(values).all() and figures["reference_perplexity"] > 1
    result = {"task": "generative", "metric": "nats_per_token", "items": 3, "loops": [{"loops": 1, **figures}]}
    assert "S=1    nats per token none, perplexity none, entropy 0.0000" in format_task(result, [])


@needs_transformers
def test_samples_of_a_mixture_are_not_compared_with_its_first_corpus(scorer, short_documents):
    manifest = load_manifest(short_documents)
    blend = Blend(Path("b.yaml"), (Corpus(short_documents, manifest),) * 2)
    tokenizer = load_prepared_tokenizer(short_documents, manifest)
    maker = TaskMaker(TaskOptions(scorer=scorer), blend, "validation", tokenizer, 32, 0)
    with pytest.raises(
        UserError, match=r"^--tasks generative: b.yaml mixes 2 corpora, .* with one; name .* --data DIR"
    ):
        maker.make(["generative"])


def test_a_scorer_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^--scorer .*none: no such folder; give the folder of a Hugging Face causal"):
        CausalLM(tmp_path / "none", torch.device("cpu"))
    with pytest.raises(UserError, match=r"^--scorer .*: has no config.json"):
        CausalLM(tmp_path, torch.device("cpu"))
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UserError,
        match=r"needs the package transformers, which is not there; install it, for example in the repository with: pip install",
    ):
        CausalLM(tmp_path, torch.device("cpu"))


@needs_transformers
def test_a_folder_without_a_language_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^--scorer .*: cannot be loaded: "):
        CausalLM(tmp_path, torch.device("cpu"))
