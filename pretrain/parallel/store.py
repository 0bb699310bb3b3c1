"""The TCPStore at MASTER_ADDR:MASTER_PORT through which the ranks find each other; rank 0 or torchrun's agent hosts it.

torch's own client prints C++ backtraces while nobody answers, and waits without limit for a server that is not a TCPStore. So
Python's sockets find out whether there is a server before torch connects to it, and whether it is still there.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from data_pipeline.errors import first_line
from data_pipeline.stop_signals import Stopped
from pretrain.errors import UserError

RESOLVE_SECONDS = 20.0
"""How long a host name may be unknown: name servers of a cluster that has just started are late."""

CONNECT_SECONDS = 20.0
"""How long one connection may take once there is a server."""

ANOTHER_PORT = "choose a different one (deepspeed --master_port N, torchrun --master-port N, or MASTER_PORT=N)"


def store_address() -> tuple[str, int]:
    """(MASTER_ADDR, MASTER_PORT)."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def agent_hosts_store() -> bool:
    """Whether torchrun's agent hosts the store; otherwise rank 0 does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def of_this_attempt(store: dist.Store) -> dist.Store:
    """The part of the store that belongs to these processes.

    torchrun's agent keeps the store when it starts the ranks again (--max-restarts). What the processes before have left there must
    not be read: addresses where nobody listens any more.
    """
    return dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def is_closed(connection: socket.socket) -> bool:
    """Whether the server of an idle connection is gone."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def connect(rank: int, size: int, seconds: float, stop: Callable[[], int | None]) -> tuple[dist.Store, socket.socket]:
    """The store and an idle connection to its host. Rank 0 hosts it, unless torchrun's agent does.

    Args:
        seconds: how long to wait for the host.
        stop: the signal that has arrived, or None.

    Raises:
        UserError: there is no store at the address; rank 0 cannot host it.
        Stopped: a signal has arrived.
    """
    name, (host, port) = f"rank {rank} of {size} ({socket.gethostname()})", store_address()
    if rank > 0 or agent_hosts_store():
        idle = _wait_for_host(name, seconds, stop)
        return _open(host, port, name, min(seconds, CONNECT_SECONDS)), idle
    try:
        # Not at MASTER_ADDR: torch would wait for its timeout and print a backtrace if that is not this machine.
        store = dist.TCPStore(
            "localhost", port, is_master=True, timeout=timedelta(seconds=CONNECT_SECONDS), wait_for_workers=False,
            multi_tenant=True,
        )  # fmt: skip
    except dist.DistError as error:
        used = "EADDRINUSE" in str(error)
        why = f"another process uses this port; {ANOTHER_PORT}" if used else first_line(error)
        raise UserError(f"{name} cannot open MASTER_PORT={port}: {why}") from error
    return store, _wait_for_host(name, CONNECT_SECONDS, stop)


def _wait_for_host(name: str, seconds: float, stop: Callable[[], int | None]) -> socket.socket:
    """Connect as soon as somebody listens at the address."""
    host, port = store_address()
    begin = time.monotonic()
    while True:
        try:
            return socket.create_connection((host, port), timeout=min(seconds, CONNECT_SECONDS))
        except OSError as error:
            waited = time.monotonic() - begin
            if isinstance(error, socket.gaierror) and waited > min(seconds, RESOLVE_SECONDS):
                raise UserError(
                    f"{name}: MASTER_ADDR={host} is not the name of a host ({error.strerror}); set it to the name or address of "
                    "the host of rank 0"
                ) from None
            if waited > seconds:
                raise UserError(_nobody(name, waited, error)) from None
        if (number := stop()) is not None:
            raise Stopped(number)
        time.sleep(0.2)


def _nobody(name: str, waited: float, error: OSError) -> str:
    host, port = store_address()
    return (
        f"{name} could not connect to rank 0 at MASTER_ADDR={host}, MASTER_PORT={port} within {waited:.0f} s "
        f"({error.strerror or error}). Check that rank 0 was started on that host and is still running, that all ranks have the "
        "same MASTER_ADDR and MASTER_PORT, and that no firewall blocks the port"
    )


def _open(host: str, port: int, name: str, seconds: float) -> dist.Store:
    """Connect torch's client in a thread: it would wait without limit for a server that is not a TCPStore."""
    opened: list[dist.Store | dist.DistError] = []

    def work() -> None:
        try:
            timeout = timedelta(seconds=seconds + 5)  # later than ours: torch prints a backtrace
            opened.append(dist.TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False))
        except dist.DistError as error:
            opened.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if opened and not isinstance(opened[0], dist.DistError):
        return opened[0]
    raise UserError(
        f"{name}: what answers at MASTER_ADDR={host}, MASTER_PORT={port} is not rank 0 of this run; another program uses this "
        f"port: {ANOTHER_PORT}"
    )
