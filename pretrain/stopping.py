"""Ctrl-C and SIGTERM as a request that the loop answers at the end of its step."""

import signal
from types import FrameType
from typing import Self


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
