"""`loopmdm prepare`: turn text into a folder of tokens and packed rows.

The work is done in `data_pipeline.tasks`; this module is the command line and is cheap to import.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.decontamination import decontamination
from data_pipeline.dropped_ids import CAUSE, DroppedIds, dropped_ids
from data_pipeline.errors import DataError
from data_pipeline.exit_status import exit_status
from data_pipeline.filters import ActiveFilters
from data_pipeline.prepare_options import (
    DEFAULT_PACKING,
    DEFAULT_SEQ_LEN,
    DEFAULT_VOCAB_SIZE,
    add_arguments,
    check_arguments,
)
from data_pipeline.repack import repack_and_report
from data_pipeline.typed_words import number_of_bytes
from data_pipeline.verify import verify_and_report

if TYPE_CHECKING:
    from data_pipeline.readers.inputs import Input
    from data_pipeline.tasks.options import Options


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
    check_arguments(args)
    from data_pipeline.output_checks import check_inputs, check_output, resolve_output
    from data_pipeline.readers.inputs import (
        naming,
        require_known_kinds,
        require_use,
        require_versions,
        resolve_input,
    )
    from data_pipeline.replace import restore_interrupted
    from data_pipeline.tasks.estimate import estimate
    from data_pipeline.tasks.existing import is_up_to_date
    from data_pipeline.tasks.row_length import few_documents_note, require_text_for_a_row
    from data_pipeline.tasks.work import WorkRemovedError, remove_joined_work

    output = args.output and resolve_output(args.output)
    inputs = [resolve_input(value, args.read_as) for value in args.input]
    with naming("--against", has_as=True):
        against = [resolve_input(value, args.read_as) for value in args.against or []]
    if args.read_as:
        require_use(args.read_as, inputs)
    options = _options(args, inputs)
    if args.estimate:
        require_known_kinds(inputs)
        _mention_unread(inputs)
        print(estimate(inputs, options, _workers(args), output))
        return
    check_inputs(output, [*inputs, *against])
    require_known_kinds(inputs)
    with naming("--against", has_as=True):
        require_known_kinds(against)
    if args.stage != "all":
        require_versions([*inputs, *against])
    require_text_for_a_row(inputs, options.seq_len)
    _mention_repeated_files(inputs)
    _mention_unread(inputs)
    if note := few_documents_note(inputs, options.validation_fraction):
        print(note, file=sys.stderr, flush=True)
    restore_interrupted(output)
    if is_up_to_date(output, inputs, options, args.overwrite, against):
        remove_joined_work(output)
        print(f"{args.output}: already prepared, nothing to do")
        return
    check_output(output)
    try:
        _build(args, output, inputs, options, against)
    except WorkRemovedError:
        if not is_up_to_date(output, inputs, options, overwrite=False, against=against):
            raise
        print(f"{args.output}: prepared, joined by another process")


def _workers(args: argparse.Namespace) -> int:
    return args.workers or len(os.sched_getaffinity(0))


def _build(
    args: argparse.Namespace, output: Path, inputs: "Sequence[Input]", options: "Options", against: "Sequence[Input]"
) -> None:
    """Do the phases that were asked for."""
    from data_pipeline.tasks.build import Build, Share, run_phases
    from data_pipeline.tasks.join import join
    from data_pipeline.tasks.report import summary
    from data_pipeline.tasks.work import open_work, remove_work

    with open_work(output, args.stage) as work:
        build = Build(work, inputs, options, _workers(args), against)
        tasks = run_phases(build, args.stage, Share(args.task_index, args.task_count))
        if args.stage in ("start", "tokens"):
            print(f"stage {args.stage} is done for all {len(tasks):,} tasks")
            return
        manifest, counts = join(build, output)
        remove_work(output)
    print(summary(manifest, counts, args.output))
    for each in options.filters.added:
        if isinstance(each, DroppedIds) and (note := each.found_note(counts.rejected[CAUSE])):
            print(note, file=sys.stderr)


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
        filters=_filters(args, inputs),
        duplicates=args.duplicates,
        accept_broken_files=args.accept_broken_files,
        max_rejected=args.max_rejected,
        sample_bytes=_size(args.sample_bytes, "sample-bytes"),
        shard_size=_size(args.shard_size, "shard-size"),
        read_as=args.read_as,
        alphabet=alphabet if args.tokenizer is None and args.vocab_size == DEFAULT_VOCAB_SIZE else None,
    )


def _filters(args: argparse.Namespace, inputs: "Sequence[Input]") -> ActiveFilters:
    by_id = dropped_ids(args.drop_ids, args.id_key, args.drop_ids_key, inputs)
    added = (by_id, decontamination(args.decontaminate, args.decontaminate_words))
    return replace(
        ActiveFilters.of(vars(args)), added=tuple(filter(None, added)), id_key=by_id.id_key if by_id else None
    )


def _size(word: str, option: str) -> int:
    try:
        return number_of_bytes(word)
    except ValueError as error:
        raise DataError(f"--{option} {word}: {error}") from error


def _mention_unread(inputs: "Sequence[Input]") -> None:
    from data_pipeline.readers.inputs import empty_note, repeated_note, unread_note

    for note in filter(None, (unread_note(inputs), repeated_note(inputs), empty_note(inputs))):
        print(note, file=sys.stderr, flush=True)


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
