"""Compare the speed of tokenizing with Megatron-LM's method: same SentencePiece model, documents, workers and machine.

    python tests/benchmarks/tokenise.py [--input FILE.jsonl | chinese | dna] [--workers 2] [--rounds 5] [--json FILE]

Megatron-LM's `tools/preprocess_data.py` passes JSON lines to a `multiprocessing.Pool` (`imap`, 32 at a time), encodes one
document per call, and writes the results with megatron-core's `IndexedDatasetBuilder`; this script does the same with the
library's encoder. The rounds alternate between the two methods. A measurement lasts from the first line read to the last file
closed; for ours, from the beginning of the first task to the end of the last, flushed to the disk. The time to start the
processes is shown separately and counted for neither. At the end all documents are compared.

`chinese` and `dna` are generated texts without spaces: sentences of words with the frequencies of Zipf's law, and lines of bases.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from data_pipeline.filters import ActiveFilters  # noqa: E402
from data_pipeline.indexed import IndexedReader, token_dtype  # noqa: E402
from data_pipeline.readers.inputs import resolve_input  # noqa: E402
from data_pipeline.rejects import RecordCounter  # noqa: E402
from data_pipeline.tasks.build import describe_tokenizer  # noqa: E402
from data_pipeline.tasks.encode import TokenJob  # noqa: E402
from data_pipeline.tasks.first_texts import first_texts  # noqa: E402
from data_pipeline.tasks.options import DEFAULT_SAMPLE_BYTES, TRAIN, Options  # noqa: E402
from data_pipeline.tasks.processes import Report, run_tasks  # noqa: E402
from data_pipeline.tasks.reading import task_documents  # noqa: E402
from data_pipeline.tasks.sampling import TextSample  # noqa: E402
from data_pipeline.tasks.task import Task, cut_into_tasks, task_name  # noqa: E402
from data_pipeline.tokenizers.tokenizers import SentencePieceTokenizer  # noqa: E402
from data_pipeline.tokenizers.training import train_sentencepiece  # noqa: E402

MEGATRON_CHUNK = 32
GENERATED_BYTES = 20_000_000


@dataclass(frozen=True)
class Setting:
    """What both ways share."""

    corpus: Path
    model: Path
    workers: int
    text_bytes: int


@dataclass(frozen=True)
class Timing:
    """Seconds of work, and of starting the processes."""

    work: float
    start: float


class _MegatronEncoder:
    """`Encoder` of the tool: a tokenizer per process, one document per call."""

    def __init__(self, model: Path, eod_id: int) -> None:
        self.model, self.eod_id = model, eod_id

    def load(self) -> None:
        import sentencepiece

        _MegatronEncoder.tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(self.model))

    def encode(self, line: str) -> tuple[list[int], list[int], int]:
        ids = _MegatronEncoder.tokenizer.encode(json.loads(line)["text"])
        if ids:
            ids.append(self.eod_id)
        return ids, [len(ids)], len(line)


def megatron_way(setting: Setting, folder: Path) -> Timing:
    """One `.bin/.idx` pair at `folder/theirs`."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    info, vocab_size = describe_tokenizer(setting.model)
    encoder = _MegatronEncoder(setting.model, info.eod_id)
    begin = time.monotonic()
    with get_context("fork").Pool(setting.workers, initializer=encoder.load) as pool:
        started = time.monotonic()
        builder = IndexedDatasetBuilder(str(folder / "theirs.bin"), dtype=token_dtype(vocab_size).type)
        with setting.corpus.open(encoding="utf-8") as file:
            for ids, lengths, _ in pool.imap(encoder.encode, file, MEGATRON_CHUNK):
                builder.add_document(ids, lengths)
        builder.finalize(str(folder / "theirs.idx"))
        return Timing(time.monotonic() - started, started - begin)


def _timed(job: TokenJob, task: Task, report: Report) -> tuple[float, float]:
    begin = time.monotonic()
    job(task, report)
    return begin, time.monotonic()


class _Tasks:
    """A list of tasks as a `TaskSource`."""

    def __init__(self, tasks: list[Task]) -> None:
        self._left = tasks[::-1]

    def take(self) -> Task | None:
        return self._left.pop() if self._left else None

    @property
    def is_empty(self) -> bool:
        return not self._left


def our_way(setting: Setting, folder: Path) -> Timing:
    """Task folders of shards at `folder/tokens/ADDRESS/`, with links to them at `folder/NUMBER`."""
    info, vocab_size = describe_tokenizer(setting.model)
    options = Options(
        text_key="text", tokenizer=setting.model, vocab_size=0, model_type="bpe", seq_len=1024, packing="concat",
        validation_fraction=0.0, strict=True,
    )  # fmt: skip
    tasks = cut_into_tasks([resolve_input(str(setting.corpus))])
    tokenizer = SentencePieceTokenizer(setting.model)
    tokenizer.choose_method(first_texts(tasks, options))
    job = TokenJob(folder, options, setting.model, info, vocab_size, keeps_words=tokenizer.keeps_words)
    begin = time.monotonic()
    done = [times for _, times in run_tasks(partial(_timed, job), _Tasks(tasks), setting.workers, lambda *counts: None)]
    for task in tasks:
        (folder / task_name(task.number)).symlink_to(job.path(task))
    first = min(begin for begin, _ in done)
    return Timing(max(end for _, end in done) - first, first - begin)


def same_documents(theirs: Path, ours: Path) -> int:
    """Number of documents, once they are known to be the same; exits otherwise."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    expected = IndexedDataset(str(theirs / "theirs"))
    readers = [IndexedReader(folder / TRAIN) for folder in sorted(ours.glob(task_name(0).replace("0", "[0-9]")))]
    found = (reader.document(i) for reader in readers for i in range(len(reader)))
    for i, document in enumerate(found):
        if not np.array_equal(document, expected[i]):
            sys.exit(f"document {i} differs")
    if (count := sum(map(len, readers))) != len(expected):
        sys.exit(f"{count} documents instead of {len(expected)}")
    return count


def chinese() -> Iterator[str]:
    """Texts of eight lines: words of one to four characters, which come as often as Zipf's law says, and punctuation."""
    rng = random.Random(0)
    characters = [chr(0x4E00 + i) for i in range(3000)]
    words = ["".join(rng.choices(characters, k=rng.choice([1, 2, 2, 2, 3, 4]))) for _ in range(30_000)]
    weights = list(accumulate(1 / (i + 1) for i in range(len(words))))

    def sentence() -> str:
        return "".join(rng.choices(words, cum_weights=weights, k=rng.randrange(4, 15)))

    while True:
        yield "\n".join("\uff0c".join(sentence() for _ in range(4)) + "\u3002" for _ in range(8))


def dna() -> Iterator[str]:
    """Texts of a thousand lines of 70 bases, with a header, as in FASTA."""
    rng = random.Random(0)
    while True:
        yield ">sequence\n" + "\n".join("".join(rng.choices("ACGT", k=70)) for _ in range(1000))


GENERATED = {"chinese": chinese, "dna": dna}


def generated(name: str, folder: Path) -> Path:
    """A file of `GENERATED_BYTES` of text."""
    path, texts, num_bytes = folder / f"{name}.jsonl", GENERATED[name](), 0
    with path.open("w", encoding="utf-8") as file:
        while num_bytes < GENERATED_BYTES:
            text = next(texts)
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            num_bytes += len(text.encode("utf-8"))
    return path


def usual_setting(word: str, model: Path | None, vocab_size: int, workers: int, folder: Path) -> Setting:
    """The corpus as one file of JSON lines with text only, and a tokenizer trained on a sample of it."""
    corpus, text_bytes, sample = folder / "corpus.jsonl", 0, TextSample(DEFAULT_SAMPLE_BYTES)
    word = str(generated(word, folder)) if word in GENERATED else word
    with corpus.open("w", encoding="utf-8") as file:
        for task in cut_into_tasks([resolve_input(word)]):
            for document in task_documents(task, RecordCounter(), "text", ActiveFilters()):
                file.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
                text_bytes += document.num_bytes
                sample.add(document.digest, document.text)
    if model is None:
        model = folder / "trained.model"
        train_sentencepiece(sample.in_order(), vocab_size, model)
    return Setting(corpus, model, workers, text_bytes)


def measure(setting: Setting, rounds: int) -> dict[str, object]:
    """Alternate the two ways, compare the last round's documents, and sum up."""
    ways: dict[str, Callable[[Setting, Path], Timing]] = {"megatron": megatron_way, "ours": our_way}
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    documents = 0
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            order = list(ways) if number % 2 == 0 else list(ways)[::-1]
            for way in order:
                folder = Path(name) / way
                folder.mkdir()
                timings[way].append(ways[way](setting, folder))
            documents = same_documents(Path(name) / "megatron", Path(name) / "ours")
        speeds = (f"{way} {setting.text_bytes / 1e6 / timings[way][-1].work:.2f} MB/s" for way in ways)
        print(f"round {number + 1} of {rounds}: {', '.join(speeds)}", flush=True)
    ratios = [theirs.work / ours.work for theirs, ours in zip(timings["megatron"], timings["ours"], strict=True)]
    return {
        "documents": documents,
        "identical": True,
        "text_mb": setting.text_bytes / 1e6,
        "workers": setting.workers,
        "mb_per_second": {
            way: setting.text_bytes / 1e6 / statistics.median(t.work for t in all_) for way, all_ in timings.items()
        },
        "start_seconds": {way: statistics.median(t.start for t in all_) for way, all_ in timings.items()},
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", default="stdlib:", help="what `loopmdm prepare --input` takes, chinese or dna [stdlib:]"
    )
    parser.add_argument("--tokenizer", type=Path, help="a SentencePiece model [one trained on a sample]")
    parser.add_argument("--vocab-size", type=int, default=16384, help="of the model to train [16384]")
    parser.add_argument("--workers", type=int, default=2, help="processes that encode, for each way [2]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of both ways [5]")
    parser.add_argument("--json", type=Path, help="also write the result here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setting = usual_setting(
            arguments.input, arguments.tokenizer, arguments.vocab_size, arguments.workers, Path(folder)
        )
        result = measure(setting, arguments.rounds)
    low, high = result["ratio_range"]
    speeds, starts = result["mb_per_second"], result["start_seconds"]
    print(
        f"{result['documents']:,} documents of {result['text_mb']:.1f} MB, identical; {setting.workers} workers\n"
        f"megatron  {speeds['megatron']:6.2f} MB/s   (processes start in {starts['megatron']:.2f} s)\n"
        f"ours      {speeds['ours']:6.2f} MB/s   (processes start in {starts['ours']:.2f} s)\n"
        f"ratio     {result['ratio']:6.2f}        (median of {arguments.rounds}, {low:.2f} to {high:.2f})"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
