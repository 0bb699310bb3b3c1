"""Read the text values of a file range, record by record.

Memory is constant: one record or one batch of rows at a time, and long texts stay in their files
(`data_pipeline.readers.long_documents`).
"""

import json
from collections.abc import Callable, Iterator
from functools import partial, reduce
from operator import getitem
from typing import BinaryIO

from data_pipeline.errors import ReadError
from data_pipeline.generators.names import parse_generated
from data_pipeline.json_text import why_no_json_line
from data_pipeline.readers.compression import DamagedFileError, OpenFile, TrailingBytesError, open_decompressed
from data_pipeline.readers.file_ranges import SKIPPED_BYTES, FileRange
from data_pipeline.readers.input_files import read_again
from data_pipeline.readers.kinds import is_compressed
from data_pipeline.readers.long_documents import LONG_BYTES, LongLine, LongText, Utf8Error, decode_utf8
from data_pipeline.readers.nested_keys import key_names, key_path, obstacle
from data_pipeline.readers.not_text import (
    BEGINNING_BYTES,
    NotTextError,
    marks_length,
    objection,
    without_marks,
    without_nul,
)
from data_pipeline.readers.rows import read_dataset, read_parquet
from data_pipeline.readers.values import BlankLine, Found, TextValue
from data_pipeline.rejects import Cause, Rejection, missing_id, missing_key

MAX_TRAILING_BYTES = 4096
"""After compressed content, more may be content whose beginning is damaged."""


def read_range(file_range: FileRange, text_key: str, id_key: str | None = None) -> Iterator[Found]:
    """Everything that a file range holds, in order. Content counts as broken when a second read finds the same.

    Args:
        id_key: key of the records' ids, which every record must have; None if they are not needed.

    Raises:
        OSError, MemoryError: the system reported a failure. ReadError: two reads gave different content.
    """
    count = 0
    try:
        for found in _read_once(file_range, text_key, id_key):
            count += 1
            yield found
    except DamagedFileError as error:
        _confirm(file_range, text_key, id_key, count, str(error))
        yield _of_file(error)


def _of_file(error: DamagedFileError) -> Rejection:
    """What is told of a file that is not whole. A few bytes after compressed content, which is whole, are no damage."""
    few = isinstance(error, TrailingBytesError) and error.num_bytes <= MAX_TRAILING_BYTES
    return Rejection(Cause.TRAILING_BYTES if few else Cause.BROKEN_FILE, None, str(error), missing=error.missing)


def _read_once(file_range: FileRange, text_key: str, id_key: str | None) -> Iterator[Found]:
    if file_range.kind == "dataset":
        yield from read_dataset(file_range, text_key, id_key)
    elif file_range.kind == "generated":
        yield from _generate(file_range)
    elif file_range.kind == "parquet":
        yield from read_parquet(file_range, text_key, id_key)
    elif file_range.kind == "lines":
        with open_decompressed(file_range.file) as file:
            yield from _read_lines(file, file_range, text_key, id_key)
    else:
        found = _read_text(file_range)
        if isinstance(found[-1], Rejection) and found != _read_text(file_range):
            raise ReadError.differs(file_range.source, found[-1].why)
        yield from found
        # A long text has been read to its end by now.
        yield from map(_of_file, _trailing(found[0]))


def _generate(file_range: FileRange) -> Iterator[TextValue]:
    generated = parse_generated(file_range.source)
    for index in range(file_range.start, generated.count if file_range.stop is None else file_range.stop):
        yield TextValue(generated.generator.text(generated.seed, index), index)


def _confirm(file_range: FileRange, text_key: str, id_key: str | None, count: int, why: str) -> None:
    """Read again a range that broke after `count` records."""
    again = 0
    try:
        for _ in _read_once(file_range, text_key, id_key):
            again += 1
    except DamagedFileError as error:
        if (again, str(error)) == (count, why):
            return
    raise ReadError.differs(file_range.source, why)


def _trailing(found: Found) -> list[TrailingBytesError]:
    is_long = isinstance(found, TextValue) and isinstance(found.content, LongText)
    return found.content.trailing or [] if is_long else []


def _read_text(file_range: FileRange) -> list[Found]:
    """The text of a file or why it is none, then what follows the compressed content."""
    trailing: list[Found] = []
    with open_decompressed(file_range.file) as file:
        content = file.content.read(LONG_BYTES + 1)
        beginning = content + file.content.read(max(0, BEGINNING_BYTES - len(content)))
        if problem := objection(beginning[:BEGINNING_BYTES]):
            return [Rejection(problem[0], None, problem[1])]
        if len(content) > LONG_BYTES:
            return [TextValue(LongText(file_range.file, 0, trailing=[]), None)]
        try:
            file.require_end(len(content))
        except TrailingBytesError as error:
            trailing.append(_of_file(error))
    try:
        return [TextValue("".join(without_nul(without_marks([decode_utf8(content)]))), None), *trailing]
    except Utf8Error as error:
        return [Rejection(Cause.NOT_UTF8, None, str(error)), *trailing]
    except NotTextError as error:
        return [Rejection(Cause.NOT_TEXT, None, str(error)), *trailing]


def _require_lines(line: bytes, file_range: FileRange) -> None:
    """Raise DamagedFileError when the first line of a file, which is not blank, is not one of JSON lines."""
    problem = objection(line[:BEGINNING_BYTES])
    why = problem[1] if problem else None
    if line.lstrip().startswith(b"["):
        why = "begins with a JSON array; one object per line is expected; convert it, for example with jq -c '.[]'"
    if why:
        raise DamagedFileError(why, f"all of its {file_range.num_bytes:,} bytes")


def _read_lines(file: OpenFile, file_range: FileRange, text_key: str, id_key: str | None) -> Iterator[Found]:
    packed = is_compressed(file.path)
    position, number, stop = _first_line(file.content, file_range), 0, file_range.stop
    begun = file_range.start > 0
    while (stop is None or position < stop) and (line := file.content.readline(LONG_BYTES + 1)):
        number += 1
        # Also in the middle of a file: several that begin with a mark may have been joined.
        start = position + marks_length(line)
        is_long = len(line) > LONG_BYTES and not line.endswith(b"\n")
        content = line[start - position :]
        if not begun and content.strip():
            _require_lines(content, file_range)
            begun = True
        del line  # a document may take much memory: one copy is enough
        if is_long:
            long = LongLine(file.path, file.content, content, start)
            position, ends = start + long.num_bytes, long.ends
            load = None if long.is_blank else partial(long.record, text_key)
        else:
            position, ends = start + len(content), content.endswith(b"\n")
            load = partial(_load_line, content) if content.strip() else None
        if not ends and not packed:
            file.require_end(position)
        found = _parse(load, text_key, id_key, number, start) if load else BlankLine(number)
        if isinstance(found, Rejection) and found.cause not in (Cause.MISSING_KEY, Cause.NO_ID) and not packed:
            _confirm_line(file, content, start)
        del load, content
        yield found
    if stop is None or position < stop:
        file.require_end(position)


def _confirm_line(file: OpenFile, content: bytes, start: int) -> None:
    """Read again the beginning of a line that is broken."""
    if read_again(file.stored, len(content), start) != content:
        raise ReadError.differs(str(file.path), f"at byte {start:,}")


def _first_line(file: BinaryIO, file_range: FileRange) -> int:
    """Move to the first line that begins in the range; returns its offset."""
    if not file_range.start:
        return 0
    position = file_range.start - 1
    file.seek(position)
    # A line that began before the range may be longer than the whole range, and longer than memory.
    while (file_range.stop is None or position < file_range.stop) and (skipped := file.readline(SKIPPED_BYTES)):
        position += len(skipped)
        if skipped.endswith(b"\n"):
            break
    return position


def _parse(
    load: Callable[[], object], text_key: str, id_key: str | None, number: int, start: int
) -> TextValue | Rejection:
    """The text value of the record that `load` returns."""
    try:
        record = load()
    except Utf8Error as error:
        return Rejection(Cause.NOT_UTF8, number, str(error))
    except json.JSONDecodeError as error:
        return Rejection(Cause.BROKEN_JSON, number, why_no_json_line(error))
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets nested a thousand deep
        return Rejection(Cause.BROKEN_JSON, number, str(error))
    if not isinstance(record, dict):
        return Rejection(Cause.BROKEN_JSON, number, f"expected an object, found {type(record).__name__}")
    path = key_path(record, text_key)
    if path is None:
        return missing_key(text_key, number, key_names(record), obstacle=obstacle(record, text_key))
    text = reduce(getitem, path, record)
    if id_key is None:
        return TextValue(text, number, start)
    id_path = key_path(record, id_key)
    if id_path is None:
        return missing_id(id_key, number, key_names(record))
    return TextValue(text, number, start, reduce(getitem, id_path, record))


def _load_line(line: bytes) -> object:
    return json.loads(decode_utf8(line.rstrip(b"\r\n")))
