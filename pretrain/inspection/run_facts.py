"""What a run folder holds that a report shows. Imports no torch."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import first_line
from data_pipeline.json_text import lines_of
from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizers.tokenizers import PreparedTokenizer, load_prepared_tokenizer
from pretrain.config.run_folder import check_run_folder
from pretrain.errors import UserError

Record = dict[str, Any]


def loss_name(causal: Collection[bool]) -> str:
    """What validations of these runs measure. An autoregressive model (`model.causal`) has no noise, and its loss is no bound."""
    if not any(causal):
        return "NELBO"
    return "next-token loss" if all(causal) else "loss"


@dataclass(frozen=True)
class RunFacts:
    """Records of one run.

    Attributes:
        name: how the page calls it.
        settings: `config.yaml`.
        steps: records of `metrics.jsonl` with a loss; of a step that was repeated after a crash, the last.
        validations: those with validation figures.
    """

    folder: Path
    name: str
    settings: Record
    steps: Sequence[Record]
    validations: Sequence[Record]

    @property
    def is_causal(self) -> bool:
        """Whether the model is autoregressive."""
        return bool(self.settings["model"].get("causal"))

    @cached_property
    def evaluations(self) -> list[tuple[str, Record]]:
        """(file name, content) of every `eval/*.json` by `loopmdm evaluate` over a whole split, the newest first.

        Of a blend that of the mixture, without those of its corpora, which have the same settings.
        """
        found = [(n, r) for n, r in self._results("eval") if "loops" in r and not n.startswith("train_step")]
        mixtures = [r.get("settings") for _, r in found if "corpora" in r]
        return [(n, r) for n, r in found if "corpora" in r or ("rows" in r and r.get("settings") not in mixtures)]

    @cached_property
    def main_evaluation(self) -> tuple[str, Record]:
        """Of the evaluations of the newest one's weights and data, that with the most rows, then with the most numbers of loops."""
        subject = _subject_of(self.evaluations[0][1])
        same = [each for each in self.evaluations if _subject_of(each[1]) == subject]
        return max(same, key=lambda each: (_rows_of(each[1]), len(each[1]["loops"])))

    @cached_property
    def probes(self) -> list[tuple[str, Record]]:
        """Those by `loopmdm probe`."""
        return [(n, r) for n, r in self._results("eval") if n.startswith("probe_")]

    @cached_property
    def task_results(self) -> list[tuple[str, Record]]:
        """Those by `loopmdm evaluate --tasks` and `--lm-eval`."""
        return [(n, r) for n, r in self._results("eval") if "settings" in r and ("task" in r or "results" in r)]

    @cached_property
    def samples(self) -> list[tuple[str, Record]]:
        """Results of `loopmdm sample`."""
        return [(n, r) for n, r in self._results("samples") if isinstance(r.get("texts"), list)]

    @cached_property
    def tokenizer(self) -> PreparedTokenizer | None:
        """The run's own copy; None if it has none."""
        folder = self.folder / "tokenizer"
        return load_prepared_tokenizer(folder, load_manifest(folder)) if folder.is_dir() else None

    def _results(self, folder: str) -> Iterator[tuple[str, Record]]:
        files = sorted((self.folder / folder).glob("*.json"), key=lambda path: (-path.stat().st_mtime, path.name))
        for path in files:
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{path}: not JSON ({error}); delete the file or write it again") from None
            if isinstance(content, dict):
                yield path.stem, content


def _subject_of(evaluation: Record) -> tuple[Any, ...]:
    """Which weights were evaluated on which data."""
    settings = evaluation.get("settings", {})
    return evaluation.get("step"), evaluation.get("weights"), settings.get("data_sha256"), settings.get("split")


def _rows_of(evaluation: Record) -> int:
    """Rows that were used, of a mixture those that were asked for."""
    return evaluation.get("rows") or evaluation.get("settings", {}).get("rows") or 0


def read_runs(folders: Sequence[Path]) -> list[RunFacts]:
    """Read run folders. A run is named by its folder, or by its path where two folders have the same name."""
    folders = list(dict.fromkeys(folders))
    names = [folder.resolve().name for folder in folders]
    return [
        read_run(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]


def read_run(folder: Path, name: str) -> RunFacts:
    """Read a run folder.

    Raises:
        UserError: not a run folder, or a file in it is broken.
    """
    check_run_folder(folder)
    settings = _settings(folder / "config.yaml")
    by_step: dict[tuple[bool, int], Record] = {}
    for record in _metrics(folder / "metrics.jsonl"):
        if "texts" not in record:
            by_step["loss" in record, record["step"]] = record
    records = [by_step[key] for key in sorted(by_step)]
    steps = [record for record in records if "loss" in record]
    return RunFacts(folder, name, settings, steps, [r for r in records if "validation" in r])


def _settings(path: Path) -> Record:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); restore it from a copy") from None
    if not isinstance(settings, dict) or not {"model", "train"} <= settings.keys():
        raise UserError(f"{path}: has no sections `model` and `train`, unlike those that training writes")
    return settings


def _metrics(path: Path) -> Iterator[Record]:
    if not path.exists():
        return
    lines = lines_of(path.read_text(encoding="utf-8"))
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            if number == len(lines):  # training writes at this moment
                return
            raise UserError(f"{path}, line {number}: not JSON ({error}); delete the line") from None
