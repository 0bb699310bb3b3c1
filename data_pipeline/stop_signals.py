"""What a process does when it is asked to stop (Ctrl-C, SIGTERM, SIGHUP): handlers that are installed for one block."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the process to stop. Unwinds like KeyboardInterrupt, so that `finally` blocks clean up."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


@contextmanager
def signal_handler(
    handler: Callable[[int, FrameType | None], None],
    numbers: Sequence[signal.Signals] = STOP_SIGNALS,
    replace_ignored: bool = False,
) -> Iterator[None]:
    """Install `handler` for some signals, and restore the previous handlers at the end of the block.

    Does nothing outside the main thread, where Python installs no handlers.

    Args:
        replace_ignored: also handle signals that are ignored now, such as SIGHUP under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if replace_ignored or previous[number] is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, previous[number])


@contextmanager
def raise_stopped() -> Iterator[None]:
    """Raise `Stopped` at the first stop signal, and ignore further ones while the block cleans up."""

    def stop(number: int, _: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    with signal_handler(stop):
        yield


@contextmanager
def defer_stop_signals() -> Iterator[None]:
    """Deliver a stop signal that arrives inside the block at its end, for steps that must not be interrupted."""
    arrived: list[int] = []
    try:
        with signal_handler(lambda number, _: arrived.append(number)):
            yield
    finally:
        for number in arrived[:1]:
            signal.raise_signal(number)
