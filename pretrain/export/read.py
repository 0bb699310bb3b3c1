"""Read an exported folder, for `loopmdm import`."""

import json
from pathlib import Path, PurePath
from typing import Any

from data_pipeline.manifest import MANIFEST_NAME, Manifest, check_hash, load_manifest
from pretrain.errors import UserError
from pretrain.export.model_config import MODEL_TYPE, check_config
from pretrain.export.record import FOLDER, RunRecord, read_record


def read_export(folder: Path) -> tuple[RunRecord, Manifest]:
    """The run and the manifest of its data; the weights are read by `weight_files.read_exported`.

    Raises:
        UserError: not an exported folder, or an incomplete or changed one.
        DataError: its manifest or tokenizer is missing or damaged.
    """
    config = _read_config(folder)
    record = read_record(folder)
    check_config(str(folder / "config.json"), config, record.architecture)
    manifest = read_manifest(folder / FOLDER)
    for name in (manifest.tokenizer.file, *record.evaluations):
        if PurePath(name).name != name:  # it would be written outside of the run folder
            raise UserError(f"{folder / FOLDER}: {name!r} is not the name of a file; do not import this folder")
    check_hash(folder / FOLDER / manifest.tokenizer.file, manifest.tokenizer.sha256)
    return record, manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest beside a tokenizer, in an exported folder or in a run. Raises UserError or DataError."""
    if not (folder / MANIFEST_NAME).is_file():
        raise UserError(f"{folder / MANIFEST_NAME}: is missing; copy the folder {folder.name}/ again from its source")
    return load_manifest(folder)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        why = "it has no config.json" if folder.is_dir() else "no such folder"
        raise UserError(f"DIR {folder}: {why}; give a folder that `loopmdm export` wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it again from the export") from None
    if kind != MODEL_TYPE:
        raise UserError(f"{path}: model_type is {kind!r}; only folders that `loopmdm export` wrote can be imported")
    return config
