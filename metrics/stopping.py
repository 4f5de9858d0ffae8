"""How a long computation is ended from outside, on all processes at once."""

from collections.abc import Callable

KeepGoing = Callable[[], bool] | None


class Stopped(Exception):
    """Somebody asked to stop in the middle of a computation."""


def check(keep_going: KeepGoing) -> None:
    """Raise `Stopped` when the answer is no. All processes ask together, equally often."""
    if keep_going is not None and not keep_going():
        raise Stopped
