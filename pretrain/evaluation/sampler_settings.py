"""Which sampler draws samples, and which options go together; the others are refused with the reason."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pretrain.errors import UserError

if TYPE_CHECKING:
    from model.sampling.generate import SamplingPlan
    from model.sampling.query import Denoise
    from model.sampling.state import Sampler

RANKED = ("left_to_right", "random", "confidence", "margin", "entropy")
OPTIONS_OF = {
    "ancestral": ("steps",),
    "remask": ("steps", "remask"),
    **dict.fromkeys(RANKED, ("steps", "tokens_per_step", "draft")),
    "self_speculative": ("draft",),
    "threshold": ("threshold",),
    "entropy_bound": ("entropy_bound",),
    "wino": ("threshold", "verify_threshold"),
}
"""Sampler -> the options that only some samplers have."""
SPECULATIVE_ORDER = "confidence"
"""In which `self_speculative` reveals tokens. `draft` gives the other orders the same speed-up."""

LIMITS: Mapping[str, tuple[float, float]] = {
    "steps": (1, math.inf),
    "tokens_per_step": (1, math.inf),
    "draft": (1, math.inf),
    "block_length": (1, math.inf),
    "top_k": (1, math.inf),
    "threshold": (0, 1),
    "verify_threshold": (0, 1),
    "remask": (0, 1),
    "entropy_bound": (0, math.inf),
    "temperature": (0, math.inf),
    "guidance": (0, math.inf),
}
"""Option -> smallest and largest value."""

DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "ancestral": {"steps": 32},
    "remask": {"steps": 32, "remask": 0.1},
    "self_speculative": {"draft": 4},
    "threshold": {"threshold": 0.9},
    "entropy_bound": {"entropy_bound": 0.1},
    "wino": {"threshold": 0.6, "verify_threshold": 0.9},
}
"""Sampler -> values of options that are not given. A ranked order reveals one token per step."""


def option(name: str) -> str:
    """`top_k` -> `--top-k`."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class SamplerSettings:
    """The options of a sampler, checked.

    Attributes:
        sampler: a key of `OPTIONS_OF`.
        steps, tokens_per_step, draft, threshold, verify_threshold, entropy_bound, remask: see `loopmdm sample --help`; None
            where the sampler has no such option.
        temperature, top_k, top_p, guidance, block_length: likewise, for all samplers; None for without.
        stop: end a sample at its first end-of-document token.
    """

    sampler: str = "ancestral"
    steps: int | None = None
    tokens_per_step: int | None = None
    draft: int | None = None
    threshold: float | None = None
    verify_threshold: float | None = None
    entropy_bound: float | None = None
    remask: float | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float | None = None
    block_length: int | None = None
    stop: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "SamplerSettings":
        """Check what the user gave, None for an option that was not given, and fill in the defaults.

        Raises:
            UserError: names the option, the reason and the fix.
        """
        values = {f.name: given[f.name] for f in fields(cls) if given.get(f.name) is not None}
        sampler = values.get("sampler", "ancestral")
        for name, value in values.items():
            _check_value(name, value)
            if name in LIMITS and not _belongs(name, sampler):
                others = _samplers_with(name)
                raise UserError(f"{option(name)}: has no effect with --sampler {sampler}; use --sampler {others}")
        _check_together(values)
        defaults = dict(DEFAULTS.get(sampler, {}))
        if sampler in RANKED and "steps" not in values:
            defaults = {"tokens_per_step": 1}
        return cls(**{**defaults, **values})

    def plan(self, guide: Callable[[], "Denoise"], stop_id: int) -> "SamplingPlan":
        """The plan for `generate`.

        Args:
            guide: makes the network of the rows without a prompt; called only for guidance.
            stop_id: token id of the end of a document.
        """
        from model.sampling.drawing import Drawing
        from model.sampling.generate import SamplingPlan
        from model.sampling.guidance import Guidance

        return SamplingPlan(
            self._sampler(),
            self.steps,
            Drawing(self.temperature, self.top_k, self.top_p),
            self.block_length,
            Guidance(guide(), self.guidance) if self.guidance else None,
            stop_id if self.stop else None,
        )

    def record(self) -> dict[str, Any]:
        """The settings by which results are told apart, without options that the sampler does not have."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {name: value for name, value in named.items() if value is not None}
        return {"denoising_steps" if name == "steps" else name: value for name, value in found.items()}

    def describe(self) -> str:
        """A few words for the line above a sample."""
        name = self.sampler.replace("_", " ")
        if self.sampler == "ancestral":
            return f"{self.steps} denoising steps"
        if self.sampler in RANKED:
            return f"{name}, {f'{self.steps} steps' if self.steps else f'{self.tokens_per_step} per step'}"
        own = [f"{key.replace('_', ' ')} {getattr(self, key):g}" for key in OPTIONS_OF[self.sampler]]
        return ", ".join(own if self.sampler in OPTIONS_OF[self.sampler] else [name, *own])

    def _sampler(self) -> "Sampler":
        from model.sampling.order import ORDERS, Ancestral, EntropyBound, Ranked, Threshold
        from model.sampling.revise import DraftAndVerify, Remasking
        from model.sampling.speculative import Speculative

        match self.sampler:
            case "ancestral":
                return Ancestral()
            case "remask":
                return Remasking(self.remask)
            case "threshold":
                return Threshold(self.threshold)
            case "entropy_bound":
                return EntropyBound(self.entropy_bound)
            case "wino":
                return DraftAndVerify(self.threshold, self.verify_threshold)
            case "self_speculative":
                return Speculative(ORDERS[SPECULATIVE_ORDER], self.draft)
        order = ORDERS[self.sampler]
        return Speculative(order, self.draft) if self.draft else Ranked(order, self.tokens_per_step)


def _belongs(name: str, sampler: str) -> bool:
    """Whether a sampler has this option: all have those that no sampler has for itself."""
    return name in OPTIONS_OF[sampler] or not any(name in names for names in OPTIONS_OF.values())


def _samplers_with(name: str) -> str:
    *others, last = [sampler for sampler, names in OPTIONS_OF.items() if name in names]
    return f"{', '.join(others)} or {last}" if others else last


def _check_value(name: str, value: Any) -> None:
    """Raise UserError for a number that means nothing."""
    if name == "top_p":
        if not 0 < value <= 1:
            raise UserError(f"--top-p {value:g}: must be above 0 and at most 1")
    elif name in LIMITS:
        least, most = LIMITS[name]
        if not (least <= value <= most and math.isfinite(value)):
            limits = f"from {least} to {most}"
            if math.isinf(most):
                limits = f"at least {least}" if math.isfinite(value) else f"finite and at least {least}"
            raise UserError(f"{option(name)} {value:g}: must be {limits}")


def _check_together(values: Mapping[str, Any]) -> None:
    """Raise UserError for options that exclude each other."""
    if "steps" in values and "tokens_per_step" in values:
        raise UserError("--steps and --tokens-per-step: each determines the other; give one of them")
    if "draft" in values and ("steps" in values or values.get("tokens_per_step", 1) > 1):
        other = "--steps" if "steps" in values else "--tokens-per-step"
        raise UserError(f"--draft: speeds up one token per step with the same result; leave out {other}")
    for name in ("top_k", "top_p"):
        if name in values and values.get("temperature") == 0:
            raise UserError(f"{option(name)}: has no effect at --temperature 0, which takes the likeliest token")
