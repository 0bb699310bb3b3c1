# SPDX-License-Identifier: Apache-2.0
"""The SentencePiece tokenizer of a LoopMDM model, for transformers 4.57 and 5. Needs the SentencePiece library."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from transformers import PreTrainedTokenizer

META = "▁"


class LoopMDMTokenizer(PreTrainedTokenizer):
    """A SentencePiece model; [MASK] and other added tokens follow its pieces. Adds nothing to a text.

    SentencePiece writes a space as U+2581. Where a model is lossless otherwise, a U+2581 in a text becomes its bytes.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012 (declared so by transformers)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs) -> None:  # noqa: ANN003 (what every tokenizer of transformers has)
        self.vocab_file = vocab_file
        self.model = sentencepiece.SentencePieceProcessor(model_proto=Path(vocab_file).read_bytes())
        self.meta = [f"<0x{byte:02X}>" for byte in META.encode()]
        lossless = all(self.model.is_byte(self.model.piece_to_id(piece)) for piece in self.meta)
        self.keeps_meta = lossless and self.model.normalize("  a ") == "▁▁a▁"
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """Pieces of the model, without added tokens."""
        return self.model.vocab_size()

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id, added tokens included."""
        pieces = {self.model.id_to_piece(i): i for i in range(self.vocab_size)}
        return pieces | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: object) -> list[str]:
        first, *others = text.split(META) if self.keeps_meta else [text]
        pieces = self._pieces(first)
        for part in others:
            pieces += self.meta + self._pieces(part)
        return pieces

    def _pieces(self, text: str) -> list[str]:
        return [self.model.id_to_piece(i) for i in self.model.encode(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.model.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of pieces; names of added tokens are kept."""
        text, run = [], []
        for token in tokens:
            if token in self.added_tokens_encoder:
                text += [self.model.decode(run), token]
                run = []
            else:
                run.append(token)
        return "".join([*text, self.model.decode(run)])

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the model; returns its path."""
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}tokenizer.model"
        if path != Path(self.vocab_file):
            shutil.copyfile(self.vocab_file, path)
        return (str(path),)
