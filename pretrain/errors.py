"""Errors that are the user's to mend: printed without a traceback, with exit status 2."""


class UserError(Exception):
    """Something outside the program is wrong; the message names it and the fix."""


class RankError(UserError):
    """An error that one rank alone has seen, so that this rank has to print it. Others are told by rank 0 alone."""


class ConfigError(UserError):
    """All problems of one configuration together.

    Attributes:
        problems: one line each, `key: what is wrong; what to do`.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {p}" for p in problems))
