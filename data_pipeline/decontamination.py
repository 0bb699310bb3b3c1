"""Leave out documents that share a run of words with evaluation texts.

As for GPT-3, a match is a run of 13 words, lower-case and without punctuation (Brown et al. 2020, appendix C,
https://arxiv.org/abs/2005.14165); unlike there, the whole document is left out. Evaluation texts with fewer words cannot be found.
In scripts without spaces every character counts as a word.
"""

import argparse
import glob
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.filters import Limit
from data_pipeline.paths import user_pattern
from data_pipeline.readers.compression import DamagedFileError, open_decompressed
from data_pipeline.readers.finding import files_of_folder, files_of_pattern
from data_pipeline.readers.kinds import file_kind, without_as
from data_pipeline.readers.long_documents import decode_utf8
from data_pipeline.readers.not_text import BYTE_ORDER_MARK, require_text

DEFAULT_WORDS = 13
CAUSE = "evaluation text"
# Thai, Lao, Tibetan, Burmese, Khmer, Chinese and Japanese are written without spaces.
ALONE = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u303f\u3041-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"
# Marks on letters, and the signs of Indian scripts, belong to words.
MARKS = "\u0300-\u036f\u0900-\u0963\u0966-\u0dff"
HAS_ALONE = re.compile(f"[{ALONE}]")
WORD = re.compile(rf"[\w{MARKS}]+")
WORD_OR_ALONE = re.compile(rf"[{ALONE}]|(?:(?![{ALONE}])[\w{MARKS}])+")
# Characters of a long document that are looked at twice, so that a run of words across two chunks is found.
OVERLAP_CHARS = 2000
SHOWN_CHARS = 60


def words_of(text: str) -> list[str]:
    """The words of a text, lower-case and without punctuation."""
    text = text.casefold()
    return (WORD_OR_ALONE if HAS_ALONE.search(text) else WORD).findall(text)


class EvaluationTexts:
    """The runs of words of some evaluation texts, as hashes: 8 bytes per run and about 150 per different word.

    Args:
        texts: pairs of a source, for messages, and a text.
        num_words: length of a run.

    Attributes:
        texts: number of texts.
        short: how many of them have fewer words than a run.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], num_words: int) -> None:
        self.num_words = num_words
        self.texts = self.short = 0
        self._values: dict[str, int] = {}
        self._factors = np.cumprod(np.full(num_words, 0x9E3779B97F4A7C15, np.uint64))
        runs: dict[str, list[NDArray[np.uint64]]] = {}
        for source, text in texts:
            words = words_of(text)
            for word in words:
                if word not in self._values:
                    self._values[word] = _value(word)
            self.texts += 1
            self.short += len(words) < num_words
            runs.setdefault(source, []).append(self._hashes(words)[1])
        self._sources = list(runs)
        hashes = [np.concatenate(each) for each in runs.values()]
        sources = np.repeat(np.arange(len(hashes), dtype=np.uint16), [each.size for each in hashes])
        self._runs, first = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]), return_index=True)
        self._source_of = sources[first]

    def __len__(self) -> int:
        return self._runs.size

    @property
    def digest(self) -> str:
        """Hash of the runs."""
        return hashlib.blake2b(self._runs.tobytes(), digest_size=16).hexdigest()

    def find(self, text: str) -> tuple[str, str] | None:
        """The first run of an evaluation text in a text, and the source of that evaluation text; None if there is none."""
        words = words_of(text)
        starts, hashes = self._hashes(words)
        places = np.searchsorted(self._runs, hashes)
        found = np.flatnonzero(self._runs[np.minimum(places, len(self) - 1)] == hashes)
        if not found.size:
            return None
        start = starts[found[0]]
        return " ".join(words[start : start + self.num_words]), self._sources[self._source_of[places[found[0]]]]

    def _hashes(self, words: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
        """Where the runs of known words begin, and their hashes."""
        get = self._values.get
        values = np.array([get(word, 0) for word in words], np.uint64)
        known = np.concatenate([[0], np.cumsum(values != 0)])
        starts = np.flatnonzero(known[self.num_words :] - known[: -self.num_words] == self.num_words)
        hashes = np.zeros(starts.size, np.uint64)
        for i, factor in enumerate(self._factors):
            hashes += factor * values[starts + i]
        return starts, hashes


def _value(word: str) -> int:
    """A number that stands for a word: 64 bits, not 0."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") or 1


@dataclass(frozen=True, eq=False)
class Decontamination:
    """A filter that leaves out documents with evaluation texts, see `AddedFilter`."""

    evaluation: EvaluationTexts

    def rejection(self, document: Document) -> tuple[str, str] | None:
        """See `AddedFilter`. Long documents are compared whole."""
        before = ""
        for chunk in document.chunks:
            text = before + chunk
            if found := self.evaluation.find(text):
                run, source = found
                return CAUSE, f"{self.evaluation.num_words} words of {source}: {run[:SHOWN_CHARS]!r}"
            before = text[-OVERLAP_CHARS:]
        return None

    def record(self) -> dict[str, str | Limit]:
        """The number of words, and a hash of the evaluation texts."""
        return {"decontaminate_words": self.evaluation.num_words, "evaluation_texts": self.evaluation.digest}


def add_decontamination_options(parser: argparse._ArgumentGroup) -> None:
    """Declare `--decontaminate` and its parameter."""
    parser.add_argument(
        "--decontaminate",
        type=user_pattern,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="leave out documents that share a run of words with these evaluation texts: every string of .jsonl or .parquet "
        "files, or whole text files; folders and globs are taken as for --input",
    )
    parser.add_argument(
        "--decontaminate-words",
        type=int,
        metavar="N",
        help=f"length of such a run, without punctuation and case (default: {DEFAULT_WORDS}, as for GPT-3)",
    )


def decontamination(values: Sequence[str] | None, num_words: int | None) -> Decontamination | None:
    """The filter for some evaluation texts; None if there are none.

    Args:
        values: files, folders and globs.
        num_words: that a document must share with them; None for the default.

    Raises:
        DataError: a file cannot be read or holds no text, or all texts are too short; or there are none.
    """
    if not values:
        if num_words is not None:
            raise DataError(
                "--decontaminate-words: say which texts must not be in the corpus, with --decontaminate PATH..."
            )
        return None
    num_words = DEFAULT_WORDS if num_words is None else num_words
    if num_words < 2:
        raise DataError(f"--decontaminate-words {num_words}: give at least 2; 13 is usual, 8 finds shorter texts")
    paths = [path for value in values for path in _files(value)]
    evaluation = EvaluationTexts(((path.name, text) for path in paths for text in _read(path)), num_words)
    if not len(evaluation):
        raise DataError(
            f"--decontaminate: none of the {evaluation.texts:,} texts has {num_words} words; give a smaller "
            "--decontaminate-words"
        )
    print(
        f"decontamination: {evaluation.texts:,} evaluation texts, {len(evaluation):,} runs of {num_words} words; "
        f"{evaluation.short:,} texts are shorter and cannot be found",
        flush=True,
    )
    return Decontamination(evaluation)


def _files(value: str) -> Sequence[Path]:
    path = Path(value)
    if path.is_dir():
        found = files_of_folder(path)
    elif not path.exists() and glob.has_magic(value):
        found = files_of_pattern(value)
    else:
        return [path]
    if not found.files:
        raise DataError(f"--decontaminate {value}: {'the folder holds' if path.is_dir() else 'matches'} no file")
    return found.files


def _read(path: Path) -> Iterator[str]:
    """The texts of a file: every string in JSON lines or Parquet, or the whole of a text file."""
    try:
        found = False
        for text in _strings(path):
            found = True
            yield text
    except DataError as error:
        raise DataError(f"--decontaminate {without_as(str(error))}") from error
    except (OSError, DamagedFileError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"--decontaminate {path}: {reason}") from error
    if not found:
        raise DataError(f"--decontaminate {path}: no text in it")


def _strings(path: Path) -> Iterator[str]:
    kind = file_kind(path) if path.exists() else "text"
    if kind == "parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as table:
            for batch in table.iter_batches():
                yield from _strings_in(batch.to_pylist())
        return
    with open_decompressed(path) as file:
        require_text(file.content)
        if kind == "text":
            yield from filter(str.strip, [decode_utf8(file.content.read()).removeprefix(BYTE_ORDER_MARK)])
            return
        for number, line in enumerate(file.content, start=1):
            try:
                yield from _strings_in(json.loads(line.decode("utf-8-sig") if line.strip() else "null"))
            except ValueError as error:
                raise ValueError(f"line {number} is not a JSON object: {error}") from error


def _strings_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield from filter(str.strip, [value])
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings_in(each)
