"""Paths among the options of a run, whatever folder one stands in later."""

import os
from collections.abc import Mapping
from typing import Any

from dnnlib.util import is_url
from training.config.flags import PathKind
from training.config.options import FLAGS, names_where
from training.data.shards import split_list

SETS = names_where(lambda flag: flag.path is PathKind.SET)
FILES = names_where(lambda flag: flag.path in (PathKind.FILE, PathKind.FOLDER))
NO_PATHS = frozenset(word for flag in FLAGS.values() for word in flag.words)


def absolute_set(path: str | None) -> str | None:
    """The path of a set, a file or a snapshot, or several with commas between them, whatever folder one stands in later."""
    if path is None or is_url(path) or path in NO_PATHS:
        return path
    parts = [path] if os.path.lexists(path) else split_list(path)
    if len(parts) < 2:
        return os.path.abspath(path)
    whole = [os.path.abspath(part) for part in parts]
    return path if any(c in os.getcwd() for c in ",{}") else ",".join(whole)


def absolute_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run with absolute paths."""
    changed: dict[str, Any] = {}
    for name in SETS & options.keys():
        value = options[name]
        is_many = isinstance(value, list | tuple)
        changed[name] = type(value)(absolute_set(path) for path in value) if is_many else absolute_set(value)
    for name in FILES & options.keys():
        value = options[name]
        if isinstance(value, str) and not is_url(value) and value not in NO_PATHS:
            changed[name] = os.path.abspath(value)
    return {**options, **changed}
