"""Event files, which TensorBoard reads, in the order of the starts of a run.

TensorBoard reads the files of a folder by name, and at the session start at the head of a file it drops what it has read of
that step and later ones. The name begins with a time. torch's SummaryWriter takes the present one, so after a start whose
clock was behind, the older file would be read last, and the steps of both would be shown.
"""

import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text as text_summary

from pretrain.training.hooks.patient_file import PatientFile

NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class EventFile:
    """One start's event file. A write is visible to readers when it returns."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Create the file, with a name after those of all earlier starts.

        Args:
            first_step: steps from this one on are dropped from what earlier files say.
        """
        folder.mkdir(parents=True, exist_ok=True)
        times = [int(match[1]) for path in folder.iterdir() if (match := NAME.match(path.name))]
        second = max(int(time.time()), 1 + max(times, default=0))
        path = folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(PatientFile(path, "xb"))
        self._append(Event(file_version="brain.Event:2", source_metadata=SourceMetadata(writer="loopmdm")))
        self._append(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append the values of a step."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._append(Event(step=step, summary=Summary(value=values)))

    def write_text(self, step: int, tag: str, text: str) -> None:
        """Append a text in Markdown."""
        self._append(Event(step=step, summary=text_summary(tag, text)))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _append(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
