"""The adapter for lm-eval, on local task files. Skipped where lm-eval is not installed, as it is optional."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lm_eval", minversion="0.4.13")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from pretrain.errors import UserError
from pretrain.evaluation.harness import DiffusionHarness
from pretrain.evaluation.item_files import ItemFile
from pretrain.evaluation.likelihood import Text, chain_rule
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
    {"question": f"what is {i}?", "choices": ["ab", "c", "dea"], "answer": i % 3, "text": "the end " * (1 + i % 4)}
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
    return toy_model(world, tokenizer, HashedDenoiser(tokenizer.vocab_size - 1), seq_len=40, order="left-to-right")


def harness(model, method="left-to-right", kept=None):
    return DiffusionHarness(model, method, 8, kept, lambda line: None)


def results(folder, adapter, *tasks):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(
        model=adapter, tasks=list(tasks), task_manager=manager, bootstrap_iters=10, log_samples=True
    )
    return found["results"], found["samples"]


def nats(model, context, *texts):
    ids = model.tokenizer.encode_batch([context, *texts])
    return chain_rule(model.scorer, [Text.after(ids[0].tolist(), one.tolist()) for one in ids[1:]], 1)


def test_tasks_from_local_files(folder, model):
    """Every figure of lm-eval against the likelihoods and samples themselves."""
    kept = ItemFile(folder / "eval", "s", {})
    found, samples = results(folder, harness(model, kept=kept), *TASKS)
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
        model.world, model.tokenizer, model.network(), 40, order="left-to-right", temperature=0.0, stop=True
    )
    expected = model.tokenizer.decode(drawn.fill([row], [0])[0].tokens[len(f"{DOCS[0]['question']} =") :]).partition(
        "z"
    )[0]
    assert samples["toy_answers"][0]["filtered_resps"] == [expected]
    total = sum(-np.array([s["filtered_resps"][0] for s in samples["toy_texts"]], float))
    size = sum(len(doc["text"]) for doc in DOCS)
    assert found["toy_texts"]["bits_per_byte,none"] == pytest.approx(total / np.log(2) / size, rel=1e-6)
    again = ItemFile(folder / "eval", "s", {})
    silent = toy_model(model.world, model.tokenizer, lambda query: 1 / 0, 40, order="left-to-right")
    assert results(folder, harness(silent, kept=again), *TASKS)[0] == found


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
    drawn = toy_model(model.world, model.tokenizer, model.network(), 40, order="left-to-right", temperature=0.0)
    text = model.tokenizer.decode(drawn.fill([row], [0])[0].tokens[3:])
    other = text[:-1] + ("a" if text[-1] != "a" else "b")
    assert len(text) == 4
    assert [adapter.loglikelihood([request("one", one)])[0][1] for one in (text, other)] == [True, False]


def test_what_cannot_be_answered_is_named(model):
    with pytest.raises(UserError, match=r"^lm-eval: a continuation has 60 tokens, more than the 40 of a row"):
        harness(model).loglikelihood([request("a", "b" * 60)])
    with pytest.raises(UserError, match=r"^lm-eval: max_gen_toks 40 leaves no room for a context"):
        harness(model).generate_until([request("a", {"max_gen_toks": 40})])
