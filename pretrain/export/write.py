"""Write an exported folder:

DIR/
    config.json, model.safetensors                   the model, for transformers
    modeling_loopmdm.py                              its code
    tokenizer.json, tokenizer_config.json            the tokenizer, for transformers (`tokenizer_files`)
    README.md                                        the model card
    loopmdm/                                         for `loopmdm import`: run.json, manifest.json, the run's tokenizer
"""

import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.json_text import json_text
from data_pipeline.manifest import MANIFEST_NAME, Manifest, check_hash
from pretrain.export.model_card import model_card
from pretrain.export.model_config import MODELING, config_fields
from pretrain.export.new_folder import new_folder
from pretrain.export.record import FOLDER, NAME, RunRecord, without_machine_paths
from pretrain.export.tokenizer_files import write_tokenizer
from pretrain.export.weight_files import EXPORTED

CODE = Path(__file__).with_name(f"{MODELING}.py")


def write_export(
    output: Path, record: RunRecord, weights: dict[str, Tensor], tokenizer: Path, manifest: Manifest, loops: int | None
) -> None:
    """Write the folder, completely or not at all. Equal arguments give equal bytes.

    Args:
        weights: as from `weight_files.read_checkpoint`.
        tokenizer: a run's copy of its tokenizer.
        loops: S where a call gives none; None for the S of training, or the largest if it varied.

    Raises:
        UserError: the folder exists or cannot be written, or the tokenizer cannot be exported.
        DataError: the tokenizer has changed since the data was prepared.
    """
    check_hash(tokenizer / manifest.tokenizer.file, manifest.tokenizer.sha256)
    trained = record.settings["train.loops"]
    default = loops or (trained if isinstance(trained, int) else record.architecture.loop.max)
    published = without_machine_paths(manifest)
    with new_folder(output, "DIR") as folder:
        save_file(weights, folder / EXPORTED, metadata={"format": "pt"})
        (folder / EXPORTED).chmod(0o644)  # safetensors writes files that only their owner can read
        shutil.copyfile(CODE, folder / CODE.name)
        config = config_fields(record.architecture, manifest, default)
        (folder / "config.json").write_text(json_text(config, indent=2) + "\n", encoding="utf-8")
        written = write_tokenizer(tokenizer, manifest, folder)
        card = model_card(record, published, default, written)
        (folder / "README.md").write_text(card, encoding="utf-8")
        _write_origin(folder / FOLDER, record, tokenizer, published)


def _write_origin(folder: Path, record: RunRecord, tokenizer: Path, manifest: Manifest) -> None:
    """What an import needs besides the weights."""
    folder.mkdir()
    (folder / NAME).write_text(record.to_json(), encoding="utf-8")
    (folder / MANIFEST_NAME).write_text(json_text(manifest.model_dump(), indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(tokenizer / manifest.tokenizer.file, folder / manifest.tokenizer.file)
