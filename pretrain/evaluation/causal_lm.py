"""A local Hugging Face causal language model that scores texts. Needs the optional package transformers."""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data_pipeline.errors import first_line
from pretrain.errors import UserError

INSTALL = "install it, for example in the repository with: pip install -e '.[eval]'"


def check_scorer(folder: Path) -> None:
    """Notice before samples are drawn what keeps a folder from being loaded.

    Raises:
        UserError: transformers is not installed, or this is no folder of a model.
    """
    if not (folder / "config.json").is_file():
        why = "has no config.json" if folder.is_dir() else "no such folder"
        raise UserError(f"--scorer {folder}: {why}; give the folder of a Hugging Face causal language model")
    if find_spec("transformers") is None:
        raise UserError(f"--scorer {folder}: needs the package transformers, which is not there; {INSTALL}")


class ScoredText(NamedTuple):
    """A text under a causal language model.

    Attributes:
        nats: -log p of all tokens that are scored.
        tokens: their number.
        features: mean of the last hidden states, fp64 [d].
    """

    nats: float
    tokens: int
    features: np.ndarray


class CausalLM:
    """A model and its tokenizer, from a folder; nothing is downloaded.

    Raises:
        UserError: transformers is not installed, or the folder has no causal language model.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        check_scorer(folder)
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"--scorer {folder}: cannot be loaded: {first_line(error)}") from None
        self._model = self._model.to(device).eval()
        self._device = device
        self._start = next(
            (i for i in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id) if i is not None), None
        )
        self._longest = getattr(self._model.config, "max_position_embeddings", None) or 2**31

    @property
    def width(self) -> int:
        """d, the number of features."""
        return self._model.config.hidden_size

    @torch.no_grad()
    def score(self, text: str) -> ScoredText:
        """Score a text, after the token that begins texts; without such a token, from its second token on.

        A text longer than the model's context is cut.
        """
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        row = torch.tensor(
            [[*([] if self._start is None else [self._start]), *ids][: self._longest]], dtype=torch.int64
        )
        if row.shape[1] == 0:  # nothing to score
            return ScoredText(0.0, 0, np.zeros(self.width))
        output = self._model(row.to(self._device), output_hidden_states=True)
        scores = output.logits[0, :-1].double().log_softmax(dim=-1)
        targets = row[0, 1:].to(self._device)
        nats = -float(scores.gather(1, targets[:, None]).sum())
        features = output.hidden_states[-1][0].double().mean(dim=0).cpu().numpy()
        return ScoredText(nats, len(targets), features)
