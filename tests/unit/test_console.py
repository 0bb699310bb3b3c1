"""What is printed reaches every kind of console and the log, and a console that fails does not end a run."""

import io
import logging
import os
import subprocess
import sys
import warnings

import pytest

from pretrain.cli import main
from pretrain.machine.console import ASCII, ERRORS
from pretrain.training.rank_logs import Tee, logged
from tests.launching import ROOT, environment

SHOWN = [
    ("ascii", "2.9±0.1 …", "2.9+/-0.1 ..."),
    ("ascii", "漢\udce9", "\\u6f22\\xe9"),
    ("latin-1", "é ± 漢", "é ± \\u6f22"),
    ("utf-8", "é ± 漢 \udce9", "é ± 漢 \\xe9"),
]


@pytest.mark.parametrize(("encoding", "text", "shown"), SHOWN)
def test_characters_that_the_encoding_lacks_are_replaced(encoding, text, shown):
    assert text.encode(encoding, ERRORS).decode(encoding) == shown


def test_every_character_that_the_project_prints_has_a_spelling():
    files = [
        *(ROOT / "pretrain").rglob("*.py"),
        *(ROOT / "model").rglob("*.py"),
        *(ROOT / "data_pipeline").rglob("*.py"),
    ]
    only_in_html_or_data = {"é", "漢"}
    printed = {c for path in files for c in path.read_text(encoding="utf-8") if ord(c) > 127} - only_in_html_or_data
    assert printed <= ASCII.keys() and "".join(ASCII.values()).isascii()


def start(code, stdout=subprocess.PIPE, shell="", **variables):
    words = [sys.executable, "-c", "from pretrain.machine.console import prepare_console\n" + code]
    if shell:
        words = ["bash", "-c", f'exec "$@" {shell}', "bash", *words]
    return subprocess.run(
        words,
        cwd=ROOT,
        env=environment() | variables,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def no_reader():
    """The write end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


PRINT = "prepare_console({})\nfor n in range(3): print('x' * 9000, flush=n > 0)\nopen({!r}, 'w').write('done')"


@pytest.mark.parametrize("shell", ["", "> /dev/full", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_command_outlives_its_console(no_reader, tmp_path, shell):
    done = start(PRINT.format("outlive_reader=True", str(tmp_path / "end")), no_reader, shell)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "end").read_text() == "done"


def test_without_outliving_printing_raises_and_the_interpreter_ends_quietly(no_reader, tmp_path):
    done = start(PRINT.format("", str(tmp_path / "end")), no_reader)
    assert done.returncode == 1 and done.stderr.count("BrokenPipeError") == 1 and not (tmp_path / "end").exists()
    done = start("prepare_console()\nprint('left in the buffer')", no_reader, PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_standard_output_does_not_print_into_the_next_file(tmp_path):
    code = f"prepare_console()\nimport os\nfile = open({str(tmp_path / 'checkpoint')!r}, 'w')\nos.write(1, b'from C')\nprint(1)"
    assert start(code, shell=">&-").returncode == 0
    assert (tmp_path / "checkpoint").read_bytes() == b""


@pytest.mark.parametrize(
    ("target", "status", "error"), [("pipe", 141, ""), ("> /dev/full", 2, "error: [Errno 28] No space left on device")]
)
def test_a_verb_that_only_prints_ends_without_a_traceback(no_reader, corpus, target, status, error):
    code = f"import sys\nsys.argv[1:] = ['inspect', {str(corpus)!r}]\nfrom pretrain.cli import command\ncommand()"
    done = start(code, no_reader, "" if target == "pipe" else target)
    assert done.returncode == status and done.stderr.startswith(error) and done.stderr.count("\n") == bool(error)


def test_a_folder_whose_name_is_not_utf8_has_a_page(corpus, tmp_path):
    folder = tmp_path / os.fsdecode(b"d\xe9")
    folder.symlink_to(corpus)
    assert main(["inspect", str(folder), "--html", str(tmp_path / "page.html"), "--documents", "1", "--rows", "1"]) == 0
    assert "d\\udce9" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_prompt_that_is_not_utf8_is_refused(tmp_path, capsys):
    assert main(["sample", str(tmp_path), "--prompt", os.fsdecode(b"d\xe9")]) == 2
    assert "error: --prompt: byte 0xe9 at position 1 is not UTF-8" in capsys.readouterr().err


def test_the_log_takes_every_character(tmp_path):
    console = io.StringIO()
    Tee(console, tmp_path / "log").write("é ± 漢 \udce9\n")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "é ± 漢 \\xe9\n"


def test_messages_of_libraries_go_to_the_log_and_errors_to_the_console_too(tmp_path, capsys):
    """As DeepSpeed's: a logger with a handler of its own for the console, which does not propagate."""
    own = logging.getLogger("tests.own_handler")
    own.propagate, handler = False, logging.StreamHandler(sys.stdout)
    own.addHandler(handler)
    plain = logging.getLogger("tests.plain")
    with logged(tmp_path, 3) as log:
        for logger in (own, plain):
            logger.warning("a warning of %s", logger.name)
            logger.error("an error of %s", logger.name)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a Python warning", UserWarning, stacklevel=1)
        print("a figure")
    printed = capsys.readouterr()
    assert printed.out == "an error of tests.own_handler\na figure\n"
    assert printed.err == "an error of tests.plain\n"
    kept = log.read_text()
    for text in ("a warning of", "an error of"):
        assert all(f"{name}: {text} {name}" in kept for name in (own.name, plain.name))
    assert "UserWarning: a Python warning" in kept and kept.endswith("a figure\n")
    assert handler.level == logging.NOTSET and all(h.__class__.__name__ != "LibraryMessages" for h in own.handlers)
