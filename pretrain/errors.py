"""Errors that the user can fix: printed without a traceback, with exit status 2."""

from collections.abc import Sequence
from dataclasses import dataclass


class UserError(Exception):
    """The input, the settings or the machine is wrong; the message names what is wrong and what to do."""


class TrainingDivergedError(UserError):
    """A training has diverged, and going back to a checkpoint does not help or is not possible."""


class CopiesDifferError(UserError):
    """Ranks that must hold the same numbers do not: training must not go on with them, nor save one of them."""


class RankError(UserError):
    """An error that only one rank has seen and whose message names the rank: it is printed by that rank."""


class OutOfMemoryError(RankError):
    """The device of a rank has no memory left."""


class ReportedError(UserError):
    """An error that has been printed already, by this rank or another one: the process only has to end."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration. `str()` gives `key=value: what is wrong; what to do`.

    Attributes:
        key: the setting to change, such as `optim.lr`.
        value: what it is set to; None where there is no value to show.
        text: what is wrong; what to do.
        related: other keys that the text depends on.
        place: where the key was set, such as `line 3 of mine.yaml`; empty for an override or a default.
    """

    key: str
    value: object
    text: str
    related: tuple[str, ...] = ()
    place: str = ""

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        shown = self.key if value is None else f"{self.key}={value}"
        return f"{shown}: {self.text}" + (f" ({self.place})" if self.place else "")

    def involves(self, key: str) -> bool:
        """Whether the problem depends on `key`, or on a key inside the section `key`."""
        return any(own == key or own.startswith(f"{key}.") for own in (self.key, *self.related))


class ConfigError(UserError):
    """All problems of one configuration together.

    Attributes:
        problems: in the order in which they were found.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {problem}" for problem in problems))
