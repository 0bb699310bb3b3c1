"""Keys and values kept from one denoising step to the next, so that a step computes only some tokens of a row.

A step computes the tokens that have changed since they were last computed, and those whose logits are wanted; all others are
only attended to, with their keys and values of an earlier step. With attention in both directions this is an approximation,
because what was computed earlier has not seen the tokens that were revealed since. A refresh computes whole rows.

Which other tokens a step computes is that of Fast-dLLM (arXiv 2505.22618): all from the first [MASK] on ("prefix": only the
prompt and finished blocks are kept), or none ("dual": the masked tokens of later blocks are kept as well). A revealed token is
computed once more before it is kept, as in dKV-Cache (arXiv 2505.15781), whose rule for refreshes is `every`.

No hidden states are kept for this: nothing but keys and values is read of a token that is not computed.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reuse = Literal["prefix", "dual"]


@dataclass(frozen=True)
class Caching:
    """What is kept, and when it is refreshed.

    Attributes:
        every: refresh a row in every so many of its forward passes; None: when a block begins, which is when none of its
            wanted tokens was wanted before (Fast-dLLM).
        below: also refresh a row whose surest wanted token has a lower probability than this; the step is then computed again.
        per_pass: keep the keys and values of every pass of the looped block, for the same pass of later steps. Otherwise those
            of the last pass, for all passes, which takes less memory and loses quality (model/sampling/README.md).
    """

    reuse: Reuse
    every: int | None = None
    below: float = 0.0
    per_pass: bool = True


class Slots(NamedTuple):
    """Where samples are kept, for n rows.

    Attributes:
        number: place of each row's sample, int64 [n]. Rows of the same sample have the same.
        writes: the row whose states are kept, bool [n]: the first of its sample. The others are possible continuations.
    """

    number: Tensor
    writes: Tensor

    def of(self, rows: Tensor) -> "Slots":
        """Those of some rows, int64 [m]."""
        return Slots(self.number[rows], self.writes[rows])


class SampleMemory:
    """What is known of each sample from its last forward passes.

    Args:
        capacity: samples to keep; the one that was used least recently is forgotten first. At least the rows of a batch, so
            that none of them is forgotten while it is sampled.
        seq_len: tokens of a row.

    Attributes:
        tokens: each position's token when it was last computed, -1 where it never was, int64 [capacity, s].
        wanted: the positions wanted in the last forward pass, bool [capacity, s].
        age: forward passes since the last refresh, that one included; 0 for a new sample, int64 [capacity].
        loops: S of the last refresh, int64 [capacity].
    """

    def __init__(self, capacity: int, seq_len: int, device: torch.device) -> None:
        self.capacity, self.seq_len = capacity, seq_len
        self.tokens = torch.full((capacity, seq_len), -1, device=device)
        self.wanted = torch.zeros(capacity, seq_len, dtype=torch.bool, device=device)
        self.age = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.loops = torch.ones(capacity, dtype=torch.int64, device=device)
        self._places: OrderedDict[int, int] = OrderedDict()

    def find(self, samples: Tensor) -> Slots:
        """The places of samples, int64 [n]; those of new ones are emptied.

        Raises:
            ValueError: more samples than places.
        """
        numbers = samples.tolist()
        if (asked := len(set(numbers))) > self.capacity:
            raise ValueError(f"{asked} samples in one forward pass do not fit {self.capacity} places; raise batch_size")
        for number in numbers:
            if number in self._places:
                self._places.move_to_end(number)
        new, writes, seen = [], [], set()
        for number in numbers:
            writes.append(number not in seen)
            seen.add(number)
            if number not in self._places:
                full = len(self._places) == self.capacity
                place = self._places.popitem(last=False)[1] if full else len(self._places)
                self._places[number] = place
                new.append(place)
        places = [self._places[number] for number in numbers]
        self.tokens[new], self.wanted[new], self.age[new] = -1, False, 0
        return Slots(samples.new_tensor(places), torch.tensor(writes, device=samples.device))

    def note(self, slots: Slots, tokens: Tensor, computed: Tensor, wanted: Tensor, loops: Tensor) -> None:
        """Note what a forward pass has computed.

        Args:
            tokens: int64 [n, s].
            computed, wanted: bool [n, s]. If all positions are computed this was a refresh.
            loops: S of each row, int64 [n].
        """
        places, writes = slots.number[slots.writes], slots.writes
        self.tokens[places] = torch.where(computed[writes], tokens[writes], self.tokens[places])
        self.wanted[places] = wanted[writes]
        refreshed = computed[writes].all(dim=1)
        self.age[places] = torch.where(refreshed, 0, self.age[places]) + 1
        self.loops[places] = torch.where(refreshed, loops[writes], self.loops[places])

    def computed(self, caching: Caching, slots: Slots, tokens: Tensor, wanted: Tensor, mask_id: int) -> Tensor:
        """Which positions the next forward pass has to compute, bool [n, s]; all of a row that is refreshed.

        Args:
            tokens: int64 [n, s].
            wanted: bool [n, s].
        """
        age, number = self.age[slots.number], slots.number
        begins = ~(self.wanted[number] & wanted).any(dim=1)
        refresh = (age == 0) | (begins if caching.every is None else age >= caching.every)
        refresh = self.of_samples(slots, refresh)
        computed = wanted | (tokens != self.tokens[number]) | refresh[:, None]
        return computed if caching.reuse == "dual" else computed | ((tokens == mask_id).cumsum(dim=1) > 0)

    def of_samples(self, slots: Slots, decision: Tensor) -> Tensor:
        """A decision about the row whose states are kept, for all rows of its sample, bool [n]."""
        decided = torch.zeros_like(self.age, dtype=torch.bool)
        decided[slots.number[slots.writes]] = decision[slots.writes]
        return decided[slots.number]


class KeyValueCache:
    """Rotated keys and the values of whole rows, for each layer and kept pass: [passes, capacity, s + 1, kv heads, d].

    The last column takes what is computed only to fill up rows with fewer computed positions than others.

    Args:
        passes: of the looped block that are kept.
        mid: numbers of the layers of the looped block, counted from 1 in the whole model.
    """

    def __init__(self, memory: SampleMemory, passes: int, mid: range) -> None:
        self.memory, self.passes, self._mid = memory, passes, mid
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, in memory once the layer is first used.

        Args:
            like: keys of the layer [n, a, kv heads, d].
        """
        if number not in self._layers:
            passes = self.passes if number in self._mid else 1
            shape = (passes, self.memory.capacity, self.memory.seq_len + 1, *like.shape[2:])
            self._layers[number] = (like.new_zeros(shape), like.new_zeros(shape))
        return self._layers[number]


@dataclass(frozen=True)
class KeptRows:
    """`KeptKeys` of n rows.

    Attributes:
        columns: positions that are computed, int64 [n, a], s for places that are only filled up; None for all.
        index: of the kept pass, int64 [n]; 0 in the head and the tail.
    """

    cache: KeyValueCache
    slots: Slots
    columns: Tensor | None
    index: Tensor

    @classmethod
    def of(cls, cache: KeyValueCache, slots: Slots, columns: Tensor | None) -> "KeptRows":
        """In the head and the tail."""
        return cls(cache, slots, columns, torch.zeros_like(slots.number))

    def at(self, rows: Tensor, number: int | None = None) -> "KeptRows":
        """Of some of the rows, in a pass of the looped block, counted from 1; None for the head and the tail.

        What is kept of a row's last pass serves all later ones.
        """
        slots = self.slots.of(rows)
        columns = None if self.columns is None else self.columns[rows]
        if number is None:
            return KeptRows.of(self.cache, slots, columns)
        last = torch.full_like(slots.number, self.cache.passes)
        if columns is not None:
            last = self.cache.memory.loops[slots.number].clamp_max(last)
        return KeptRows(self.cache, slots, columns, last.clamp_max(number) - 1)

    def __call__(self, layer_number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeptKeys`."""
        keys, values = self.cache.layer(layer_number, key)
        return self._complete(keys, key), self._complete(values, value)

    def _complete(self, kept: Tensor, states: Tensor) -> Tensor:
        """Keep the states [n, a, kv heads, d], and return those of whole rows [n, s, kv heads, d]."""
        writes = self.slots.writes
        index, slot = self.index[writes], self.slots.number[writes]
        if self.columns is None:
            kept[index, slot, :-1] = states[writes]
            return states
        whole = kept[self.index, self.slots.number]
        whole.scatter_(1, self.columns[:, :, None, None].expand_as(states), states)
        kept[index[:, None], slot[:, None], self.columns[writes]] = states[writes]
        return whole[:, :-1]
