"""The first command of the README, whole: `bash launchers/quickstart.sh` in a fresh copy of the repository."""

import json
import shutil
import subprocess

import pytest

from tests.launching import ROOT, environment

pytestmark = pytest.mark.end_to_end


def test_quickstart_learns_and_a_second_call_reuses_what_is_there(tmp_path):
    if not (ROOT / ".venv" / ".loopmdm-installed").is_file():
        pytest.skip("no .venv made by launchers/install.sh: quickstart would install one (run bash launchers/test.sh)")
    # Otherwise a copy with a newer setup.py would install itself into the environment that the link below leads to.
    subprocess.run(["bash", "launchers/install.sh"], cwd=ROOT, check=True, timeout=900, capture_output=True)
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    for name in listed.splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    variables = {k: v for k, v in environment().items() if k != "OMP_NUM_THREADS"}
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            ["bash", "launchers/quickstart.sh"],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        outputs.append(done.stdout)

    run_folder = tmp_path / "runs" / "quickstart"
    figures = json.loads((run_folder / "eval" / "step_900_ema.json").read_text())
    best = min(row["bits_per_byte"] for row in figures["loops"])
    assert best < 0.75 * figures["unigram_entropy"]["bits_per_byte"]
    assert list((run_folder / "samples").glob("*.json"))
    assert list((run_folder / "tensorboard").glob("events.*"))
    assert "already prepared, nothing to do" in outputs[1]
    assert "nothing to do: runs/quickstart is at step 900" in outputs[1]
