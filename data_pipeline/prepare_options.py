"""The options of `loopmdm prepare`, and what cannot be meant by them. Cheap to import."""

import argparse
from typing import get_args

from data_pipeline.decontamination import add_decontamination_options
from data_pipeline.dedup import Duplicates
from data_pipeline.dropped_ids import add_drop_options
from data_pipeline.errors import DataError
from data_pipeline.filters import add_filter_options
from data_pipeline.manifest import Packing
from data_pipeline.packing.pack_plan import require_seq_len
from data_pipeline.paths import user_input, user_path
from data_pipeline.readers.kinds import ReadAs

DEFAULT_VOCAB_SIZE = 32768
DEFAULT_SEQ_LEN = 1024
DEFAULT_PACKING: Packing = "concat"
DEFAULT_VALIDATION_FRACTION = 0.02
DEFAULT_MAX_REJECTED = 0.01

DESCRIPTION = """\
Tokenize text and pack it into rows for pre-training.

An input is a file (.jsonl, .json or .ndjson: one object per line; .parquet; .txt, .md, .py and other suffixes of
text: one document; all but .parquet may be compressed as .gz, .zst, .xz or .bz2), a folder, a glob, each also in a
store (s3://, gs://, hf://datasets/..., read by ranges through fsspec), a saved Hugging Face dataset,
hf:NAME[:CONFIG][@SPLIT], stdlib: for the sources of Python's standard library, or NAME:COUNT[@SEED] for generated
instances of a task (sudoku4, sudoku6, sudoku9; additionD and multiplicationD of numbers of D digits; lookupH for H
hops through a table). Without --tokenizer, a SentencePiece tokenizer is trained on a sample of the text; if all
inputs are generated, and no --vocab-size is given, the tokens are the characters of the task.

A run that was stopped or killed leaves its finished tasks in OUTPUT.work. Run the same command again to continue."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `loopmdm prepare`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    _add_inputs(parser)
    add("--output", type=user_path, metavar="DIR", help="folder to write")
    _add_tokenizer(parser)
    _add_rows(parser)
    add(
        "--validation-fraction",
        type=float,
        default=DEFAULT_VALIDATION_FRACTION,
        metavar="F",
        help="share of documents, chosen by hash, for the validation split; 0 for no such split (default: %(default)s)",
    )
    add("--workers", type=int, metavar="N", help="number of worker processes (default: the CPUs of this job)")
    _add_acceptance(parser)
    add(
        "--estimate",
        action="store_true",
        help="print the documents, tokens, time, memory and disk that the job will need, from a sample; writes no output",
    )
    add("--overwrite", action="store_true", help="replace the output folder, if it is a prepared one, when finished")
    add(
        "--verify",
        type=user_path,
        metavar="DIR",
        help="same as `loopmdm verify DIR`; to be removed in the next release",
    )
    add(
        "--repack",
        type=user_path,
        metavar="DIR",
        help="same as `loopmdm repack DIR`; to be removed in the next release",
    )
    _add_filters(parser)
    _add_sharing(parser)


def _add_rows(parser: argparse.ArgumentParser) -> None:
    """Options for what is written."""
    add = parser.add_argument
    add(
        "--seq-len",
        type=int,
        metavar="L",
        help=f"tokens per row (default: {DEFAULT_SEQ_LEN}, or one instance of a task)",
    )
    add(
        "--pack",
        choices=get_args(Packing),
        help="concat: cut the stream of documents into rows (default); best_fit: keep documents whole, with padding at the "
        "end of rows",
    )
    add(
        "--no-shuffle",
        dest="shuffle",
        action="store_false",
        help="pack the documents in the order of the inputs, so that neighbors share rows, instead of a shuffled order",
    )
    add(
        "--shard-size",
        default="4GB",
        metavar="SIZE",
        help="largest size of a .bin file, such as 500MB (default: %(default)s)",
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    """Options for what is read."""
    add = parser.add_argument
    add(
        "--input",
        type=user_input,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="what to read, a path or a URL; several may be given",
    )
    add(
        "--as",
        dest="read_as",
        choices=get_args(ReadAs),
        help="how to read files that --input names, by path or pattern, with other suffixes than those of JSON lines and "
        "Parquet; without it, files whose suffix does not say what they hold are refused",
    )
    add("--text-key", default="text", metavar="K", help="key or column that holds the text (default: text)")


def _add_acceptance(parser: argparse.ArgumentParser) -> None:
    """Options for inputs that cannot be read completely."""
    add = parser.add_argument
    add("--strict", action="store_true", help="stop at the first record that cannot be read, instead of counting it")
    add(
        "--max-rejected",
        type=float,
        default=DEFAULT_MAX_REJECTED,
        metavar="F",
        help="largest share of records that may be unreadable (broken, without the key, not a text), 0 to 1; with more, "
        "nothing is written at the end (default: %(default)s)",
    )
    add(
        "--accept-broken-files",
        action="store_true",
        help="write the output although files are broken or an input gives no document; otherwise they are named at the end "
        "and nothing is written",
    )


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument(
        "--tokenizer",
        type=user_path,
        metavar="FILE",
        help="tokenizer.json, SentencePiece .model, a folder with one of them, or the word bytes",
    )
    vocabulary.add_argument(
        "--vocab-size",
        type=int,
        default=DEFAULT_VOCAB_SIZE,
        metavar="N",
        help="ids of the tokenizer to train, to which [MASK] is added (default: %(default)s)",
    )
    parser.add_argument(
        "--model-type", choices=("bpe", "unigram"), default="bpe", help="kind of tokenizer to train (default: bpe)"
    )
    parser.add_argument(
        "--sample-bytes",
        default="10MB",
        metavar="SIZE",
        help="size of the sample of text that a tokenizer is trained on, from tasks chosen by hash (default: %(default)s)",
    )


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters", "off unless given; what they leave out is counted, with examples")
    add_filter_options(group)
    group.add_argument(
        "--duplicates",
        choices=get_args(Duplicates),
        default="keep",
        help="leave out documents that came before: exact ones (white space counts), or also near ones, found by MinHash and "
        "compared; together: keep them all, near ones in one split (default: keep)",
    )
    group.add_argument(
        "--against",
        type=user_input,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="with --duplicates: texts of other corpora of a mixture, given as for --input, that count as earlier ones and are "
        "not written; read with the same --text-key and filters",
    )
    add_decontamination_options(group)
    add_drop_options(group)


def _add_sharing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("several machines", "all of which see the output folder").add_argument
    add(
        "--stage",
        choices=("all", "start", "tokens", "join"),
        default="all",
        help="run one phase only: start (tokenizer, duplicates) on one machine, then tokens on all, then join on one",
    )
    add("--task-index", type=int, default=0, metavar="I", help="with --stage tokens: number of this machine, from 0")
    add(
        "--task-count",
        type=int,
        default=1,
        metavar="N",
        help="with --stage tokens: number of machines, so that each begins at another task; they share all tasks, whatever these "
        "two say",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Raise DataError for a missing or impossible option."""
    for name in ("input", "output"):
        if not getattr(args, name) and not (name == "output" and args.estimate):
            raise DataError(f"--{name} is missing; usage: loopmdm prepare --input PATH... --output DIR")
    if args.against and args.duplicates == "keep":
        raise DataError("--against: say which documents count as duplicates, with --duplicates exact, near or together")
    if args.against and args.drop_ids:
        raise DataError(
            "--against and --drop-ids: the ids are those of --input, and texts to compare with that have the same ids would be "
            "left out, too; give one of them"
        )
    if args.vocab_size < 1:
        raise DataError(f"--vocab-size {args.vocab_size}: a tokenizer has 256 ids for bytes and some more")
    if args.seq_len is not None:
        require_seq_len(args.seq_len)
    if not 0 <= args.validation_fraction < 1:
        raise DataError(f"--validation-fraction {args.validation_fraction:g}: give a number from 0 to below 1")
    if not 0 <= args.max_rejected <= 1:
        raise DataError(f"--max-rejected {args.max_rejected:g}: give a share from 0 to 1")
    if args.workers is not None and args.workers < 1:
        raise DataError(f"--workers {args.workers}: at least one process is needed")
    _check_machines(args)


def _check_machines(args: argparse.Namespace) -> None:
    if not 0 <= args.task_index < args.task_count:
        raise DataError(
            f"--task-index {args.task_index} --task-count {args.task_count}: give an index from 0 to below the count"
        )
    if args.task_count > 1 and args.stage != "tokens":
        raise DataError(f"--task-count {args.task_count}: only --stage tokens can be shared")
