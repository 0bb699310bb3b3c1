"""How much is computed in each forward pass of a sampler: loops, cache, warm start. Imports torch only to make the network."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from pretrain.errors import UserError

if TYPE_CHECKING:
    from model.sampling.network import Compute

THRESHOLDS: Mapping[str, float] = {"logit-lens": 0.005, "prediction": 0.0035, "direction": 0.065, "state": 0.15}
"""Criterion of `--loops adaptive` -> threshold if none is given. The first is the default (model/sampling/README.md)."""

MOST_LOOPS = 1000
"""A larger number of loops is a mistake, such as a comma that is missing."""

LOOPS_HELP = "a number such as 4, a schedule such as 1-6-1, or adaptive, adaptive:MIN-MAX"


@dataclass(frozen=True)
class ComputeSettings:
    """The options, checked.

    Attributes:
        loops: passes of the looped block at equally spaced t from 1 to 0; with `adaptive`, the least and the most, where an empty
            tuple stands for 1 to the largest value in training.
        adaptive: stop a row when it has settled.
        loop_criterion, loop_threshold: see `model.sampling.passes.Settling`; None without `adaptive`.
        warm_start, cache, refresh: see `loopmdm sample --help`.
    """

    loops: tuple[int, ...]
    adaptive: bool = False
    loop_criterion: Literal["direction", "state", "logit-lens", "prediction"] | None = None
    loop_threshold: float | None = None
    warm_start: bool = False
    cache: Literal["prefix", "dual"] | None = None
    refresh: float | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "ComputeSettings":
        """Check what the user gave, None for an option that was not given.

        Raises:
            UserError: names the option, the reason and the fix.
        """
        values = {f.name: given[f.name] for f in fields(cls) if given.get(f.name) is not None}
        loops, adaptive = parse_loops(values.pop("loops"))
        if adaptive:
            values.setdefault("loop_criterion", "logit-lens")
            values.setdefault("loop_threshold", THRESHOLDS[values["loop_criterion"]])
        for name in ("loop_criterion", "loop_threshold"):
            if name in values and not adaptive:
                raise UserError(f"--{name.replace('_', '-')}: has no effect without --loops adaptive")
        if "refresh" in values and "cache" not in values:
            raise UserError("--refresh: has no effect without --cache")
        if not 0 <= values.get("loop_threshold", 0) < math.inf:
            raise UserError(f"--loop-threshold {values['loop_threshold']:g}: must be at least 0")
        refresh = values.get("refresh", 1)
        if not (0 < refresh < 1 or (refresh >= 1 and refresh == int(refresh))):
            raise UserError(f"--refresh {refresh:g}: give a number of steps, or a probability between 0 and 1")
        return cls(loops=loops, adaptive=adaptive, **values)

    def resolved(self, maximum: int) -> "ComputeSettings":
        """The same, where `adaptive` without numbers becomes 1 to `maximum`, S_max of the training."""
        return self if self.loops else replace(self, loops=(1, maximum))

    def compute(self, batch_size: int) -> "Compute":
        """For `LoopedNetwork`; of resolved settings."""
        from model.sampling.cache import Caching
        from model.sampling.network import Compute
        from model.sampling.passes import LoopPolicy, Settling

        if self.adaptive:
            least, most = self.loops
            assert self.loop_threshold is not None and self.loop_criterion is not None
            policy = LoopPolicy((most,), Settling(self.loop_threshold, self.loop_criterion, least))
        else:
            policy = LoopPolicy(self.loops)
        caching = None
        if self.cache is not None:
            refresh = self.refresh or 0.0
            caching = Caching(self.cache, int(refresh) if refresh >= 1 else None, refresh if refresh < 1 else 0.0)
        return Compute(policy, caching, self.warm_start, batch_size)

    def check_layout(self, pipeline: int) -> None:
        """Raise UserError for what a pipeline of several stages cannot do."""
        asked = {
            "--loops adaptive": self.adaptive,
            "--warm-start": self.warm_start,
            f"--cache {self.cache}": self.cache,
        }
        if pipeline > 1:
            for option in (name for name, value in asked.items() if value):
                raise UserError(
                    f"{option} with --pipeline {pipeline}: the number of passes of a row must be known before it enters the "
                    "pipeline, and what is kept would be spread over the stages; use --tensor or data-parallel ranks instead"
                )

    @property
    def loops_name(self) -> str:
        """The loops as they are given on the command line, such as 4, 1-6-1 or adaptive:1-12."""
        numbers = "-".join(map(str, self.loops))
        return f"adaptive:{numbers}" if self.adaptive else numbers

    def record(self) -> dict[str, Any]:
        """The settings by which results are told apart."""
        single = self.loops[0] if len(self.loops) == 1 and not self.adaptive else self.loops_name
        others = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("loops", "adaptive")}
        return {"loops": single} | {name: value for name, value in others.items() if value}


def parse_loops(text: str) -> tuple[tuple[int, ...], bool]:
    """The numbers of `--loops`, and whether it is `adaptive`.

    Raises:
        UserError: it is not understood.
    """
    kind, _, numbers = text.partition(":") if text.startswith("adaptive") else ("", "", text)
    if text == "adaptive":
        return (), True
    if kind not in ("", "adaptive") or not re.fullmatch(r"\d+(-\d+)*", numbers, re.ASCII):
        raise UserError(f"--loops {text}: give {LOOPS_HELP}")
    loops = tuple(map(int, numbers.split("-")))
    check_loops(text, *loops)
    if kind and (len(loops) != 2 or loops[0] > loops[1]):
        raise UserError(f"--loops {text}: give the least and the most passes, such as adaptive:2-12")
    return loops, bool(kind)


def check_loops(text: str | int, *loops: int) -> None:
    """Raise UserError if one of the numbers that `--loops TEXT` stands for is no number of passes."""
    if min(loops) < 1:
        raise UserError(f"--loops {text}: must be at least 1")
    if max(loops) > MOST_LOOPS:
        raise UserError(f"--loops {text}: must be at most {MOST_LOOPS:,}")
