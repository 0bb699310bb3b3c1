"""What samples are given: prompts and templates, with [MASK] where a token is to be filled."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.tokenizers.tokenizers import Tokenizer
from pretrain.errors import UserError

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
    lines = [line.removesuffix("\r") for line in read_text("--prompts", path).split("\n")]
    numbered = [(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"--prompts {path}: has no prompt; write one per line")
    if path.suffix == ".jsonl":
        return list(_from_json(numbered))
    return [Prompt(line, source) for source, line in numbered]


def read_template(path: Path) -> Prompt:
    """The template in a file, without the newline at its end. Raises UserError as `read_text`."""
    return Prompt(read_text("--template", path).removesuffix("\n").removesuffix("\r"), f"--template {path}", True)


def read_text(option: str, path: Path) -> str:
    """A UTF-8 text, with or without a byte order mark.

    Raises:
        UserError: names the option, and the file's problem.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {path}: {not_utf8(error)}") from None
    except FileNotFoundError:
        raise UserError(f"{option} {path}: no such file") from None
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be read ({error.strerror})") from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that are not UTF-8, and the fix."""
    return (
        f"byte 0x{error.object[error.start]:02x} at position {error.start} is not UTF-8; "
        "convert it, for example with iconv"
    )


def _from_json(lines: list[tuple[str, str]]) -> Iterator[Prompt]:
    for source, line in lines:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{source}: is not JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f'{source}: must be an object such as {{"prompt": "..."}}')
        keys = [key for key in ("prompt", "template") if key in record]
        if len(keys) != 1:
            raise UserError(f"{source}: must have one of the keys prompt and template, not {_listed(record, keys)}")
        text = record[keys[0]]
        if not isinstance(text, str):
            raise UserError(f"{source}: {keys[0]} must be a text, not {type(text).__name__}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{source}: {keys[0]} has half of a surrogate pair, which is no character")
        yield Prompt(text, source, keys[0] == "template", record)


def _listed(record: dict[str, Any], keys: list[str]) -> str:
    return "both" if keys else f"only {', '.join(map(str, record)) or 'none'}"
