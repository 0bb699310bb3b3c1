"""Whether a folder is that of a run."""

from pathlib import Path

from pretrain.errors import UserError


def check_run_folder(folder: Path) -> None:
    """Raise UserError for what is not the folder of a run."""
    if (folder / "config.yaml").is_file():
        return
    why = "is a file" if folder.exists() else "no such folder"
    if folder.is_dir():
        why = "not a run folder (it has no config.yaml)"
    raise UserError(f"{folder}: {why}; give the folder of a run, such as runs/quickstart")
