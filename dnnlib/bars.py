"""tqdm's progress bars, which also work in a log, with a lock of their own.

Where there is no terminal a bar is a plain line now and then, whichever bar is at work.

tqdm's default lock is one of multiprocessing, too, which fixes the start method for the whole program: whoever builds a
data set could not choose `spawn` afterwards. No bar here is shared between processes.
"""

import sys
import threading
import time
from typing import Any

import tqdm as original

LINE_SEC = 15.0  # from one line to the next where there is no terminal
SHORT_SEC = 1.0  # what takes no longer gets no line
LINE = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


class Lines:
    """A stream for bars that writes a line every `LINE_SEC` seconds at most, over all bars of the process."""

    said_at = time.monotonic()

    def __init__(self, stream: Any):
        self.stream, self.opened_at = stream, time.monotonic()

    def write(self, text: str) -> None:
        line, now = text.strip(), time.monotonic()
        if line and now - Lines.said_at >= LINE_SEC and now - self.opened_at >= SHORT_SEC:
            Lines.said_at = now
            self.stream.write(line + "\n")

    def flush(self) -> None:
        self.stream.flush()


class tqdm(original.tqdm):
    """`tqdm.tqdm`, locked between threads only; `disable=None` shows it anywhere, as lines where there is no terminal."""

    def __init__(self, *args: Any, **options: Any):
        stream = options.get("file") or sys.stderr
        if not stream.isatty():
            options |= {"file": Lines(stream), "leave": False, "disable": bool(options.get("disable"))}
            options["bar_format"] = options.get("bar_format") or LINE
            options |= {"mininterval": 1.0, "ascii": True}
        super().__init__(*args, **options)


tqdm.set_lock(threading.RLock())
