"""What the ranks report to each other before they start, and how their errors are shown. Imports no torch."""

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

MOST_SHOWN = 8
"""How many errors, and how many hosts of one error, are listed."""


def _output() -> str:
    """Identifies where the standard error of this process goes: ranks of one console have the same."""
    if os.environ.get("SLURM_PROCID"):  # srun merges what its tasks print
        return f"SLURM job {os.environ.get('SLURM_JOB_ID')}, step {os.environ.get('SLURM_STEP_ID')}"
    try:
        status = os.fstat(2)
    except OSError:  # closed
        return "none"
    return f"{socket.gethostname()} {status.st_dev} {status.st_ino}"


@dataclass(frozen=True)
class Attendance:
    """What a rank reports when it comes.

    Attributes:
        message: the error that ends it; empty if it can go on.
        output: identifies where its standard error goes.
    """

    rank: int
    size: int
    message: str = ""
    host: str = field(default_factory=socket.gethostname)
    output: str = field(default_factory=_output)

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host})"


def describe(failures: Sequence[Attendance]) -> str:
    """All errors in one text. Equal ones are grouped; one that all ranks have is shown without their names."""
    by_message: dict[str, list[Attendance]] = {}
    for failure in failures:
        by_message.setdefault(failure.message, []).append(failure)
    if len(by_message) == 1:
        ((message, alike),) = by_message.items()
        return message if len(alike) == alike[0].size else f"{_names(alike)}: {message}"
    shown = [f"\n  {_names(alike)}: {message}" for message, alike in list(by_message.items())[:MOST_SHOWN]]
    more = [f"\n  and {len(by_message) - MOST_SHOWN} other errors"] if len(by_message) > MOST_SHOWN else []
    return "several ranks cannot start:" + "".join(shown + more)


def _names(ranks: Sequence[Attendance]) -> str:
    """`ranks 0-3, 5 (host a), rank 8 (host b)`."""
    hosts: dict[str, list[int]] = {}
    for one in sorted(ranks, key=lambda one: one.rank):
        hosts.setdefault(one.host, []).append(one.rank)
    shown = [f"{name_ranks(numbers)} ({host})" for host, numbers in list(hosts.items())[:MOST_SHOWN]]
    return ", ".join(shown) + (
        f" and ranks of {len(hosts) - MOST_SHOWN} other hosts" if len(hosts) > MOST_SHOWN else ""
    )


def name_ranks(numbers: Sequence[int]) -> str:
    """`rank 3`, or `ranks 0-3, 5, 6`."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    listed = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(listed)}"


def prints_its_own_error(own: Attendance, zero: Attendance, failures: Sequence[Attendance]) -> bool:
    """Whether a rank other than 0 prints its error, although rank 0 has printed all `failures`.

    The first of the ranks of a host that have the same error does, if it prints elsewhere than rank 0 and not all ranks have it.
    So does a rank that came too late to be among the failures.
    """
    alike = [one for one in failures if one.message == own.message]
    if own.rank not in [one.rank for one in alike]:
        return bool(own.message)
    first = min(one.rank for one in alike if one.host == own.host)
    return len(alike) < own.size and own.output != zero.output and own.rank == first


def print_error(text: str) -> None:
    """Print an error that ends this process."""
    print(f"error: {text}", file=sys.stderr, flush=True)
