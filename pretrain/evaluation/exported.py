"""A folder that `loopmdm export` wrote, as a model for tasks, through transformers. It runs the modelling file in the folder."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.errors import first_line
from model.denoiser import Inputs
from model.sampling.query import Query
from pretrain.errors import UserError
from pretrain.evaluation.sampler_settings import SamplerSettings
from pretrain.evaluation.scoring import TokenScorer
from pretrain.evaluation.tasks.task import TaskModel
from pretrain.parallel.world import World


def is_export(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "loopmdm"
    except (OSError, ValueError, AttributeError):
        return False


class ExportedTokenizer:
    """The exported tokenizer with the methods that tasks use.

    Attributes:
        eod_id, mask_id: ids of the end of a document and of [MASK].
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.eod_id: int = tokenizer.eos_token_id
        self.mask_id: int = tokenizer.mask_token_id

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Ids of each text, without special tokens, int32 [tokens]."""
        return [np.array(self._tokenizer(text, add_special_tokens=False)["input_ids"], np.int32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with special ones by their names."""
        return self._tokenizer.decode([int(i) for i in ids], clean_up_tokenization_spaces=False)


class ExportedModel:
    """The exported network.

    Raises:
        UserError: the folder cannot be loaded.
    """

    def __init__(self, folder: Path, world: World) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise UserError(
                f"{folder}: an exported model needs the package transformers ({error}); install it, for example with: pip install "
                "'loopmdm[eval]'"
            ) from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=True)
            model = AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"{folder}: cannot be loaded by transformers: {first_line(error)}") from None
        self.world, self.tokenizer = world, ExportedTokenizer(tokenizer)
        self._model = model.to(world.device).eval()

    def task_model(self, loops: int, sampler: SamplerSettings, batch_size: int, seed: int) -> TaskModel:
        """The model at a number of loops, for tasks."""
        scorer = TokenScorer(partial(self.logits, loops=loops), self.world, self.tokenizer.mask_id, batch_size)

        def network(query: Query) -> Tensor:
            (logits,) = self.logits([Inputs(query.tokens, query.positions)], loops)
            return logits

        seq_len = self._model.config.max_position_embeddings
        return TaskModel(scorer, loops, lambda: network, sampler, self.tokenizer, seq_len, seed)

    @torch.no_grad()
    def logits(self, inputs: Sequence[Inputs], loops: int) -> list[Tensor]:
        """Logits at the wanted positions of each micro-batch, [m, vocabulary]."""
        return [
            self._model(one.tokens, loops=loops).logits.flatten(0, 1)[one.logit_positions].float() for one in inputs
        ]
