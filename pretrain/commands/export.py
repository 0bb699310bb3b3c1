"""`loopmdm export RUN DIR`: a checkpoint of a run as a folder that Hugging Face transformers loads."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.paths import user_path

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.export.record import RunRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("folder", type=user_path, metavar="RUN", help="run folder, such as runs/quickstart")
    parser.add_argument("output", type=user_path, metavar="DIR", help="folder to write; must be new or empty")
    parser.add_argument(
        "--weights", choices=("ema", "raw"), help="moving average or raw weights [ema if the run keeps it]"
    )
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="step of the checkpoint [the newest]")
    parser.add_argument(
        "--loops", type=int, metavar="S", help="passes of the looped block where a call gives none [those of training]"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and print how to load it."""
    from pretrain.config.run_folder import check_run_folder
    from pretrain.evaluation.compute_settings import check_loops
    from pretrain.export.new_folder import require_new
    from pretrain.export.read import read_manifest
    from pretrain.export.write import write_export

    if arguments.loops is not None:
        check_loops(arguments.loops, arguments.loops)
    require_new(arguments.output, "DIR")
    folder = arguments.folder
    check_run_folder(folder)
    record, weights = _read(folder, arguments.checkpoint, arguments.weights)
    manifest = read_manifest(folder / "tokenizer")
    write_export(arguments.output, record, weights, folder / "tokenizer", manifest, arguments.loops)
    print(f"wrote {arguments.output}: {folder}, step {record.step}, {record.weights} weights")
    print(f"load it with transformers: AutoModel.from_pretrained({str(arguments.output)!r}, trust_remote_code=True)")
    return 0


def _read(folder: Path, step: int | None, weights: str | None) -> "tuple[RunRecord, dict[str, Tensor]]":
    """The checkpoint of a step, or the newest one. One that a running training removes while it is read is replaced by the next."""
    from pretrain.checkpoints.folder import MARK, checkpoint_of
    from pretrain.errors import UserError

    while True:
        checkpoint = checkpoint_of(folder, step)
        try:
            return _read_checkpoint(folder, checkpoint, weights)
        except UserError:
            if (checkpoint / MARK).is_file():
                raise


def _read_checkpoint(folder: Path, checkpoint: Path, weights: str | None) -> "tuple[RunRecord, dict[str, Tensor]]":
    from pretrain.checkpoints.folder import read_state
    from pretrain.export.evaluations import newest_evaluations
    from pretrain.export.record import check_settings, record_of
    from pretrain.export.weight_files import read_checkpoint

    state, step = read_state(checkpoint), int(checkpoint.name.removeprefix("step_"))
    check_settings(state["settings"], checkpoint / "state.json")
    chosen = weights or state.get("weights") or ("ema" if state["settings"]["optim.ema_decay"] else "raw")
    record = record_of(step, chosen, state, newest_evaluations(folder / "eval", step, chosen))
    return record, read_checkpoint(checkpoint, chosen, record.architecture)
