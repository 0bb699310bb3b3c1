"""`loopmdm/run.json` of an exported folder: what `loopmdm import` needs besides the weights, and what the model card tells.

Paths of the machine that trained are left out: the folder may be published.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_pipeline.errors import first_line
from data_pipeline.json_text import json_text
from data_pipeline.manifest import Manifest
from model.architecture import Architecture
from pretrain.config.settings import Settings
from pretrain.errors import UserError

FORMAT = 1
FOLDER, NAME = "loopmdm", "run.json"
MACHINE_KEYS = ("run.dir", "data.path", "parallel.ds_config")
"""Settings that are paths. An import gives them new values."""


@dataclass(frozen=True)
class RunRecord:
    """A run at one step.

    Attributes:
        step: optimizer steps taken.
        weights: "ema" or "raw": which weights were exported.
        state: `state.json` of the checkpoint, without paths.
        evaluations: name of a result file -> its content, for results of these weights.
    """

    step: int
    weights: str
    state: dict[str, Any]
    evaluations: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings by dotted key that made the weights."""
        return self.state["settings"]

    @property
    def architecture(self) -> Architecture:
        """The shape of the model."""
        return settings_from(self.settings).model

    def to_json(self) -> str:
        """The content of the file."""
        return json_text({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def record_of(step: int, weights: str, state: Mapping[str, Any], evaluations: Mapping[str, Any]) -> RunRecord:
    """The record of a checkpoint, without paths and in the order in which it is written.

    Args:
        state: as from `checkpoints.folder.read_state`.
        evaluations: name -> content of the run's result files.
    """
    settings = {key: value for key, value in sorted(state["settings"].items()) if key not in MACHINE_KEYS}
    kept = {key: state[key] for key in ("progress", "layout", "data", "torch") if key in state}
    results = {name: _without_paths(content) for name, content in sorted(evaluations.items())}
    return RunRecord(step, weights, kept | {"settings": settings}, results)


def read_record(folder: Path) -> RunRecord:
    """Raises UserError if the file is missing or damaged, or of another version."""
    path = folder / FOLDER / NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        found = fields.pop("format")
        if found != FORMAT:
            raise UserError(f"{path}: has format {found}, this version of loopmdm reads {FORMAT}; export the run again")
        record = TypeAdapter(RunRecord).validate_python(fields)
        check_settings(record.settings, path)
        return record
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; copy the folder `{FOLDER}` from the export beside config.json") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # also of a file that holds no object
        raise UserError(f"{path}: cannot be read ({first_line(error)}); restore the file from the export") from None


def check_settings(flat: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for keys or values that this version does not know, or cannot export.

    Args:
        path: of the file that holds them, for the message.
    """
    try:
        settings = settings_from(flat)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: setting {key}: {first['msg']}; use the version of loopmdm that wrote the file"
        ) from None
    if settings.model.causal:
        raise UserError(f"{path}: model.causal=true: an autoregressive model cannot be exported")


def settings_from(flat: Mapping[str, Any]) -> Settings:
    """Settings from values by dotted key; missing keys get their defaults. Raises pydantic's ValidationError."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return TypeAdapter(Settings).validate_python(tree)


def without_machine_paths(manifest: Manifest) -> Manifest:
    """A manifest whose inputs are named without their folders."""
    local = ("file", "folder", "glob")
    inputs = [i.model_copy(update={"input": PurePath(i.input).name}) if i.kind in local else i for i in manifest.inputs]
    return manifest.model_copy(update={"inputs": inputs})


def _without_paths(value: Any) -> Any:
    """Plain values in which absolute paths, all texts of one line that begin as one, are shortened to their last part."""
    match value:
        case dict():
            return {key: _without_paths(each) for key, each in value.items()}
        case list():
            return [_without_paths(each) for each in value]
        case str() if value.startswith("/") and "\n" not in value:
            return PurePath(value).name
    return value
