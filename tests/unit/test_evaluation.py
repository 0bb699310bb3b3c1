"""Standard error, unigram entropy and units of the validation figures; costs and progress of tasks."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.generators.names import find_generator
from pretrain.commands.evaluate_tasks import _measure
from pretrain.evaluation.nelbo import freeze_noise
from pretrain.evaluation.statistics import bits_per_byte, collapsed_strata_error, unigram_entropy
from pretrain.evaluation.tasks import runner
from pretrain.evaluation.tasks.generated import AnswerTask, HeldOut
from tests.toy_denoisers import HashedDenoiser
from tests.toy_tasks import toy_model, toy_tokenizer


def test_standard_error_is_the_spread_of_repeated_measurements():
    """Rows of a loss that rises with the noise level: the reported error against the actual spread of the mean."""
    rng = np.random.default_rng(0)
    strata = np.arange(200)
    level = 2.0 + 4.0 * strata / 200
    means, errors = [], []
    for _ in range(4000):
        values = level + rng.normal(0, 0.5 + level / 4)
        means.append(values.mean())
        errors.append(collapsed_strata_error(values, strata))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.05)
    # The naive formula would also count the change with the noise level.
    assert np.std(values) / math.sqrt(200) > 1.2 * np.mean(errors)


def test_order_of_rows_does_not_matter():
    values, strata = np.random.default_rng(1).normal(size=50), np.arange(50)
    order = np.random.default_rng(2).permutation(50)
    assert collapsed_strata_error(values, strata) == pytest.approx(collapsed_strata_error(values[order], strata[order]))


def full_rows(count, seq_len):
    """What `freeze_noise` needs of a dataset without padding."""
    return SimpleNamespace(num_rows=count, seq_len=seq_len, lengths=lambda indices: np.full(len(indices), seq_len))


def test_noise_leaves_padding_alone_and_covers_every_share_of_a_row():
    lengths = np.random.default_rng(3).integers(1, 65, size=400)
    dataset = SimpleNamespace(num_rows=400, seq_len=64, lengths=lambda indices: lengths[indices])
    noise = freeze_noise(dataset, 400)
    masked = noise.masks(slice(0, 400))
    assert not np.any(masked & (np.arange(64) >= lengths[:, None]))
    assert np.array_equal(masked.sum(axis=1), noise.masked_counts) and noise.masked_counts.min() >= 1
    assert np.mean(noise.masked_counts / lengths) == pytest.approx(0.5 + np.mean(0.5 / lengths), abs=0.01)
    assert noise.weights.mean() == pytest.approx(1.0)


def test_noise_is_frozen_and_stratified():
    noise, again = (freeze_noise(full_rows(1000, 128), 64) for _ in range(2))
    assert np.array_equal(noise.masks(slice(0, 64)), again.masks(slice(0, 64)))
    assert np.array_equal(noise.masks(slice(0, 64)).sum(axis=1), noise.masked_counts)
    assert sorted((noise.masked_counts - 1) // 2) == list(range(64))  # 64 strata of 2 counts each
    assert len(set(noise.rows)) == 64
    assert noise.rows[-1] > 900


def test_masks_depend_on_the_row_not_on_its_batch():
    noise = freeze_noise(full_rows(50, 32), 50)
    assert np.array_equal(noise.masks(slice(10, 20)), noise.masks(slice(0, 50))[10:20])


def test_fewer_rows_than_wanted():
    noise = freeze_noise(full_rows(5, 16), 100)
    assert list(noise.rows) == [0, 1, 2, 3, 4]
    assert noise.masked_counts.min() >= 1
    assert noise.masked_counts.max() <= 16


def test_unigram_entropy_of_known_frequencies():
    tokens = np.array([[0, 0, 0, 0, 1, 1, 2, 3, 9, 9]])  # the nines are padding
    manifest = SimpleNamespace(vocab_size=10)
    dataset = SimpleNamespace(
        num_rows=1,
        seq_len=10,
        manifest=manifest,
        rows=lambda indices: tokens[indices],
        lengths=lambda indices: np.array([8]),
    )
    assert unigram_entropy(dataset) == pytest.approx(1.75 * math.log(2))


def test_bits_per_byte():
    split = SimpleNamespace(tokens=300, bytes=900)
    assert bits_per_byte(3 * math.log(2), split) == pytest.approx(1.0)


@pytest.fixture
def measure(world, tmp_path):
    """Put some of four questions to a model, on the main rank or another one; returns the figures."""
    question = find_generator("addition2")
    tokenizer = toy_tokenizer(tmp_path, question.alphabet)
    task = AnswerTask(question, HeldOut([question.text(0, i) for i in range(4)], tokenizer))
    compute = SimpleNamespace(record=dict)

    def call(*items, is_main=True):
        model = toy_model(world, tokenizer, HashedDenoiser(tokenizer.vocab_size - 1), batch_size=1)
        job = SimpleNamespace(model=lambda *_: model, settings=lambda *_: {}, stem=lambda *_: "s")
        run = SimpleNamespace(world=SimpleNamespace(is_main=is_main), folder=tmp_path)
        return _measure(job, task, run, compute, items)[0]

    return call


def test_the_cost_is_that_of_the_items(measure, tmp_path):
    """It is left out where the records have other items too, or where what they have cost was not written."""
    assert measure(0, 2)["cost"]["tokens"] == 6 and measure(0, 1, 2, 3)["cost"]["tokens"] == 12
    assert "cost" not in measure(0, 2)
    records = tmp_path / "eval" / "s.items.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(line for line in lines if "spent" not in line))
    assert "cost" not in measure(0, 1, 2, 3)


def test_the_main_rank_prints_progress(measure, capsys, monkeypatch):
    monkeypatch.setattr(runner, "PROGRESS_SECONDS", -1.0)
    measure(0, 1, is_main=False)
    assert capsys.readouterr().out == ""
    measure(0, 1)
    assert capsys.readouterr().out.startswith("addition2, S=1: 2 of 2 items, ")
