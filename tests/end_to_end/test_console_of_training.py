"""Commands on a terminal that is not UTF-8, and a training whose reader goes away."""

import re
import subprocess
import sys

import pytest

from tests.launching import ROOT, environment, training_command

pytestmark = pytest.mark.end_to_end
ASCII_ONLY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
VERBS = """
from pretrain.machine.console import prepare_console
prepare_console()
from pretrain.cli import main
for words in {}:
    assert main(words) == 0, words
"""


def test_a_training_and_the_verbs_print_ascii_and_log_utf8(corpus, tmp_path):
    """The training's reader closes the pipe after the validation before the last ones."""
    words = ["--config", ROOT / "tests" / "tiny.yaml", f"data.path={corpus}", f"run.dir={tmp_path}", "train.steps=6"]
    command = [str(word) for word in training_command(*words, "eval.every=2", "log.every=1", "checkpoint.every=6")]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment() | ASCII_ONLY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    printed = b""
    for line in process.stdout:
        printed += line
        if line.startswith(b"validation at step 2"):
            break
    process.stdout.close()
    assert process.wait(120) == 0 and process.stderr.read() == b""
    assert printed.isascii() and b"+/-" in printed
    log = (tmp_path / "tiny" / "logs" / "rank_0.log").read_text(encoding="utf-8")
    assert log.count("±") >= 3 and "done: 6 steps" in log

    run = str(tmp_path / "tiny")
    verbs = [
        ["evaluate", run, "--loops", "1,2", "--rows", "8"],
        ["sample", run, "--steps", "2", "--length", "16", "--num-samples", "1"],
        ["inspect", str(corpus), "--documents", "1", "--rows", "1"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", VERBS.format(verbs)], cwd=ROOT, env=environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.isascii() and b" +/- " in done.stdout and re.search(rb"\+ document \d+, ", done.stdout)
