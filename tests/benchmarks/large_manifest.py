"""What a large corpus costs beside reading and copying its text: decisions about duplicates, cutting shards, plans, start-up.

    python tests/benchmarks/large_manifest.py [--gigabytes 200] [--tasks 400] [--skip PHASE...] [FOLDER]

The text is made up: documents of 4 KB of text and 1,000 tokens on average. Files of tokens are sparse, so that they need no disk;
their indexes, signatures and places are real, with random content. What is not measured because it is input and output alone:
reading the text, copying tokens into shards, and hashing them. Each phase runs in a process of its own, whose time and peak
memory are printed, with the time for 10 TB of text if it grows in proportion. At 200 GB the folder needs 18 GB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TEXT_BYTES, TOKENS = 4000, 1000  # of a document, on average
TARGET_BYTES = 10e12
SHARD_BYTES, SEQ_LEN, SPLIT = 4_000_000_000, 1024, "train"
# One document in this many repeats an earlier one; half of these have its text.
REPEATED = 10


def lengths_of_task(number: int, documents: int) -> np.ndarray:
    """Tokens of each document, int32 [documents]: log-normal, as of text."""
    rng = np.random.default_rng(number)
    return np.exp(rng.normal(np.log(TOKENS) - 0.5, 1.0, documents)).astype(np.int32) + 1


def make_tasks(folder: Path, tasks: int, documents: int) -> None:
    """The indexes and places of tasks, and their tokens as sparse files."""
    from data_pipeline.indexed import write_index
    from data_pipeline.provenance import PLACES, PLACES_SUFFIX, TableWriter

    dtype = np.dtype(np.uint16)
    for number in range(tasks):
        of_task = folder / "tokens" / f"{number:05}"
        of_task.mkdir(parents=True)
        lengths = lengths_of_task(number, documents)
        write_index(of_task / f"{SPLIT}.idx", lengths, dtype)
        sparse(of_task / f"{SPLIT}.bin", int(lengths.sum()) * dtype.itemsize)
        with TableWriter(of_task / f"{SPLIT}{PLACES_SUFFIX}", PLACES) as table:
            table.append(np.zeros(documents, np.int64), np.cumsum(lengths, dtype=np.int64) * 4)


def sparse(path: Path, num_bytes: int) -> None:
    """A file of zeros that takes no space."""
    with path.open("wb") as file:
        file.truncate(num_bytes)


def cut(folder: Path, tasks: int, documents: int) -> None:
    """Decide which documents each shard has; then write the indexes of the shards, and their tokens as sparse files."""
    from data_pipeline.indexed import write_index
    from data_pipeline.manifest import FileInfo
    from data_pipeline.tasks.shards import Source, cut_into_shards
    from data_pipeline.tasks.task_records import ShardInfo

    sources = []
    for number in range(tasks):
        prefix = folder / "tokens" / f"{number:05}" / SPLIT
        size = prefix.with_suffix(".bin").stat().st_size
        files = {".bin": FileInfo(bytes=size, sha256=""), ".idx": FileInfo(bytes=0, sha256="")}
        info = ShardInfo(documents=documents, tokens=size // 2, bytes=0, files=files, places=files[".idx"])
        sources.append(Source(prefix, info))
    (folder / "data").mkdir()
    for number, parts in enumerate(cut_into_shards(sources, SHARD_BYTES)):
        stem = folder / "data" / f"{SPLIT}-{number:05}"
        lengths = [part.source.index().lengths[part.first : part.stop] for part in parts]
        write_index(stem.with_suffix(".idx"), np.concatenate(lengths), np.dtype(np.uint16))
        sparse(stem.with_suffix(".bin"), sum(part.num_bytes for part in parts))


def places(folder: Path, tasks: int, documents: int) -> None:
    """Put the places of all tasks into one file."""
    from data_pipeline.provenance import PLACES, PLACES_SUFFIX, TableWriter, read_columns

    with TableWriter(folder / "data" / f"{SPLIT}{PLACES_SUFFIX}", PLACES) as table:
        for number in range(tasks):
            sources, found = read_columns(folder / "tokens" / f"{number:05}" / f"{SPLIT}{PLACES_SUFFIX}")
            table.append(sources + number, found)


def plan(folder: Path, packing: str) -> None:
    """Plan the rows, in shuffled order."""
    from data_pipeline.packing.pack_plan import write_plan

    counts = write_plan(folder / "data", SPLIT, shards_of(folder / "data"), packing, SEQ_LEN, shuffle=True)
    (folder / "counts.json").write_text(counts.model_dump_json())


def shards_of(data: Path) -> list:
    """The shards in a folder, in order."""
    from data_pipeline.indexed import Shard

    dtype = np.dtype(np.uint16)
    stems = sorted(path.stem for path in data.glob("*.idx"))
    sizes = [[(data / f"{stem}{suffix}").stat().st_size for suffix in (".bin", ".idx")] for stem in stems]
    return [Shard.of_sizes(stem, dtype, *each) for stem, each in zip(stems, sizes, strict=True)]


def make_manifest(folder: Path) -> None:
    """A manifest of the folder; hashes of the tokens are made up."""
    from data_pipeline.manifest import FileInfo, Manifest, SplitInfo, TokenizerInfo, sha256_of, write_manifest

    data, shards = folder / "data", shards_of(folder / "data")
    (data / "tokenizer.bytes").write_text("bytes")
    files = {
        path.name: FileInfo(bytes=path.stat().st_size, sha256="" if path.suffix == ".bin" else sha256_of(path))
        for path in sorted(data.glob(f"{SPLIT}[-.]*"))
        if path.suffix != ".parquet"
    }
    counts = json.loads((folder / "counts.json").read_text())
    rows = {key: counts[key] for key in ("rows", "dropped_tokens", "padded_tokens")}
    documents, tokens = sum(shard.documents for shard in shards), sum(shard.tokens for shard in shards)
    split = SplitInfo(
        documents=documents, tokens=tokens, bytes=tokens, files=files, shards=[s.stem for s in shards], **rows
    )
    sha256 = sha256_of(data / "tokenizer.bytes")
    ids = {"vocab_size": 256, "eod_id": 256, "pad_id": 256, "mask_id": 257}
    manifest = Manifest(
        tokenizer=TokenizerInfo(kind="bytes", file="tokenizer.bytes", sha256=sha256, **ids), vocab_size=258, seq_len=SEQ_LEN,
        packing=counts["strategy"], shuffle=True, splits={SPLIT: split}, inputs=[], options={}, records={},
    )  # fmt: skip
    write_manifest(data, manifest, time.time_ns())


def start(folder: Path) -> None:
    """What a training run does before its first batch, and that batch."""
    from data_pipeline.dataset.blend import load_blend
    from data_pipeline.dataset.samples import Samples

    blend = load_blend(folder / "data")
    blend.check(64)
    samples = Samples.of(blend, 0)
    assert samples.rows(np.arange(64)).shape == samples.document_ids(np.arange(64)).shape == (64, SEQ_LEN)


def make_signatures(folder: Path, tasks: int, documents: int) -> None:
    """Random signatures; some documents repeat one of the same position in the task before, whole or nearly."""
    from data_pipeline.dedup import BANDS, SIGNATURE_BYTES
    from data_pipeline.tasks.signatures import signature_file

    (folder / "signatures").mkdir()
    before = None
    for number in range(tasks):
        rng = np.random.default_rng(number)
        parts = [rng.integers(0, 256, (documents, size), np.uint8) for size in (16, 8 * BANDS, SIGNATURE_BYTES)]
        if before is not None:
            parts[0][:: 2 * REPEATED] = before[0][:: 2 * REPEATED]
            for part, old in zip(parts[1:], before[1:], strict=True):
                part[::REPEATED] = old[::REPEATED]
        at = np.column_stack([np.zeros(documents, np.int64), np.arange(documents)]).ravel()
        digests, bands, signatures = (part.tobytes() for part in parts)
        (folder / "signatures" / f"{number}").write_bytes(signature_file(digests, at, bands, signatures))
        before = parts


def duplicates(folder: Path, tasks: int, documents: int) -> None:
    """Search for exact and near duplicates, as one process decides about all documents."""
    from data_pipeline.tasks.duplicate_search import find_repeated

    files = {number: folder / "signatures" / f"{number}" for number in range(tasks)}
    with find_repeated(files, True, folder / "spill", threads=1) as repeated:
        found, _ = repeated.totals(0)
    assert found == (tasks - 1) * -(-documents // REPEATED), found


PHASES = {
    "make_tasks": make_tasks,
    "cut": cut,
    "places": places,
    "plan best_fit": lambda folder, tasks, documents: plan(folder, "best_fit"),
    "plan concat": lambda folder, tasks, documents: plan(folder, "concat"),
    "make_manifest": lambda folder, tasks, documents: make_manifest(folder),
    "start": lambda folder, tasks, documents: start(folder),
    "make_signatures": make_signatures,
    "duplicates": duplicates,
}
"""Those that make what others need are not part of a job, and are not printed."""


def measured(phase: str, folder: Path, tasks: int, documents: int) -> tuple[float, float, float]:
    """Run a phase in a process of its own; returns its seconds, those of the processor, and its peak memory in MiB."""
    command = [
        sys.executable,
        __file__,
        str(folder),
        "--phase",
        phase,
        "--tasks",
        str(tasks),
        "--documents",
        str(documents),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{phase}: {done.stderr}")
    seconds, of_processor, memory = map(float, done.stdout.split()[-3:])
    return seconds, of_processor, memory


def main() -> None:
    """Measure all phases, or be the process of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=200)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--skip", nargs="*", default=[], choices=PHASES)
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--documents", type=int, help=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, nargs="?")
    arguments = parser.parse_args()
    documents = arguments.documents or max(1, round(arguments.gigabytes * 1e9 / TEXT_BYTES / arguments.tasks))
    if arguments.phase:
        begin = time.perf_counter()
        PHASES[arguments.phase](arguments.folder, arguments.tasks, documents)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{time.perf_counter() - begin:.2f} {time.process_time():.2f} {peak:.0f}")
        return
    folder = arguments.folder or Path(tempfile.mkdtemp())
    total = documents * arguments.tasks
    print(f"{total:,} documents of {total * TEXT_BYTES / 1e9:,.1f} GB of text in {arguments.tasks:,} tasks")
    for phase in (phase for phase in PHASES if phase not in arguments.skip):
        seconds, of_processor, memory = measured(phase, folder, arguments.tasks, documents)
        if not phase.startswith("make_"):
            at_target = seconds * TARGET_BYTES / (total * TEXT_BYTES)
            times = f"{seconds:8.1f} s, {of_processor:8.1f} s of the processor"
            print(f"{phase:14} {times}, {memory:6,.0f} MiB; in proportion, {at_target:,.0f} s for 10 TB", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
