"""The ranks exchange their errors before they start: threads that share one store, each with standard error of its own."""

import signal
import socket
import threading
import time

import pytest
import torch
import torch.distributed as dist

from pretrain.config.run_plan import Shape
from pretrain.errors import RankError, ReportedError, UserError
from pretrain.parallel import attendance, rendezvous
from pretrain.parallel.attendance import Attendance, describe, name_ranks
from pretrain.parallel.engine import device_number
from pretrain.parallel.rendezvous import Limits, Rendezvous
from pretrain.parallel.store import connect, is_closed
from pretrain.parallel.world import World, device_index

HOST = socket.gethostname()
SHORT = Limits(come=1.0, connect=1.0, report=1.0, collect=0.5, linger=0.5)


@pytest.fixture(autouse=True)
def address(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("MASTER_PORT", "29500")


def together(ranks, limits=SHORT, *, monkeypatch):
    """Run these ranks in one store; returns what each printed and how it ended."""
    store, printed, ended = dist.HashStore(), {}, {}

    def work(own):
        printed[own.rank] = []
        try:
            Rendezvous(store, own, limits).run()
            ended[own.rank] = "went on"
        except UserError as error:
            ended[own.rank] = error

    threads = {own.rank: threading.Thread(target=work, args=(own,), name=str(own.rank)) for own in ranks}

    def show(text):
        printed[int(threading.current_thread().name)].append(text)

    monkeypatch.setattr(rendezvous, "print_error", show)
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(10)
    assert len(ended) == len(ranks)
    return printed, ended


def come(*messages, outputs="console", hosts=(HOST,) * 9, size=None):
    outputs = [outputs] * len(messages) if isinstance(outputs, str) else outputs
    size = size or len(messages)
    return [Attendance(rank, size, text, hosts[rank], outputs[rank]) for rank, text in enumerate(messages)]


def test_all_ranks_go_on(monkeypatch):
    printed, ended = together(come("", "", ""), monkeypatch=monkeypatch)
    assert set(ended.values()) == {"went on"} and not any(printed.values())


LOST = f"rank 1 ({HOST}): no data"
PRINTED = {
    "all alike": (come("no key", "no key", outputs=["0", "1"]), {0: ["no key"], 1: []}),
    "one rank, one console": (come("", "no data"), {0: [LOST], 1: []}),
    "one rank, two consoles": (come("", "no data", outputs=["0", "1"]), {0: [LOST], 1: [LOST]}),
    "rank 0": (come("no data", "", outputs=["0", "1"]), {0: [f"rank 0 ({HOST}): no data"], 1: []}),
    "two errors": (
        come("no data", "no disk"),
        {0: [f"several ranks cannot start:\n  rank 0 ({HOST}): no data\n  rank 1 ({HOST}): no disk"], 1: []},
    ),
    "a whole host": (
        come("", "", "no data", "no data", outputs=["a", "a", "b2", "b3"], hosts=["a", "a", "b", "b"]),
        {0: ["ranks 2, 3 (b): no data"], 1: [], 2: ["rank 2 (b): no data"], 3: []},
    ),
}


@pytest.mark.parametrize("case", PRINTED)
def test_each_error_is_printed_once_on_every_console_and_all_ranks_end(monkeypatch, case):
    ranks, expected = PRINTED[case]
    printed, ended = together(ranks, monkeypatch=monkeypatch)
    assert printed == expected
    assert all(isinstance(error, ReportedError) for error in ended.values())


def test_a_rank_that_never_comes(monkeypatch):
    begin = time.monotonic()
    printed, ended = together(come("", "", size=4), monkeypatch=monkeypatch)
    assert time.monotonic() - begin < 4
    (text,) = printed[0]
    assert "2 of 4 ranks came to MASTER_ADDR=node0, MASTER_PORT=29500 within 1 s; ranks 2, 3 did not" in text
    assert printed[1] == [] and all(isinstance(error, ReportedError) for error in ended.values())


def test_an_error_does_not_wait_for_a_rank_that_never_comes(monkeypatch):
    begin = time.monotonic()
    printed, _ = together(come("", "no data", size=3), Limits(collect=0.5, linger=0.5), monkeypatch=monkeypatch)
    assert printed[0] == [LOST] and time.monotonic() - begin < 4


def test_rank_0_never_comes(monkeypatch):
    printed, ended = together(come("", "", "no data")[1:], monkeypatch=monkeypatch)
    assert not any(printed.values())  # `reporting` prints the error of a rank whose report was not answered
    assert all(type(error) is RankError and "rank 0 has not answered at" in str(error) for error in ended.values())


def test_late_ranks_print_their_own_error(monkeypatch):
    store, printed = dist.HashStore(), []
    monkeypatch.setattr(rendezvous, "print_error", printed.append)
    begin = time.monotonic()
    for own in (Attendance(0, 2, "no data"), Attendance(1, 2, "no disk")):
        with pytest.raises(ReportedError):
            Rendezvous(store, own, SHORT).run()
        assert time.monotonic() - begin > SHORT.collect + SHORT.linger  # rank 0 has waited: it may host the store
    assert printed == [f"rank 0 ({HOST}): no data", f"rank 1 ({HOST}): no disk"]


def test_two_processes_of_one_rank(monkeypatch):
    store = dist.HashStore()
    store.add("process/0", 1)
    with pytest.raises(RankError, match=r"another process has come as rank 0 to MASTER_ADDR=node0.* RANK of its own"):
        Rendezvous(store, Attendance(0, 2), SHORT).run()


def test_different_world_sizes(monkeypatch):
    printed, ended = together([Attendance(0, 2), Attendance(1, 3)], monkeypatch=monkeypatch)
    assert printed[0] == [f"rank 1 ({HOST}): was started with WORLD_SIZE=3, but rank 0 with WORLD_SIZE=2"]
    assert all(isinstance(error, ReportedError) for error in ended.values())


def test_a_rank_beyond_the_world_of_rank_0(monkeypatch):
    store = dist.HashStore()
    threading.Thread(target=Rendezvous(store, Attendance(0, 1), SHORT).run).start()
    with pytest.raises(RankError, match=r"rank 2 \(.*\): was started with WORLD_SIZE=3, but rank 0 with WORLD_SIZE=1"):
        Rendezvous(store, Attendance(2, 3), SHORT).run()


def test_a_signal_ends_the_wait(monkeypatch):
    from data_pipeline.stop_signals import Stopped

    begin = time.monotonic()
    with pytest.raises(Stopped):
        Rendezvous(dist.HashStore(), Attendance(1, 2), Limits(), stop=lambda: signal.SIGTERM).run()
    assert time.monotonic() - begin < 10


def test_descriptions_are_bounded():
    assert name_ranks([3]) == "rank 3" and name_ranks([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7, 8"
    hosts = describe([Attendance(rank, 99, "no data", f"h{rank}") for rank in range(1, 90)])
    assert hosts.startswith("rank 1 (h1), rank 2 (h2)") and hosts.endswith("and ranks of 81 other hosts: no data")
    errors = describe([Attendance(rank, 99, f"no data {rank}", "h") for rank in range(1, 90)])
    assert errors.count("\n") == 9 and errors.endswith("and 81 other errors")


def test_no_store_at_the_address(monkeypatch):
    """A name that is unknown, a closed port, and a program that is not a store: each is named in time, without a backtrace."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
        cases = {"MASTER_ADDR=no-such-host.invalid is not the name of a host": lambda: None}
        for message, prepare in (
            *cases.items(),
            (f"could not connect to rank 0 at MASTER_ADDR=127.0.0.1, MASTER_PORT={port} within", lambda: None),
            (f"what answers at MASTER_ADDR=127.0.0.1, MASTER_PORT={port} is not rank 0", silent.listen),
        ):
            prepare()
            begin = time.monotonic()
            with pytest.raises(UserError, match=message):
                connect(1, 2, 1.0, lambda: None)
            assert time.monotonic() - begin < 10
            monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        with pytest.raises(UserError, match=f"cannot open MASTER_PORT={port}: another process uses this port; choose"):
            connect(0, 2, 1.0, lambda: None)


def test_the_connection_shows_when_the_host_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        assert not is_closed(client)
        accepted.close()
        time.sleep(0.1)
        assert is_closed(client)
        client.close()


def test_devices_of_ranks(monkeypatch):
    assert [device_index(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert [device_index(rank, 1) for rank in range(4)] == [0, 0, 0, 0]  # each task sees a device of its own
    assert device_number(World(3, 4, 3, torch.device("cuda", 0), Shape())) == 0  # DeepSpeed too
    assert device_number(World(3, 4, 3, torch.device("cpu"), Shape())) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(
        UserError, match=r"local rank 2 has no device: 2 CUDA devices are visible \(CUDA_VISIBLE_DEVICES=0,1\)"
    ):
        device_index(2, 2)


def test_the_output_of_a_process(monkeypatch):
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    console = attendance._output()
    assert console == attendance._output() and console.startswith(HOST)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert attendance._output().startswith("SLURM job 7")
