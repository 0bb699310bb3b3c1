"""How an error that ends a command reaches the person: once over all ranks, with the rank named. Imports no torch.

An error that all ranks have, such as a mistake in the configuration, is printed by rank 0. An error of some ranks only is printed
by rank 0 and, where their standard error goes elsewhere, by the first of these ranks on each host. What the ranks have is
exchanged in `rendezvous.py`; a rank that reaches nobody prints its error itself.
"""

import errno
import signal
import traceback
from collections.abc import Callable

from data_pipeline.errors import DataError
from data_pipeline.stop_signals import Stopped
from pretrain.errors import RankError, ReportedError, UserError
from pretrain.parallel.attendance import Attendance, print_error
from pretrain.parallel.launcher import read_launcher

Ranks = tuple[int, int, int]


def run_reporting_errors(command: Callable[[Ranks], int]) -> int:
    """Run a command that may be one of several ranks, and print the error that ends it.

    Args:
        command: called with (rank, world size, local rank); returns the exit status.

    Returns:
        The command's status; 2 after an error that the user can fix, 1 after any other error of a rank among several, 128 + n
        if signal n arrived before the ranks had met, or Ctrl-C while nothing handled it.

    Raises:
        Exception: any other error of a single process.
    """
    try:
        ranks = read_launcher()
    except UserError as error:
        print_error(str(error))
        return 2
    try:
        return command(ranks)
    except Stopped as stopped:
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        raise
    except Exception as error:
        return _report(error, ranks)


def _report(error: Exception, ranks: Ranks) -> int:
    """Print an error once over all ranks; returns the exit status."""
    rank, size, _ = ranks
    message = _message(error)
    if isinstance(error, ReportedError):
        return 2
    if size == 1 and message is None:
        raise error
    if size == 1 or isinstance(error, RankError):
        print_error(str(message))
        return 2
    text = message or f"unexpected error\n{_trace(error)}"
    try:
        from pretrain.parallel.rendezvous import report_failure

        report_failure(rank, size, text)
    except ReportedError:
        pass
    except (Exception, Stopped):  # the others cannot be reached
        print_error(f"{Attendance(rank, size)}: {text}")
    return 1 if message is None else 2


def _message(error: Exception) -> str | None:
    """What to print of an error that needs no traceback; None for the others."""
    if isinstance(error, UserError | DataError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error}; free some space and run the same command again"
    if isinstance(error, OSError) and error.filename is not None:  # it names the file and the reason
        return str(error)
    return None


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error)).rstrip()
