"""Class labels of image files: from `dataset.json`, else from subfolders."""

import json
import reprlib
from array import array
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from dnnlib.errors import UserError
from training.data.file_names import canonical
from training.data.image_files import BadImage, ImageFiles, StoredFiles
from training.data.zip_index import printable

LABEL_FILE = "dataset.json"
LABEL_FILE_BYTES, LABEL_BYTES = 4 << 20, 16 << 10  # the most that the file may have: a base, and for each image
MAX_CLASSES = 1_000_000
FLOAT32_MAX = float(np.finfo(np.float32).max)

Label = int | tuple[float, ...]


def find_labels(files: ImageFiles, dtype: type = np.float32) -> tuple[str | None, np.ndarray | None]:
    """Where the labels come from (`dataset.json`, `subfolders` or None) and the labels of all images in their order.

    Class numbers are int64 `[N]`, vectors `[N, D]` of `dtype`. Each zip of several has its own `dataset.json`. Raises
    `UserError` where one is damaged or does not fit the images, and where some zips have labels and others none.
    """
    places = [_label_file(part) for part in files.parts]
    if any(place is not None for place in places):
        found = [
            None if place is None else _labels_from_json(part, place, dtype)
            for part, place in zip(files.parts, places, strict=True)
        ]
        labels = _joined(files, found)
        return (None, None) if labels is None else (LABEL_FILE, labels)
    labels = _labels_from_subfolders(files)
    return (None, None) if labels is None else ("subfolders", labels)


def find_classes(files: ImageFiles) -> np.ndarray:
    """The class number of every image, int64 `[N]`. Raises `UserError` where there are no labels, or no classes."""
    _, labels = find_labels(files)
    if labels is None:
        raise UserError(
            f"{files.path} has no labels: put a dataset.json into it, or its images into one subfolder per class"
        )
    if labels.ndim > 1:
        raise UserError(f"{files.path} has {_kind_of(labels)} for each image, and class numbers are needed")
    return labels.astype(np.int64)


def _label_file(files: StoredFiles) -> str | None:
    """The folder, as a prefix, that `dataset.json` lies in: the topmost, or the one that all images lie in."""
    for folder in dict.fromkeys(["", common_folder([files])]):
        if folder + LABEL_FILE in files.all_names:
            return folder
    return None


def _joined(files: ImageFiles, found: list[np.ndarray | None]) -> np.ndarray | None:
    """The labels of all parts as one array."""
    labelled = [index for index, labels in enumerate(found) if labels is not None]
    if not labelled:
        return None
    paths = [part.path for part in files.parts]
    if len(labelled) < len(found):
        without = next(index for index, labels in enumerate(found) if labels is None)
        raise UserError(f"{paths[without]} has no labels, and {paths[labelled[0]]} has; label every zip or none")
    first, *others = (labels for labels in found if labels is not None)
    for path, labels in zip(paths[1:], others, strict=True):
        if labels.shape[1:] != first.shape[1:] or labels.dtype != first.dtype:
            raise UserError(
                f"{paths[0]} has {_kind_of(first)} for each image, and {path} has {_kind_of(labels)}; use one kind"
            )
    return np.concatenate([first, *others])


def common_folder(parts: list[StoredFiles]) -> str:
    """The folder that all images lie in, as a prefix: empty or with a slash at its end."""
    ends = [name for part in parts for name in (part.names[0], part.names[-1])]  # names are sorted
    folders = [PurePosixPath(name).parent.parts for name in (min(ends), max(ends))]
    shared = []
    for first, last in zip(*folders, strict=False):
        if first != last:
            break
        shared.append(first + "/")
    return "".join(shared)


def _labels_from_subfolders(files: ImageFiles) -> np.ndarray | None:
    """Class = index of the sorted folder names; none unless every image lies in one of at least two folders."""
    root = len(common_folder(files.parts))
    classes = array("I")
    numbers: dict[str, int] = {}  # in the order in which they are met
    for part in files.parts:
        for name in part.names:
            folder, slash, _ = name[root:].partition("/")
            if not slash:
                return None
            classes.append(numbers.setdefault(folder, len(numbers)))
    if len(numbers) < 2:
        return None
    places = {folder: place for place, folder in enumerate(sorted(numbers))}
    return np.array([places[folder] for folder in numbers])[np.frombuffer(classes, np.uint32)]


def _labels_from_json(files: StoredFiles, folder: str, dtype: type) -> np.ndarray | None:
    where = f"{files.path}: {folder}{LABEL_FILE}"
    pairs = _parse(files, folder + LABEL_FILE, where)
    if not pairs:
        return None
    labels = {folder + canonical(name): _checked(label, name, where) for name, label in pairs}
    if len(labels) < len(pairs):
        _name_twice(pairs, where)
    _check_same_kind(labels, where)
    images = set(files.names)
    unknown = [name for name in labels if name not in images and name not in files.all_names]
    if unknown:
        count = f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{where} has labels for {printable(unknown[0])}{count}, which do not exist; mend or remove them"
        )
    missing = sorted(images.difference(labels))
    if missing:
        count = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(f"{where} has no label for {printable(missing[0])}{count}; label every image or none")
    is_class = isinstance(next(iter(labels.values())), int)
    return np.array([labels[name] for name in files.names], dtype=np.int64 if is_class else dtype)


def _parse(files: StoredFiles, name: str, where: str) -> list[tuple[str, object]]:
    try:
        content = json.loads(files.read_file(name, LABEL_FILE_BYTES + LABEL_BYTES * len(files)))
    except BadImage as error:
        raise UserError(
            f"{where} cannot be read ({error.reason}); mend it, or remove it to go without labels"
        ) from error
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
        f"{where}: the label of {printable(name)} is {reprlib.repr(label)}; use a class number from 0 or a list of finite numbers"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX


def _name_twice(pairs: list[tuple[str, Any]], where: str) -> None:
    """Raise `UserError` for a name with two labels that differ."""
    seen: dict[str, Any] = {}
    for name, label in pairs:
        if seen.setdefault(canonical(name), label) != label:
            raise UserError(f"{where} has two labels for {printable(name)}; leave one")


def _check_same_kind(labels: dict[str, Label], where: str) -> None:
    first_name, first = next(iter(labels.items()))
    for name, label in labels.items():
        if _kind(label) != _kind(first):
            names = printable(first_name), printable(name)
            raise UserError(
                f"{where} mixes labels: {names[0]} has {_kind(first)}, {names[1]} has {_kind(label)}; use one kind"
            )


def _kind(label: Label) -> str:
    return "a class number" if isinstance(label, int) else f"a vector of {len(label)}"


def _kind_of(labels: np.ndarray) -> str:
    return "a class number" if labels.ndim == 1 else f"a vector of {labels.shape[1]}"
