"""Training data of a run: one prepared folder, or a blend file that mixes several.

A blend file is YAML (or JSON). Paths are relative to it, with `~` and `$NAME` expanded; only the ratios of the weights matter:

    corpora:
      - {path: web, weight: 0.7}
      - {path: code, weight: 0.3, max_epochs: 4}
      - {path: notes, weight: 0.1, max_tokens: 1e9}

Where no corpus has a weight, each weighs as many as it has training tokens. With `temperature: T`, every weight is raised to
the power 1 / T: above 1, small corpora get a larger share (Xue et al. 2021, https://arxiv.org/abs/2010.11934). Both limits
may be given; the lower one counts.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, localcontext
from difflib import get_close_matches
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from data_pipeline.dataset.blend_schedule import BlendSchedule
from data_pipeline.errors import DataError
from data_pipeline.manifest import MANIFEST_NAME, TRAIN, Manifest, check_files, load_manifest
from data_pipeline.packing.pack_plan import plan_files
from data_pipeline.typed_words import path_of, real_number, whole_number
from data_pipeline.yaml_files import Section, Value, Word, read_yaml


def only_words(read: Callable[[Word], Any]) -> Callable[[Any], Any]:
    """Apply `read` to a word of the file; pydantic refuses what is no word."""
    return lambda value: read(value) if isinstance(value, Word) else value


BLEND_SUFFIXES = (".yaml", ".yml", ".json")
EXAMPLE = "corpora: [{path: web, weight: 0.7}, {path: code, weight: 0.3, max_epochs: 4}]"


_Positive = Annotated[float | None, BeforeValidator(only_words(lambda w: None if w.is_null else real_number(w)))]
_PositiveCount = Annotated[int | None, BeforeValidator(only_words(lambda w: None if w.is_null else whole_number(w)))]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[Path, BeforeValidator(only_words(path_of))]
    weight: _Positive = Field(default=None, gt=0)
    max_epochs: _Positive = Field(default=None, gt=0)
    max_tokens: _PositiveCount = Field(default=None, gt=0)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    corpora: list[_Entry] = Field(min_length=1)
    temperature: _Positive = Field(default=None, gt=0)


@dataclass(frozen=True)
class Corpus:
    """A prepared folder and its part in a blend.

    Attributes:
        path: the folder.
        weight: its share, not normalized.
        max_epochs: passes over its rows after which its share goes to the others; None for no limit.
        max_tokens: tokens after which its share goes to the others; None for no limit.
    """

    path: Path
    manifest: Manifest
    weight: Fraction = Fraction(1)
    max_epochs: float | None = None
    max_tokens: int | None = None

    @property
    def rows(self) -> int:
        """Rows of its training split."""
        return self.manifest.splits[TRAIN].rows

    @property
    def padding(self) -> float:
        """Share of its rows' positions that hold padding."""
        return self.manifest.splits[TRAIN].padded_tokens / (self.rows * self.manifest.seq_len)

    @property
    def token_weight(self) -> float:
        """Its share of the tokens, not normalized; rows with padding have fewer."""
        return float(self.weight) * (1 - self.padding)

    @property
    def cap(self) -> int | None:
        """Largest number of samples to take; None for no limit."""
        limits = [] if self.max_epochs is None else [self.rows * self.max_epochs]
        if self.max_tokens is not None:
            limits.append(self.max_tokens / (self.manifest.seq_len * (1 - self.padding)))
        if not limits or min(limits) >= 2**62:  # more samples than can be counted
            return None
        return max(1, int(min(limits)))


@dataclass(frozen=True)
class Blend:
    """Corpora with the same tokenizer, row length and vocabulary; a single corpus is a blend too."""

    path: Path
    corpora: tuple[Corpus, ...]

    @property
    def manifest(self) -> Manifest:
        """The manifest of the first corpus: all have the same tokenizer, row length and vocabulary."""
        return self.corpora[0].manifest

    @cached_property
    def schedule(self) -> BlendSchedule:
        """Which corpus each sample comes from. Raises DataError when a weight is too small."""
        try:
            weights, caps = [each.weight for each in self.corpora], [each.cap for each in self.corpora]
            return BlendSchedule(weights, caps, [str(each.path) for each in self.corpora])
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error

    def check(self, samples: int) -> None:
        """Check the files of every corpus, and that the caps leave at least `samples` samples.

        Raises:
            DataError: names the file, or says how many samples there are.
        """
        for corpus in self.corpora:
            check_files(corpus.path, corpus.manifest)
        available = self.schedule.num_samples
        if available is not None and available < samples:
            raise DataError(
                f"{self.path} has {available:,} samples until every corpus reaches its limit, but the run needs {samples:,}; "
                "raise or remove a max_epochs or max_tokens, or train for fewer steps"
            )

    def identity(self) -> dict[str, str]:
        """What distinguishes this training set from others: a few hashes, for any number of shards, and the weights."""
        facts = {"tokenizer": self.manifest.tokenizer.sha256}
        for number, corpus in enumerate(self.corpora, 1):
            prefix = f"corpus {number} " if len(self.corpora) > 1 else ""
            files = corpus.manifest.splits[TRAIN].files
            plan = plan_files(TRAIN, *corpus.manifest.row_format)
            facts[f"{prefix}tokens"] = _digest(info.sha256 for name, info in files.items() if name not in plan)
            facts[f"{prefix}rows"] = _digest(files[name].sha256 for name in plan)
            if prefix:
                facts[f"{prefix}share"] = f"{corpus.weight}, at most {corpus.cap} samples"
        return facts


def is_prepared(path: Path) -> bool:
    """Whether `path` is a blend file or a prepared folder."""
    return path.is_file() or (path / MANIFEST_NAME).is_file()


def load_blend(path: Path) -> Blend:
    """Read a prepared folder's manifest, or a blend file and the manifests of its folders.

    Raises:
        DataError: nothing prepared there, a broken blend file, or corpora that cannot be mixed.
    """
    path = Path(path)
    if not path.exists() and path.suffix in BLEND_SUFFIXES:
        raise DataError(f"no blend file at {path}; a blend is written as {EXAMPLE}")
    if not path.is_file():
        return Blend(path, (Corpus(path, load_manifest(path)),))
    file = _read(path)
    entries = file.corpora
    without = [entry for entry in entries if entry.weight is None]
    if 0 < len(without) < len(entries):
        raise DataError(f"{path}: {without[0].path} has no weight; give every corpus a weight, or none")
    manifests = [_manifest(path, entry.path) for entry in entries]
    corpora = tuple(
        Corpus(
            path.parent / entry.path,
            manifest,
            _weight(manifest.splits[TRAIN].tokens if entry.weight is None else entry.weight, file.temperature),
            entry.max_epochs,
            entry.max_tokens,
        )
        for entry, manifest in zip(entries, manifests, strict=True)
    )
    for problem in _incompatibilities(corpora):
        raise DataError(f"{path}: {problem}")
    return Blend(path, corpora)


def _manifest(file: Path, folder: Path) -> Manifest:
    try:
        return load_manifest(file.parent / folder)
    except DataError as error:
        relative = not folder.is_absolute() and not (file.parent / folder).exists()
        hint = f" (it names {folder}, which is relative to the folder of the blend file, {file.parent})" * relative
        raise DataError(f"{file}: {error}{hint}") from error


def _digest(hashes: Iterable[str]) -> str:
    return sha256("\n".join(hashes).encode()).hexdigest()


def _read(path: Path) -> _File:
    try:
        tree = read_yaml(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    try:
        return _File.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_problem(tree, each) for each in error.errors())
        raise DataError(f"{path}: {problems}; a blend is written as {EXAMPLE}") from error


def _problem(tree: Value, error: ErrorDetails) -> str:
    """Such as `line 3: corpora.1.weight=yes of web: should be a number`."""
    place, node, corpus = 0, tree, ""
    for part in error["loc"]:
        if isinstance(node, Section):
            place = node.lines.get(str(part), place)
        with suppress(KeyError, IndexError, TypeError):
            node = node[part]
        if isinstance(part, int) and isinstance(node, Section) and isinstance(path := node.get("path"), Word):
            corpus = f" of {path}"
    typed = f"={node}" if isinstance(node, Word) else ""
    text = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "extra_forbidden":
        close = get_close_matches(str(error["loc"][-1]), [*_Entry.model_fields, *_File.model_fields], n=1)
        text = "unknown key" + "".join(f"; did you mean {name}?" for name in close)
    if error["type"] == "model_type":
        text = "should be keys and values" if len(error["loc"]) < 2 else "should be written as {path: FOLDER}"
    key = ".".join(map(str, error["loc"])) + typed
    if error["loc"][-1:] != ("path",):
        key += corpus
    return ": ".join(part for part in (f"line {place}" if place else "", key, text) if part)


def _weight(weight: float, temperature: float | None) -> Fraction:
    """The decimal number as written in the file, not the nearest binary one, to the power 1 / temperature."""
    exact = Decimal(repr(weight))
    if temperature is None or temperature == 1:
        return Fraction(exact)
    # Of a fixed number of digits, so that all machines compute the same number.
    with localcontext(prec=30):
        return Fraction(exact ** (1 / Decimal(repr(temperature))))


def _incompatibilities(corpora: tuple[Corpus, ...]) -> Iterator[str]:
    first = corpora[0]
    seen = set()
    for corpus in corpora:
        if (folder := corpus.path.resolve()) in seen:
            yield f"{corpus.path} is listed twice; list it once with the sum of its weights"
        seen.add(folder)
        if corpus.manifest.tokenizer.sha256 != first.manifest.tokenizer.sha256:
            yield (
                f"{corpus.path} was prepared with another tokenizer than {first.path}; prepare it with --tokenizer "
                f"{first.path / first.manifest.tokenizer.file}"
            )
        if (
            corpus.manifest.tokenizer != first.manifest.tokenizer
            or corpus.manifest.vocab_size != first.manifest.vocab_size
        ):
            yield f"{corpus.path} has other special ids or another vocabulary size than {first.path}; prepare both again"
        if corpus.manifest.seq_len != first.manifest.seq_len:
            yield (
                f"{corpus.path} has rows of {corpus.manifest.seq_len} tokens, {first.path} of {first.manifest.seq_len}; change "
                f"it with: loopmdm repack {corpus.path} --seq-len {first.manifest.seq_len}"
            )
