"""How far a long computation is: a bar on a terminal, a line now and then in a log."""

from dnnlib.bars import tqdm


def progress_bar(total: int, title: str, unit: str, is_shown: bool) -> tqdm:
    """Counts, speed and time left, on stderr."""
    return tqdm(total=total, desc=title, unit=unit, leave=False, disable=not is_shown)
