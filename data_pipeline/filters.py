"""What to leave out of a corpus, beside records that are broken: all of it off unless asked for."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

from data_pipeline.documents import Cause, Document

Duplicates = Literal["keep", "exact", "near"]


@dataclass(frozen=True)
class Cleaning:
    """Rules that know no language.

    Attributes:
        min_chars, max_chars: limits of a document's length; 0 for none.
        min_letters: least share of letters among the characters that are not white space; in any script.
        max_repeated_lines: greatest share of the text's non-empty lines that repeat an earlier line of it.
        duplicates: "exact" leaves out documents whose text came before, "near" also those that MinHash takes for one.
    """

    min_chars: int = 0
    max_chars: int = 0
    min_letters: float = 0.0
    max_repeated_lines: float = 1.0
    duplicates: Duplicates = "keep"

    def record(self) -> dict[str, str | int | float | None]:
        """The rules as the manifest keeps them."""
        return asdict(self)

    def objection(self, document: Document) -> tuple[Cause, str] | None:
        """Why a document is left out, judged by itself; None when it stays.

        Of a long document the letters and the repeated lines are those of its first piece, about a million characters.
        """
        if self.min_chars or self.max_chars:
            num_chars = sum(map(len, document.pieces))
            if num_chars < self.min_chars:
                return Cause.TOO_SHORT, f"{num_chars:,} characters"
            if self.max_chars and num_chars > self.max_chars:
                return Cause.TOO_LONG, f"{num_chars:,} characters"
        text = next(iter(document.pieces))
        if self.min_letters and (share := share_of_letters(text)) < self.min_letters:
            return Cause.FEW_LETTERS, f"{share:.0%} letters: {_beginning(text)}"
        if self.max_repeated_lines < 1 and (share := share_of_repeated_lines(text)) > self.max_repeated_lines:
            return Cause.REPEATED_LINES, f"{share:.0%} of the lines repeat an earlier one: {_beginning(text)}"
        return None


def share_of_letters(text: str) -> float:
    """Letters among the characters that are not white space."""
    solid = "".join(text.split())
    return sum(map(str.isalpha, solid)) / max(1, len(solid))


def share_of_repeated_lines(text: str) -> float:
    """Lines that repeat an earlier one, among those that are not empty."""
    lines = Counter(line.strip() for line in text.splitlines() if not line.isspace() and line)
    return (lines.total() - len(lines)) / max(1, lines.total())


def _beginning(text: str) -> str:
    return repr(text[:40])
