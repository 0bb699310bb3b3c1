"""The files of a checkpoint: what is written is read again, and every damage is found."""

import os
import random
import shutil
import threading
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pretrain.checkpoints import writer_process
from pretrain.checkpoints.damage import DamagedCheckpointError
from pretrain.checkpoints.folder import MARK, prune, read_index, write_mark
from pretrain.checkpoints.index import Entry, Index, key_of, merged
from pretrain.checkpoints.reader import Reader
from pretrain.checkpoints.rectangles import Rectangle
from pretrain.checkpoints.save import Save, file_of, write_part
from pretrain.checkpoints.states import Snapshot
from pretrain.checkpoints.tensor_file import STOP_SIGNALS, TensorFile
from pretrain.errors import UserError
from pretrain.training.checkpoint import set_aside

WHOLE = torch.arange(24.0).view(6, 4)
PARTS = [Rectangle(0, 0, 2, 4), Rectangle(2, 0, 1, 3), Rectangle(2, 3, 1, 1), Rectangle(3, 0, 3, 4)]


def filled(tensors):
    """A file in memory with the values of these tensors."""
    file = TensorFile({name: value.shape for name, value in tensors.items()})
    for name, value in tensors.items():
        file.tensors[name].copy_(value)
    return file


@pytest.fixture
def checkpoint(tmp_path):
    """Two weights of two ranks, in two tensors each."""
    save = Save(tmp_path / "step_3", Snapshot(TensorFile({}), Index({}, {}, ())), "{}\n")
    save.partial.mkdir()
    parts = []
    for rank in (0, 1):
        tensors, entries = {}, []
        for part in PARTS[2 * rank : 2 * rank + 2]:
            for name, factor in (("weight", 1.0), ("ema", -1.0)):
                values = (factor * WHOLE)[part.within(Rectangle(0, 0, 6, 4))].contiguous()
                tensors[key_of(name, "a.weight", part)] = values
            entries.append(Entry("a.weight", part, file_of(rank), {"weight": 0, "ema": 0}))
        index = Index({"a.weight": (6, 4)}, {"a.weight": {"step": 3.0}}, tuple(entries))
        parts.append(write_part(Save(save.final, Snapshot(filled(tensors), index), "{}\n"), rank))
    (save.partial / "index.json").write_text(merged(parts).to_json())
    (save.partial / "state.json").write_text("{}\n")
    write_mark(save.partial)
    return save.partial.rename(save.final)


def test_any_rectangle_can_be_read(checkpoint):
    with Reader(checkpoint, read_index(checkpoint)) as reader:
        assert torch.equal(reader.whole("weight", "a.weight"), WHOLE)
        assert torch.equal(reader.whole("ema", "a.weight"), -WHOLE)
        for row, column in ((0, 0), (1, 2), (2, 1)):
            for rows, columns in ((1, 1), (2, 2), (4, 1)):
                wanted = Rectangle(row, column, rows, columns)
                assert torch.equal(reader.read("ema", "a.weight", wanted), -WHOLE[wanted.within(Rectangle(0, 0, 6, 4))])
        reader.verify([file_of(0), file_of(1)])


def test_the_index_reads_what_it_wrote(checkpoint):
    index = read_index(checkpoint)
    assert Index.from_json(index.to_json()) == index
    assert index.tensors("a.weight") == {"weight", "ema"}


def test_files_are_those_of_the_safetensors_library(tmp_path):
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7), "empty": torch.zeros(0, 4)}
    filled(tensors).write(tmp_path / "x")
    read = load_file(tmp_path / "x")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


def test_a_disk_that_is_full_is_an_error_of_the_write():
    with pytest.raises(OSError, match="No space left on device"):
        filled({"a": torch.randn(1000)}).write(Path("/dev/full"))


def test_a_writing_process_that_is_killed_is_an_error(tmp_path, monkeypatch):
    """As by the system when memory runs out."""
    script = tmp_path / "script.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(writer_process, "__file__", str(script))
    with pytest.raises(OSError, match="the process that writes it was killed, perhaps because memory ran out"):
        filled({"a": torch.randn(3)}).write(tmp_path / "x")


def command_of(process: psutil.Process) -> list[str]:
    """Empty for a process that has ended; libraries and other tests may have left such children."""
    return process.as_dict(["cmdline"], ad_value=[])["cmdline"]


def test_signals_that_stop_a_job_do_not_stop_the_writing_process(tmp_path):
    """It cannot go on before the pipe that it writes to is read, which is after the signals."""
    file, pipe = filled({"a": torch.randn(1_000_000)}), tmp_path / "pipe"
    os.mkfifo(pipe)
    errors: list[str] = []

    def write():
        try:
            file.write(pipe)
        except OSError as error:
            errors.append(str(error))

    thread = threading.Thread(target=write)
    thread.start()
    with pipe.open("rb") as reader:
        head = reader.read(1)
        (writer,) = [child for child in psutil.Process().children() if writer_process.__file__ in command_of(child)]
        for number in STOP_SIGNALS:
            writer.send_signal(number)
        content = head + reader.read()
        thread.join(60)
    assert len(content) == file.num_bytes
    assert errors == ["[Errno 22] Invalid argument"]  # a pipe cannot be forced to a disk


def whole_or_damaged(checkpoint):
    """Read everything; returns the two tensors."""
    index = read_index(checkpoint)
    with Reader(checkpoint, index) as reader:
        reader.verify([file_of(0), file_of(1)])
        return reader.whole("weight", "a.weight"), reader.whole("ema", "a.weight")


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(checkpoint, tmp_path):
    random.seed(0)
    for name in ("index.json", "state.json", MARK, file_of(0), file_of(1)):
        original = (checkpoint / name).read_bytes()
        for position in random.sample(range(len(original)), min(60, len(original))):
            damaged = bytearray(original)
            damaged[position] ^= 1 << random.randrange(8)
            (checkpoint / name).write_bytes(damaged)
            try:
                weight, ema = whole_or_damaged(checkpoint)
            except DamagedCheckpointError:
                continue
            assert torch.equal(weight, WHOLE), (name, position)
            assert torch.equal(ema, -WHOLE), (name, position)
        (checkpoint / name).write_bytes(original)
    whole_or_damaged(checkpoint)


@pytest.mark.parametrize("name", ["index.json", "state.json", file_of(1)])
def test_a_missing_or_truncated_file_is_named_before_anything_is_loaded(checkpoint, name):
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[:-1])
    with pytest.raises(DamagedCheckpointError, match=rf"{name} has {len(content) - 1:,} bytes, not {len(content):,}"):
        read_index(checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(DamagedCheckpointError, match=f"{name} is missing"):
        read_index(checkpoint)


def test_a_file_that_may_not_be_read_is_not_damaged(checkpoint, monkeypatch):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != file_of(1) and access(path, mode))
    with pytest.raises(
        UserError, match=f"{file_of(1)}: you may not read it; change its permissions, or rename"
    ) as caught:
        read_index(checkpoint)
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_of_a_link_only_the_link_is_pruned(checkpoint, tmp_path):
    """A checkpoint that somebody moved to another disk."""
    linked = tmp_path / "run" / "checkpoints" / "step_3"
    linked.parent.mkdir(parents=True)
    linked.symlink_to(checkpoint)
    prune(tmp_path / "run", {})
    assert not linked.is_symlink() and read_index(checkpoint)


def test_a_checkpoint_that_cannot_be_renamed_is_named(checkpoint):
    (checkpoint.parent / "step_3.damaged").write_text("a file where the folder would be")
    with pytest.raises(
        UserError, match=r"step_3: cannot be renamed to step_3\.damaged \(Not a directory\); rename or remove"
    ):
        set_aside(checkpoint, "damaged")
    assert read_index(checkpoint)


def test_a_file_of_another_checkpoint_is_found(checkpoint, tmp_path):
    """It has the same size and the same keys."""
    tensors = {name: value + 1 for name, value in load_file(checkpoint / file_of(0)).items()}
    filled(tensors).write(tmp_path / "other")
    shutil.copy(tmp_path / "other", checkpoint / file_of(0))
    with pytest.raises(DamagedCheckpointError, match=f"{file_of(0)}: the checksum of .* differs"):
        whole_or_damaged(checkpoint)
