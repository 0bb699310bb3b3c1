"""Evaluation and sampling on several ranks give the results of one rank, during training and afterwards."""

import json

import pytest

from pretrain.cli import main as loopmdm
from tests.launching import BIN, ROOT, free_port, run, train

pytestmark = pytest.mark.distributed
LAYOUTS = {"PP2": ("--pipeline", "2"), "TP2": ("--tensor", "2")}
COMMON = (
    "train.steps=6",
    "eval.every=6",
    "eval.loops=1,3",
    "eval.rows=40",
    "eval.batch_size=7",
    "optim.warmup_steps=0",
)


def one_and_two_stages(folder, data, *more):
    """The same run on one rank and on two stages, validated at its end."""
    arguments = ["--config", ROOT / "tests/tiny.yaml", f"data.path={data}", f"run.dir={folder}", *COMMON, *more]
    train(*arguments, "run.name=one")
    train(*arguments, "run.name=stages", "parallel.pipeline=2", ranks=2)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus):
    """Runs with attention over whole rows."""
    return one_and_two_stages(tmp_path_factory.mktemp("forward"), corpus)


@pytest.fixture(scope="module")
def document_runs(tmp_path_factory, short_documents):
    """Runs with attention within documents, several documents per row."""
    arguments = ("train.attention=document", "train.noise=document", "eval.batch_size=5")
    return one_and_two_stages(tmp_path_factory.mktemp("documents"), short_documents, *arguments)


def on_two_ranks(commands, folder):
    """Several commands of `loopmdm`, one after the other in the same ranks."""
    listed = folder / "commands.json"
    listed.write_text(json.dumps([[str(word) for word in command] for command in commands]))
    launcher = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = run([*launcher, "tests/distributed/commands.py", listed], PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def nats(path):
    return [row["nats_per_token"] for row in json.loads(path.read_text())["loops"]]


def test_validation_during_training(runs):
    one, stages = (nats(runs / name / "eval" / "train_step_6.json") for name in ("one", "stages"))
    assert stages == pytest.approx(one, rel=1e-5)


def test_validation_and_evaluation_within_documents(document_runs, tmp_path):
    """28 rows in batches of 5: of the last two, which pass through the stages together, one has 3 rows and is padded."""
    one, stages = (nats(document_runs / name / "eval" / "train_step_6.json") for name in ("one", "stages"))
    assert stages == pytest.approx(one, rel=1e-5)
    evaluate_alone_and_on(document_runs, ["PP2"], "5", tmp_path)


def evaluate_alone_and_on(runs, layouts, batch_size, folder):
    words = ["evaluate", str(runs / "one"), "--loops", "1,2,5", "--rows", "40", "--batch-size", batch_size, "--output"]
    assert loopmdm([*words, str(folder / "alone.json")]) == 0
    outputs = {layout: folder / f"{layout}.json" for layout in layouts}
    on_two_ranks([[*words, path, *LAYOUTS[layout]] for layout, path in outputs.items()], folder)
    for layout, path in outputs.items():
        assert nats(path) == pytest.approx(nats(folder / "alone.json"), rel=1e-5), layout


def test_evaluate(runs, tmp_path):
    evaluate_alone_and_on(runs, list(LAYOUTS), "7", tmp_path)


SAMPLERS = {
    "ancestral": ("--steps", "8", "--prompt", "ab"),
    "remask": ("--sampler", "remask", "--steps", "8", "--remask", "0.3", "--top-p", "0.9"),
    "blocks": ("--sampler", "confidence", "--tokens-per-step", "3", "--block-length", "7", "--guidance", "0.5", "--prompt", "ab"),
    "threshold": ("--sampler", "threshold", "--threshold", "0.03", "--temperature", "0.8", "--top-k", "40", "--stop"),
    "entropy bound": ("--sampler", "entropy_bound", "--entropy-bound", "12"),
    "wino": ("--sampler", "wino", "--threshold", "0.02", "--verify-threshold", "0.05", "--block-length", "16"),
    "draft": ("--sampler", "margin", "--draft", "3", "--prompt", "a[MASK:2]b"),
    "schedule": ("--loops", "1-4-2"),
}  # fmt: skip
ONE_STAGE = {
    "adaptive": ("--loops", "adaptive:1-6", "--loop-criterion", "direction", "--loop-threshold", "0.3", "--sampler", "threshold",
                 "--threshold", "0.03"),
    "prediction": ("--loops", "adaptive:2-6", "--loop-criterion", "prediction", "--warm-start", "--sampler", "margin"),
    "cache": ("--loops", "adaptive:1-6", "--cache", "dual", "--refresh", "4", "--sampler", "confidence", "--block-length", "7",
              "--prompt", "ab"),
}  # fmt: skip
"""What several pipeline stages refuse."""


def test_sample(runs, tmp_path):
    """The same draws from the same probabilities: the same tokens on one rank, two stages, two shards and two copies."""
    layouts = {**LAYOUTS, "DP2": ()}
    words = {
        (layout, name): [
            "sample",
            runs / "one",
            "--loops",
            "3",
            "--num-samples",
            "5",
            "--batch-size",
            "2",
            *layout_words,
            *options,
        ]
        for layout, layout_words in {"one": (), **layouts}.items()
        for name, options in {**SAMPLERS, **({} if layout == "PP2" else ONE_STAGE)}.items()
    }
    outputs = {key: tmp_path / f"{' '.join(key)}.json" for key in words}
    commands = {key: [*map(str, given), "--output", str(outputs[key])] for key, given in words.items()}
    for key, command in commands.items():
        if key[0] == "one":
            assert loopmdm(command) == 0
    on_two_ranks([command for key, command in commands.items() if key[0] != "one"], tmp_path)
    tokens = {key: json.loads(path.read_text())["tokens"] for key, path in outputs.items()}
    assert {key: rows for key, rows in tokens.items() if rows != tokens["one", key[1]]} == {}
