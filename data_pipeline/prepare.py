"""`loopmdm prepare`: turn text into a folder of tokens and packed rows.

The work is done in `data_pipeline.tasks`; this module is the command line and is cheap to import.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from data_pipeline.decontamination import add_decontamination_options, decontaminating
from data_pipeline.dedup import Duplicates
from data_pipeline.errors import DataError
from data_pipeline.exit_status import exit_status
from data_pipeline.filters import ActiveFilters, add_filter_options
from data_pipeline.manifest import Packing
from data_pipeline.packing.pack_plan import require_seq_len
from data_pipeline.paths import user_input, user_path
from data_pipeline.readers.kinds import ReadAs
from data_pipeline.repack import repack_and_report
from data_pipeline.typed_words import number_of_bytes
from data_pipeline.verify import verify_and_report

if TYPE_CHECKING:
    from data_pipeline.readers.inputs import Input
    from data_pipeline.tasks.options import Options

DEFAULT_VOCAB_SIZE = 32768
DEFAULT_SEQ_LEN = 1024
DEFAULT_PACKING: Packing = "concat"
DEFAULT_VALIDATION_FRACTION = 0.02
DEFAULT_MAX_REJECTED = 0.01

DESCRIPTION = """\
Tokenize text and pack it into rows for pre-training.

An input is a file (.jsonl, .json or .ndjson: one object per line; .parquet; .txt, .md, .py and other suffixes of text: one
document; all but .parquet may be compressed as .gz, .zst, .xz or .bz2), a folder, a glob, a saved Hugging Face dataset,
hf:NAME[:CONFIG][@SPLIT], stdlib: for the sources of Python's standard library, or NAME:COUNT[@SEED] for generated
instances of a task (sudoku4, sudoku6, sudoku9; additionD and multiplicationD of numbers of D digits; lookupH for H
hops through a table). Without --tokenizer, a SentencePiece tokenizer is trained on a sample of the text; if all inputs
are generated, and no --vocab-size is given, the tokens are the characters of the task.

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
        help="what to read; several may be given",
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
    add_decontamination_options(group)


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


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""

    def command() -> None:
        if args.verify:
            _require_alone(args, "verify")
            verify_and_report(args.verify)
        elif args.repack:
            _require_alone(args, "repack", "seq_len", "pack")
            repack_and_report(args.repack, args.pack, args.seq_len)
        else:
            _prepare(args)

    return exit_status(command, lambda: _mention_work(args.output))


def _require_alone(args: argparse.Namespace, verb: str, *allowed: str) -> None:
    """Raise DataError when an option was given that `--verify` or `--repack` would ignore."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    for name, default in defaults.items():
        if getattr(args, name) != default and name not in (verb, *allowed):
            taken = " and ".join(f"--{each.replace('_', '-')}" for each in allowed) or "no other option"
            raise DataError(f"--{name.replace('_', '-')} cannot be combined with --{verb}, which takes {taken}")


def _mention_work(output: Path | None) -> None:
    from data_pipeline.output_checks import resolve_output
    from data_pipeline.tasks.work import work_folder

    with suppress(DataError):  # of an output that was refused
        if output and (work := work_folder(resolve_output(output))).is_dir():
            print(
                f"finished tasks are kept in {work}; run the same command, or a corrected one, to continue from them",
                file=sys.stderr,
            )


def _prepare(args: argparse.Namespace) -> None:
    _check_arguments(args)
    from data_pipeline.output_checks import check_inputs, check_output, resolve_output
    from data_pipeline.readers.inputs import require_known_kinds, require_use, resolve_input, unread_note
    from data_pipeline.replace import restore_interrupted
    from data_pipeline.tasks.estimate import estimate
    from data_pipeline.tasks.existing import is_up_to_date
    from data_pipeline.tasks.row_length import require_text_for_a_row
    from data_pipeline.tasks.work import WorkRemovedError, remove_joined_work

    output = args.output and resolve_output(args.output)
    inputs = [resolve_input(value, args.read_as) for value in args.input]
    if args.read_as:
        require_use(args.read_as, inputs)
    options = _options(args, inputs)
    if args.estimate:
        require_known_kinds(inputs)
        print(estimate(inputs, options, _workers(args), output))
        return
    check_inputs(output, inputs)
    require_known_kinds(inputs)
    require_text_for_a_row(inputs, options.seq_len)
    _mention_repeated_files(inputs)
    if note := unread_note(inputs):
        print(note, file=sys.stderr, flush=True)
    restore_interrupted(output)
    if is_up_to_date(output, inputs, options, args.overwrite):
        remove_joined_work(output)
        print(f"{args.output}: already prepared, nothing to do")
        return
    check_output(output)
    try:
        _build(args, output, inputs, options)
    except WorkRemovedError:
        if not is_up_to_date(output, inputs, options, overwrite=False):
            raise
        print(f"{args.output}: prepared, joined by another process")


def _workers(args: argparse.Namespace) -> int:
    return args.workers or len(os.sched_getaffinity(0))


def _build(args: argparse.Namespace, output: Path, inputs: "Sequence[Input]", options: "Options") -> None:
    """Do the phases that were asked for."""
    from data_pipeline.tasks.build import Build, Share, run_phases
    from data_pipeline.tasks.join import join
    from data_pipeline.tasks.report import summary
    from data_pipeline.tasks.work import open_work, remove_work

    with open_work(output, args.stage) as work:
        build = Build(work, inputs, options, _workers(args))
        tasks = run_phases(build, args.stage, Share(args.task_index, args.task_count))
        if args.stage in ("start", "tokens"):
            print(f"stage {args.stage} is done for all {len(tasks):,} tasks")
            return
        manifest, counts = join(build, output)
        remove_work(output)
    print(summary(manifest, counts, args.output))


def _options(args: argparse.Namespace, inputs: "Sequence[Input]") -> "Options":
    from data_pipeline.generators.names import parse_generated
    from data_pipeline.tasks.options import Options

    alphabet, seq_len = None, args.seq_len or DEFAULT_SEQ_LEN
    if all(found.kind == "generated" for found in inputs):
        generators = [parse_generated(found.value).generator for found in inputs]
        alphabet = "".join(sorted(set().union(*(generator.alphabet for generator in generators))))
        seq_len = args.seq_len or 1 + max(generator.length for generator in generators)  # and the end of the document
    return Options(
        text_key=args.text_key,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        model_type=args.model_type,
        seq_len=seq_len,
        packing=args.pack or DEFAULT_PACKING,
        shuffle=args.shuffle,
        validation_fraction=args.validation_fraction,
        strict=args.strict,
        filters=decontaminating(ActiveFilters.of(vars(args)), args.decontaminate, args.decontaminate_words),
        duplicates=args.duplicates,
        accept_broken_files=args.accept_broken_files,
        max_rejected=args.max_rejected,
        sample_bytes=_size(args.sample_bytes, "sample-bytes"),
        shard_size=_size(args.shard_size, "shard-size"),
        read_as=args.read_as,
        alphabet=alphabet if args.tokenizer is None and args.vocab_size == DEFAULT_VOCAB_SIZE else None,
    )


def _size(word: str, option: str) -> int:
    try:
        return number_of_bytes(word)
    except ValueError as error:
        raise DataError(f"--{option} {word}: {error}") from error


def _check_arguments(args: argparse.Namespace) -> None:
    """Raise DataError for a missing or impossible option."""
    for name in ("input", "output"):
        if not getattr(args, name) and not (name == "output" and args.estimate):
            raise DataError(f"--{name} is missing; usage: loopmdm prepare --input PATH... --output DIR")
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
    if not 0 <= args.task_index < args.task_count:
        raise DataError(
            f"--task-index {args.task_index} --task-count {args.task_count}: give an index from 0 to below the count"
        )
    if args.task_count > 1 and args.stage != "tokens":
        raise DataError(f"--task-count {args.task_count}: only --stage tokens can be shared")


def _mention_repeated_files(inputs: "Sequence[Input]") -> None:
    """Print a note: a file may be meant to count twice, or a glob and a folder may overlap by mistake."""
    if len(inputs) == 1:
        return
    times = Counter(path.resolve() for found in inputs for path in found.files)
    repeated = [path for path, count in times.items() if count > 1]
    if repeated:
        print(
            f"note: {len(repeated):,} files belong to more than one --input and are read once for each, for example "
            f"{repeated[0]}",
            flush=True,
        )


def main() -> int:
    """Entry point of `python -m data_pipeline.prepare`."""
    parser = argparse.ArgumentParser(prog="loopmdm prepare")
    add_arguments(parser)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # of file names that are not UTF-8
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
