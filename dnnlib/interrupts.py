"""Signals while a script has not begun yet: Ctrl-C during imports, which take seconds, is one line.

Scripts import this first, and it imports little. What takes seconds they import when their options are known (`importing`),
so that `--help` and errors of usage do not wait for it.

It is for our scripts and the processes that they launch: any other program that imports our modules keeps its handler.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

EXIT_CODE = 130  # as shells have it
SCRIPTS = (
    "calc_metrics",
    "calc_sid",
    "dataset_tool",
    "directions",
    "doctor",
    "gen_images",
    "gen_video",
    "legacy",
    "project",
    "style_mixing",
    "train",
)
LAUNCHED = "SPIDER_STYLEGAN_LAUNCHED"  # in the environment of processes of ours
STOPPED = 75  # exit code of a run that saved its state and left because a signal asked for it: try again later
PASSED_ON = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def begin() -> None:
    """Ctrl-C ends the process at once: nothing has begun yet."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default and (is_script() or is_spawned()):
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, leave)


def end() -> None:
    """Ctrl-C raises KeyboardInterrupt again, for those who know what it interrupts."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Ctrl-C within the block, which imports what takes seconds, ends the process at once."""
    begin()
    try:
        yield
    finally:
        end()


@contextlib.contextmanager
def leaving_when_asked() -> Iterator[None]:
    """SIGTERM and SIGUSR1 mean: leave with STOPPED. For the time in which there is nothing to save yet: whoever queues a
    stopped run again need not know how far it had come."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        sys.exit(STOPPED)

    before = {number: signal.signal(number, stop) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(number: int, frame: object) -> None:
    if not is_spawned() and os.environ.get("RANK", "0") == "0":
        os.write(2, b"Interrupted.\n")
    os._exit(EXIT_CODE)


def is_script() -> bool:
    """Whether the program is one of ours, which lie beside this package."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path is None or os.path.splitext(os.path.basename(path))[0] not in SCRIPTS:
        return False
    return folder_of(path) == os.path.dirname(folder_of(__file__))


def folder_of(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))


def is_spawned() -> bool:
    """Whether our launcher started this process, which imports what its program has imported."""
    return LAUNCHED in os.environ and "--multiprocessing-fork" in sys.orig_argv


begin()
