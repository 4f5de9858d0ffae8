"""Sheets: pictures that show many images, or curves. The tools here write them beside samples, and are not to take them for such.

Each is marked with a text in its PNG. Older ones are told by their names where they are also larger than the images beside them.
"""

import re
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from PIL.PngImagePlugin import PngInfo

from dnnlib.files import SHEET_TEXT

((KEY, VALUE),) = SHEET_TEXT.items()
MARK = b"tEXt" + KEY.encode() + b"\0" + VALUE.encode()
PNG_START, START_BYTES = b"\x89PNG\r\n\x1a\n", 512
# How the tools here call theirs.
NAMES = re.compile(
    r"(grid|pairs\d*|fakes(\d[\d.]*|_init)|pairs(\d[\d.]*|_init)|reals|sources|neighbors|metrics|prior|prior-interpolation|sheet|.+-sheet|"
    r"sid|sid-matrix|cascade)\.png"
)
SHOWN = 5  # names in a message

_said: set[tuple[str, ...]] = set()


class Start(NamedTuple):
    """What a look at the first bytes of a PNG tells."""

    is_marked: bool
    size: tuple[int, int] | None


def png_info(texts: Mapping[str, str] | None = None) -> PngInfo:
    """What marks a PNG as a sheet, for Pillow's `save(pnginfo=…)`; for matplotlib's `savefig(metadata=…)`: `SHEET_TEXT`.

    texts: what else it says.
    """
    info = PngInfo()
    info.add_text(KEY, VALUE)
    for key, text in (texts or {}).items():
        info.add_text(key, text, zip=True)
    return info


def has_sheets_name(name: str) -> bool:
    return NAMES.fullmatch(PurePosixPath(name).name) is not None


def look(start: bytes) -> Start:
    """start: the first `START_BYTES` of a file."""
    if not start.startswith(PNG_START) or len(start) < 24:
        return Start(False, None)
    width, height = struct.unpack(">II", start[16:24])
    return Start(MARK in start, (width, height))


def older_sheets(starts: Iterable[tuple[str, Start]]) -> set[str]:
    """Names of files without the mark that are called like sheets and larger than what most PNGs of the set are."""
    starts = list(starts)
    sizes = Counter(start.size for name, start in starts if start.size is not None and not has_sheets_name(name))
    if not sizes:
        return set()
    (width, height), _ = sizes.most_common(1)[0]
    return {
        name
        for name, start in starts
        if start.size is not None
        and has_sheets_name(name)
        and start.size != (width, height)
        and start.size[0] >= width
        and start.size[1] >= height
    }


def say_left_out(path: str, names: list[str], count: int) -> None:
    """Once for each set, on the terminal."""
    key = (path, *names)
    if not names or key in _said:
        return
    from torch_utils import distributed  # imports torch, which dataset_tool does without

    if distributed.get_rank() != 0:
        return
    _said.add(key)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    what = "is a sheet that shows" if len(names) == 1 else "are sheets that show"
    print(
        f"Note: {path}: {len(names):,} of its {count:,} images {what} many images or curves, and no sample: left out "
        f"({', '.join(names[:SHOWN])}{more})",
        file=sys.stderr,
    )
