"""Errors that a flag or a file can cause: one line that names the culprit, the reason and the way out."""

import contextlib
import re
from collections.abc import Iterator

_PLACE = re.compile(r"(--[a-z][a-z0-9-]*): (.*)", re.DOTALL)


class UserError(ValueError):
    """What the user can mend. The scripts print its message as one line and leave with exit code 2.

    place: the flag, file or part of it that the error is about; reason: what is wrong there, and the way out. A reason that
    begins with a flag and a colon is taken apart.
    """

    def __init__(self, reason: str, place: str | None = None):
        super().__init__(reason if place is None else f"{place}: {reason}")
        self.place, self.reason = place, reason
        match = _PLACE.fullmatch(reason) if place is None else None
        if match is not None:
            self.place, self.reason = match[1], match[2]

    def moved(self, before: str, now: str) -> "UserError":
        """The same said of another place, if it was said of the one before."""
        return UserError(self.reason, now) if self.place == before else UserError(str(self))

    @property
    def names_flag(self) -> bool:
        """Whether the message begins with the flag to be mended, with its value or without."""
        return str(self).startswith("--")


class DataError(UserError, OSError):
    """What is wrong with a set of images as a whole. Programs written for the official code catch an `IOError`."""


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
    """Put the flag (`--data`) before the message of a `UserError` raised inside the block."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error), None if error.names_flag else flag) from error
