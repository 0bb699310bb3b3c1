"""What a rank concludes about its peers from rank 0's summaries of their heartbeats, in the words of its messages."""

from collections.abc import Sequence

from pretrain.parallel.heartbeats import MOST_NAMED, Heartbeat, Summarizer, Summary
from pretrain.parallel.store import agent_hosts_store


class PeerStatus:
    """What one rank knows of the others: rank 0's latest summary, and for how many seconds rank 0 and the store are silent."""

    def __init__(self, rank: int, size: int, longest_update: float) -> None:
        """`longest_update`: upper limit, in seconds, of the silence that one update adds to rank 0."""
        self._rank, self._longest_update = rank, longest_update
        self._summary = Summarizer(size, interval=1.0).summarize(0.0, [Heartbeat(peer) for peer in range(size)])
        self._writer_silence = self._store_silence = self._since_report = 0.0

    @property
    def others_running(self) -> bool:
        """Whether a rank beside rank 0 is running."""
        return self._summary.others_running > 0

    def update(self, seconds: float, summary: Summary | None) -> None:
        """Take in the newest summary, `seconds` after the last update; None if the store did not answer."""
        self._store_silence += seconds
        self._since_report += seconds if self.reported_cause() else 0.0
        if summary is None:
            return
        # While the store did not answer, rank 0 could not be heard: that time does not count as its silence.
        elapsed = min(self._store_silence, self._longest_update)
        same = summary.writer.count == self._summary.writer.count
        self._writer_silence = self._writer_silence + elapsed if same else 0.0
        self._summary, self._store_silence = summary, 0.0

    def reported_cause(self, min_age: float = 0.0) -> str:
        """The first cause that a peer reported before it exited; empty if none did, or less than `min_age` seconds ago."""
        report = self._summary.report
        if report is None or report.rank == self._rank or self._since_report < min_age:
            return ""
        return report.cause

    def silent(self, limit: float) -> str:
        """The ranks that have been silent for `limit` seconds, the longest first; empty if there are none."""
        writer = self._summary.writer
        if self._store_silence >= limit:
            if not agent_hosts_store():
                return _describe_silence(writer, self._store_silence)
            agent = f"torchrun on the node of {writer}"
            return f"{agent} has not responded for {self._store_silence:.0f} s; rank 0 was last seen in {writer.where}"
        listed = [(peer, seconds) for peer, seconds in self._summary.silent if peer.rank != self._rank]
        unlisted = self._summary.silent_ranks - len(self._summary.silent)
        if self._rank != 0 and writer.state == "running":
            listed.append((writer, self._writer_silence))
        silent = sorted((entry for entry in listed if entry[1] >= limit), key=lambda entry: -entry[1])
        return _join([_describe_silence(*entry) for entry in silent], len(silent) + unlisted * bool(silent))

    def behind(self, own: Heartbeat) -> str:
        """The ranks that the others are waiting for, if all are alive: those that have entered fewer calls."""
        summary = self._summary
        peers = [peer for peer in summary.slowest if peer.rank != self._rank]
        running = sorted([own, *peers], key=lambda one: one.position)
        furthest = max(summary.furthest, own.position)
        late = [one for one in running if one.position[:2] < furthest[:2]]
        texts = [f"{one}, in {one.where} for {one.seconds:.0f} s" for one in late or running]
        if late:
            return f"the other ranks are waiting for {_join(texts, max(summary.late_ranks, len(late)))}"
        return f"no rank is behind the others: {_join(texts, summary.others_running + 1)}"


def _describe_silence(peer: Heartbeat, seconds: float) -> str:
    return f"{peer} has not responded for {seconds:.0f} s and was last seen in {peer.where}"


def _join(texts: Sequence[str], total: int) -> str:
    """The first few of `total` ranks, described in `texts`, and how many there are beside them."""
    named = texts[:MOST_NAMED]
    more = [f"and {total - len(named)} more ranks"] if len(texts) > MOST_NAMED else []
    return "; ".join([*named, *more])
