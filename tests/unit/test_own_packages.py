"""Other people's `pretrain.py`, `model/`, `data_pipeline/` and `tests/` on the module path do not take the place of ours."""

import re
import subprocess
import sys
import sysconfig
from argparse import Namespace
from types import ModuleType

import pytest

from pretrain.machine.own_packages import OWN_FOLDER, foreign_files, prefer_own_packages
from pretrain.machine.versions import changed_files, source_version
from tests.launching import ROOT, environment, run

pytestmark = pytest.mark.slow
REFUSED = ["--config", "smoke", "optm.lr=1"]
ANSWER = "optm.lr: unknown key; did you mean optim.lr?"
VERB = "from loopmdm_cli import command; command()"
LAUNCHERS = f"{ROOT / 'launchers'}:{ROOT}"


@pytest.fixture
def foreign(tmp_path):
    """A function that makes a folder with foreign modules: `name.py`, or `name/` with or without an `__init__.py`."""

    def make(kind, names=("data_pipeline", "ds_configs", "model", "pretrain", "tests")):
        folder = tmp_path / kind
        for name in names:
            if kind == "file":
                folder.mkdir(exist_ok=True)
                (folder / f"{name}.py").write_text("raise SystemExit('foreign')")
            else:
                (folder / name).mkdir(parents=True)
                (folder / name / ("__init__.py" if kind == "package" else "notes.txt")).write_text("")
        return folder

    return make


def start(words, cwd, module_path):
    return run([sys.executable, *words], timeout=60, cwd=cwd, PYTHONPATH=str(module_path))


@pytest.mark.parametrize("kind", ["file", "package", "folder"])
def test_every_way_to_start_finds_our_packages(foreign, kind):
    folder = foreign(kind)
    elsewhere = foreign(kind + "s", ("data_pipeline", "ds_configs", "model", "tests"))
    ways = {
        "script": ([ROOT / "pretrain" / "main.py", *REFUSED], folder, folder),
        "relative script": (["pretrain/main.py", *REFUSED], ROOT, folder),
        "script, python -P": (["-P", "pretrain/main.py", *REFUSED], ROOT, folder),
        "module in the checkout": (["-m", "pretrain.main", *REFUSED], ROOT, folder),
        "module in another folder": (["-m", "pretrain.main", *REFUSED], elsewhere, ROOT),
        "console command": (["-P", "-c", VERB, "train", *REFUSED], folder, f"{folder}:{LAUNCHERS}"),
        "console command in the path of another folder": (["-c", VERB, "train", *REFUSED], folder, f":{LAUNCHERS}"),
    }
    if kind != "file":
        ways = {
            name: ways[name] for name in ("module in another folder", "console command in the path of another folder")
        }
    done = {name: start(*way) for name, way in ways.items()}
    assert {name: (each.returncode, ANSWER in each.stderr) for name, each in done.items()} == dict.fromkeys(
        ways, (2, True)
    ), {name: each.stderr[-500:] for name, each in done.items()}


def test_a_slurm_job_submitted_beside_foreign_files_finds_our_packages(foreign):
    code = f'source "{ROOT}/launchers/slurm_job.sh"; exec "{sys.executable}" -m pretrain.cli train {" ".join(REFUSED)}'
    folder = foreign("file")
    done = subprocess.run(
        ["bash", "-c", code], cwd=folder, env=environment() | {"PYTHONPATH": str(folder)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and ANSWER in done.stderr


def test_a_slurm_job_does_not_replace_a_broken_environment_by_another_python(tmp_path):
    (tmp_path / "launchers").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/no/such/python")
    (tmp_path / "launchers" / "slurm_job.sh").write_text((ROOT / "launchers" / "slurm_job.sh").read_text())
    code = 'die() { echo "$*" >&2; exit 2; }; source launchers/slurm_job.sh; find_python numpy'
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (
        2,
        "",
    ) and f"{tmp_path}/.venv has no working Python: repair it" in done.stderr


@pytest.mark.parametrize("main", [["-m", "pretrain.cli"], ["console.py"]], ids=["module", "script"])
def test_worker_processes_find_our_packages(foreign, tmp_path, main):
    """They are spawned: each starts a new interpreter with the module path of the first process."""
    folder = foreign("file", ("data_pipeline", "model", "tests"))
    (folder / "console.py").write_text(f"{VERB.split(';')[0]}\nif __name__ == '__main__':\n    command()\n")
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("some words about nothing\n" * 400)
    words = ["prepare", "--input", tmp_path / "a.txt", "--input", tmp_path / "b.txt", "--output", tmp_path / "data"]
    options = ["--tokenizer", "bytes", "--seq-len", "64", "--workers", "2", "--validation-fraction", "0"]
    done = start([*main, *words, *options], folder, LAUNCHERS)
    assert done.returncode == 0 and (tmp_path / "data" / "manifest.json").is_file(), done.stderr[-2000:]


def test_a_foreign_module_that_is_already_imported_is_an_error_with_both_files(monkeypatch):
    module = ModuleType("model")
    module.__file__ = "/elsewhere/model.py"
    monkeypatch.setitem(sys.modules, "model", module)
    with pytest.raises(ImportError, match=rf"/elsewhere/model.py is already imported as 'model'.*{ROOT / 'model'}"):
        prefer_own_packages()


def test_the_console_command_names_a_foreign_pretrain_that_is_already_imported(tmp_path):
    (tmp_path / "pretrain.py").write_text("")
    done = start(["-c", f"import pretrain; {VERB}", "doctor"], tmp_path, LAUNCHERS)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and str(tmp_path / "pretrain.py") in done.stderr


def test_a_missing_package_is_not_taken_from_elsewhere(foreign, tmp_path, monkeypatch):
    from pretrain.machine.own_packages import OwnPackageFinder

    monkeypatch.syspath_prepend(foreign("package"))
    with pytest.raises(ImportError, match=r"empty/model: this package of loopmdm is missing"):
        OwnPackageFinder(tmp_path / "empty").find_spec("model")


def test_foreign_files_are_listed(foreign, monkeypatch):
    folder = foreign("file")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(ROOT)
    ours = ("data_pipeline", "ds_configs", "model", "pretrain")
    assert foreign_files() == [(name, folder / f"{name}.py") for name in ours]
    assert OWN_FOLDER == ROOT


def test_doctor_says_which_files_are_in_use(foreign, monkeypatch, capsys):
    from pretrain.commands import doctor

    folder = foreign("file")
    (folder / "numpy").mkdir()
    (folder / "numpy" / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "numpy", raising=False)
    monkeypatch.setattr(doctor, "_device_rows", list)
    assert doctor.run(Namespace()) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^loopmdm +{ROOT} \(checkout at commit \w+(, changed since)?\)$", printed, re.MULTILINE)
    assert sys.executable in printed
    assert re.search(rf"^libraries +{sysconfig.get_path('purelib')}, where", printed, re.MULTILINE)
    assert f", {folder / 'numpy'}" in printed and f"model: {folder / 'model.py'}" in printed


def test_files_that_another_package_has_overwritten_are_named(tmp_path):
    """As a wheel installs: a record with the hash of every file."""
    info = tmp_path / "loopmdm-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loopmdm\nVersion: 0.1.0\n")
    names, empty = ("pretrain/cli.py", "model/__init__.py"), "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"
    (info / "RECORD").write_text("".join(f"{name},sha256={empty},0\n" for name in names))
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert changed_files(tmp_path) == [] and source_version(tmp_path) == "installed, loopmdm 0.1.0"
    (tmp_path / "model" / "__init__.py").write_text("foreign = True")
    (tmp_path / "pretrain" / "cli.py").unlink()
    assert changed_files(tmp_path) == [tmp_path / "pretrain" / "cli.py", tmp_path / "model" / "__init__.py"]
    (info / "RECORD").unlink()
    assert source_version(tmp_path) == "a copy, without version"


def test_only_our_folders_change_a_checkout(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.py").write_text("")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "page.html").write_text("")
    assert source_version(tmp_path).startswith("checkout at commit ") and "changed" not in source_version(tmp_path)
    (tmp_path / "model" / "new.py").write_text("")
    assert source_version(tmp_path).endswith(", changed since")
