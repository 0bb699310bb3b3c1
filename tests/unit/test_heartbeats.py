"""What heartbeats cost at the store, and what a summary says, without processes."""

from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest

from pretrain.parallel.heartbeats import Heartbeat, HeartbeatStore, Position, Summarizer, Summary
from pretrain.parallel.peers import PeerStatus


class CountedStore(dict):
    """The part of a TCPStore that heartbeats use, as a dictionary that counts the values and bytes sent to and from it."""

    values = sent = 0

    def count(self, value: bytes) -> bytes:
        self.values, self.sent = self.values + 1, self.sent + len(value)
        return value

    def add(self, key: str, number: int) -> int:
        self[key] = self.get(key, 0) + number
        return self[key]

    def set(self, key: str, value: str) -> None:
        self[key] = self.count(value.encode())

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.count(self[key]) for key in keys]


def connected(store: CountedStore, rank: int, size: int) -> HeartbeatStore:
    """A rank's heartbeats in that store."""

    class Connected(HeartbeatStore):
        def _connect(self) -> CountedStore:
            return store

    return Connected("host", 1, rank, size, interval=1.0)


def cost_of_an_interval(size: int) -> tuple[int, int]:
    """(values, bytes) that the store of a world of ranks handles in one interval, after a first one."""
    store = CountedStore()
    ranks = [connected(store, rank, size) for rank in range(size)]
    for count in (1, 2):
        store.values = store.sent = 0
        for rank, one in enumerate(ranks):
            one.exchange(Heartbeat(rank, "node", 1000 + rank, count=count))
    return store.values, store.sent


def test_the_cost_of_an_interval_grows_with_the_number_of_ranks():
    """Three values per rank: it writes its heartbeat, rank 0 reads that, and the rank reads the summary."""
    (values, sent), (few_values, few_sent) = cost_of_an_interval(1024), cost_of_an_interval(256)
    print(f"1,024 ranks: {values:,} values, {sent:,} bytes; 256 ranks: {few_values:,} values, {few_sent:,} bytes")
    assert (values, few_values) == (3 * 1024, 3 * 256)
    assert sent == pytest.approx(4 * few_sent, rel=0.05)


class WhoReadsAll:
    """The oracle: what a rank says that reads every heartbeat."""

    def __init__(self, own: Heartbeat, heartbeats: list[Heartbeat], silence: list[float]) -> None:
        self.own, self.silence = own, silence
        self.peers = [one for one in heartbeats if one.rank != own.rank]
        self.running = [one for one in self.peers if one.state == "running"]

    def reported_cause(self) -> str:
        reports = [one for one in self.peers if one.state in ("failed", "stopped")]
        return min(reports, key=lambda one: (one.state != "failed", one.rank)).cause if reports else ""

    def silent(self, limit: float) -> str:
        silent = [one for one in self.running if self.silence[one.rank] >= limit]
        silent.sort(key=lambda one: -self.silence[one.rank])
        return self.join(
            f"{one} has not responded for {self.silence[one.rank]:.0f} s and was last seen in {one.where}"
            for one in silent
        )

    def behind(self) -> str:
        running = sorted([self.own, *self.running], key=lambda one: one.position)
        late = [one for one in running if one.position[:2] < running[-1].position[:2]]
        listed = self.join(f"{one}, in {one.where} for {one.seconds:.0f} s" for one in late or running)
        return f"the other ranks are waiting for {listed}" if late else f"no rank is behind the others: {listed}"

    @staticmethod
    def join(texts: Iterable[str]) -> str:
        every = list(texts)
        return "; ".join(every[:8] + ([f"and {len(every) - 8} more ranks"] if len(every) > 8 else []))


@pytest.mark.parametrize("late", [0, 1, 3, 20])
@pytest.mark.parametrize("dead", [0, 1, 3, 20])
def test_a_rank_says_what_one_would_that_reads_every_heartbeat(late, dead):
    """48 ranks; of some, the counters stand still, and some others have entered fewer calls."""
    size, random = 48, Random(f"{late}/{dead}")
    numbers = random.sample(range(1, size), late + dead)
    slow, silent = set(numbers[:late]), set(numbers[late:])
    summarizer, status = Summarizer(size, 1.0), [PeerStatus(rank, size, 5.0) for rank in range(size)]
    for count in range(1, 10):
        heartbeats = [
            Heartbeat(
                rank,
                f"node{rank // 8}",
                rank,
                Position(7, 3 - (rank in slow), "sum"),
                9.0,
                min(count, 2) if rank in silent else count,
            )
            for rank in range(size)
        ]
        summary = Summary.from_json(summarizer.summarize(1.0, heartbeats).to_json().encode())
        for one in status:
            one.update(1.0, summary)
    for rank in set(range(size)) - silent:
        oracle = WhoReadsAll(heartbeats[rank], heartbeats, [7.0 * (one in silent) for one in range(size)])
        assert status[rank].silent(6.0) == oracle.silent(6.0)
        assert status[rank].silent(8.0) == ""
        assert status[rank].behind(heartbeats[rank]) == oracle.behind()


def test_the_lowest_rank_that_failed_by_its_own_error_is_reported_to_all():
    size = 40
    heartbeats = [Heartbeat(rank, "node", rank, count=1) for rank in range(size)]
    for rank, state in ((3, "stopped"), (20, "failed"), (11, "failed")):
        heartbeats[rank] = replace(heartbeats[rank], state=state, cause=f"cause {rank}")
    summary = Summary.from_json(Summarizer(size, 1.0).summarize(1.0, heartbeats).to_json().encode())
    for rank in (0, 1, 39):
        peers = PeerStatus(rank, size, 5.0)
        peers.update(1.0, summary)
        assert peers.reported_cause() == WhoReadsAll(heartbeats[rank], heartbeats, []).reported_cause() == "cause 11"


def test_rank_0_is_silent_when_its_summaries_stop():
    heartbeats = [Heartbeat(rank, "node", 10 + rank, Position(4, 1, "sum"), count=1) for rank in range(3)]
    peers = PeerStatus(rank=2, size=3, longest_update=5.0)
    for _ in range(7):
        peers.update(1.0, Summarizer(3, 1.0).summarize(1.0, heartbeats))
    assert peers.silent(7.0) == ""
    assert peers.silent(6.0) == "rank 0 (node, pid 10) has not responded for 6 s and was last seen in step 4 (sum)"
