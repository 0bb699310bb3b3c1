"""Filters: rules that leave whole documents out of a corpus. All are off unless their option is given.

A filter is one entry of `FILTERS`. Its option of `loopmdm prepare`, the check of that option, its key in the manifest and
the cause under which rejected documents are counted all follow from the entry. For example, against many digits:

    def _many_digits(document: Document, limit: Limit) -> str | None:
        text = document.first_chunk
        share = sum(map(str.isdigit, text)) / max(1, len(text))
        return f"{share:.0%} digits: {_beginning(text)}" if share > limit else None

    Filter(
        name="max_digits",
        cause="many digits",
        default=1.0,  # off at this value
        metavar="F",
        help="largest share of digits, 0 to 1",
        objection=_many_digits,
        problem=_not_a_share,
    )
"""

import argparse
import operator
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Protocol

from data_pipeline.documents import Document
from data_pipeline.errors import DataError

Limit = int | float


def any_limit(limit: Limit, limits: Mapping[str, Limit]) -> None:
    """The `problem` of a filter that works with every limit."""


@dataclass(frozen=True)
class Filter:
    """A rule that judges each document by itself.

    Attributes:
        name: key in the manifest; with dashes, the option.
        cause: rejected documents are counted under it.
        default: the limit at which the filter is off; its type is the type of the option.
        metavar, help: of the option.
        objection: (document, limit) -> why the document is left out, or None to keep it.
        problem: (limit, limits of all filters) -> why the limit makes no sense, or None.
        always_recorded: the manifest has the limit even where the filter is off. Only for the filters of the first
            version; recording a new one only where it is on leaves existing folders and finished tasks valid.
    """

    name: str
    cause: str
    default: Limit
    metavar: str
    help: str
    objection: Callable[[Document, Limit], str | None]
    problem: Callable[[Limit, Mapping[str, Limit]], str | None] = any_limit
    always_recorded: bool = False

    @property
    def option(self) -> str:
        """Its option on the command line."""
        return f"--{self.name.replace('_', '-')}"


def _too_short(document: Document, limit: Limit) -> str | None:
    return f"{document.num_chars:,} characters" if document.num_chars < limit else None


def _too_long(document: Document, limit: Limit) -> str | None:
    return f"{document.num_chars:,} characters" if document.num_chars > limit else None


def _few_letters(document: Document, limit: Limit) -> str | None:
    text = document.first_chunk
    share = share_of_letters(text)
    return f"{share:.0%} letters: {_beginning(text)}" if share < limit else None


def _repeated_lines(document: Document, limit: Limit) -> str | None:
    text = document.first_chunk
    share = share_of_repeated_lines(text)
    return f"{share:.0%} of the lines repeat an earlier one: {_beginning(text)}" if share > limit else None


def share_of_letters(text: str) -> float:
    """Share of letters, of any script and with their combining marks, among the characters that are not white space."""
    solid = "".join(text.split())
    # Vowel signs and accents (Hindi, Tamil, Thai, decomposed Latin) are marks, which `str.isalpha` does not count.
    marks = () if solid.isascii() else (char for char in set(solid) if unicodedata.category(char)[0] == "M")
    return (sum(map(str.isalpha, solid)) + sum(map(solid.count, marks))) / max(1, len(solid))


def share_of_repeated_lines(text: str) -> float:
    """Share of the non-empty lines that repeat an earlier one."""
    lines = Counter(line.strip() for line in text.splitlines() if not line.isspace() and line)
    return (lines.total() - len(lines)) / max(1, lines.total())


def _beginning(text: str) -> str:
    return repr(text[:40])


def _negative(limit: Limit, limits: Mapping[str, Limit]) -> str | None:
    return "give a number of characters, or 0 for no limit" if limit < 0 else None


def _below_min_chars(limit: Limit, limits: Mapping[str, Limit]) -> str | None:
    if 0 < limit < limits["min_chars"]:
        return f"no document can be that short with --min-chars {limits['min_chars']}"
    return _negative(limit, limits)


def _not_a_share(limit: Limit, limits: Mapping[str, Limit]) -> str | None:
    return None if 0 <= limit <= 1 else "give a share from 0 to 1"


FILTERS = (
    Filter(
        name="min_chars",
        cause="too short",
        default=0,
        metavar="N",
        help="leave out documents of fewer characters",
        objection=_too_short,
        problem=_negative,
        always_recorded=True,
    ),
    Filter(
        name="max_chars",
        cause="too long",
        default=0,
        metavar="N",
        help="leave out documents of more characters",
        objection=_too_long,
        problem=_below_min_chars,
        always_recorded=True,
    ),
    Filter(
        name="min_letters",
        cause="few letters",
        default=0.0,
        metavar="F",
        help="smallest share of letters, of any script, among the characters that are not white space, 0 to 1",
        objection=_few_letters,
        problem=_not_a_share,
        always_recorded=True,
    ),
    Filter(
        name="max_repeated_lines",
        cause="repeated lines",
        default=1.0,
        metavar="F",
        help="largest share of lines that repeat an earlier line of the document, 0 to 1",
        objection=_repeated_lines,
        problem=_not_a_share,
        always_recorded=True,
    ),
)
"""Every filter, in the order in which documents are judged."""


class AddedFilter(Protocol):
    """A filter with data of its own, such as evaluation texts."""

    def rejection(self, document: Document) -> tuple[str, str] | None:
        """Cause and details of the objection to a document; None when it stays."""

    def record(self) -> dict[str, str | Limit]:
        """What the manifest has of it."""


@dataclass(frozen=True)
class ActiveFilters:
    """The filters that are on.

    Attributes:
        limits: their limits, by name.
        added: others.
        id_key: key of the records' ids, if one of the others needs them.
    """

    limits: Mapping[str, Limit] = field(default_factory=dict)
    added: tuple[AddedFilter, ...] = ()
    id_key: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Limit]) -> "ActiveFilters":
        """The filters that the options of the command switch on.

        Raises:
            DataError: a limit that makes no sense.
        """
        limits = {each.name: options[each.name] for each in FILTERS}
        for each in FILTERS:
            if problem := each.problem(limits[each.name], limits):
                raise DataError(f"{each.option} {limits[each.name]:g}: {problem}")
        return cls({each.name: limits[each.name] for each in FILTERS if limits[each.name] != each.default})

    def rejection(self, document: Document) -> tuple[str, str] | None:
        """Cause and details of the first objection to a document; None when it stays.

        Of a long document, letters and lines are judged by its first chunk, about a million characters.
        """
        for each in FILTERS:
            if each.name in self.limits and (why := each.objection(document, self.limits[each.name])):
                return each.cause, why
        return next(filter(None, (each.rejection(document) for each in self.added)), None)

    def record(self) -> dict[str, str | Limit]:
        """The filters as the manifest has them."""
        limits = {
            each.name: self.limits.get(each.name, each.default)
            for each in FILTERS
            if each.always_recorded or each.name in self.limits
        }
        return reduce(operator.or_, (each.record() for each in self.added), limits)


def add_filter_options(parser: argparse._ArgumentGroup) -> None:
    """Declare the option of every filter."""
    for each in FILTERS:
        parser.add_argument(
            each.option, type=type(each.default), default=each.default, metavar=each.metavar, help=each.help
        )
