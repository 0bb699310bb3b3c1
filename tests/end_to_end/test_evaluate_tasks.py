"""`loopmdm evaluate --tasks`: the files it writes, going on after a stop, layouts, and what is refused."""

import json
import shutil
import sys

import pytest

from data_pipeline.dataset.blend import load_blend
from pretrain.cli import main as loopmdm
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.evaluation.scoring import TokenScorer
from pretrain.training.start import run_training
from tests.launching import BIN, ROOT, free_port, run

pytestmark = pytest.mark.end_to_end
QUESTIONS = [{"question": f"0{i}+1{i}", "answer": f"so #### {10 + 2 * i}"} for i in range(4)]
CHOICES = [{"question": f"0{i}+01", "choices": ["000", f"00{1 + i}"], "answer": 1} for i in range(4)]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Two steps on boards and sums, and files of questions."""
    folder = tmp_path_factory.mktemp("tasks")
    words = [
        "prepare",
        "--input",
        "sudoku4:300",
        "addition2:100",
        "--output",
        str(folder / "data"),
        "--pack",
        "best_fit",
    ]
    assert loopmdm([*words, "--validation-fraction", "0.1", "--workers", "1"]) == 0
    words = [
        f"data.path={folder / 'data'}",
        f"run.dir={folder}",
        "run.name=run",
        "train.steps=2",
        "optim.warmup_steps=0",
    ]
    settings = load_settings(str(ROOT / "tests" / "tiny.yaml"), words)
    blend = load_blend(settings.data.path)
    assert run_training(make_run_plan(settings, blend.manifest, 1), blend, resume=True) == 0
    for name, lines in (("sums", QUESTIONS), ("choices", CHOICES)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "prompt.txt").write_text("{question}={choice}\n")
    (folder / "sum_prompt.txt").write_text("{question}=\n")
    return folder


@pytest.fixture
def evaluate(trained, tmp_path, capsys):
    """Run the verb on a copy of the run; returns its status, output, errors and files of `eval/`."""
    shutil.copytree(trained / "run", tmp_path / "run", ignore=shutil.ignore_patterns("eval"))

    def call(*words):
        capsys.readouterr()
        sys.stdout.reconfigure(errors="backslashreplace")  # as `prepare_console` does for the command
        status = loopmdm(["evaluate", str(tmp_path / "run"), *map(str, words)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.out, printed.err, {path.name: path for path in (tmp_path / "run" / "eval").glob("*")}

    return call


def test_tasks_and_their_files(trained, evaluate):
    status, out, _, files = evaluate(
        "--tasks", "sudoku4", "addition2", trained / "data", "--limit", 10, "--loops", "1,3", "--masks", 4, "--steps", 5
    )  # fmt: skip
    assert status == 0 and out.count("wrote ") == 3
    names = ("sudoku4_steps_5", "addition2_steps_5", "data_masks_4")
    assert set(files) == {
        f"step_2_ema_{n}_loops_{end}" for n in names for end in ("1.items.jsonl", "3.items.jsonl", "1-3_limit_10.json")
    }
    result = json.loads(files["step_2_ema_sudoku4_steps_5_loops_1-3_limit_10.json"].read_text())
    assert (result["task"], result["metric"], result["items"], result["step"], result["weights"]) == (
        "sudoku4",
        "valid_boards",
        10,
        2,
        "ema",
    )
    assert [row["loops"] for row in result["loops"]] == [1, 3] and "valid_boards_se" in result["loops"][0]
    cost = result["loops"][1]["cost"]
    assert cost["tokens"] == 160 and cost["loops_per_forward"] == 3 and cost["block_passes_per_token"] > 0
    assert f"{cost['block_passes_per_token']:.2f} block passes" in out
    settings = result["settings"]
    assert (
        settings["sampler"]["denoising_steps"] == 5
        and settings["limit"] == 10
        and settings["compute"] == [{"loops": 1}, {"loops": 3}]
    )
    document = json.loads(files["step_2_ema_data_masks_4_loops_1-3_limit_10.json"].read_text())
    assert document["loops"][1]["change_from_first"] == pytest.approx(
        document["loops"][1]["bits_per_byte"] - document["loops"][0]["bits_per_byte"]
    )
    assert 0 < document["loops"][1]["change_from_first_se"] < document["loops"][1]["bits_per_byte_se"]


def test_likelihoods_with_adaptive_loops(trained, evaluate, tmp_path):
    """Rows that never stop early have the figures of the most loops, those that stop at once those of the least."""
    words = ("--tasks", trained / "data", "--limit", 12, "--masks", 4, "--loops", "1,3,adaptive:1-3,3-3,3-1")
    for criterion, threshold, same_as in (
        ("direction", 0, 3), ("state", 1e9, 1), ("logit-lens", 0, 3), ("prediction", 1e9, 2), ("direction", 0.3, None),
    ):  # fmt: skip
        output = tmp_path / f"{criterion}_{threshold}.json"
        options = ("--loop-criterion", criterion, "--loop-threshold", threshold, "--output", output)
        status, out, err, _ = evaluate(*words, *options)
        assert status == 0, err
        found = {row["loops"]: row for row in json.loads(output.read_text())["loops"]}
        adaptive, schedule = found["adaptive:1-3"], found["3-3"]
        assert schedule["bits_per_byte"] == pytest.approx(found[3]["bits_per_byte"], rel=1e-6)
        assert "cost" not in found[3] and schedule["cost"]["loops_per_forward"] == 3
        spent = adaptive["cost"]["loops_per_forward"]
        assert f"forward passes in {adaptive['cost']['seconds']:.1f} s, {spent:.2f} loops each" in out
        if same_as is None:
            assert 1 < spent < 3 and 1 < found["3-1"]["cost"]["loops_per_forward"] < 3
            continue
        assert spent == same_as
        if same_as in found:
            assert adaptive["bits_per_byte"] == pytest.approx(found[same_as]["bits_per_byte"], rel=1e-6)
            assert adaptive["bits_per_byte"] != pytest.approx(found[4 - same_as]["bits_per_byte"], rel=1e-6)


def test_rows_of_a_likelihood_keep_nothing_of_others(trained, evaluate, tmp_path):
    """Also where other tasks draw samples with a cache or a warm start."""
    words = ("--tasks", trained / "data", "addition2", "--limit", 20, "--masks", 3)
    words += ("--steps", 4, "--loops", "adaptive:1-3")
    found = []
    for number, options in enumerate([(), ("--warm-start",), ("--cache", "dual"), ("--warm-start", "--batch-size", 2)]):
        assert evaluate(*words, *options, "--output", tmp_path / f"{number}.json")[0] == 0
        (row,) = json.loads((tmp_path / f"{number}_data.json").read_text())["loops"]
        found.append(row["bits_per_byte"])
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)


def test_a_rerun_goes_on_and_a_finished_one_asks_nothing(trained, evaluate, monkeypatch):
    words = (
        "--tasks",
        trained / "choices.jsonl",
        "--few-shot",
        trained / "prompt.txt",
        "--masks",
        4,
        "--batch-size",
        1,
    )
    status, out, _, files = evaluate(*words)
    assert status == 0 and "accuracy " in out
    items = files["step_2_ema_choices_masks_4_loops_4.items.jsonl"]
    lines = items.read_text().splitlines(keepends=True)
    items.write_text("".join(lines[:3]) + lines[3][:9])  # killed while it wrote the third item
    scored, original = [], TokenScorer.nats
    monkeypatch.setattr(TokenScorer, "nats", lambda self, rows: scored.extend(rows) or original(self, rows))
    assert evaluate(*words)[1].splitlines()[1:3] == out.splitlines()[1:3]
    assert len(scored) == 2 * 2 * 4  # two questions with two choices and four masks
    monkeypatch.setattr(TokenScorer, "nats", lambda *_: 1 / 0)
    assert evaluate(*words)[1].splitlines()[1:3] == out.splitlines()[1:3]


def test_questions_with_other_settings_are_kept(trained, evaluate):
    words = ("--tasks", trained / "sums.jsonl", "--few-shot", trained / "sum_prompt.txt", "--answer-length", 5)
    for more in ((), ("--temperature", 0), ("--sampler", "confidence", "--seed", 3), ("--loops", "2,adaptive:1-3")):
        status, out, error, files = evaluate(*words, *more)
        assert status == 0 and error == "" and "exact match " in out, error
    results = sorted(name for name in files if name.endswith(".json"))
    assert results == [
        "step_2_ema_sums_confidence_seed_3_loops_4.json", "step_2_ema_sums_steps_32_loops_2_adaptive_1-3.json",
        "step_2_ema_sums_steps_32_loops_4.json", "step_2_ema_sums_steps_32_loops_4_2.json",
    ]  # fmt: skip
    assert [json.loads(files[name].read_text())["settings"]["sampler"]["temperature"] for name in results] == [
        1,
        1,
        1,
        0,
    ]


def test_two_runs_by_a_task(trained, evaluate):
    words = ("--tasks", "addition2", "--limit", 8, "--steps", 4, "--output")
    output = trained / "out" / "o.json"
    assert evaluate(*words, output, "--compare", trained / "run")[0] == 0
    (row,) = json.loads(output.read_text())["loops"]
    assert row["compared"]["exact_answers"] == row["exact_answers"] and row["compared"]["difference"] == 0
    assert (trained / "run" / "eval" / "step_2_ema_addition2_steps_4_loops_4.items.jsonl").is_file()


@pytest.mark.parametrize("count", [40, 400])
def test_two_runs_are_put_the_items_of_the_first(trained, evaluate, tmp_path, count):
    """The other one was trained on fewer, or on more."""
    words = ["prepare", "--input", f"addition2:{count}", "--output", str(tmp_path / "other_data"), "--workers", "1"]
    assert loopmdm([*words, "--validation-fraction", "0.1"]) == 0
    other = tmp_path / "other"
    shutil.copytree(trained / "run", other, ignore=shutil.ignore_patterns("eval"))
    config = other / "config.yaml"
    config.write_text(config.read_text().replace(str(trained / "data"), str(tmp_path / "other_data")))
    status, _, error, files = evaluate("--tasks", "addition2", "--steps", 4, "--compare", other)
    name = "step_2_ema_addition2_steps_4_loops_4.items.jsonl"
    assert status == 0, error
    assert items_of(files[name]) == items_of(other / "eval" / name)


def test_a_task_that_training_has_not_seen(trained, evaluate, tmp_path):
    """It is told in one line, also with instances from elsewhere; characters without a token are refused."""
    for name in ("addition1:40", "lookup1:40"):
        words = ["prepare", "--input", name, "--output", str(tmp_path / name[:-3]), "--workers", "1"]
        assert loopmdm([*words, "--validation-fraction", "0.5"]) == 0
    status, _, error, _ = evaluate("--tasks", "addition1", "--data", tmp_path / "addition1", "--limit", 2)
    expected = f"warning: --tasks addition1: the data of {tmp_path}/run were not prepared with --input addition1:COUNT, but from "
    assert status == 0 and error.startswith(f"{expected}sudoku4:300, addition2:100; a model that has not seen")
    _, out, error, _ = evaluate("--tasks", "addition2", "--data", trained / "data", "--limit", 2)
    assert "warning" not in out + error
    status, out, error, _ = evaluate("--tasks", "lookup1", "--data", tmp_path / "lookup1", "--limit", 2)
    assert status == 2 and out == "" and error.startswith("error: --tasks lookup1: ")
    _, _, error, _ = evaluate("--tasks", "generative", "--data", tmp_path / "lookup1", "--scorer", tmp_path)
    assert error.startswith(
        f"error: {tmp_path}/lookup1: was prepared with a different tokenizer than that of {tmp_path}/run;"
    )


def test_several_tasks_in_one_word_and_under_other_names(trained, evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(trained))
    shutil.copyfile(trained / "sums.jsonl", tmp_path / "a,b.jsonl")
    own = ("--few-shot", trained / "sum_prompt.txt", "--answer-length", 3, "--limit", 2, "--masks", 2, "--steps", 2)
    values = f"sudoku4,sums2:~/sums.jsonl,texts:{trained}/data"
    status, _, error, files = evaluate("--tasks", values, tmp_path / "a,b.jsonl", *own)
    assert status == 0, error
    for name in ("sudoku4", "sums2", "texts", "a,b"):
        (result,) = (
            json.loads(path.read_text()) for key, path in files.items() if f"_{name}_" in key and "items" not in key
        )
        assert result["task"] == name


def test_names_that_are_not_utf8(trained, evaluate, tmp_path):
    other = tmp_path / "bl\udce9"
    shutil.copytree(trained / "data", other)
    words = ("--tasks", other, "--limit", 3, "--masks", 2, "--compare", trained / "run", "--until", "\udce9")
    assert evaluate(*words)[2].startswith("error: --until: has no effect on these tasks")
    status, _, _, files = evaluate(*words[:-2])
    assert status == 0 and any("bl" in name for name in files)
    status, _, _, files = evaluate("--data", other, "--loops", 1, "--rows", 3)
    assert status == 0 and json.loads(files["step_2_ema_bl\udce9_loops_1_rows_3.json"].read_text())["data"] == str(
        other
    )


LAYOUTS = {"DP2": (), "TP2": ("--tensor", "2"), "PP2": ("--pipeline", "2")}


@pytest.mark.distributed
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_items_on_two_ranks(trained, evaluate, tmp_path, layout):
    """Every record, apart from the last digits of likelihoods. Batches of other sizes."""
    words = [
        "--tasks",
        "sudoku4",
        trained / "data",
        "--given",
        6,
        "--limit",
        7,
        "--masks",
        3,
        "--steps",
        5,
        "--loops",
        3,
    ]
    if layout != "PP2":
        words[-1] = "3,adaptive:1-3"
    assert evaluate(*words)[0] == 0
    shutil.copytree(trained / "run", tmp_path / "other", ignore=shutil.ignore_patterns("eval"))
    launcher = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}", "-m", "pretrain.cli"]
    done = run(
        [*launcher, "evaluate", tmp_path / "other", *words, "--batch-size", 3, *LAYOUTS[layout]], PYTHONPATH=str(ROOT)
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    files = {path.name for path in (tmp_path / "run" / "eval").glob("*.items.jsonl")}
    assert len(files) == (2 if layout == "PP2" else 4)
    for name in files:
        one, two = (items_of(tmp_path / folder / "eval" / name) for folder in ("run", "other"))
        assert one.keys() == two.keys() and len(one) == 7
        for number, record in one.items():
            assert {**two[number], "nats": 0} == {**record, "nats": 0}
            assert two[number].get("nats", 0) == pytest.approx(record.get("nats", 0), rel=1e-5)


def items_of(path):
    records = map(json.loads, path.read_text().splitlines()[1:])
    return {record["item"]: record for record in records if "item" in record}


REFUSED = {
    ("--tasks", "sudoku5"): "--tasks sudoku5: is not a task, a file or a prepared folder. Tasks are sudoku4, sudoku6",
    ("--tasks", "gsm8k"): "--tasks gsm8k: is not a task, a file or a prepared folder",
    ("--tasks", "sudoku4:DATA"): "--tasks sudoku4:DATA: the instances of sudoku4 are those of prepared data",
    ("--tasks", "a b:none"): "--tasks a b:none: a name has only letters",
    ("--tasks", "sums:none.jsonl"): "--tasks none.jsonl: no such file",
    ("--tasks", "boards:sudoku4"): "--tasks boards:sudoku4: only a file or a folder can have another name",
    ("--tasks", "sudoku6", "--given", "9"): "--tasks sudoku6: the split 'validation' of ",
    (
        "--tasks",
        "sudoku6",
    ): "--tasks sudoku6: has 37 tokens with the end of the document, more than the 17 of a row of the run",
    ("--tasks", "sudoku4", "--given", "16"): "--given 16: sudoku4 has 16 cells, of which some must be left",
    ("--tasks", "sudoku4", "--given", "-1"): "--given -1: must be at least 0",
    ("--tasks", "addition2", "--given", "3"): "--given: has no effect on these tasks, only on sudoku",
    ("--tasks", "addition2", "--limit", "0"): "--limit 0: must be at least 1",
    ("--tasks", "addition2", "--limit", str(10**30)): f"--limit {10**30}: must be below 2^20",
    ("--tasks", "addition2", "--seed", "-1"): "--seed -1: must be at least 0",
    ("--tasks", "addition2", "--seed", str(2**63)): f"--seed {2**63}: must be below 2^63",
    ("--tasks", "addition2", "--batch-size", "0"): "--batch-size 0: must be at least 1",
    ("--tasks", "addition2", "--rows", "9"): "--rows 9: has no effect with --tasks; use --limit",
    ("--tasks", "addition2", "--lm-eval", "t"): "--tasks and --lm-eval: give one of them at a time",
    (
        "--tasks",
        "sudoku4",
        "--steps",
        "3",
        "--block-length",
        "4",
    ): "--steps 3: the 4 blocks of a sample of item 0 need at least",
    ("--tasks", "DATA", "--sampler", "confidence"): "--sampler: has no effect on these tasks, which draw no samples",
    ("--tasks", "DATA", "--loops", "1", "--loop-threshold", "1"): "--loop-threshold: has no effect without --loops",
    ("--tasks", "DATA", "--loops", "adaptive", "--cache", "dual"): "--cache: has no effect on these tasks",
    ("--tasks", "DATA", "--stride", "18"): "--stride 18: a row has 17 tokens",
    (
        "--tasks",
        "DATA",
        "--likelihood",
        "any-order",
        "--masks",
        "3",
    ): "--masks: has no effect with --likelihood any-order",
    (
        "--tasks",
        "DATA",
        "--likelihood",
        "any-order",
    ): "--likelihood any-order: 17 tokens have too many orders; at most 12",
    (
        "--tasks",
        "SUMS",
        "--few-shot",
        "PROMPT",
        "--answer-length",
        "15",
    ): "SUMS:1: the prompt has 6 tokens, which leaves less",
    ("--tasks", "SUMS", "--few-shot", "SUMS"): "--few-shot SUMS: has 0 times {question}; write it once",
    (
        "--tasks",
        "generative",
    ): "--tasks generative: give the folder of a Hugging Face causal language model with --scorer",
    ("--tasks", "generative", "--scorer", "none", "--limit", "3"): "--scorer none: no such folder",
    (
        "--tasks",
        "SUMS",
        "SUMS",
        "--few-shot",
        "PROMPT",
        "--answer-length",
        "8",
        "--output",
        "o.json",
    ): "--output o.json: two tasks",
    ("--limit", "3"): "--limit: has no effect without --tasks or --lm-eval",
    ("--given", "3"): "--given: has no effect without --tasks",
    ("--steps", "3"): "--steps: has no effect without --tasks or --lm-eval",
    ("--loops", "adaptive"): "--loops adaptive: the NELBO is measured at fixed numbers of loops",
    ("--lm-eval-path", "x"): "--lm-eval-path: has no effect without --lm-eval",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_means_nothing_is_refused(trained, evaluate, words):
    places = {"DATA": trained / "data", "SUMS": trained / "sums.jsonl", "PROMPT": trained / "sum_prompt.txt"}
    status, out, error, _ = evaluate(*(places.get(word, word) for word in words))
    expected = REFUSED[words].replace("SUMS", str(places["SUMS"]))
    assert status == 2 and out == "" and error.startswith(f"error: {expected}") and error.count("\n") == 1, error
    assert not list(trained.rglob("*generative*")), "a missing scorer is noticed before samples are drawn"


def test_lm_eval_that_is_not_installed_is_named(evaluate, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    status, _, error, _ = evaluate("--lm-eval", "a_task")
    assert status == 2 and error.startswith("error: --lm-eval: needs the package lm-eval, 0.4.13 or newer")
    assert error.endswith("install it, for example in the repository with: pip install -e '.[eval]'\n")
