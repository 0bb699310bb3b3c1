"""Samples under a causal language model. Skipped where transformers is not installed, as it is optional."""

import importlib.util
import math
import sys

import pytest
import torch

from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizers.characters import character_tokenizer
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
from pretrain.errors import UserError
from pretrain.evaluation.causal_lm import CausalLM
from pretrain.evaluation.tasks.generative import GenerativeTask
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
    ab, cd = (ids.tolist() for ids in tokenizer.encode_batch(["ab", "cd"]))
    assert task._text([*ab, tokenizer.eod_id, *cd, tokenizer.eod_id]) == "ab\n\ncd"


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
