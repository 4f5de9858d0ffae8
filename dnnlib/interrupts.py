"""Ctrl-C while a script still imports, which takes seconds: one line. Scripts import this first, and it imports little.

It is for our scripts and the processes that they launch: any other program that imports our modules keeps its handler.
"""

import contextlib
import os
import signal
import sys

EXIT_CODE = 130  # as shells have it
SCRIPTS = ("calc_metrics", "calc_sid", "dataset_tool", "gen_images", "gen_video", "legacy", "train")
LAUNCHED = "SPIDER_STYLEGAN_LAUNCHED"  # in the environment of processes of ours


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
