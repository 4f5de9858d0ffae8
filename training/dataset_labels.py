"""Class labels of image files: from `dataset.json`, else from subfolders."""

import json
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from dnnlib.errors import UserError
from training.image_files import BadImage, ImageFiles

LABEL_FILE = "dataset.json"
MAX_CLASSES = 1_000_000
FLOAT32_MAX = float(np.finfo(np.float32).max)

Label = int | tuple[float, ...]


def find_labels(files: ImageFiles) -> tuple[str | None, dict[str, Label]]:
    """Where the labels come from (`dataset.json`, `subfolders` or None) and the label of every image by name.

    Raises `UserError` where `dataset.json` is damaged or does not fit the images.
    """
    root = common_folder(files.names)
    for folder in dict.fromkeys(["", root]):
        if folder + LABEL_FILE in files.all_names:
            labels = _labels_from_json(files, folder)
            return (LABEL_FILE, labels) if labels else (None, {})
    labels = _labels_from_subfolders(files.names, root)
    return ("subfolders", labels) if labels else (None, {})


def common_folder(names: list[str]) -> str:
    """The folder that all names lie in, as a prefix: empty or with a slash at its end."""
    folders = [PurePosixPath(name).parent.parts for name in (min(names), max(names))]
    shared = []
    for first, last in zip(*folders, strict=False):
        if first != last:
            break
        shared.append(first + "/")
    return "".join(shared)


def _labels_from_subfolders(names: list[str], root: str) -> dict[str, Label]:
    """Class = index of the sorted folder names; none unless every image lies in one of at least two folders."""
    parts = [name[len(root) :].split("/") for name in names]
    if any(len(part) < 2 for part in parts):
        return {}
    classes = {folder: index for index, folder in enumerate(sorted({part[0] for part in parts}))}
    return {name: classes[part[0]] for name, part in zip(names, parts, strict=True)} if len(classes) > 1 else {}


def _labels_from_json(files: ImageFiles, folder: str) -> dict[str, Label]:
    where = f"{files.path}: {folder}{LABEL_FILE}"
    pairs = _parse(files, folder + LABEL_FILE, where)
    if not pairs:
        return {}
    labels = {folder + name.replace("\\", "/"): _checked(label, name, where) for name, label in pairs}
    _check_same_kind(labels, where)
    unknown = [name for name in labels if name not in files.all_names]
    if unknown:
        count = f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
        raise UserError(f"{where} has labels for {unknown[0]}{count}, which do not exist; mend or remove them")
    missing = [name for name in files.names if name not in labels]
    if missing:
        count = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(f"{where} has no label for {missing[0]}{count}; label every image or none")
    return {name: labels[name] for name in files.names}


def _parse(files: ImageFiles, name: str, where: str) -> list[tuple[str, object]]:
    try:
        content = json.loads(files.read(name))
    except BadImage as error:
        raise UserError(f"{where} cannot be read ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}); mend it, or remove it to go without labels") from error
    labels: Any = content.get("labels") if isinstance(content, dict) else content
    if labels is None:
        return []
    pairs = list(labels.items()) if isinstance(labels, dict) else labels
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise UserError(f'{where} is not of the form {{"labels": [["name.png", class], ...]}}; mend it, or remove it')
    return [(name, label) for name, label in pairs]


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)


def _checked(label: Any, name: str, where: str) -> Label:
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < MAX_CLASSES:
        return label
    is_vector = isinstance(label, list) and len(label) > 0
    if is_vector and all(_is_number(value) for value in label):
        return tuple(float(value) for value in label)
    raise UserError(
        f"{where}: the label of {name} is {str(label)[:50]!r}; use a class number from 0 or a list of finite numbers"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX


def _check_same_kind(labels: dict[str, Label], where: str) -> None:
    first_name, first = next(iter(labels.items()))
    for name, label in labels.items():
        if _kind(label) != _kind(first):
            raise UserError(
                f"{where} mixes labels: {first_name} has {_kind(first)}, {name} has {_kind(label)}; use one kind"
            )


def _kind(label: Label) -> str:
    return "a class number" if isinstance(label, int) else f"a vector of {len(label)}"


def as_array(labels: list[Label]) -> np.ndarray:
    """Class numbers as int64 `[N]`, vectors as float32 `[N, D]`."""
    dtype = np.int64 if isinstance(labels[0], int) else np.float32
    return np.array(labels, dtype=dtype)
