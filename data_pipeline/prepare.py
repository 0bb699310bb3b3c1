"""`loopmdm prepare`: turn text into a folder of tokens and packed rows.

The work itself is in `data_pipeline.build`; this module holds the command line and is cheap to import.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

from data_pipeline.errors import DataError
from data_pipeline.manifest import Packing

DEFAULT_VOCAB_SIZE = 32768
DEFAULT_SEQ_LEN = 1024
DEFAULT_PACKING: Packing = "concat"
DEFAULT_VALIDATION_FRACTION = 0.02

DESCRIPTION = """\
Tokenise text offline into packed rows for pre-training.

An input is a file (.jsonl/.json/.ndjson: one object per line; .parquet; anything else: one document of plain text;
.gz of these), a folder, a glob, a saved Hugging Face dataset, hf:NAME[:CONFIG][@SPLIT], or stdlib: for the sources of
the running Python's standard library. Without --tokenizer a SentencePiece tokenizer is trained on a sample."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `loopmdm prepare`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--input", nargs="+", action="extend", metavar="PATH", help="what to read; several may be given")
    add("--output", type=Path, metavar="DIR", help="folder to write")
    add("--text-key", default="text", metavar="K", help="key or column that holds the text (default: text)")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json or SentencePiece .model")
    vocabulary.add_argument(
        "--vocab-size",
        type=int,
        default=DEFAULT_VOCAB_SIZE,
        metavar="N",
        help="ids of the tokenizer to train (default: %(default)s); [MASK] is added as one more",
    )
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
    add("--repack", type=Path, metavar="DIR", help="give a prepared folder rows of another --seq-len or --pack")
    add("--verify", type=Path, metavar="DIR", help="check every byte of a prepared folder and do nothing else")


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code: 0, 2 for an error, 128 + N when signal N stopped it."""
    from data_pipeline.staging import Stopped, stop_signals_raise

    try:
        with stop_signals_raise():
            if args.verify:
                _verify(args.verify)
            elif args.repack:
                _repack(args)
            else:
                _prepare(args)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"stopped by {stopped}; nothing was kept", file=sys.stderr)
        return 128 + stopped.signal_number
    return 0


def _verify(folder: Path) -> None:
    from data_pipeline.manifest import verify

    manifest = verify(folder)
    files = [info for split in manifest.splits.values() for info in split.files.values()]
    size = sum(info.bytes for info in files)
    print(f"{folder}: the tokenizer and {len(files)} files of {size / 1e6:,.1f} MB are as prepared")


def _repack(args: argparse.Namespace) -> None:
    from data_pipeline.repack import repack
    from data_pipeline.report import split_table

    _check_seq_len(args.seq_len)
    manifest = repack(args.repack, args.pack, args.seq_len)
    print("\n".join(split_table(manifest, args.repack)))


def _prepare(args: argparse.Namespace) -> None:
    _check_arguments(args)
    from data_pipeline.build import BuildOptions, build
    from data_pipeline.existing import is_up_to_date
    from data_pipeline.inputs import resolve_input
    from data_pipeline.records import RecordLog
    from data_pipeline.report import summary
    from data_pipeline.staging import staged_folder

    seq_len, packing = args.seq_len or DEFAULT_SEQ_LEN, args.pack or DEFAULT_PACKING
    options = BuildOptions(args.text_key, args.tokenizer, args.vocab_size, seq_len, packing, args.validation_fraction)
    output = args.output.resolve()
    inputs = [resolve_input(word) for word in args.input]
    _refuse_output_inside_input(output, args.input)
    if is_up_to_date(output, inputs, options, args.overwrite):
        print(f"{args.output}: already prepared, nothing to do")
        return
    _mention_leftovers(output)
    log = RecordLog(args.text_key, args.strict)
    with staged_folder(output) as folder:
        manifest = build(folder, inputs, options, args.workers or len(os.sched_getaffinity(0)), log)
    print(summary(manifest, log, args.output))


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
    if args.workers is not None and args.workers < 1:
        raise DataError(f"--workers {args.workers}: at least one process is needed")


def _check_seq_len(seq_len: int | None) -> None:
    if seq_len is not None and seq_len < 2:
        raise DataError(f"--seq-len {seq_len}: a row needs at least 2 tokens")


def _refuse_output_inside_input(output: Path, words: list[str]) -> None:
    for folder in (Path(word).resolve() for word in words if Path(word).is_dir()):
        if output == folder or folder in output.parents:
            raise DataError(f"--output {output} lies inside the input {folder}, which would read it; choose another")


def _mention_leftovers(output: Path) -> None:
    for path in output.parent.glob(f"{output.name}.partial-*"):
        print(
            f"note: {path} belongs to a run that still goes on or was killed; in that case remove it", file=sys.stderr
        )


def main() -> int:
    """Entry point of `python -m data_pipeline.prepare`."""
    parser = argparse.ArgumentParser(prog="loopmdm prepare")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
