"""Write a run folder from an exported folder: settings, tokenizer, results, and a checkpoint that holds weights only."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.json_text import json_text
from data_pipeline.manifest import MANIFEST_NAME, Manifest
from pretrain.checkpoints.folder import MARK
from pretrain.checkpoints.weights import FILES
from pretrain.config.load import dump_settings
from pretrain.config.run_folder import STATUS
from pretrain.config.settings import Settings
from pretrain.export.new_folder import new_folder
from pretrain.export.record import FOLDER, RunRecord, settings_from


def write_run(output: Path, record: RunRecord, weights: dict[str, Tensor], export: Path, manifest: Manifest) -> None:
    """Write the run folder, completely or not at all.

    Args:
        weights: as from `weight_files.read_exported`.
        export: the exported folder.

    Raises:
        UserError: the folder exists or cannot be written.
    """
    settings = _settings(record, output.resolve())
    with new_folder(output, "RUN") as folder:
        (folder / "config.yaml").write_text(dump_settings(settings), encoding="utf-8")
        (folder / "tokenizer").mkdir()
        for name in (manifest.tokenizer.file, MANIFEST_NAME):
            shutil.copyfile(export / FOLDER / name, folder / "tokenizer" / name)
        for name, content in record.evaluations.items():
            (folder / "eval").mkdir(exist_ok=True)
            (folder / "eval" / name).write_text(json_text(content, indent=2) + "\n", encoding="utf-8")
        _write_checkpoint(folder / "checkpoints" / f"step_{record.step}", record, weights)
        status = {"state": "imported", "since": time.strftime("%Y-%m-%d %H:%M:%S"), "why": _origin(record, export)}
        (folder / STATUS).write_text(json_text(status, indent=2) + "\n", encoding="utf-8")


def _origin(record: RunRecord, export: Path) -> str:
    return f"from {export.resolve()}: {record.weights} weights of step {record.step} of {record.settings['run.name']}"


def _settings(record: RunRecord, output: Path) -> Settings:
    """The settings of the run at its new place. Raw weights alone are those of a run that keeps no average."""
    settings = settings_from(record.settings)
    optim = settings.optim if record.weights == "ema" else replace(settings.optim, ema_decay=0.0)
    return replace(settings, optim=optim, run=replace(settings.run, dir=output.parent, name=output.name))


def _write_checkpoint(folder: Path, record: RunRecord, weights: dict[str, Tensor]) -> None:
    """A checkpoint of the older format (`checkpoints/folder.py`), without `deepspeed/`; `state.json` says which weights it has."""
    folder.mkdir(parents=True)
    path = folder / FILES[record.weights]
    save_file(weights, path)
    path.chmod(0o644)  # safetensors writes files that only their owner can read
    state = record.state | {"weights": record.weights}
    (folder / "state.json").write_text(json_text(state, indent=2) + "\n", encoding="utf-8")
    (folder / MARK).write_text("This checkpoint is whole.\n", encoding="utf-8")
