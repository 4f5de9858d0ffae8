"""Image sets as hubs publish them: Parquet files (Hugging Face), tars of numbered samples (WebDataset).

`open_collection` tells these, and those of `collections.py`, by their names.
"""

import json
import os
import tarfile
import threading
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dnnlib.errors import UserError
from training.data.collections import (
    ArrayCollection,
    Collection,
    EncodedCollection,
    FileCollection,
    LmdbCollection,
    check_size,
    read_cifar10,
    read_mnist,
)
from training.data.image_names import is_image_name
from training.data.labels import MAX_CLASSES
from training.data.pixels import reason_for

MAX_LABEL_BYTES = 1 << 16
PARQUET = ".parquet"
IMAGE_NAMES, LABEL_NAMES = ("image", "img", "picture", "jpg", "png"), ("label", "labels", "fine_label", "class")
LABEL_FILES = (".cls", ".json")  # beside an image of a WebDataset: a number, or an object with one
SPLITS = ("train", "test", "validation", "valid", "val")  # how files of a published set begin


class ParquetCollection(EncodedCollection):
    """One Parquet file, or those of a folder in the order of their names: a column of images, and one of classes if there is one.

    Of a folder with several splits the training images are taken.
    """

    def __init__(self, path: Path):
        """Raises `UserError`."""
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise UserError(f'{path}: needs a package that is not installed: pip install -e ".[parquet]"') from error
        self.where = str(path)
        paths, self._left_out = of_one_split(sorted(path.rglob(f"*{PARQUET}")) if path.is_dir() else [path])
        try:
            self._files = [pyarrow.parquet.ParquetFile(one) for one in paths]
        except Exception as error:  # what a damaged file raises is not documented
            raise UserError(f"{path}: is no readable Parquet file ({reason_for(error)}); download it again") from error
        self._image, label = columns_of(self._files[0].schema_arrow, path)
        self._groups = [(file, group) for file in self._files for group in range(file.num_row_groups)]
        sizes = [file.metadata.row_group(group).num_rows for file, group in self._groups]
        self._ends = np.cumsum(sizes).tolist()
        if not self._ends or self._ends[-1] == 0:
            raise UserError(f"{path}: holds no images")
        self.names = [f"row {index}" for index in range(self._ends[-1])]
        self.labels = None if label is None else self._labels(label)
        self._lock = threading.Lock()
        self._held: tuple[int, Any] = (-1, None)

    def _labels(self, name: str) -> list[int] | None:
        try:
            values = [value for file in self._files for value in file.read(columns=[name]).column(0).to_pylist()]
        except Exception as error:
            raise UserError(f"{self.where}: its column {name} cannot be read ({reason_for(error)})") from error
        if any(value is None or not 0 <= value < MAX_CLASSES for value in values):
            return None  # test sets have -1
        return values

    def remarks(self) -> list[str]:
        return self._left_out

    def data(self, index: int) -> bytes:
        number = bisect_right(self._ends, index)
        with self._lock:  # rows are asked for in order: one group is held
            if self._held[0] != number:
                file, group = self._groups[number]
                self._held = (number, file.read_row_group(group, columns=[self._image]).column(0))
            first = self._ends[number - 1] if number > 0 else 0
            value = self._held[1][index - first].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if value is None:
            raise ValueError("holds the name of a file and not its bytes")
        return value

    def close(self) -> None:
        for file in self._files:
            file.close()


def columns_of(schema: Any, path: Path) -> tuple[str, str | None]:
    """The names of the columns of images and of class numbers. Raises `UserError`."""
    import pyarrow.types as types

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(place).name == "bytes" for place in range(kind.num_fields))
        return types.is_binary(kind) or types.is_large_binary(kind)

    images = [name for name in schema.names if holds_images(schema.field(name).type)]
    if not images:
        raise UserError(f"{path}: has no column of images; its columns are {', '.join(schema.names[:10])}")
    labels = [name for name in LABEL_NAMES if name in schema.names and types.is_integer(schema.field(name).type)]
    return next((name for name in IMAGE_NAMES if name in images), images[0]), labels[0] if labels else None


def of_one_split(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files of the training split, where there are several splits, and a remark on what is left out."""
    splits = {path: next((split for split in SPLITS if path.name.startswith(split)), "") for path in paths}
    if len(set(splits.values())) < 2 or "train" not in splits.values():
        return list(paths), []
    chosen = [path for path in paths if splits[path] == "train"]
    others = [path.name for path in paths if splits[path] != "train"]
    return chosen, [f"Left out, for they are no training images (give their file to read one): {', '.join(others[:5])}"]


class TarCollection(EncodedCollection):
    """A WebDataset: images of a tar by their names, and the number in the `.cls` or `.json` of the same name if all have one."""

    def __init__(self, path: Path):
        """Raises `UserError`."""
        self.where = str(path)
        try:
            self._places, found = index_of(path)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{path}: is no readable tar ({reason_for(error)}); download it again") from error
        self.names = list(self._places)
        if not self.names:
            raise UserError(f"{path}: holds no images")
        keys = [sample_of(name) for name in self.names]
        self.labels = [found[key] for key in keys] if all(key in found for key in keys) else None
        self._file, self._lock = path.open("rb"), threading.Lock()

    def data(self, index: int) -> bytes:
        offset, size = self._places[self.names[index]]
        check_size(size)
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)

    def close(self) -> None:
        self._file.close()


def index_of(path: Path) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Where the images of a tar lie, `(offset, bytes)`, and the classes of its samples. Raises `TarError`, `OSError`."""
    places: dict[str, tuple[int, int]] = {}
    classes: dict[str, int] = {}
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            if is_image_name(member.name):
                places[member.name] = (member.offset_data, member.size)
            elif member.name.endswith(LABEL_FILES) and member.size <= MAX_LABEL_BYTES:
                file = archive.extractfile(member)
                number = class_in(file.read()) if file is not None else None
                if number is not None:
                    classes.setdefault(sample_of(member.name), number)
    return places, classes


def class_in(data: bytes) -> int | None:
    """A class number, from a number alone or an object with a label; None for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((value[name] for name in LABEL_NAMES if name in value), None)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_CLASSES else None


def sample_of(name: str) -> str:
    """`a/0001.seg.png` -> `a/0001`: what belongs together in a WebDataset."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0])) if path.name.partition(".")[0] else name


def is_image_tar(path: Path) -> bool:
    """Whether a tar that is not compressed holds images by their names."""
    try:
        with tarfile.open(path, "r:") as archive:
            return any(member.isfile() and is_image_name(member.name) for member in archive)
    except (tarfile.TarError, OSError, EOFError):
        return False


def open_collection(path: str | os.PathLike, max_images: int | None = None) -> Collection:
    """Recognise the kind of source by its name. Raises `UserError` for what cannot be read."""
    path = Path(path)
    if path.is_dir() and (path.name.endswith("_lmdb") or (path / "data.mdb").is_file()):
        return LmdbCollection(path, max_images)
    if path.suffix == PARQUET or (path.is_dir() and next(path.rglob(f"*{PARQUET}"), None) is not None):
        return ParquetCollection(path)
    if path.is_file() and path.suffix == ".tar" and is_image_tar(path):
        return TarCollection(path)
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return ArrayCollection(str(path), *read_cifar10(path))
    if path.is_file() and "-images-idx3-ubyte" in path.name:
        return ArrayCollection(str(path), *read_mnist(path))
    return FileCollection(path)
