"""How a training process ends: reasons to stop as a request to the loop, and the exit itself."""

import math
import os
import signal
import sys
import time
from contextlib import ExitStack, suppress
from types import FrameType
from typing import NoReturn, Self

from data_pipeline.stop_signals import signal_handler

STOPPED = 75
"""Exit status of a start that saved before the end of the run and wants to be started again (EX_TEMPFAIL in sysexits.h)."""

LAUNCHED = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
"""Variables that torchrun and deepspeed set for their ranks."""


def end_process(status: int) -> NoReturn:
    """Exit with this status; after an error, without shutting the interpreter down.

    The ranks of a failed run exit without closing their process groups, whose threads may still be busy. A thread that
    returns to an interpreter that is gone aborts the process (seen: SIGABRT, "terminate called without an active
    exception"), and the launcher would report that instead of the error.
    """
    if status == 0:
        sys.exit(0)
    leave_at_once(status)


def leave_at_once(status: int) -> NoReturn:
    """Exit with this status without shutting the interpreter down."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


class StopRequest:
    """Why this rank is to stop after the present step, if it is. Used as a context manager around the training.

    - SIGINT, SIGTERM, SIGUSR1 and SIGHUP, the last unless it was ignored at the start (nohup). A launcher may send several (Ctrl-C
      reaches the whole process group, then `deepspeed` terminates its children). All of them ask for the same stop and none
      interrupts the save; a process that does not respond has to be killed.
    - The end of `run.time_limit`.
    - The end of torchrun or deepspeed: a rank without its launcher would hold the run folder, and nobody could stop it.

    Args:
        time_limit: minutes from now; None: no limit.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        self._reason: str | None = None
        self._deadline = math.inf if time_limit is None else time.monotonic() + 60 * time_limit
        self._launcher = os.getppid() if any(name in os.environ for name in LAUNCHED) else None
        self._handlers = ExitStack()

    @property
    def reason(self) -> str | None:
        """The name of the signal, or what else; None if there is no reason to stop."""
        if self._reason is None and time.monotonic() > self._deadline:
            self._reason = "run.time_limit"
        if self._reason is None and self.launcher_ended:
            self._reason = "the end of its launcher"
        return self._reason

    @property
    def launcher_ended(self) -> bool:
        """Whether torchrun or deepspeed started this rank and has ended."""
        return self._launcher not in (None, os.getppid())

    @property
    def requested(self) -> bool:
        """Whether there is a reason to stop."""
        return self.reason is not None

    def __enter__(self) -> Self:
        always = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._handlers.enter_context(signal_handler(self._remember, always, replace_ignored=True))
        self._handlers.enter_context(signal_handler(self._remember, (signal.SIGHUP,)))
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()

    def _remember(self, number: int, _: FrameType | None) -> None:
        self._reason = self._reason or signal.Signals(number).name
