"""An error before the first step, on one rank or on all: printed once, with the rank named, and every process ends in a minute."""

import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from tests.launching import BIN, ROOT, environment, free_port, run

pytestmark = pytest.mark.distributed
HOST = socket.gethostname()
ARGUMENTS = ["--config", "tests/tiny.yaml"]
TRAIN = [sys.executable, "pretrain/main.py", *ARGUMENTS]
FAILING = [sys.executable, "tests/distributed/failing.py"]
PYTHONPATH = str(ROOT)


def start(folder, *commands, one_console=False):
    """Start plain processes as the ranks of a world; returns what each printed to stderr, and their statuses.

    With `one_console` they have one standard error, whose text is returned for each.
    """
    place = {
        "PYTHONPATH": PYTHONPATH,
        "WORLD_SIZE": str(len(commands)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    files = [folder / f"stderr_{0 if one_console else rank}" for rank in range(len(commands))]
    processes = []
    try:
        with ExitStack() as stack:
            for rank, (command, file) in enumerate(zip(commands, files, strict=True)):
                here = environment() | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                stderr = stack.enter_context(file.open("a"))
                words = [str(word) for word in command]
                processes.append(subprocess.Popen(words, cwd=ROOT, env=here, stdout=subprocess.DEVNULL, stderr=stderr))
        statuses = _wait(processes)
    finally:
        for process in processes:
            process.kill()
    return [file.read_text() for file in files], statuses


def _wait(processes):
    """Statuses of processes that all end within a minute of the first; to get there may take a busy machine longer."""
    begin, first = time.monotonic(), None
    while None in (statuses := [process.poll() for process in processes]):
        now = time.monotonic()
        first = now if first is None and statuses.count(None) < len(statuses) else first
        assert now < begin + 180 and (first is None or now < first + 60), statuses
        time.sleep(0.1)
    return statuses


def under_torchrun(*words, ranks=2):
    command = [BIN / "torchrun", f"--nproc-per-node={ranks}", f"--master-port={free_port()}", *words]
    return run(command, timeout=180, PYTHONPATH=PYTHONPATH)


def test_a_mistake_of_all_ranks_is_printed_by_rank_0_alone(tmp_path, corpus):
    printed, statuses = start(tmp_path, *2 * [[*TRAIN, f"data.path={corpus}", "optm.lr=1"]])
    expected = "error: 1 problem in the configuration:\n  - optm.lr: unknown key; did you mean optim.lr?\n"
    assert printed == [expected, ""] and statuses == [2, 2]


def test_a_mistake_of_one_rank_is_printed_where_it_is_and_by_rank_0(tmp_path, corpus):
    """As when the data are missing on one node: rank 0 does not wait for the rank that has ended."""
    commands = [[*TRAIN, f"data.path={corpus}"], [*TRAIN, "data.path=nowhere"]]
    printed, statuses = start(tmp_path, *commands)
    assert printed[0] == printed[1] and statuses == [2, 2]
    assert printed[0].startswith(
        f"error: rank 1 ({HOST}): no prepared data folder at nowhere (from {ROOT}); prepare one with:"
    )


@pytest.mark.parametrize("how", ["fails", "refuses", "dies"])
def test_one_rank_fails_after_the_ranks_have_met(tmp_path, corpus, how):
    words = [*FAILING, 1, how, *ARGUMENTS, f"data.path={corpus}", f"run.dir={tmp_path}"]
    printed, statuses = start(tmp_path, words, words)
    if how == "fails":
        assert statuses[1] == 1 and printed[1].startswith(f"error: rank 1 ({HOST}): unexpected error\nTraceback")
        assert printed[1].endswith("KeyError: 'unexpected'\n") and printed[1].count("Traceback") == 1
    if how == "refuses":
        assert statuses[1] == 2 and printed[1] == f"error: rank 1 ({HOST}): this rank refuses\n"
    if how == "dies":
        assert statuses == [1, 9] and f"error: rank 0: rank 1 ({HOST}, pid" in printed[0]
    assert statuses[0] != 0 and printed[0].startswith("error: ") and "Traceback" not in printed[0]
    assert not list(tmp_path.glob("tiny/checkpoints"))


def test_under_torchrun_a_refusal_is_never_lost():
    """torchrun ends all ranks as soon as one has exited. It was lost in a third of the starts."""
    layout = (["model.num_kv_heads=1", "parallel.tensor=2"], "parallel.tensor=2: does not divide model.num_kv_heads=1")
    for words, message in (layout, layout, (["--optm"], "--optm: no such option")):
        done = under_torchrun("pretrain/main.py", *ARGUMENTS, *words)
        assert done.returncode == 1
        assert done.stderr.count("error:") == 1, done.stderr
        assert message in done.stderr
        assert not re.search(r"exitcode *: *-\d", done.stderr)
