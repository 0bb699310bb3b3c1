"""Decide what to do about an output folder that is already there."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.manifest import MANIFEST_NAME, Manifest, check_files, load_manifest
from data_pipeline.readers.inputs import Input
from data_pipeline.tasks.encode import read_digest
from data_pipeline.tasks.join import input_digest
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.tasks import cut_into_tasks


def is_up_to_date(output: Path, inputs: Sequence[Input], options: Options, overwrite: bool) -> bool:
    """Whether `output` already holds what these inputs and options would give.

    Inputs are compared by name, number of files and bytes. When one of them may have been touched since the folder
    was made, its documents are read again and compared by digest.

    Raises:
        DataError: `output` holds something else and may not be replaced.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not output.is_dir():
        raise DataError(f"--output {output} is a file; choose another name")
    if not (output / MANIFEST_NAME).is_file():
        # Not even --overwrite removes a folder that this command did not write.
        raise DataError(f"--output {output} is not empty and not a prepared folder; choose another or empty it")
    if overwrite:
        return False
    manifest = load_manifest(output)
    if difference := _difference(output, manifest, inputs, options):
        raise DataError(f"{output} is already prepared, but {difference}; {_remedy(output, manifest, options)}")
    check_files(output, manifest)
    return True


def _remedy(output: Path, manifest: Manifest, options: Options) -> str:
    """Rows alone can be made anew without the text."""
    rows = {"seq_len": options.seq_len, "packing": options.packing}
    if manifest.options | rows == options.record():
        pack = f"loopmdm prepare --repack {output} --seq-len {options.seq_len} --pack {options.packing}"
        return f"change its rows with: {pack}; or replace it with --overwrite"
    return "replace it with --overwrite"


def _difference(output: Path, manifest: Manifest, inputs: Sequence[Input], options: Options) -> str | None:
    """The first difference between what is asked and what is there, in words."""
    asked, there = options.record(), manifest.options
    for name in sorted(asked.keys() | there.keys()):
        if asked.get(name) != there.get(name):
            return f"with {name} {there.get(name)} instead of {asked.get(name)}"
    return _input_difference(output, manifest, inputs, options)


def _input_difference(output: Path, manifest: Manifest, inputs: Sequence[Input], options: Options) -> str | None:
    words = [found.word for found in inputs]
    words_there = [info.input for info in manifest.inputs]
    if words != words_there:
        return f"from the inputs {' '.join(words_there)}"
    made = (output / MANIFEST_NAME).stat().st_mtime_ns
    touched = []
    for i, (found, info) in enumerate(zip(inputs, manifest.inputs, strict=True)):
        if (found.kind, len(found.files), found.num_bytes) != (info.kind, info.files, info.bytes):
            return f"the input {found.word} has changed since"
        touched += [i] if found.may_have_changed_since(made) else []
    tasks = cut_into_tasks(inputs) if touched else []
    for i in touched:
        digests = (read_digest(task, options) for task in tasks if task.input == i)
        if input_digest(digests) != manifest.inputs[i].digest:
            return f"the input {inputs[i].word} has changed since"
    return None
