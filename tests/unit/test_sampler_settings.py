"""Options of samplers: what goes together, and what is refused with the reason."""

import pytest

from pretrain.errors import UserError
from pretrain.evaluation.sampler_settings import OPTIONS_OF, SamplerSettings

REFUSED = {
    "--threshold: has no effect with --sampler ancestral; use --sampler threshold or wino": {"threshold": 0.5},
    "--remask: has no effect with --sampler confidence; use --sampler remask": {"sampler": "confidence", "remask": 0.1},
    "--steps: has no effect with --sampler wino; use --sampler ancestral, remask, left_to_right": {"sampler": "wino", "steps": 4},
    "--steps and --tokens-per-step: each determines": {"sampler": "margin", "steps": 4, "tokens_per_step": 2},
    "--draft: speeds up one token per step with the same result; leave out --steps": {
        "sampler": "margin", "draft": 4, "steps": 2
    },
    "--draft: speeds up one token per step with the same result; leave out --tokens-per-step": {
        "sampler": "margin", "draft": 4, "tokens_per_step": 2
    },
    "--top-p: has no effect at --temperature 0": {"top_p": 0.9, "temperature": 0.0},
    "--top-k: has no effect at --temperature 0": {"top_k": 9, "temperature": 0.0},
    "--top-p 0: must be above 0 and at most 1": {"top_p": 0.0},
    "--top-p nan: must be above 0 and at most 1": {"top_p": float("nan")},
    "--top-k 0: must be at least 1": {"top_k": 0},
    "--temperature -1: must be at least 0": {"temperature": -1.0},
    "--temperature nan: must be finite and at least 0": {"temperature": float("nan")},
    "--temperature inf: must be finite and at least 0": {"temperature": float("inf")},
    "--guidance -0.5: must be at least 0": {"guidance": -0.5},
    "--block-length 0: must be at least 1": {"block_length": 0},
    "--steps 0: must be at least 1": {"steps": 0},
    "--threshold 1.5: must be from 0 to 1": {"sampler": "threshold", "threshold": 1.5},
    "--remask -0.1: must be from 0 to 1": {"sampler": "remask", "remask": -0.1},
    "--draft -3: must be at least 1": {"sampler": "random", "draft": -3},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(UserError) as error:
        SamplerSettings.of(REFUSED[message])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", OPTIONS_OF)
def test_every_sampler_has_a_plan_with_its_defaults(name):
    settings = SamplerSettings.of({"sampler": name, "stop": True, "guidance": 0.5, "top_k": 3})
    plan = settings.plan(lambda: "network", 7)
    assert plan.stop_id == 7 and plan.guidance.denoise == "network" and plan.drawing.top_k == 3
    assert settings.describe()
    assert SamplerSettings.of({}).plan(pytest.fail, 7).stop_id is None  # no second network without guidance


def test_results_are_told_apart_by_their_options():
    assert SamplerSettings.of({}).record() == {
        "sampler": "ancestral", "denoising_steps": 32, "temperature": 1.0, "stop": False
    }  # fmt: skip
    record = SamplerSettings.of({"sampler": "confidence", "draft": 3}).record()
    assert record["tokens_per_step"] == 1 and record["draft"] == 3 and "threshold" not in record
    assert SamplerSettings.of({"sampler": "wino"}).describe() == "wino, threshold 0.6, verify threshold 0.9"


def test_samplers_are_those_of_the_options():
    from model.sampling.order import ORDERS, EntropyBound, Ranked
    from model.sampling.revise import DraftAndVerify, Remasking
    from model.sampling.speculative import Speculative

    def sampler(**given):
        return SamplerSettings.of(given).plan(pytest.fail, 0).sampler

    assert sampler(sampler="remask", remask=0.2, steps=9) == Remasking(0.2)
    assert sampler(sampler="self_speculative", draft=3) == Speculative(ORDERS["confidence"], 3)
    assert sampler(sampler="entropy_bound") == EntropyBound(0.1)
    assert sampler(sampler="margin", tokens_per_step=4) == Ranked(ORDERS["margin"], 4)
    assert sampler(sampler="margin", steps=4) == Ranked(ORDERS["margin"], None)
    assert sampler(sampler="entropy", draft=4) == Speculative(ORDERS["entropy"], 4)
    assert sampler(sampler="wino", threshold=0.5) == DraftAndVerify(0.5, 0.9)
    assert set(OPTIONS_OF) >= set(ORDERS)
