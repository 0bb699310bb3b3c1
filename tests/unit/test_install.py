"""launchers/install.sh takes the Python that was named, and repairs what an interrupted call has left.

A stand-in for uv makes real environments and writes the records of packages without downloading any.
"""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launching import ROOT

pytestmark = pytest.mark.slow
PYTHON = Path(sys.executable).resolve()
PINS = {(3, 11): "launchers/pins.txt", (3, 12): "launchers/pins-py312.txt"}
UV = f"""#!{PYTHON}
import os, pathlib, subprocess, sys, time
with open(os.environ["UV_LOG"], "a") as log:
    print(*sys.argv[1:], *(os.environ.get(k, "") for k in ("UV_DEFAULT_INDEX", "UV_FIND_LINKS")), file=log)
def package(name, *files, record=True):
    packages = next(pathlib.Path(".venv/lib").iterdir()) / "site-packages"
    (packages / name).mkdir(parents=True, exist_ok=True)
    info = packages / (name + "-1.dist-info")
    info.mkdir(exist_ok=True)
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: " + name + "\\nVersion: 1\\n")
    for file, text in files:
        (packages / name / file).write_text(text)
    if record:
        info.joinpath("RECORD").write_text("".join(f"{{name}}/{{file}},,{{len(text)}}\\n" for file, text in files))
if sys.argv[1] == "venv":
    subprocess.run([sys.argv[sys.argv.index("--python") + 1], "-m", "venv", "--without-pip", ".venv"], check=True)
    pip = "import sys; "
    pip += "print(\\"global.index-url='https://mirror/simple'\\\\nglobal.find-links='/a /b'\\"); "
    pip += "sys.exit('config' not in sys.argv)"
    package("pip", ("__init__.py", ""), ("__main__.py", pip))
else:
    how = os.environ.get("UV_DOES", "")
    if how == "fail":
        sys.exit("no network")
    package("torch", ("__init__.py", "x" * 9), record=how not in ("sleep", "stop") or "torch" in sys.argv)
    time.sleep(2 * (how == "sleep"))
"""


@pytest.fixture
def repository(tmp_path):
    """A folder with the files that install.sh reads, and a `bin/` with the stand-in and the only Pythons."""
    folder = tmp_path / "repository"
    (folder / "launchers").mkdir(parents=True)
    for name in ("setup.py", "launchers/install.sh", *PINS.values()):
        shutil.copy(ROOT / name, folder / name)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "uv").write_text(UV)
    (programs / "uv").chmod(0o755)
    (programs / "python3.11").symlink_to(PYTHON)
    (programs / "python3.13").write_text("#!/bin/sh\necho 3.13.0 /opt/python\n")
    (programs / "python3.13").chmod(0o755)
    return folder


def variables(repository, **extra):
    programs = repository.parent / "bin"
    system = {"PATH": f"{programs}:/usr/bin:/bin", "UV_LOG": str(repository.parent / "uv.log"), "HOME": str(repository)}
    return system | {key: str(value) for key, value in extra.items()}


def install(repository, *extras, **extra):
    return subprocess.run(
        ["bash", "launchers/install.sh", *extras], cwd=repository, env=variables(repository, **extra), capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip


def uv_calls(repository):
    """What uv was called with since the last call of this function."""
    log = repository.parent / "uv.log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def mark(repository):
    file = repository / ".venv" / ".loopmdm-installed"
    return file.read_text().split() if file.exists() else None


NAMED = [
    ("/no/such/python", "PYTHON=/no/such/python does not exist or is not executable; name a Python 3.11 or 3.12"),
    ("launchers", "launchers does not exist or is not executable"),
    ("/bin/ls", "PYTHON=/bin/ls does not run as Python 3 (ls"),
    ("{bin}/python3.13", "{bin}/python3.13 is Python 3.13.0, but 3.11 or 3.12 is needed"),
    ("../bin/python3.13", "/../bin/python3.13 is Python 3.13.0"),
    ("python3.13", "PYTHON=python3.13 is Python 3.13.0"),
]


@pytest.mark.parametrize(("named", "message"), NAMED, ids=[name for name, _ in NAMED])
def test_a_named_python_that_cannot_be_used_is_refused(repository, named, message):
    programs = str(repository.parent / "bin")
    done = install(repository, PYTHON=named.replace("{bin}", programs))
    assert done.returncode == 2 and message.replace("{bin}", programs) in done.stderr
    assert not (repository / ".venv").exists() and uv_calls(repository) == []


def test_without_a_named_python_the_search_says_which_one_it_takes(repository):
    done = install(repository)
    assert done.returncode == 0, done.stderr
    assert (
        f"creating .venv with Python {platform.python_version()} ({repository.parent / 'bin' / 'python3.11'})"
        in done.stdout
    )
    (repository.parent / "bin" / "python3.11").unlink()
    shutil.rmtree(repository / ".venv")
    for name in ("python3.11", "python3.12", "python3", "python"):
        (repository.parent / "bin" / name).write_text("#!/bin/sh\necho 3.13.0 /opt/python\n")
        (repository.parent / "bin" / name).chmod(0o755)
    done = install(repository)
    assert done.returncode == 2 and "no Python 3.11 or 3.12 with venv found" in done.stderr


def test_a_second_call_does_nothing_and_extras_are_added_to_the_earlier_ones(repository):
    assert install(repository).returncode == 0
    assert "pip install" in uv_calls(repository)[1] and len(mark(repository)) == 1
    done = install(repository, PYTHON=PYTHON)  # the same as that of .venv
    assert (done.returncode, done.stdout, uv_calls(repository)) == (0, "", [])
    assert install(repository, "dev").returncode == 0 and "-e .[dev]" in uv_calls(repository)[0]
    assert install(repository, "eval").returncode == 0 and "-e .[dev,eval]" in uv_calls(repository)[0]
    assert install(repository, "dev").stdout == "" and mark(repository)[1:] == ["dev", "eval"]
    done = install(repository, "devv")
    assert done.returncode == 2
    assert "no extra named 'devv' in setup.py; it has: gpu eval s3 gcs wandb trackio dev" in done.stderr
    assert install(repository, "s3").returncode == 0 and mark(repository)[1:] == ["dev", "eval", "s3"]
    for version, file in PINS.items():
        with (repository / file).open("a") as pins:
            pins.write("# changed\n")
        assert install(repository).returncode == 0
        used = any(f"-c {file} -e .[dev,eval,s3]" in call for call in uv_calls(repository))
        assert used == (version == sys.version_info[:2])


def test_an_environment_of_another_python_is_not_replaced(repository):
    assert install(repository).returncode == 0
    other = repository.parent / "bin" / "other"
    other.write_text("#!/bin/sh\necho 3.12.1 /opt/other\n")
    other.chmod(0o755)
    uv_calls(repository)
    done = install(repository, PYTHON=other)
    assert done.returncode == 2 and "is Python 3.12.1 /opt/other, but .venv was made with 3.1" in done.stderr
    assert "rm -r .venv" in done.stderr and mark(repository) and uv_calls(repository) == []


def test_a_killed_installation_is_repaired_by_the_next_call(repository):
    """The killed call's child goes on for a while: the next call waits for it, then finds the package without its record."""
    words = ["bash", "launchers/install.sh"]
    first = subprocess.Popen(
        words, cwd=repository, env=variables(repository, UV_DOES="sleep"), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while not (repository / "../uv.log").exists() or "pip install" not in (repository / "../uv.log").read_text():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert mark(repository) is None
    second = install(repository, UV_DOES="stop")
    assert second.returncode == 0, second.stderr
    assert "another installation is running in this folder; waiting for it" in second.stdout
    assert "installing again, because files are missing: torch" in second.stdout and mark(repository)
    assert f"--force-reinstall --no-deps -c {PINS[sys.version_info[:2]]} torch" in uv_calls(repository)[-1]


@pytest.mark.parametrize("damage", [lambda file: file.write_text(""), Path.unlink], ids=["cut short", "missing"])
def test_a_damaged_file_is_found(repository, damage):
    assert install(repository).returncode == 0
    (file,) = (repository / ".venv" / "lib").glob("*/site-packages/torch/__init__.py")
    damage(file)
    (repository / ".venv" / ".loopmdm-installed").unlink()
    uv = repository.parent / "bin" / "uv"
    uv.write_text(uv.read_text().replace('    package("torch"', '    if "torch" in sys.argv: package("torch"'))
    done = install(repository)
    assert done.returncode == 0 and "files are missing: torch" in done.stdout and file.read_text() == "x" * 9


def broken_python(venv):
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/no/such/python3.11")


def another_version(venv):
    (library,) = (venv / "lib").iterdir()
    library.rename(library.with_name("python3.9"))


def interrupted_pip(venv):
    (record,) = venv.glob("lib/*/site-packages/pip-1.dist-info/RECORD")
    record.unlink()


def incomplete_pip(venv):
    (file,) = venv.glob("lib/*/site-packages/pip/__init__.py")
    file.unlink()


def only_folders(venv):
    shutil.rmtree(venv)
    (venv / "lib").mkdir(parents=True)


@pytest.mark.parametrize("damage", [broken_python, another_version, interrupted_pip, incomplete_pip, only_folders])
def test_a_broken_environment_is_made_again(repository, damage):
    assert install(repository).returncode == 0
    damage(repository / ".venv")
    done = install(repository)
    assert done.returncode == 0 and "removing .venv: it is incomplete" in done.stdout, done.stderr
    assert mark(repository) and install(repository).stdout == ""


def test_a_copied_environment_is_made_again(repository):
    """Its programs still start the Python of the original."""
    assert install(repository).returncode == 0
    copy = repository.with_name("copy")
    shutil.copytree(repository, copy, symlinks=True)
    assert "removing .venv: it is incomplete, was moved or copied" in install(copy).stdout
    (copy / ".venv" / "added").touch()
    shutil.rmtree(repository / ".venv")
    (repository / ".venv").symlink_to(copy / ".venv")  # a link is no copy
    assert install(repository).stdout == "" and (copy / ".venv" / "added").exists()


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_not_ours_is_not_removed(repository, kind):
    other = repository.parent / "other"
    other.mkdir()
    (other / "file").touch()
    (repository / ".venv").symlink_to(other) if kind == "link" else other.rename(repository / ".venv")
    done = install(repository)
    assert (
        done.returncode == 2
        and (".venv is a link to" if kind == "link" else "is not a virtual environment") in done.stderr
    )
    assert (repository / ".venv" / "file").exists()


def test_without_network_neither_uv_nor_pip_leaves_a_mark(repository):
    done = install(repository, UV_DOES="fail")
    assert done.returncode == 2 and "uv failed; trying pip" in done.stderr
    assert "the installation is not complete" in done.stderr and mark(repository) is None
    assert install(repository).returncode == 0 and mark(repository)


def test_without_uv_pip_installs(repository):
    (repository.parent / "bin" / "uv").unlink()
    done = install(repository, PIP_NO_INDEX=1)
    assert done.returncode == 2 and "the installation is not complete" in done.stderr and mark(repository) is None
    assert list((repository / ".venv").glob("lib/*/site-packages/pip"))


def test_uv_gets_the_configuration_of_pip(repository):
    assert install(repository).returncode == 0
    assert uv_calls(repository)[1].endswith(" https://mirror/simple /a,/b")
    (repository / ".venv" / ".loopmdm-installed").unlink()
    assert install(repository, UV_DEFAULT_INDEX="https://own").returncode == 0
    assert uv_calls(repository)[0].endswith(" https://own /a,/b")
