"""Exceptions with messages for the user, and parts of such messages."""

import errno
import os
from collections.abc import Sequence
from typing import Self

ADVICE = {
    errno.EMFILE: "allow more open files with ulimit -n",
    errno.ENFILE: "close files of other programs",
    errno.ENOMEM: "use fewer --workers or more memory",
}


def first_line(error: BaseException) -> str:
    """The first line of the message of a library's exception; the name of its class if there is no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def listed(names: Sequence[str], most: int) -> str:
    """`a, b and 3 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


class DataError(Exception):
    """A problem with inputs, options or a prepared folder.

    The message is written for the user: it names the file, key or option and says what to do. The commands print it as
    ``error: MESSAGE`` without a traceback.
    """


class ReadError(OSError):
    """An input cannot be read now, or two reads of it gave different content.

    This does not show that the content is broken, so no record is left out because of it: the task has to be done again.
    `errno` and `filename` are set as for any OSError.
    """

    @classmethod
    def of(cls, error: OSError | MemoryError, filename: str, place: str = "") -> Self:
        """The error for an input at which the system reported `error`.

        Args:
            place: how far the file was read, such as "after line 12".
        """
        number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
        # The messages of libraries repeat the number and do not say more than the system does.
        reason = error.strerror if isinstance(error, cls) else number and os.strerror(number)
        return cls(number or errno.EIO, " ".join(filter(None, (reason or str(error), place))), filename)

    @classmethod
    def differs(cls, filename: str, difference: str) -> Self:
        """The error for an input that did not read as before."""
        return cls(errno.EIO, f"two reads gave different content ({difference})", filename)

    def __str__(self) -> str:
        advice = f"{ADVICE[self.errno]}, then " if self.errno in ADVICE else ""
        return f"cannot read {self.filename}: {self.strerror}; {advice}run the same command again"
