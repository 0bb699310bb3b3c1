"""An installed wheel needs no repository: recipes, DeepSpeed files, page files and all commands come with it."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.launching import BIN, ROOT, environment, free_port, metrics

pytestmark = pytest.mark.end_to_end
IN_THE_WHEEL = {
    *(f"ds_configs/zero{stage}.json" for stage in range(4)),
    *(f"pretrain/recipes/{name}.yaml" for name in ("paper_170m", "quickstart", "smoke", "sudoku6")),
    "pretrain/studies/definitions/sudoku.yaml",
    "pretrain/inspection/page.css",
    "pretrain/inspection/page.js",
    "loopmdm_cli/__init__.py",
}


def pip(*words, cwd):
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without network from the files that git knows."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, "./source", cwd=folder)
    return next(folder.glob("*.whl"))


def test_the_wheel_is_complete(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert names >= IN_THE_WHEEL
    assert any(name.endswith("/LICENSE") for name in names)
    packages = ("pretrain", "model", "data_pipeline", "ds_configs")
    modules = {str(path.relative_to(ROOT)) for package in packages for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} - {"loopmdm_cli/__init__.py"} == modules
    assert not [name for name in names if name.startswith(("tests/", "launchers/"))]


def test_all_works_without_the_repository_and_beside_other_peoples_names(wheel, corpus, tmp_path):
    """One launch of two ranks, in a folder with a `model.py` and a `data_pipeline/`, and the console command."""
    site = tmp_path / "site"
    pip("install", "--quiet", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    (tmp_path / "model.py").write_text("raise SystemExit('foreign')")
    (tmp_path / "data_pipeline").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "pretrain.py").write_text("raise SystemExit('foreign')")
    variables = environment()

    def run(*words, path=f"{site}"):
        done = subprocess.run(
            [str(word) for word in words], cwd=tmp_path, env=variables | {"PYTHONPATH": path}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    steps = ["train.steps=2", "optim.warmup_steps=1", "eval.every=null", "log.every=1", "run.dir=runs"]
    recipe = ["--config", "smoke", f"data.path={corpus}", "data.seq_len=32", *steps]
    run(BIN / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}", "-m", "pretrain.main", *recipe)
    assert len(metrics(tmp_path / "runs" / "smoke")) == 2
    console = [site / "bin" / "loopmdm"]
    mixed = os.pathsep.join(map(str, (tmp_path / "elsewhere", tmp_path, site)))
    run(*console, "inspect", corpus, "--html", "page.html", path=mixed)
    assert "<style>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    shown = run(*console, "--help", path=mixed)
    assert "loopmdm train --config RECIPE" in shown and "torchrun --nproc-per-node 8 -m pretrain.main" in shown
