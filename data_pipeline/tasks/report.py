"""What `loopmdm prepare` prints: progress on standard error, a summary at the end."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.errors import listed
from data_pipeline.manifest import Manifest
from data_pipeline.rejects import Cause
from data_pipeline.split_table import split_table
from data_pipeline.tasks.completeness import describe_broken
from data_pipeline.tasks.task_records import CorpusCounts
from data_pipeline.tokenizers.text_loss import example_of_loss, text_loss
from data_pipeline.tokenizers.tokenizers import Tokenizer

TERMINAL_SECONDS = 0.2
# Less often in a log file.
PLAIN_SECONDS = 15.0
# Of a tokenizer; some have thousands.
MAX_SYMBOLS = 10


class Progress:
    """A line that is updated in place on a terminal; elsewhere, a line every fifteen seconds.

    Args:
        verb: what is being done.
        total_bytes: text to expect, for the time left; None when unknown, then it follows from the tasks done.
        tasks: number of tasks to do now.
        all_tasks: number of tasks of the run; the others were done before.
    """

    def __init__(self, verb: str, total_bytes: int | None, tasks: int, all_tasks: int) -> None:
        self._verb = verb
        self._total_bytes = total_bytes
        self._tasks, self._all_tasks, self._done = tasks, all_tasks, 0
        self._stream = sys.stderr
        self._is_terminal = self._stream.isatty()
        self._started = self._shown = time.monotonic()
        self._documents = self._bytes = self._tokens = 0

    def update(self, documents: int, num_bytes: int, tokens: int) -> None:
        """Add to the counts, and print them if the last time was long enough ago."""
        self._documents += documents
        self._bytes += num_bytes
        self._tokens += tokens
        now = time.monotonic()
        if now - self._shown >= (TERMINAL_SECONDS if self._is_terminal else PLAIN_SECONDS):
            self._shown = now
            self._write(self._line(now - self._started) + self._time_left(now - self._started), last=False)

    def task_done(self) -> None:
        """Count a task as done."""
        self._done += 1

    def note(self, line: str) -> None:
        """Print a line above the progress line."""
        self._stream.write(f"\r\x1b[2K{line}\n" if self._is_terminal else f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """Print the final counts."""
        self._write(self._line(time.monotonic() - self._started), last=True)

    def _write(self, line: str, last: bool) -> None:
        if self._is_terminal:
            self._stream.write(f"\r\x1b[2K{line}" + ("\n" if last else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _line(self, seconds: float) -> str:
        seconds = max(seconds, 1e-9)
        parts = [
            f"{self._verb}: {self._documents:,} documents, {self._bytes / 1e6:,.1f} MB",
            f"{self._documents / seconds:,.0f} documents/s, {self._bytes / 1e6 / seconds:.2f} MB/s",
            f"{self._all_tasks - self._tasks + self._done:,} of {self._all_tasks:,} tasks",
        ]
        if self._tokens:
            parts.insert(1, f"{self._tokens:,} tokens")
        if self._tasks < self._all_tasks:
            parts.append(f"{self._all_tasks - self._tasks:,} of them done before")
        return ", ".join(parts)

    def _time_left(self, seconds: float) -> str:
        if self._total_bytes and self._bytes:
            left = self._total_bytes / self._bytes - 1
        elif self._done:
            left = self._tasks / self._done - 1
        else:
            return ""
        return f", about {duration(max(left, 0) * seconds)} left"


def say_tokenizer(name: str, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Print how texts are encoded, which words are special to the tokenizer though no special tokens, and what is lost."""
    print(f"{name}: texts are encoded {tokenizer.method}", file=sys.stderr)
    if tokenizer.symbols:
        symbols = listed([repr(each) for each in tokenizer.symbols], MAX_SYMBOLS)
        print(f"{name}: one token each wherever a text has them, as the tokenizer says: {symbols}", file=sys.stderr)
    if loss := text_loss(tokenizer, texts):
        text, back = example_of_loss(tokenizer, texts)
        print(f"warning: {name} is lossy: {loss}; for example, {text!r} becomes {back!r}", file=sys.stderr)


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(manifest: Manifest, records: CorpusCounts, output: Path) -> str:
    """The final table: what each split holds, what was left out and why, and the output folder."""
    *table, wrote = split_table(manifest, output)
    loss = [f"lossy tokenizer: {manifest.text_loss}"] if manifest.text_loss else []
    return "\n".join([*table, *rejections(records), *loss, wrote])


def rejections(records: CorpusCounts) -> Iterable[str]:
    """What was left out and why, with examples, in lines."""
    for cause, count in records.rejected.most_common():
        yield f"left out, {cause}: {count:,}"
        if cause == Cause.BROKEN_FILE:
            yield from describe_broken(records.broken)
            continue
        yield from (f"    {example}" for example in records.examples[cause])
