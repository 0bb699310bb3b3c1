"""What readers yield: values, which `data_pipeline.documents` checks, and records that are rejected already."""

from typing import NamedTuple

from data_pipeline.rejects import Rejection


class TextValue(NamedTuple):
    """What a record holds under the text key, not checked yet.

    Attributes:
        content: any value of JSON or of a column, or a `LongText`.
        number: line of the record within the file range, or its row in the file; None for a whole file.
        start: byte of the file, after decompression, at which its line begins; None for what is no line.
        id: what the record holds under the key of ids; None if no such key was asked for.
    """

    content: object
    number: int | None
    start: int | None = None
    id: object = None


class BlankLine(NamedTuple):
    """A line with nothing on it: no record, but it counts for line numbers."""

    number: int


Found = TextValue | BlankLine | Rejection
