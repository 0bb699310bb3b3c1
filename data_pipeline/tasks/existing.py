"""Decide what to do when the output folder exists already."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.manifest import MANIFEST_NAME, InputInfo, Manifest, check_files, load_manifest
from data_pipeline.readers.inputs import Input, converted_dataset
from data_pipeline.tasks.completeness import unaccepted
from data_pipeline.tasks.join import input_digest
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.reading import read_digest
from data_pipeline.tasks.task import cut_into_tasks


def is_up_to_date(
    output: Path, inputs: Sequence[Input], options: Options, overwrite: bool, against: Sequence[Input] = ()
) -> bool:
    """Whether `output` already holds what these inputs and options, compared with the texts `against`, result in.

    Inputs are compared by name, number of files and bytes. When one of them may have been modified since the folder was
    written, its documents are read again and compared by digest.

    Raises:
        DataError: `output` holds something else and may not be replaced.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not output.is_dir():
        raise DataError(f"--output {output} is a file; choose another name")
    if not (output / MANIFEST_NAME).is_file():
        # --overwrite does not remove a folder that this command did not write either.
        raise DataError(f"--output {output} is not empty and is not a prepared folder; choose another name or empty it")
    if overwrite:
        return False
    manifest = load_manifest(output)
    if difference := _difference(output, manifest, inputs, options, against):
        raise DataError(f"{output} is already prepared, but {difference}; {_remedy(output, manifest, options)}")
    if problem := unaccepted(manifest, options):
        raise DataError(
            f"{output} is already prepared, but {problem}, or repair the inputs and replace it with --overwrite"
        )
    check_files(output, manifest)
    return True


def _remedy(output: Path, manifest: Manifest, options: Options) -> str:
    """How to get what was asked for; other rows do not need the text again."""
    rows = options.row_format._asdict()
    there = _recorded(manifest, options)
    if there != options.record() == there | rows:
        pack = f"loopmdm repack {output} --seq-len {options.seq_len} --pack {options.packing}"
        pack += "" if there["shuffle"] == options.shuffle else " --shuffle" if options.shuffle else " --no-shuffle"
        return f"change its rows with: {pack}; or replace it with --overwrite"
    return "replace it with --overwrite"


def _difference(
    output: Path, manifest: Manifest, inputs: Sequence[Input], options: Options, against: Sequence[Input]
) -> str | None:
    """What differs between what was asked for and what the folder holds, in words: options, else the first input."""
    asked, there = options.record(), _recorded(manifest, options)
    other = [name for name in sorted(asked.keys() | there.keys()) if asked.get(name) != there.get(name)]
    if other:
        return "with " + " and ".join(
            f"{name} {_shown(there, name)} instead of {_shown(asked, name)}" for name in other
        )
    made = (output / MANIFEST_NAME).stat().st_mtime_ns
    return _input_difference(made, manifest.inputs, inputs, options, "inputs") or _input_difference(
        made, manifest.against, against, options, "texts to compare with"
    )


def _recorded(manifest: Manifest, options: Options) -> dict[str, str | int | float | None]:
    """The options in a manifest. Older folders have one shard per task, the order of the inputs, and a sample of the whole text."""
    asked = options.record()
    return {name: asked[name] for name in ("shard_size", "sample_bytes")} | {"shuffle": False} | manifest.options


def _shown(options: dict[str, str | int | float | None], name: str) -> str:
    value = options.get(name)
    return "unset" if value is None else str(value)


def _input_difference(
    made: int, there: Sequence[InputInfo], inputs: Sequence[Input], options: Options, name: str
) -> str | None:
    """The first difference between values of the command line and those of a manifest that was made at a time in ns."""
    values_there = [info.input for info in there]
    if [found.name for found in inputs] != values_there:
        return f"from the {name} {' '.join(values_there) or '(none)'}"
    inputs = [_as_recorded(found, info) for found, info in zip(inputs, there, strict=True)]
    modified = []
    for i, (found, info) in enumerate(zip(inputs, there, strict=True)):
        if (found.kind, info.kind) == ("datasets", "hub"):
            return f"from files of the hub for {found.value}, which is converted now (in offline mode, or it has other files)"
        if (found.kind, len(found.files), found.num_bytes) != (info.kind, info.files, info.bytes):
            return f"the input {found.value} has changed since"
        modified += [i] if found.may_have_changed_since(made, info.versions) else []
    tasks = cut_into_tasks(inputs) if modified else []
    for i in modified:
        digests = (read_digest(task, options) for task in tasks if task.input == i)
        if input_digest(digests) != there[i].digest:
            return f"the input {inputs[i].value} has changed since"
    return None


def _as_recorded(found: Input, info: InputInfo) -> Input:
    """The input, cut into tasks as it was then: offline, and by earlier versions, each dataset of the hub is converted."""
    return converted_dataset(found.value) if (found.kind, info.kind) == ("hub", "datasets") else found
