"""What a tokenizer loses of a text: capitals, line ends, unknown characters."""

from collections.abc import Sequence

import numpy as np

from data_pipeline.manifest import TextLoss
from data_pipeline.tokenizers.tokenizers import Tokenizer


def text_loss(tokenizer: Tokenizer, texts: list[str]) -> TextLoss | None:
    """How many of some texts do not come back from their ids; None if all do."""
    if tokenizer.is_lossless or not texts:
        return None
    encoded = tokenizer.encode_batch(texts)
    changed = sum(tokenizer.decode(ids.tolist()) != text for text, ids in zip(texts, encoded, strict=True))
    unknown = sum(int(np.count_nonzero(ids == tokenizer.unknown_id)) for ids in encoded)
    if not changed:
        return None
    return TextLoss(texts=len(texts), changed=changed, tokens=sum(ids.size for ids in encoded), unknown=unknown)


def example_of_loss(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[str, str]:
    """A place in the first text that does not come back, and what comes back there; one of them must not come back."""
    pairs = ((text, tokenizer.decode(tokenizer.encode_batch([text])[0].tolist())) for text in texts)
    text, back = next(pair for pair in pairs if pair[0] != pair[1])
    place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    start = max(0, place - 10)
    return text[start : place + 20], back[start : place + 20]
