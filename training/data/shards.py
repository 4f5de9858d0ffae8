"""Names of sets that lie in several zips or folders: `a.zip,b.zip`, `train-{000..127}.zip`, `{cats,dogs}.zip`."""

import itertools
import os
import re
from pathlib import Path

from dnnlib.errors import UserError

MAX_PARTS = 10_000

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


def split_list(text: str) -> list[str]:
    """The parts between commas, without those inside of braces: `a-{1,2}.zip,b.zip` has two."""
    parts = re.findall(r"(?:\{[^{}]*\}|[^,])+", text)
    return [part.strip() for part in parts if part.strip()]


def part_paths(path: str | os.PathLike) -> list[Path]:
    """The zips or folders that a path stands for: itself where it exists, or what its commas and braces name.

    Raises `UserError` for an empty range, for too many parts and for one that is named twice.
    """
    text = os.fspath(path)
    if os.path.lexists(text) or not ("," in text or _BRACES.search(text)):
        return [Path(text)]
    paths = [Path(name) for part in split_list(text) for name in _expand(part)]
    if not paths:
        raise UserError(f"{text}: names no zip or folder; give one, or several with commas between them")
    if len(paths) > MAX_PARTS:
        raise UserError(f"{text}: stands for more than {MAX_PARTS:,} zips; put more images into each")
    seen: set[Path] = set()
    for one in paths:
        if one.resolve() in seen:
            raise UserError(f"{text}: names {one} twice, so that its images would count twice; leave one out")
        seen.add(one.resolve())
    return paths


def _expand(text: str) -> list[str]:
    """The names that the braces of one part stand for, in the order of the first braces, then of the next."""
    pieces = _BRACES.split(text)  # text, inside of braces, text, ...
    choices = [[piece] if index % 2 == 0 else _choices(piece, text) for index, piece in enumerate(pieces)]
    # Counted before they are made: two ranges can stand for more than the memory holds.
    return ["".join(chosen) for chosen in itertools.islice(itertools.product(*choices), MAX_PARTS + 1)]


def _choices(inside: str, text: str) -> list[str]:
    match = _RANGE.fullmatch(inside.strip())
    if not match:
        return [name.strip() for name in inside.split(",")] if "," in inside else [f"{{{inside}}}"]
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise UserError(f"{text}: {{{inside}}} is an empty range; write the smaller number first")
    width = len(match[1]) if match[1].startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(first, min(last, first + MAX_PARTS) + 1)]


def set_exists(path: str | os.PathLike) -> bool:
    """Whether everything that a path stands for is there. Raises `UserError` as `part_paths` does."""
    return all(part.exists() for part in part_paths(path))


def set_name(path: str | os.PathLike) -> str:
    """A short name for people, which is also fit for a file name: `train-000-and-127-more`."""
    first, *more = part_paths(path)
    return f"{first.stem}-and-{len(more)}-more" if more else first.stem
