"""The folders of a run's checkpoints: which are whole, and what their small files say.

checkpoints/step_N/
    COMPLETE              the mark, written last: sizes of all files, checksums of the two small ones
    state.json            progress, layout, versions and the settings that made it
    index.json            which part of which weight each of the other files holds (`index.py`)
    rank_K.safetensors    what rank K owned: fp32 weights, optimizer states, moving average

Before, and as `loopmdm import` writes them: `weights.safetensors` and `ema.safetensors` with whole weights, and in `deepspeed/` the
shards of one layout.
"""

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Container
from pathlib import Path
from typing import Any

from data_pipeline.atomic_files import write_atomic
from pretrain.checkpoints.damage import DamagedCheckpointError
from pretrain.checkpoints.index import Index, UnknownFormatError, missing_part
from pretrain.config.keys import flatten
from pretrain.config.settings import Settings
from pretrain.errors import UserError

MARK = "COMPLETE"
STATE = "state.json"
INDEX = "index.json"
STEP = re.compile(r"step_(0|[1-9][0-9]*)")


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [p for p in (run_folder / "checkpoints").glob("step_*") if STEP.fullmatch(p.name) and (p / MARK).is_file()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps taken when it was saved."""
    return int(checkpoint.name.removeprefix("step_"))


def latest_checkpoint(run_folder: Path) -> Path:
    """The newest complete checkpoint. Raises UserError when there is none."""
    found = list_checkpoints(run_folder)
    if not found:
        raise UserError(
            f"{run_folder}: no complete checkpoint in {run_folder / 'checkpoints'}; give the folder of a run that has saved one"
        )
    return found[-1]


def checkpoint_of(run_folder: Path, step: int | None) -> Path:
    """The complete checkpoint of a step, or the newest one. Raises UserError, with those that there are, when there is none."""
    if step is None:
        return latest_checkpoint(run_folder)
    found = {step_of(path): path for path in list_checkpoints(run_folder)}
    if step not in found:
        steps = ", ".join(map(str, found)) or "none"
        raise UserError(f"{run_folder}: no complete checkpoint of step {step}; there are: {steps}")
    return found[step]


def has_index(checkpoint: Path) -> bool:
    """Whether it holds canonical tensors; otherwise it is of the older format. True also if the index has been lost."""
    try:
        mark = (checkpoint / MARK).read_text(encoding="utf-8", errors="replace")
    except OSError:
        mark = ""
    return f'"{INDEX}"' in mark or (checkpoint / INDEX).is_file()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint.

    A setting that did not exist when the checkpoint was made gets its default, which reproduces the behavior of that time.

    Raises:
        DamagedCheckpointError: it cannot be read.
    """
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        return state | {"settings": flatten(Settings()) | state["settings"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(checkpoint, f"{STATE}: cannot be read ({type(error).__name__}: {error})") from None


def read_index(checkpoint: Path) -> Index:
    """`index.json`, after a comparison of all files with the mark: of their sizes, and of the small ones also the checksums.

    Raises:
        DamagedCheckpointError: a file is missing, truncated or changed.
        UserError: a later version has written it, or this user may not read it.
    """
    try:
        mark = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        sizes, checksums = mark["sizes"], mark["checksums"]
        for name, size in sizes.items():
            _require_size(checkpoint, name, size)
        for name, checksum in checksums.items():
            if zlib.crc32((checkpoint / name).read_bytes()) != checksum:
                raise DamagedCheckpointError(checkpoint, f"{name}: its checksum differs")
        return Index.from_json((checkpoint / INDEX).read_text(encoding="utf-8"))
    except DamagedCheckpointError:
        raise
    except UnknownFormatError as error:
        raise UserError(f"{checkpoint}: {INDEX}: {error}; use the version of LoopMDM that has saved it") from None
    except PermissionError as error:
        raise UserError(
            f"{error.filename}: you may not read it; change its permissions, or rename the checkpoint to use the one before it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(checkpoint, f"cannot be read ({type(error).__name__}: {error})") from None


def read_whole_index(checkpoint: Path) -> Index:
    """The index, if its entries make up whole weights. Raises as `read_index`."""
    index = read_index(checkpoint)
    for weight, shape in index.shapes.items():
        missing = missing_part(shape, (entry.rectangle for entry in index.of(weight)))
        if missing is not None:
            raise DamagedCheckpointError(checkpoint, f"{INDEX}: {missing} ({weight})")
    return index


def write_mark(partial: Path) -> None:
    """Write the mark into a folder whose other files are on the disk."""
    names = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
    mark = {
        "sizes": {name: (partial / name).stat().st_size for name in names},
        "checksums": {name: zlib.crc32((partial / name).read_bytes()) for name in (STATE, INDEX)},
    }
    write_atomic(partial / MARK, json.dumps(mark, indent=1) + "\n")


def prune(run_folder: Path, keep: Container[int]) -> None:
    """Remove the complete checkpoints of other steps than these, and the remains of interrupted saves.

    Training need not end because one cannot be removed: that is only told.
    """
    unwanted = [checkpoint for checkpoint in list_checkpoints(run_folder) if step_of(checkpoint) not in keep]
    partial = [p for p in (run_folder / "checkpoints").glob("step_*.partial") if STEP.fullmatch(p.stem) and p.is_dir()]
    for folder in [*unwanted, *partial]:
        try:
            remove(folder)
        except OSError as error:
            print(f"warning: {folder} could not be removed: {error}. Remove it by hand; training goes on", flush=True)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, the mark first, so that a half-removed folder is never taken for one.

    Of a link only the link itself: what it points to belongs to somebody else.
    """
    if checkpoint.is_symlink():
        checkpoint.unlink()
        return
    (checkpoint / MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _require_size(checkpoint: Path, name: str, size: int) -> None:
    path = checkpoint / name
    if not path.is_file():
        raise DamagedCheckpointError(checkpoint, f"{name} is missing")
    if path.stat().st_size != size:
        raise DamagedCheckpointError(checkpoint, f"{name} has {path.stat().st_size:,} bytes, not {size:,}")
    if not os.access(path, os.R_OK):  # safetensors would call it missing
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
