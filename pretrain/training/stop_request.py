"""The ends of a run: Ctrl-C and SIGTERM as a request that the loop answers after its step, and the end of the process."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn, Self


def end_process(status: int) -> NoReturn:
    """End with this status, without taking the interpreter down when it is an error.

    The ranks of a run that failed leave without closing their process groups, whose threads may be at work: one that
    comes back to an interpreter that is gone aborts the process (seen: SIGABRT, "terminate called without an active
    exception"), and the launcher would tell that instead of the error.
    """
    if status == 0:
        sys.exit(0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class StopRequest:
    """Remembers that SIGINT or SIGTERM came, while used as a context manager.

    A launcher may send several (Ctrl-C reaches the whole process group, then `deepspeed` terminates its children): all
    of them ask for the same stop, none cuts the save short. SIGKILL is what ends a process that does not answer.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """True once a signal came."""
        return self.signal is not None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
