"""The SLURM launchers: their messages without SLURM, and real jobs where a SLURM controller runs.

`tests/slurm/one_node.sh start` starts SLURM with one node on this machine; set SLURM_CONF as it prints.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.launching import metrics, train
from tests.study_runs import study

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHERS = REPOSITORY / "launchers"
SCRIPTS = sorted(LAUNCHERS.glob("*.sh"))
TIMEOUT = 180


def run_outside(script, *arguments, path=os.environ["PATH"]):
    """Run a launcher with plain bash, outside any SLURM job."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {"PATH": path}
    bash = shutil.which("bash")
    return subprocess.run(
        [bash, LAUNCHERS / script, *arguments], env=environment, check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_parses(script):
    checked = subprocess.run(["bash", "-n", script], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("script", ["pretrain.sh", "evaluate.sh", "prepare_data.sh", "study.sh"])
def test_usage_without_arguments(script):
    result = run_outside(script)
    assert result.returncode == 2
    how = "bash" if script == "study.sh" else "sbatch [sbatch options]"
    assert f"usage: {how} launchers/{script}" in result.stderr


@pytest.mark.parametrize("first", ["--nodes=2", "run.name=a"])
def test_something_else_in_place_of_the_recipe(first):
    result = run_outside("pretrain.sh", first)
    assert result.returncode == 2
    assert f"expected a recipe, found '{first}'" in result.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "hint"),
    [
        ("pretrain.sh", ["smoke", "run.name=a"], "torchrun"),
        ("evaluate.sh", ["runs/a", "--loops", "1,4"], "pretrain.cli evaluate runs/a --loops 1,4"),
        ("prepare_data.sh", ["--input", "a", "--output", "b"], "loopmdm prepare --input a --output b"),
        ("study.sh", ["sudoku", "--scale", "smoke"], "loopmdm study sudoku --scale smoke"),
    ],
)
def test_hint_outside_slurm(script, arguments, hint, tmp_path):
    # Only study.sh asks whether there is an sbatch, which this machine may have: an empty PATH hides it.
    result = run_outside(script, *arguments, **({"path": str(tmp_path)} if script == "study.sh" else {}))
    assert result.returncode == 2
    assert ("no sbatch" if script == "study.sh" else "not inside a SLURM job") in result.stderr
    assert hint in result.stderr


@pytest.fixture
def fake_slurm(tmp_path):
    """`sbatch`, `srun` and `scontrol` that run each job immediately and record their arguments."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    scripts = {
        "sbatch": """echo "$*" >>"$JOBS"; number=$(wc -l <"$JOBS"); tasks=""
            while [[ $1 == --* ]]; do
                [[ $1 != --array=* ]] || { last=${1#*-*-*-}; tasks=$(seq 0 "$last"); }
                shift
            done
            export SLURM_JOB_ID=$number SLURM_CPUS_PER_TASK=1 SLURM_ARRAY_TASK_MIN=0
            [[ -z $tasks ]] || export SLURM_ARRAY_TASK_COUNT=$((last + 1))
            for task in ${tasks:-none}; do
                [[ $task == none ]] || export SLURM_ARRAY_TASK_ID=$task
                bash "$@" >>"$JOBS.log" 2>&1 || exit
            done
            unset SLURM_ARRAY_TASK_ID
            echo "$number;cluster" """,
        "srun": """while [[ $1 == --* ]]; do shift; done; exec "$@" """,
        "scontrol": "exit 1",
    }
    for name, body in scripts.items():
        (bin_folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (bin_folder / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    jobs = tmp_path / "jobs"
    return kept | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "JOBS": str(jobs)}, jobs


@pytest.mark.timeout(180)
def test_an_array_of_jobs_gives_what_one_run_gives(tmp_path, fake_slurm):
    """The jobs run one after the other, without a SLURM controller to order them."""
    environment, jobs = fake_slurm
    inputs = []
    for i in range(4):
        inputs.append(tmp_path / f"{i}.txt")
        inputs[-1].write_text("".join(f"line {n} of text {i}, and some more words\n" for n in range(400)))
    words = ["--input", *inputs, "--vocab-size", "300", "--seq-len", "32", "--validation-fraction", "0", "--output"]
    submit = ["bash", LAUNCHERS / "prepare_data.sh", "--array", "3", *words, tmp_path / "shared"]
    submitted = subprocess.run(submit, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert submitted.returncode == 0, submitted.stderr + jobs.with_suffix(".log").read_text()
    assert submitted.stdout == "start: job 1\ntokens: job 2, an array of 3\njoin: job 3\n"
    started = jobs.read_text().splitlines()
    assert "--array=0-2 --dependency=afterok:1 " in started[1] and "--dependency=afterany:2 " in started[2]
    alone = [sys.executable, "-m", "pretrain.cli", "prepare", *words, tmp_path / "alone"]
    subprocess.run(alone, cwd=REPOSITORY, check=True, timeout=120)
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "shared").iterdir())
    for name in names:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()


@pytest.mark.timeout(180)
def test_a_study_is_one_job_per_training_and_a_page(tmp_path, fake_slurm, world):
    """The trainings are done already, so that each job only finds that its own is."""
    environment, jobs = fake_slurm
    words = ["sudoku", "--scale", "smoke", "--seeds", "2", "--output", tmp_path / "studies"]
    assert study(*words)[0] == 0
    (page,) = tmp_path.glob("studies/sudoku/smoke*/page.html")
    page.unlink()
    submit = ["bash", LAUNCHERS / "study.sh", *map(str, words)]
    submitted = subprocess.run(submit, env=environment, check=False, capture_output=True, text=True, timeout=120)
    log = jobs.with_suffix(".log").read_text()
    assert submitted.returncode == 0, submitted.stderr + log
    assert submitted.stdout == (
        "data: job 1\nlearning rates: job 2, an array of 2\nseeds: job 3, an array of 2\npage: job 4\n"
    )
    started = jobs.read_text().splitlines()
    assert started[0].endswith(" --units") and "--array=0-1 --dependency=afterok:1 " in started[1]
    assert "--array=2-3 --dependency=afterok:2 " in started[2] and "--dependency=afterok:3 " in started[3]
    assert log.count("done: looped, lr 0.002, seed 1") == 1 and "error" not in log
    assert page.exists()


def why_no_slurm():
    """The reason why no job can run here; empty if one can."""
    if shutil.which("sbatch") is None:
        return "no sbatch on this machine (see tests/slurm/one_node.sh)"
    try:
        nodes = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], check=False, capture_output=True, text=True, timeout=20
        )
    except subprocess.TimeoutExpired:
        return "the SLURM controller does not answer"
    if nodes.returncode:
        return f"no SLURM controller: {nodes.stderr.strip().splitlines()[-1]}"
    usable = {"idle", "mixed", "allocated"} & set(nodes.stdout.split())
    return "" if usable else f"no usable SLURM node: {nodes.stdout.split()}"


@pytest.fixture(scope="module")
def slurm():
    reason = why_no_slurm()
    if reason:
        pytest.skip(reason)


def submit(folder, options, launcher, *arguments):
    """Submit `launcher` from `folder` and wait; returns (exit code of the job, its log)."""
    log = folder / "job.out"
    log.unlink(missing_ok=True)
    command = ["sbatch", "--parsable", "--wait", f"--output={log}", *options, launcher, *map(str, arguments)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as waiting:
        job = waiting.stdout.readline().split(";")[0].strip()
        try:
            code = waiting.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            subprocess.run(["scancel", job], check=False)
            waiting.kill()
            pytest.fail(f"job {job} took more than {TIMEOUT} s:\n{read(log)}")
    return code, read(log)


def read(log):
    return log.read_text() if log.exists() else "(no log)"


STAND_IN = """
import os, signal, sys, time
keys = "RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS".split()
print(" ".join(f"{key}={os.environ[key]}" for key in keys), sys.argv[1:], flush=True)
if "stop" in sys.argv:
    def save(*_):
        time.sleep(1)
        print("saved by rank", os.environ["RANK"], flush=True)
        os._exit(0)
    signal.signal(signal.SIGTERM, save)
    time.sleep(1)  # by now both ranks handle the signal
    if os.environ["RANK"] == "0":
        os.system("scancel --signal=TERM " + os.environ["SLURM_JOB_ID"])
    time.sleep(60)
if "hang" in sys.argv and os.environ["RANK"] == "0":
    time.sleep(100)
sys.exit(7 if "fail" in sys.argv else 0)
"""


@pytest.fixture
def pretrain(tmp_path):
    """The launcher in a repository whose pretrain/main.py is a small script, in a folder with a space in its name."""
    repository = tmp_path / "a repository"
    (repository / "pretrain").mkdir(parents=True)
    (repository / "pretrain" / "main.py").write_text(STAND_IN)
    shutil.copytree(LAUNCHERS, repository / "launchers")
    (repository / ".venv" / "bin").mkdir(parents=True)
    (repository / ".venv" / "bin" / "python").symlink_to(sys.executable)
    return repository / "launchers" / "pretrain.sh"


@pytest.mark.usefixtures("slurm")
class TestRanks:
    def test_variables_and_arguments(self, tmp_path, pretrain):
        code, log = submit(tmp_path, ["--ntasks-per-node=2"], pretrain, "recipe", "run.name=two words")
        assert code == 0, log
        for rank in (0, 1):
            assert f"RANK={rank} LOCAL_RANK={rank} WORLD_SIZE=2 MASTER_ADDR=" in log
        assert "['--config', 'recipe', 'run.name=two words']" in log

    def test_exit_code_of_the_ranks_is_the_jobs(self, tmp_path, pretrain):
        code, log = submit(tmp_path, ["--ntasks-per-node=2"], pretrain, "recipe", "fail")
        assert code == 7, log

    def test_a_failed_rank_ends_those_that_wait_for_it(self, tmp_path, pretrain, monkeypatch):
        monkeypatch.setenv("SLURM_WAIT", "3")
        started = time.monotonic()
        code, log = submit(tmp_path, ["--ntasks-per-node=2"], pretrain, "recipe", "fail", "hang")
        assert code != 0, log
        assert time.monotonic() - started < 60, log

    def test_signal_reaches_the_ranks_and_not_the_script(self, tmp_path, pretrain):
        code, log = submit(tmp_path, ["--ntasks-per-node=2"], pretrain, "recipe", "stop")
        assert code == 0, log
        assert "saved by rank 0" in log
        assert "saved by rank 1" in log

    def test_more_ranks_than_cpus(self, tmp_path, pretrain, monkeypatch):
        monkeypatch.setenv("LOOPMDM_RANKS_PER_NODE", "100000")
        code, log = submit(tmp_path, [], pretrain, "recipe")
        assert code == 2
        assert "request more CPUs" in log

    def test_relative_path_to_the_script(self, pretrain):
        code, log = submit(pretrain.parent.parent, ["--ntasks-per-node=1"], "launchers/pretrain.sh", "recipe")
        assert code == 0, log


@pytest.mark.end_to_end
@pytest.mark.usefixtures("slurm")
def test_prepare_pretrain_and_evaluate(tmp_path):
    data = tmp_path / "data"
    prepare = ["--input", "stdlib:", "--output", data, "--vocab-size", "2048", "--seq-len", "128"]
    code, log = submit(tmp_path, ["--cpus-per-task=2"], LAUNCHERS / "prepare_data.sh", *prepare)
    assert code == 0, log

    overrides = [f"data.path={data}", f"run.dir={tmp_path}", "run.name=slurm"]
    code, log = submit(tmp_path, ["--ntasks-per-node=2"], LAUNCHERS / "pretrain.sh", "smoke", *overrides)
    assert code == 0, log
    assert (tmp_path / "slurm" / "metrics.jsonl").is_file(), log

    evaluate = [tmp_path / "slurm", "--loops", "1,2", "--rows", "16", "--output"]
    code, log = submit(tmp_path, ["--ntasks-per-node=2"], LAUNCHERS / "evaluate.sh", *evaluate, tmp_path / "two.json")
    assert code == 0 and "1 nodes x 2 ranks" in log, log
    alone = [sys.executable, "-m", "pretrain.cli", "evaluate", *evaluate, tmp_path / "one.json"]
    subprocess.run(alone, cwd=REPOSITORY, check=True, timeout=TIMEOUT)
    one, two = (
        [row["nats_per_token"] for row in json.loads((tmp_path / f"{name}.json").read_text())["loops"]]
        for name in ("one", "two")
    )
    assert len(one) == 2 and two == pytest.approx(one, rel=1e-6)


@pytest.fixture
def long_run(corpus, tmp_path):
    """Words of a run on two ranks, and its uninterrupted metrics."""
    words = [REPOSITORY / "tests" / "tiny.yaml", f"data.path={corpus}", f"run.dir={tmp_path}", "train.steps=200"]
    words += ["checkpoint.keep=1"]
    train("--config", *words, "run.name=whole", ranks=2)
    return [*words, "run.name=run"], losses(tmp_path / "whole")


def losses(folder):
    return [(record["step"], record["samples"], record["loss"]) for record in metrics(folder)]


def wait_for(condition, what, log):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"{what}:\n{read(log)}"
        time.sleep(0.3)


def steps_taken(folder):
    return len((folder / "metrics.jsonl").read_text().splitlines()) if (folder / "metrics.jsonl").exists() else 0


def state_of(job):
    shown = subprocess.run(["scontrol", "show", "job", job], check=False, capture_output=True, text=True).stdout
    return next((word.partition("=")[2] for word in shown.split() if word.startswith("JobState=")), "")


@pytest.mark.end_to_end
@pytest.mark.usefixtures("slurm")
def test_a_job_that_is_requeued_loses_a_rank_and_hits_its_limit_equals_an_undisturbed_one(tmp_path, long_run):
    words, expected = long_run
    log, folder = tmp_path / "job.out", tmp_path / "run"
    sbatch = ["sbatch", "--parsable", f"--output={log}", "--ntasks-per-node=2", LAUNCHERS / "pretrain.sh", *words]

    def submit_job(*more):
        command = [str(word) for word in (*sbatch, *more)]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.split(";")[0].strip()

    job = submit_job()
    try:
        wait_for(lambda: steps_taken(folder) > 20, "first start", log)
        subprocess.run(["scontrol", "requeue", job], check=True)
        wait_for(lambda: "resumed from" in read(log), "requeued", log)
        before = steps_taken(folder)
        wait_for(lambda: steps_taken(folder) > before + 20, "second start", log)
        ranks = [p for p in psutil.process_iter(["cmdline"]) if f"run.dir={tmp_path}" in (p.info["cmdline"] or ())]
        next(p for p in ranks if p.name().startswith("python")).kill()
        wait_for(lambda: state_of(job) in ("FAILED", "COMPLETED"), "killed rank", log)
        assert state_of(job) == "FAILED" and "error: rank " in read(log), read(log)
        before, job = steps_taken(folder), submit_job()
        wait_for(lambda: steps_taken(folder) > before + 20, "third start", log)
        # What SLURM does before the time limit of the job (--signal=TERM@180 in the launcher).
        subprocess.run(["scancel", "--signal=TERM", job], check=True)
        wait_for(lambda: "back into the queue" in read(log), "time limit", log)
        wait_for(lambda: state_of(job) == "COMPLETED", "last start", log)
    finally:
        subprocess.run(["scancel", job], check=False)
    assert losses(folder) == expected
