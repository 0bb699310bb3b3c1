"""How a training process ends: SIGINT and SIGTERM as a request to the loop, and the exit itself."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn, Self

from data_pipeline.stop_signals import signal_handler


def end_process(status: int) -> NoReturn:
    """Exit with this status; after an error, without shutting the interpreter down.

    The ranks of a failed run exit without closing their process groups, whose threads may still be busy. A thread that
    returns to an interpreter that is gone aborts the process (seen: SIGABRT, "terminate called without an active
    exception"), and the launcher would report that instead of the error.
    """
    if status == 0:
        sys.exit(0)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


class StopRequest:
    """Remembers whether SIGINT or SIGTERM arrived while it was used as a context manager.

    A launcher may send several (Ctrl-C reaches the whole process group, then `deepspeed` terminates its children). All of
    them ask for the same stop and none interrupts the save; a process that does not respond has to be killed.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._handler = signal_handler(self._remember, (signal.SIGINT, signal.SIGTERM), replace_ignored=True)

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal is not None

    def __enter__(self) -> Self:
        self._handler.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._handler.__exit__(None, None, None)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
