"""Training data of a run: one prepared folder, or a blend file that mixes several.

A blend file is YAML (or JSON). Paths are relative to it; only the ratios of the weights matter:

    corpora:
      - {path: web, weight: 0.7}
      - {path: code, weight: 0.3, max_epochs: 4}
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.dataset.blend_schedule import BlendSchedule
from data_pipeline.errors import DataError
from data_pipeline.manifest import MANIFEST_NAME, TRAIN, Manifest, check_files, load_manifest
from data_pipeline.packing.pack_plan import plan_files
from data_pipeline.paths import expanded

BLEND_SUFFIXES = (".yaml", ".yml", ".json")
EXAMPLE = "corpora: [{path: web, weight: 0.7}, {path: code, weight: 0.3, max_epochs: 4}]"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    weight: float = Field(gt=0, allow_inf_nan=False)
    max_epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    corpora: list[_Entry] = Field(min_length=1)


@dataclass(frozen=True)
class Corpus:
    """A prepared folder and its part in a blend.

    Attributes:
        path: the folder.
        weight: its share, not normalized.
        max_epochs: passes over its rows after which its share goes to the others; None for no limit.
    """

    path: Path
    manifest: Manifest
    weight: Fraction = Fraction(1)
    max_epochs: float | None = None

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
        return None if self.max_epochs is None else max(1, int(self.rows * self.max_epochs))


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
        """Which corpus each sample comes from. Raises DataError when the weights have too many digits."""
        try:
            return BlendSchedule([corpus.weight for corpus in self.corpora], [corpus.cap for corpus in self.corpora])
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
                f"{self.path} has {available:,} samples until every corpus reaches its max_epochs, but the run needs {samples:,}; "
                "raise or remove a max_epochs, or train for fewer steps"
            )

    def identity(self) -> dict[str, str]:
        """What distinguishes this training set from others: a few hashes, for any number of shards, and the weights."""
        facts = {"tokenizer": self.manifest.tokenizer.sha256}
        for number, corpus in enumerate(self.corpora, 1):
            prefix = f"corpus {number} " if len(self.corpora) > 1 else ""
            files = corpus.manifest.splits[TRAIN].files
            plan = plan_files(TRAIN, corpus.manifest.packing, corpus.manifest.seq_len)
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
    entries = _read(path).corpora
    try:
        folders = [path.parent / expanded(str(entry.path)) for entry in entries]
        manifests = [load_manifest(folder) for folder in folders]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    corpora = tuple(
        Corpus(folder, manifest, _exact(entry.weight), entry.max_epochs)
        for folder, entry, manifest in zip(folders, entries, manifests, strict=True)
    )
    for problem in _incompatibilities(corpora):
        raise DataError(f"{path}: {problem}")
    return Blend(path, corpora)


def _digest(hashes: Iterable[str]) -> str:
    return sha256("\n".join(hashes).encode()).hexdigest()


def _read(path: Path) -> _File:
    import yaml

    try:
        return _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}; correct that line") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ") for each in error.errors())
        raise DataError(f"{path}: {'; '.join(problems)}; a blend is written as {EXAMPLE}") from error


def _exact(weight: float) -> Fraction:
    """The decimal number as written in the file, not the nearest binary one."""
    return Fraction(repr(weight))


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
