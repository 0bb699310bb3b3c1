"""The adapter for lm-eval, on local task files. Skipped where lm-eval is not installed, as it is optional."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lm_eval", minversion="0.4.13")

from lm_eval import simple_evaluate

from pretrain.cli import main as loopmdm
from pretrain.errors import UserError
from pretrain.evaluation.harness import DiffusionHarness, Tasks
from pretrain.evaluation.item_files import ItemFile
from pretrain.evaluation.likelihood import Text, chain_rule
from tests.exports import make_run
from tests.toy_denoisers import HashedDenoiser
from tests.toy_tasks import toy_model, toy_tokenizer

LETTERS = "".join(chr(code) for code in range(32, 127)) + "\n"
TASKS = {
    "toy_choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "toy_answers": """
output_type: generate_until
doc_to_text: "{{question}} ="
doc_to_target: "{{text}}"
generation_kwargs: {until: ["z"], max_gen_toks: 20, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "toy_words": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{text}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "toy_texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
}
DOCS = [
    {"question": f"what is {i}?", "choices": ["ab", "c", "dea"], "answer": i % 3, "text": "the end " * (1 + i % 3)}
    for i in range(5)
]


@pytest.fixture
def folder(tmp_path):
    """Task files beside their documents."""
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, content in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/docs.jsonl}}}}\n"
        about = f"task: {name}\n{data}test_split: test\n"
        (tmp_path / f"{name}.yaml").write_text(about + content)
    return tmp_path


@pytest.fixture
def model(world, tmp_path):
    tokenizer = toy_tokenizer(tmp_path, LETTERS)
    return toy_model(world, tokenizer, HashedDenoiser(tokenizer.vocab_size - 1), seq_len=40, sampler="left_to_right")


def harness(model, method="left-to-right"):
    return DiffusionHarness(model, method, 8, Tasks(include_defaults=False), None, lambda line: None)


def results(folder, model, *names, kept=None):
    tasks = Tasks(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(
        model=DiffusionHarness(model, "left-to-right", 8, tasks, kept, lambda line: None),
        tasks=list(names), task_manager=tasks, bootstrap_iters=10, log_samples=True,
    )  # fmt: skip
    return found["results"], found["samples"]


def nats(model, context, *texts):
    ids = model.tokenizer.encode_batch([context, *texts])
    return chain_rule(model.scorer, [Text.after(ids[0].tolist(), one.tolist()) for one in ids[1:]])


def test_tasks_from_local_files(folder, model):
    """Every figure of lm-eval against the likelihoods and samples themselves."""
    kept = ItemFile(folder / "eval", "s", {})
    found, samples = results(folder, model, *TASKS, kept=kept)
    right = []
    for doc, sample in zip(DOCS, samples["toy_choices"], strict=True):
        expected = nats(model, doc["question"], *(f" {choice}" for choice in doc["choices"]))
        assert [-one[0] for one in sample["filtered_resps"]] == pytest.approx(expected.tolist(), rel=1e-6)
        right.append(float(np.argmin(expected) == doc["answer"]))
    assert (
        found["toy_choices"]["acc,none"] == pytest.approx(np.mean(right)) and "acc_stderr,none" in found["toy_choices"]
    )
    for doc, sample in zip(DOCS, samples["toy_words"], strict=True):
        # The words begin with the space at the end of the context, as lm-eval has it.
        room = 40 - len(" " + doc["text"])
        context = doc["question"][max(0, len(doc["question"]) - room) :]
        ((log_p, greedy),) = sample["filtered_resps"]
        assert -log_p == pytest.approx(nats(model, context, f" {doc['text']}")[0], rel=1e-6) and greedy is False
    row = [*model.tokenizer.encode_batch([f"{DOCS[0]['question']} ="])[0].tolist(), *[model.tokenizer.mask_id] * 20]
    row += [model.tokenizer.mask_id] * (-len(row) % 32)
    drawn = toy_model(
        model.world, model.tokenizer, model.network(), 40, sampler="left_to_right", temperature=0.0, stop=True
    )
    expected = model.tokenizer.decode(drawn.fill([row], [0])[0].tokens[len(f"{DOCS[0]['question']} =") :]).partition(
        "z"
    )[0]
    assert samples["toy_answers"][0]["filtered_resps"] == [expected]
    total = sum(-np.array([s["filtered_resps"][0] for s in samples["toy_texts"]], float))
    size = sum(len(doc["text"]) for doc in DOCS)
    assert found["toy_texts"]["bits_per_byte,none"] == pytest.approx(total / np.log(2) / size, rel=1e-6)
    again = ItemFile(folder / "eval", "s", {})
    silent = toy_model(model.world, model.tokenizer, lambda query: 1 / 0, 40, sampler="left_to_right")
    assert results(folder, silent, *TASKS, kept=again)[0] == found


def request(*args, doc=0, idx=0):
    return SimpleNamespace(args=args, task_name="t", doc_id=doc, idx=idx)


@pytest.mark.parametrize("method", ["nelbo", "left-to-right"])
def test_an_answer_depends_on_its_request_alone(model, method):
    adapter = harness(model, method)
    requests = [request("one two", text, doc=i % 2, idx=i) for i, text in enumerate((" a", " bcd", " a", " ef gh"))]
    together = adapter.loglikelihood(requests)
    assert together[0] == together[2]
    assert [adapter.loglikelihood([one, one])[0][0] for one in requests] == [log_p for log_p, _ in together]
    texts = ["a b c", "", "a long text, longer than a row of the model: " * 3]
    together = adapter.loglikelihood_rolling([request(text) for text in texts])
    assert together[1] == 0.0 and [adapter.loglikelihood_rolling([request(t)])[0] for t in texts] == together
    options = [{"until": ["x"], "max_gen_toks": 9}, {"max_gen_toks": 9, "do_sample": True, "temperature": 0.5}]
    requests = [request(context, one) for one in options for context in ("a", "", "b" * 100)]
    together = adapter.generate_until(requests)
    assert [adapter.generate_until([one])[0] for one in requests] == together
    assert all("x" not in text for text in together[:3]) and together[0] != together[3]


def test_greedy_continuations_are_told(model):
    """What the sampler fills in without random numbers, and the same with one other character."""
    adapter = harness(model)
    row = [*model.tokenizer.encode_batch(["one"])[0].tolist(), *[model.tokenizer.mask_id] * 4]
    drawn = toy_model(model.world, model.tokenizer, model.network(), 40, sampler="left_to_right", temperature=0.0)
    text = model.tokenizer.decode(drawn.fill([row], [0])[0].tokens[3:])
    other = text[:-1] + ("a" if text[-1] != "a" else "b")
    assert len(text) == 4
    assert [adapter.loglikelihood([request("one", one)])[0][1] for one in (text, other)] == [True, False]


def greedy_text(model, context, length):
    """What the sampler fills in after a context, without random numbers."""
    ids = model.tokenizer.encode_batch([context])[0].tolist()
    drawn = toy_model(model.world, model.tokenizer, model.network(), 40, sampler="left_to_right", temperature=0.0)
    (sample,) = drawn.fill([[*ids, *[model.tokenizer.mask_id] * length]], [0])
    return model.tokenizer.decode(sample.tokens[len(ids) :])


def test_multiple_choice_may_use_greedy_continuations(folder, model):
    """As webqs has it, alone or in a group: `exact_match` of several choices, here of the right one and another."""
    lines = []
    for i in range(4):
        right = greedy_text(model, f"q{i}", 3)
        choices = [right[:-1] + ("a" if right[-1] != "a" else "b"), right]
        lines.append(json.dumps({"question": f"q{i}", "choices": choices, "answer": int(i > 0)}))
    (folder / "docs.jsonl").write_text("\n".join(lines))
    task = (folder / "toy_choices.yaml").read_text().replace("metric: acc_norm", "metric: exact_match")
    (folder / "toy_choices.yaml").write_text(task + 'target_delimiter: ""\nrepeats: 2\n')
    (folder / "toy_group.yaml").write_text("group: toy_group\ntask: [toy_choices]\n")
    for name in ("toy_choices", "toy_group"):
        found, samples = results(folder, model, name)
        assert found["toy_choices"]["exact_match,none"] == 0.75
        assert [[said for _, said in sample["filtered_resps"]] for sample in samples["toy_choices"]] == [
            [False, True]
        ] * 4


def test_repeats_are_answered_anew(folder, model):
    """The first answer is that of a task without repeats, and all are kept."""
    task = (folder / "toy_answers.yaml").read_text().replace("do_sample: false", "do_sample: true, temperature: 1.0")
    (folder / "toy_answers.yaml").write_text(task)
    (once,) = results(folder, model, "toy_answers")[1].values()
    (folder / "toy_answers.yaml").write_text(task + "repeats: 4\n")
    kept = ItemFile(folder / "eval", "s", {})
    (found,) = results(folder, model, "toy_answers", kept=kept)[1].values()
    assert [sample["resps"][0][0] for sample in found] == [sample["resps"][0][0] for sample in once]
    assert all(len(set(sample["resps"][0])) == 4 for sample in found) and len(kept.records) == 4 * len(DOCS)
    silent = toy_model(model.world, model.tokenizer, lambda query: 1 / 0, 40, sampler="left_to_right")
    again = ItemFile(folder / "eval", "s", {})
    assert results(folder, silent, "toy_answers", kept=again)[1]["toy_answers"] == found


def test_a_single_continuation_stays_one_when_it_is_repeated(model):
    adapter, one = harness(model), request("one", greedy_text(model, "one", 4))
    assert [greedy for _, greedy in adapter.loglikelihood([one] * 3)] == [True] * 3


def test_what_cannot_be_answered_is_named(model):
    with pytest.raises(UserError, match=r"^lm-eval: a continuation has 60 tokens, more than the 40 of a row"):
        harness(model).loglikelihood([request("a", "b" * 60)])
    with pytest.raises(UserError, match=r"^lm-eval: max_gen_toks 40 leaves no room for a context"):
        harness(model).generate_until([request("a", {"max_gen_toks": 40})])


def test_a_run_and_its_export_have_equal_scores(folder, capsys):
    """The whole command on both: a network of this project and one of transformers."""
    run_folder, export = make_run(folder / "run", "bytes"), folder / "export"
    assert loopmdm(["export", str(run_folder), str(export)]) == 0
    words = [
        "--lm-eval",
        *TASKS,
        "--lm-eval-path",
        str(folder),
        "--loops",
        "3",
        "--masks",
        "8",
        "--sampler",
        "left_to_right",
    ]
    (folder / "toy_answers.yaml").write_text((folder / "toy_answers.yaml").read_text().replace("toks: 20", "toks: 9"))
    assert loopmdm(["evaluate", str(run_folder), *words, "--weights", "ema"]) == 0
    assert loopmdm(["evaluate", str(export), *words, "--batch-size", "4"]) == 0
    assert "S=3" in capsys.readouterr().out
    name = f"lm_eval_{'-'.join(TASKS)}_loops_3"
    files = (run_folder / "eval" / f"step_3_ema_{name}.json", export / "eval" / f"export_{name}.json")
    own, exported = (json.loads(file.read_text()) for file in files)
    for task, figures in own["results"].items():
        for metric, value in figures.items():
            if isinstance(value, float):
                assert exported["results"][task][metric] == pytest.approx(value, rel=1e-4, abs=1e-9), (task, metric)
    own, exported = (_answers(file.with_name(f"{file.stem}.items.jsonl")) for file in files)
    assert own.keys() == exported.keys() and len(own) == 5 * 3 + 5 + 5 + 3  # choices, answers, words, distinct texts
    for key, answer in own.items():
        assert exported[key] == (answer if isinstance(answer, str) else pytest.approx(answer, rel=1e-4))
    assert loopmdm(["evaluate", str(export), *words, "--weights", "raw"]) == 2
    assert "--weights: has no effect on an exported folder" in capsys.readouterr().err
    for value, why in (("none", "no such task in"), ("toy_none*", "no such task in"), ("*", "name the tasks")):
        assert loopmdm(["evaluate", str(run_folder), "--lm-eval", value, "--lm-eval-path", str(folder)]) == 2
        assert why in capsys.readouterr().err


def _answers(path):
    records = map(json.loads, path.read_text().splitlines()[1:])
    return {record["item"]: record["answer"] for record in records if "item" in record}
