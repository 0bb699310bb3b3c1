"""`Denoise` by a looped denoiser: how many passes, what is computed and what is kept from earlier steps."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import AttentionInputs
from model.denoiser import LoopedDenoiser, positions_of
from model.rope import rotation
from model.sampling.cache import Caching, KeptRows, KeyValueCache, SampleMemory, Slots
from model.sampling.passes import OF_PREDICTIONS, Judge, LoopPolicy, run_passes
from model.sampling.query import Query
from model.sampling.tally import Tally
from model.sampling.warm_start import WarmStart


@dataclass(frozen=True)
class Compute:
    """How much is computed in a forward pass.

    Attributes:
        loops: the number of passes of the looped block.
        caching: None to compute all tokens in every forward pass.
        warm_start: see `model/sampling/warm_start.py`.
        batch_size: the most samples that are drawn at once, for what is kept of them.
    """

    loops: LoopPolicy
    caching: Caching | None = None
    warm_start: bool = False
    batch_size: int = 1


@dataclass(frozen=True)
class Part:
    """Rows of a query that are computed together: a positions of each of n rows.

    Attributes:
        length: s, tokens of a whole row.
        tokens: int64 [n, a].
        time: float64 [n].
        wanted: bool [n, a].
        samples: number of each row's sample, int64 [n].
        columns: which positions of the row these are, int64 [n, a], ascending, s for places that are only filled up; None if
            they are all.
        slots: where their samples are kept; None if nothing is kept.
    """

    length: int
    tokens: Tensor
    time: Tensor
    wanted: Tensor
    samples: Tensor
    columns: Tensor | None = None
    slots: Slots | None = None

    @property
    def places(self) -> Tensor:
        """`columns`, also if they are all, int64 [n, a]."""
        if self.columns is None:
            return torch.arange(self.length, device=self.tokens.device).expand_as(self.tokens)
        return self.columns

    @property
    def counts(self) -> Tensor:
        """Positions that are computed in each row, int64 [n]."""
        return (self.places < self.length).sum(dim=1)


class Answer:
    """Logits and S of a query, collected part by part."""

    def __init__(self, query: Query, wanted: Tensor, slots: Slots) -> None:
        self._query, self._wanted, self._slots = query, wanted, slots
        self._row = wanted.nonzero()[:, 0]
        self.logits = torch.empty(0)
        self.loops = torch.zeros_like(query.samples)

    def part(self, rows: Tensor, computed: Tensor) -> Part:
        """Some rows (bool [b]) with the positions that are computed (bool [b, s])."""
        tokens, wanted, computed = self._query.tokens[rows], self._wanted[rows], computed[rows]
        time, samples, slots = self._query.time[rows], self._query.samples[rows], self._slots.of(rows)
        length = tokens.shape[1]
        if computed.all():
            return Part(length, tokens, time, wanted, samples, None, slots)
        order = torch.where(computed, torch.arange(length, device=tokens.device), length).sort(dim=1).values
        columns = order[:, : int(computed.sum(dim=1).max())]
        tokens, wanted = F.pad(tokens, (0, 1)), F.pad(wanted, (0, 1))
        return Part(length, tokens.gather(1, columns), time, wanted.gather(1, columns), samples, columns, slots)

    def add(self, rows: Tensor, logits: Tensor, loops: Tensor) -> None:
        """Take the logits and S of these rows (bool [b])."""
        if rows.all():
            self.logits, self.loops = logits, loops
            return
        if not self.logits.numel():
            self.logits = logits.new_empty(len(self._row), logits.shape[1])
        self.logits[rows[self._row]] = logits
        self.loops[rows] = loops

    def surest(self) -> Tensor:
        """The probability of the surest wanted token of each row, float [b]."""
        highest = self.logits.softmax(dim=-1).amax(dim=-1)
        return torch.zeros_like(self.loops, dtype=highest.dtype).scatter_reduce(0, self._row, highest, "amax")


@dataclass
class LoopedNetwork:
    """`Denoise`. A sample's number must mean the same sample for the life of the object.

    Attributes:
        model: the whole model or, with tensor parallelism, its shards; not one stage of several.
        gather: this rank's logits [m, v / tensor-parallel size] -> all [m, v], the same on every rank.
        agree: makes a decision (bool [n]) the same on all tensor-parallel ranks.
        tally: where the work is counted.
    """

    model: LoopedDenoiser
    compute: Compute
    gather: Callable[[Tensor], Tensor] = lambda logits: logits.float()
    agree: Callable[[Tensor], Tensor] = lambda decision: decision
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._memory: SampleMemory | None = None
        self._cache: KeyValueCache | None = None
        self._warm: WarmStart | None = None

    def __call__(self, query: Query) -> Tensor:
        """See `Denoise`."""
        wanted = torch.zeros_like(query.tokens, dtype=torch.bool)
        wanted.view(-1)[query.positions] = True
        if self.compute.caching is None and not self.compute.warm_start:
            return self._forward(Part(wanted.shape[1], query.tokens, query.time, wanted, query.samples))[0]
        memory, caching = self._memory_of(query), self.compute.caching
        slots = memory.find(query.samples)
        answer = Answer(query, wanted, slots)
        if caching is None:
            computed = torch.ones_like(wanted)
        else:
            computed = memory.computed(caching, slots, query.tokens, wanted, self.model.architecture.mask_id)
        whole = computed.all(dim=1)
        for rows in (whole, ~whole):
            self._answer(answer, rows, computed)
        if caching is not None and caching.below > 0:
            unsure = self.agree(memory.of_samples(slots, answer.surest() < caching.below) & ~whole)
            computed |= unsure[:, None]
            self._answer(answer, unsure, computed)
        memory.note(slots, query.tokens, computed, wanted, answer.loops)
        return answer.logits

    def _answer(self, answer: Answer, rows: Tensor, computed: Tensor) -> None:
        if rows.any():
            answer.add(rows, *self._forward(answer.part(rows, computed)))

    def _memory_of(self, query: Query) -> SampleMemory:
        """The memory for rows of this length. Rows of another length begin another batch."""
        tokens, loop, compute = query.tokens, self.model.architecture.loop, self.compute
        if self._memory is None or self._memory.seq_len != tokens.shape[1]:
            self._memory = SampleMemory(compute.batch_size, tokens.shape[1], tokens.device)
            if compute.caching is not None:
                passes = max(compute.loops.loops) if compute.caching.per_pass else 1
                self._cache = KeyValueCache(self._memory, passes, range(loop.head + 1, loop.head + loop.mid + 1))
            if compute.warm_start:
                self._warm = WarmStart(self._memory, self.model.embedding.weight)
        return self._memory

    def _forward(self, part: Part) -> tuple[Tensor, Tensor]:
        """Logits of the wanted positions [m, v], and S of each row [n]."""
        policy, attention = self.compute.loops, self._attention(part)
        everything = torch.arange(len(part.time), device=part.time.device)

        def one_pass(states: Tensor, number: int, rows: Tensor) -> Tensor:
            return self.model.one_pass(states, attention(rows, number))

        def logits(states: Tensor, rows: Tensor) -> Tensor:
            return self.gather(self.model.output(states, positions_of(part.wanted[rows])))

        def predict(states: Tensor, rows: Tensor) -> Tensor:
            return logits(self.model.run_tail(states, attention(rows, None)), rows)

        head = states = self.model.embed_and_head(part.tokens, attention(everything, None))
        if self._warm is not None and part.slots is not None:
            states = self._warm.start(part.slots, part.places, part.tokens, head)
        judge = None
        if policy.settling is not None:
            compared = predict if policy.settling.criterion == "prediction" else logits
            judge = Judge(policy.settling, part.wanted.t(), compared, self.agree)
        limits = policy.limits(part.time)
        looped = run_passes(one_pass, states, limits, judge)
        if self._warm is not None and part.slots is not None:
            self._warm.keep(part.slots, part.places, looped.states - head)
        self._count(part, looped.loops, limits)
        return predict(looped.states, everything), looped.loops

    def _attention(self, part: Part) -> Callable[[Tensor, int | None], AttentionInputs]:
        """(numbers of rows, number of a pass or None outside the looped block) -> inputs of their attention."""
        weight, architecture = self.model.embedding.weight, self.model.architecture
        rotary = rotation(part.length, architecture.head_dim, architecture.rope_base, weight.device, weight.dtype)
        kept = None
        if part.columns is not None:
            rotary = rotary.at(part.columns.clamp_max(part.length - 1))
        if self._cache is not None and part.slots is not None:
            kept = KeptRows.of(self._cache, part.slots, part.columns)
        return lambda rows, number: AttentionInputs(rotary.of_rows(rows), kept=kept and kept.at(rows, number))

    def _count(self, part: Part, loops: Tensor, limits: Tensor) -> None:
        """Add a forward pass to the tally. After the last possible pass, settling is not asked for."""
        settling, once = self.compute.loops.settling, torch.ones_like(loops)
        heads = loops + (loops < limits) if settling is not None and settling.criterion in OF_PREDICTIONS else once
        tails = heads if settling is not None and settling.criterion == "prediction" else once
        predicted = heads * part.wanted.sum(dim=1)
        self.tally.add(self.model.architecture, part.length, part.counts, loops, predicted, tails, part.samples)
