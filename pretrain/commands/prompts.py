"""What samples are given: prompts and templates, with [MASK] where a token is to be filled."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.tokenizers.tokenizers import Tokenizer
from pretrain.errors import UserError
from pretrain.evaluation.text_files import filled_lines, json_lines, read_text, text_of

GAP = re.compile(r"\[MASK(?::(\d+))?\]")


@dataclass(frozen=True)
class Prompt:
    """A text that samples are given.

    Attributes:
        text: [MASK] is one token to fill, [MASK:20] is 20.
        source: where it comes from, for messages.
        is_template: it is the whole sample, not its beginning.
        record: the line of a JSONL file that it comes from.
    """

    text: str
    source: str
    is_template: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    def row(self, tokenizer: Tokenizer, mask_id: int, length: int) -> list[int]:
        """Token ids of the sample, with `mask_id` where a token is to be filled.

        Args:
            length: tokens of the sample; of a template, the most that it may have.

        Raises:
            UserError: it is too long, or there is nothing to fill.
        """
        parts = GAP.split(self.text)  # text, number or None, text, ...
        gaps = [1 if number is None else int(number) for number in parts[1::2]]
        if 0 in gaps:
            raise UserError(f"{self.source}: [MASK:0] fills nothing; give a number from 1 on")
        encoded = tokenizer.encode_batch(parts[::2])
        count = sum(gaps) + sum(len(ids) for ids in encoded)
        if self.is_template and not gaps:
            raise UserError(f"{self.source}: has no [MASK]; write one for each token to fill, or [MASK:20] for 20")
        if count > length or (count == length and not gaps):
            raise UserError(self._too_long(count, length))
        row = encoded[0].tolist()
        for gap, ids in zip(gaps, encoded[1:], strict=True):
            row += [mask_id] * gap + ids.tolist()
        return row if self.is_template else row + [mask_id] * (length - count)

    def _too_long(self, count: int, length: int) -> str:
        if self.is_template:
            return f"{self.source}: has {count} tokens, more than {length}; shorten it or raise --length"
        return f"{self.source}: its {count} tokens leave no room in a sample of {length}; shorten it or raise --length"


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: one per line, or one JSON object per line with the key `prompt` or `template` (.jsonl).

    Raises:
        UserError: the file cannot be read, has a wrong line, or no prompt.
    """
    if path.suffix == ".json":
        raise UserError(f"--prompts {path}: write one JSON object per line, and end the name of the file in .jsonl")
    lines = list(filled_lines(read_text("--prompts", path)))
    if not lines:
        raise UserError(f"--prompts {path}: has no prompt; write one per line")
    if path.suffix == ".jsonl":
        return list(_from_json(path, iter(lines)))
    return [Prompt(line, f"{path}:{number}") for number, line in lines]


def read_template(path: Path) -> Prompt:
    """The template in a file, without the newline at its end. Raises UserError as `read_text`."""
    return Prompt(read_text("--template", path).removesuffix("\n").removesuffix("\r"), f"--template {path}", True)


def _from_json(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Prompt]:
    for source, record in json_lines(path, lines, '{"prompt": "..."}'):
        keys = [key for key in ("prompt", "template") if key in record]
        if len(keys) != 1:
            raise UserError(f"{source}: must have one of the keys prompt and template, not {_listed(record, keys)}")
        text = text_of(source, keys[0], record[keys[0]])
        yield Prompt(text, source, keys[0] == "template", record)


def _listed(record: dict[str, Any], keys: list[str]) -> str:
    return "both" if keys else f"only {', '.join(map(str, record)) or 'none'}"
