"""How far a long computation is: a bar on a terminal, a line now and then in a log."""

import sys

from dnnlib.bars import tqdm

LINE_SEC = 30.0


def progress_bar(total: int, title: str, unit: str, is_shown: bool) -> tqdm:
    """Counts, speed and time left, on stderr."""
    is_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        leave=False,
        disable=not is_shown,
        mininterval=0.1 if is_terminal else LINE_SEC,
        delay=0.0 if is_terminal else LINE_SEC,
    )
