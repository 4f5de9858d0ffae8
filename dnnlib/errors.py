"""Errors that a flag or a file can cause: one line that names the culprit, the reason and the way out."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """What the user can mend. The scripts print its message as one line and leave with exit code 2."""


class DataError(UserError, OSError):
    """What is wrong with a set of images as a whole. Programs written for the official code catch an `IOError`."""


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
    """Put the flag (`--data`) before the message of a `UserError` raised inside the block."""
    try:
        yield
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith("--") else f"{flag}: {message}") from error
