"""Shared fixtures: one-process groups, a tiny architecture, a tiny prepared corpus."""

import os
import random
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# CPUs with bf16 instructions add up products in an order that depends on the shapes: a sum that is rounded to bf16 may then differ
# between two ways to compute it, by 1e-5 of a gradient where a limit is 5e-6. All machines have the kernels without them.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# A job in the background inherits an ignored SIGINT, one under nohup an ignored SIGHUP: tests that send these would fail.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

from pretrain.machine.library_warnings import filter_library_warnings  # noqa: E402

filter_library_warnings()

from model.architecture import Architecture, LoopSplit  # noqa: E402


def pytest_terminal_summary(terminalreporter):
    """Print the tables that tests record, in whichever process they ran."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "table":
                terminalreporter.write_line(f"\n{value}")


@pytest.fixture(scope="session")
def world():
    """Process groups of one rank, as `loopmdm evaluate` makes them."""
    from pretrain.parallel.world import start_world

    return start_world((0, 1, 0))


@pytest.fixture(scope="session")
def tiny() -> Architecture:
    """1 + 2 x S + 1 layers with grouped-query attention and a vocabulary that needs padding."""
    split = LoopSplit(head=1, mid=2, tail=1, max=4)
    return Architecture(num_layers=4, hidden_size=32, num_heads=4, num_kv_heads=2, vocab_size=51, loop=split)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A prepared folder: 400 documents of a small artificial language, rows of 32 tokens."""
    from pretrain.cli import main

    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(60)]
    lines = (" ".join(rng.choices(words, k=rng.randint(20, 60))) for _ in range(400))
    text = folder / "text.jsonl"
    text.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    arguments = [
        "prepare",
        "--input",
        str(text),
        "--output",
        str(folder / "data"),
        "--vocab-size",
        "320",
        "--seq-len",
        "32",
    ]
    assert main([*arguments, "--validation-fraction", "0.1", "--workers", "1"]) == 0
    return folder / "data"


@pytest.fixture(scope="session")
def short_documents(corpus, tmp_path_factory) -> Path:
    """A prepared folder with the same tokenizer: several whole documents in each row of 32 tokens, padding at the ends."""
    from pretrain.cli import main

    folder = tmp_path_factory.mktemp("short_documents")
    rng = random.Random(1)
    # Most lengths are such that three documents leave some places of a row empty.
    lines = ("".join(rng.choices("abcdefghij", k=rng.choice((5, 11, 11, 11, 11, 25)))) for _ in range(900))
    text = folder / "text.jsonl"
    text.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    arguments = ["prepare", "--input", str(text), "--output", str(folder / "data"), "--seq-len", "32"]
    arguments += ["--tokenizer", str(corpus / "tokenizer.model"), "--pack", "best_fit"]
    assert main([*arguments, "--validation-fraction", "0.1", "--workers", "1"]) == 0
    return folder / "data"
