"""A model for tests of tasks: one token per character, and a toy network."""

import json
from types import SimpleNamespace

from data_pipeline.tokenizers.characters import character_tokenizer
from data_pipeline.tokenizers.tokenizers import HuggingFaceTokenizer, PreparedTokenizer
from pretrain.evaluation.sampler_settings import SamplerSettings
from pretrain.evaluation.scoring import TokenScorer
from pretrain.evaluation.tasks.task import TaskModel


def toy_tokenizer(folder, alphabet, **fields):
    """Ids 0, 1, ... of the characters, then the end of a document and [MASK]; `fields` of the file are replaced."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(character_tokenizer(alphabet)) | fields))
    special = SimpleNamespace(eod_id=len(alphabet), mask_id=len(alphabet) + 1, pad_id=len(alphabet))
    return PreparedTokenizer(
        HuggingFaceTokenizer(path), SimpleNamespace(vocab_size=len(alphabet) + 2, tokenizer=special)
    )


def toy_model(world, tokenizer, network, seq_len=64, batch_size=5, seed=0, **sampler):
    """The network, which answers queries of samplers, as a model for tasks."""

    def predict(inputs):
        queries = [SimpleNamespace(tokens=one.tokens, positions=one.logit_positions) for one in inputs]
        return [network(query).clamp_min(-1e30).float() for query in queries]

    scorer = TokenScorer(predict, world, tokenizer.mask_id, batch_size)
    return TaskModel(scorer, 1, lambda: network, SamplerSettings.of(sampler), tokenizer, seq_len, seed)
