"""The GPU check runs from beginning to end on a CPU, with every part passing."""

import json

import pytest

from tests.launching import ROOT, run

pytestmark = pytest.mark.end_to_end


def test_gpu_check_passes_on_a_cpu(tmp_path):
    script = ROOT / "tests" / "gpu" / "check.sh"
    words = ["bash", script, "--device", "cpu", "--quick", "--output", tmp_path]
    done = run(words, timeout=240, cwd=tmp_path)
    log = (tmp_path / "log.txt").read_text() if (tmp_path / "log.txt").is_file() else ""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + log[-3000:]
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert all(part["ok"] for part in parts)
    checks = {part["check"] for part in parts}
    assert checks == {
        "start", "oracle", "attention", "fp32", "bf16", "resume", "commands", "throughput", "step_parts", "sampling"
    }  # fmt: skip
    table = (tmp_path / "results.md").read_text()
    assert all(f"| {part['check']} | {part['part']} | ok |" in table for part in parts)
