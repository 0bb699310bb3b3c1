"""`loopmdm prepare`: turn text into a folder of tokens and packed rows.

The work itself is in `data_pipeline.tasks.build`; this module holds the command line and is cheap to import.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from data_pipeline.errors import DataError
from data_pipeline.manifest import Packing

if TYPE_CHECKING:
    from data_pipeline.readers.inputs import Input
    from data_pipeline.tasks.options import Options

DEFAULT_VOCAB_SIZE = 32768
DEFAULT_SEQ_LEN = 1024
DEFAULT_PACKING: Packing = "concat"
DEFAULT_VALIDATION_FRACTION = 0.02

DESCRIPTION = """\
Tokenise text offline into packed rows for pre-training.

An input is a file (.jsonl/.json/.ndjson: one object per line; .parquet; anything else: one document of plain text;
lines and text also packed as .gz, .zst, .xz or .bz2), a folder, a glob, a saved Hugging Face dataset,
hf:NAME[:CONFIG][@SPLIT], or stdlib: for the sources of the running Python's standard library. Without --tokenizer a
SentencePiece tokenizer is trained on a sample.

A run that was stopped or killed goes on from its finished tasks (OUTPUT.work) when the same command is given again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `loopmdm prepare`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--input", nargs="+", action="extend", metavar="PATH", help="what to read; several may be given")
    add("--output", type=Path, metavar="DIR", help="folder to write")
    add("--text-key", default="text", metavar="K", help="key or column that holds the text (default: text)")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="tokenizer.json, SentencePiece .model, a folder with one, or bytes",
    )
    vocabulary.add_argument(
        "--vocab-size",
        type=int,
        default=DEFAULT_VOCAB_SIZE,
        metavar="N",
        help="ids of the tokenizer to train (default: %(default)s); [MASK] is added as one more",
    )
    add("--model-type", choices=("bpe", "unigram"), default="bpe", help="kind of tokenizer to train (default: bpe)")
    add("--seq-len", type=int, metavar="L", help=f"tokens per row (default: {DEFAULT_SEQ_LEN}; --repack: as it is)")
    add(
        "--pack",
        choices=get_args(Packing),
        help="concat: one stream, cut into rows (default; --repack: as it is); best_fit: whole documents, padding at the end",
    )
    add(
        "--validation-fraction",
        type=float,
        default=DEFAULT_VALIDATION_FRACTION,
        metavar="F",
        help="share of documents for the validation split, by hash; 0: none (default: %(default)s)",
    )
    add("--workers", type=int, metavar="N", help="tokenising processes (default: the CPUs of this job)")
    add("--strict", action="store_true", help="stop at the first broken record instead of counting it")
    add("--overwrite", action="store_true", help="replace a prepared output folder, once the new one is whole")
    add("--repack", type=Path, metavar="DIR", help="change a prepared folder: rows of another --seq-len or --pack")
    add("--verify", type=Path, metavar="DIR", help="check every byte of a prepared folder and do nothing else")
    _add_cleaning(parser)
    _add_sharing(parser)


def _add_cleaning(parser: argparse.ArgumentParser) -> None:
    clean = parser.add_argument_group("cleaning", "what it leaves out is counted, with examples; off unless given")
    clean.add_argument("--min-chars", type=int, default=0, metavar="N", help="leave out shorter documents")
    clean.add_argument("--max-chars", type=int, default=0, metavar="N", help="leave out longer documents")
    clean.add_argument(
        "--min-letters", type=float, default=0.0, metavar="F", help="least share of letters, 0 to 1, in any script"
    )
    clean.add_argument(
        "--max-repeated-lines",
        type=float,
        default=1.0,
        metavar="F",
        help="greatest share of lines seen before in the text, 0 to 1",
    )
    clean.add_argument(
        "--duplicates",
        choices=("keep", "exact", "near"),
        default="keep",
        help="leave out texts that came before: exact ones, or also those that MinHash finds near (default: keep)",
    )


def _add_sharing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("several machines", "with one output folder that all of them see").add_argument
    add(
        "--stage",
        choices=("all", "start", "tokens", "join"),
        default="all",
        help="first start (tokenizer, duplicates) on one, then tokens on all, then join on one",
    )
    add(
        "--task-index",
        type=int,
        default=0,
        metavar="I",
        help="with --stage tokens: which share of the tasks to do, from 0",
    )
    add("--task-count", type=int, default=1, metavar="N", help="with --stage tokens: how many shares there are")


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code: 0, 2 for an error, 128 + N when signal N stopped it."""
    from data_pipeline.atomic_files import Stopped, stop_signals_raise

    try:
        with stop_signals_raise():
            if args.verify:
                _require_alone(args, "verify")
                _verify(args.verify)
            elif args.repack:
                _require_alone(args, "repack", "seq_len", "pack")
                _repack(args)
            else:
                _prepare(args)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        _mention_work(args.output)
        return 2
    except Stopped as stopped:
        print(f"stopped by {stopped}", file=sys.stderr)
        _mention_work(args.output)
        return 128 + stopped.signal_number
    return 0


def _require_alone(args: argparse.Namespace, verb: str, *allowed: str) -> None:
    """Raise DataError when an option was given that `--verify` or `--repack` would not follow."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    for name, default in defaults.items():
        if getattr(args, name) != default and name not in (verb, *allowed):
            kept = " and ".join(f"--{each.replace('_', '-')}" for each in allowed) or "no other option"
            raise DataError(
                f"--{name.replace('_', '-')} does not go with --{verb}, which works on its folder and takes {kept}"
            )


def _mention_work(output: Path | None) -> None:
    from data_pipeline.tasks.work import work_folder

    if output and (work := work_folder(output.resolve())).is_dir():
        print(
            f"finished tasks are kept in {work}; the same command, or a corrected one, goes on from them",
            file=sys.stderr,
        )


def _verify(folder: Path) -> None:
    from data_pipeline.verify import verify

    manifest = verify(folder)
    files = [info for split in manifest.splits.values() for info in split.files.values()]
    size = sum(info.bytes for info in files)
    print(f"{folder}: the tokenizer and {len(files)} files of {size / 1e6:,.1f} MB are as prepared")


def _repack(args: argparse.Namespace) -> None:
    from data_pipeline.repack import repack
    from data_pipeline.tasks.report import split_table

    _check_seq_len(args.seq_len)
    manifest = repack(args.repack, args.pack, args.seq_len)
    print("\n".join(split_table(manifest, args.repack)))


def _prepare(args: argparse.Namespace) -> None:
    _check_arguments(args)
    from data_pipeline.readers.inputs import resolve_input
    from data_pipeline.tasks.build import Build, Share, run_stages
    from data_pipeline.tasks.existing import is_up_to_date
    from data_pipeline.tasks.join import join
    from data_pipeline.tasks.report import summary
    from data_pipeline.tasks.work import open_work, remove_work

    options = _options(args)
    output = args.output.resolve()
    inputs = [resolve_input(word) for word in args.input]
    _refuse_output_inside_input(output, args.input)
    _mention_repeated_files(inputs)
    if is_up_to_date(output, inputs, options, args.overwrite):
        remove_work(output)
        print(f"{args.output}: already prepared, nothing to do")
        return
    share = Share(args.task_index, args.task_count)
    with open_work(output, str(share)) as work:
        build = Build(work, inputs, options, args.workers or len(os.sched_getaffinity(0)))
        tasks = run_stages(build, args.stage, share)
        if args.stage in ("start", "tokens"):
            print(f"stage {args.stage} is done for {len(share.of(tasks)):,} of {len(tasks):,} tasks")
            return
        manifest, records = join(build, output)
        remove_work(output)
    print(summary(manifest, records, args.output))


def _options(args: argparse.Namespace) -> "Options":
    from data_pipeline.filters import Cleaning
    from data_pipeline.tasks.options import Options

    return Options(
        text_key=args.text_key,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        model_type=args.model_type,
        seq_len=args.seq_len or DEFAULT_SEQ_LEN,
        packing=args.pack or DEFAULT_PACKING,
        validation_fraction=args.validation_fraction,
        strict=args.strict,
        cleaning=Cleaning(
            min_chars=args.min_chars,
            max_chars=args.max_chars,
            min_letters=args.min_letters,
            max_repeated_lines=args.max_repeated_lines,
            duplicates=args.duplicates,
        ),
    )


def _check_arguments(args: argparse.Namespace) -> None:
    """Raise DataError for a missing or impossible option."""
    for name in ("input", "output"):
        if not getattr(args, name):
            raise DataError(f"--{name} is missing; usage: loopmdm prepare --input PATH... --output DIR")
    if args.vocab_size < 1:
        raise DataError(f"--vocab-size {args.vocab_size}: a tokenizer has at least 256 ids for bytes and some more")
    _check_seq_len(args.seq_len)
    if not 0 <= args.validation_fraction < 1:
        raise DataError(f"--validation-fraction {args.validation_fraction:g}: give a number from 0 up to below 1")
    _check_cleaning(args)
    if args.workers is not None and args.workers < 1:
        raise DataError(f"--workers {args.workers}: at least one process is needed")
    if not 0 <= args.task_index < args.task_count:
        raise DataError(f"--task-index {args.task_index} --task-count {args.task_count}: give an index below the count")
    if args.task_count > 1 and args.stage != "tokens":
        raise DataError(f"--task-count {args.task_count}: only --stage tokens can be shared")


def _check_cleaning(args: argparse.Namespace) -> None:
    for name in ("min_letters", "max_repeated_lines"):
        if not 0 <= (share := getattr(args, name)) <= 1:
            raise DataError(f"--{name.replace('_', '-')} {share:g}: is a share, from 0 to 1")
    if min(args.min_chars, args.max_chars) < 0 or 0 < args.max_chars < args.min_chars:
        raise DataError(
            f"--min-chars {args.min_chars} --max-chars {args.max_chars}: no document could be as long as that"
        )


def _check_seq_len(seq_len: int | None) -> None:
    if seq_len is not None and seq_len < 2:
        raise DataError(f"--seq-len {seq_len}: a row needs at least 2 tokens")


def _refuse_output_inside_input(output: Path, words: list[str]) -> None:
    for folder in (Path(word).resolve() for word in words if Path(word).is_dir()):
        if output == folder or folder in output.parents:
            raise DataError(f"--output {output} lies inside the input {folder}, which would read it; choose another")


def _mention_repeated_files(inputs: "Sequence[Input]") -> None:
    """Say so: a file may be meant to count twice, or a glob and a folder overlap."""
    if len(inputs) == 1:
        return
    times = Counter(path.resolve() for found in inputs for path in found.files)
    repeated = [path for path, count in times.items() if count > 1]
    if repeated:
        print(
            f"note: {len(repeated):,} files are in more than one --input and read as often, such as {repeated[0]}",
            flush=True,
        )


def main() -> int:
    """Entry point of `python -m data_pipeline.prepare`."""
    parser = argparse.ArgumentParser(prog="loopmdm prepare")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
