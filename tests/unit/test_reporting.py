"""The error that ends a command: what is printed, by whom, and the exit status."""

import errno

import pytest

from data_pipeline.errors import DataError, first_line
from data_pipeline.stop_signals import Stopped
from pretrain import cli
from pretrain.errors import RankError, ReportedError, UserError
from pretrain.parallel import rendezvous, reporting
from pretrain.parallel.reporting import run_reporting_errors

ALONE, SECOND = (0, 1, 0), (1, 2, 0)


@pytest.fixture
def told(monkeypatch):
    """The messages that this rank reports to the others. They are not answered if `told` holds an exception."""
    messages = []

    def report(rank, size, message):
        messages.append(message)
        raise messages[0] if isinstance(messages[0], Exception) else ReportedError(message)

    monkeypatch.setattr(rendezvous, "report_failure", report)
    return messages


def end(monkeypatch, ranks, error):
    def command(given):
        assert given == ranks
        raise error

    monkeypatch.setattr(reporting, "read_launcher", lambda: ranks)
    return run_reporting_errors(command)


@pytest.mark.parametrize("error", [UserError("no data"), DataError("no data")])
def test_a_single_process_prints_its_error(monkeypatch, capsys, error):
    assert end(monkeypatch, ALONE, error) == 2
    assert capsys.readouterr().err == "error: no data\n"


def test_a_full_disk_is_an_error_of_the_user(monkeypatch, capsys):
    assert end(monkeypatch, ALONE, OSError(errno.ENOSPC, "No space left on device", "/runs/x")) == 2
    expected = "error: [Errno 28] No space left on device: '/runs/x'; free some space and run the same command again\n"
    assert capsys.readouterr().err == expected


def test_a_file_that_cannot_be_read_is_named_without_a_traceback(monkeypatch, capsys):
    assert end(monkeypatch, ALONE, OSError(errno.EIO, "Input/output error", "/data/x.bin")) == 2
    assert capsys.readouterr().err == "error: [Errno 5] Input/output error: '/data/x.bin'\n"
    with pytest.raises(OSError, match="too many"):
        end(monkeypatch, ALONE, OSError("too many"))


def test_an_unexpected_error_of_a_single_process_is_raised(monkeypatch):
    with pytest.raises(KeyError):
        end(monkeypatch, ALONE, KeyError("unexpected"))


def test_ctrl_c_before_anything_handles_it_ends_without_a_traceback(monkeypatch, capsys):
    """While torch is imported, say."""
    for ranks in (ALONE, SECOND):
        assert end(monkeypatch, ranks, KeyboardInterrupt()) == 130
    monkeypatch.setattr("sys.argv", ["loopmdm", "status", "runs/x"])
    monkeypatch.setattr(cli, "main", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(cli, "prepare_console", lambda **_: None)
    monkeypatch.setattr(cli, "end_process", lambda status: None)
    with pytest.raises(SystemExit) as ended:
        cli.command()
    assert ended.value.code == 130 and capsys.readouterr() == ("", "")


def test_one_of_several_ranks_leaves_it_to_rank_0(monkeypatch, capsys, told):
    assert end(monkeypatch, SECOND, UserError("no data")) == 2
    assert told == ["no data"] and capsys.readouterr().err == ""


def test_an_unexpected_error_of_a_rank_is_reported_with_its_traceback(monkeypatch, capsys, told):
    assert end(monkeypatch, SECOND, KeyError("unexpected")) == 1
    assert told[0].startswith("unexpected error\nTraceback") and told[0].endswith("KeyError: 'unexpected'")


@pytest.mark.parametrize("answer", [RankError("nobody there"), ImportError("no torch")])
def test_a_rank_that_reaches_nobody_prints_its_error_itself(monkeypatch, capsys, told, answer):
    told.append(answer)
    assert end(monkeypatch, SECOND, UserError("no data")) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: rank 1 (") and printed.endswith("): no data\n")


def test_an_error_that_names_its_rank_is_printed_at_once(monkeypatch, capsys, told):
    assert end(monkeypatch, SECOND, RankError("rank 1 ran out of memory")) == 2
    assert capsys.readouterr().err == "error: rank 1 ran out of memory\n" and told == []


def test_what_has_been_printed_is_not_printed_again(monkeypatch, capsys, told):
    assert end(monkeypatch, SECOND, ReportedError("no data")) == 2
    assert capsys.readouterr().err == "" and told == []


def test_a_signal_before_the_ranks_have_met(monkeypatch):
    def command(_):
        raise Stopped(15)

    monkeypatch.setattr(reporting, "read_launcher", lambda: SECOND)
    assert run_reporting_errors(command) == 128 + 15


def test_half_set_variables_are_an_error_of_the_user(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    for name in ("WORLD_SIZE", "LOCAL_RANK"):  # DeepSpeed sets the latter in the process of the tests
        monkeypatch.delenv(name, raising=False)
    assert run_reporting_errors(lambda ranks: 0) == 2
    assert capsys.readouterr().err.startswith("error: WORLD_SIZE is not set, although RANK=0 is set")


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("one\ntwo"), "one"), (ValueError("\n one"), "one"), (ValueError(), "ValueError"),
     (AssertionError("\n"), "AssertionError")],
)  # fmt: skip
def test_the_first_line_of_an_error_of_a_library(error, line):
    assert first_line(error) == line
