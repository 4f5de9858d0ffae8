"""Turn image collections into data sets for training: one size, one pixel type, PNGs and `dataset.json`.

The work behind dataset_tool.py: `open_collection` reads folders, zips, CIFAR-10, MNIST and LSUN; `convert` writes.
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from dnnlib.bars import tqdm
from dnnlib.errors import UserError
from training.data.file_index import HEADER_DTYPE
from training.data.image_files import (
    CHANNEL_NAMES,
    BadImage,
    Header,
    clear_hidden,
    counted,
    decode,
    encode_png,
    has_hidden,
    open_files,
    probe,
    reason_for,
    widen,
)
from training.data.labels import LABEL_FILE, Label, find_labels
from training.data.zip_index import printable

CHANNELS = {"keep": 0, "gray": 1, "rgb": 3, "rgba": 4}
BITS = {"auto": 0, "8": 8, "16": 16}
TRANSFORMS = ("center-crop", "center-crop-wide", "center-crop-dhariwal", "pad")
RESAMPLE = {
    name.lower(): Image.Resampling[name] for name in ("NEAREST", "BOX", "BILINEAR", "HAMMING", "BICUBIC", "LANCZOS")
}
SHEET_IMAGES, SHEET_COLUMNS = 48, 8
SHEET_CELL = 64, 128  # pixels of a side: small images are enlarged by a whole factor, large ones made smaller
MAX_ARRAY_BYTES = 1 << 30  # of MNIST and CIFAR files; the real ones have less than 600 MB
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

Size = tuple[int, int]  # width, height
Report = Callable[[str], None]


# Sources -------------------------------------------------------------------------------------------------------------


class Collection(ABC):
    """Images by index, with names for messages, and labels aligned with the names or None."""

    where: str
    names: Sequence[str]
    labels: Sequence[Label] | np.ndarray | None = None

    def remarks(self) -> list[str]:
        """What was left out, a sentence each."""
        return []

    @abstractmethod
    def header(self, index: int) -> Header:
        """Size and pixel type. Raises `BadImage`."""

    @abstractmethod
    def pixels(self, index: int) -> np.ndarray:
        """uint8 or uint16 `[H, W, C]`. Raises `BadImage`. Called from several threads."""

    def close(self) -> None:
        return


class FileCollection(Collection):
    """A folder or a zip of image files, or several."""

    def __init__(self, path: Path):
        self._files = open_files(path)
        self.where, self.names = str(path), self._files.names
        _, self.labels = find_labels(self._files, np.float64)

    def remarks(self) -> list[str]:
        left_out = self._files.left_out()
        others = [f"Left out, for they are no images that are read here: {counted(left_out)}"] if left_out else []
        return [*others, *self._files.remarks()]

    def header(self, index: int) -> Header:
        return self._files.probe(index)

    def pixels(self, index: int) -> np.ndarray:
        return self._files.decode_as_stored(index)

    def close(self) -> None:
        self._files.close()


class ArrayCollection(Collection):
    """Images that lie in memory, uint8 `[N, H, W, C]`."""

    def __init__(self, where: str, images: np.ndarray, labels: list[int] | None):
        self.where, self.names = where, [f"image {index}" for index in range(len(images))]
        self._images, self.labels = images, labels  # type: ignore[assignment]

    def header(self, index: int) -> Header:
        height, width, channels = self._images.shape[1:]
        return Header(width, height, channels, 8)

    def pixels(self, index: int) -> np.ndarray:
        return self._images[index]


class LmdbCollection(Collection):
    """An LSUN database: encoded images by key, without labels."""

    def __init__(self, path: Path, max_images: int | None):
        try:
            import lmdb
        except ImportError as error:
            raise UserError(f"{path}: reading LSUN needs a package that is not installed: pip install lmdb") from error
        try:
            self._env = lmdb.open(str(path), readonly=True, lock=False, max_readers=256)
            with self._env.begin() as transaction:
                keys = transaction.cursor().iternext(keys=True, values=False)
                self._keys = [key for key, _ in zip(keys, range(max_images or 2**62), strict=False)]
        except lmdb.Error as error:
            raise UserError(f"{path}: is not a readable LMDB database ({error})") from error
        self.where, self.names = str(path), [key.decode("ascii", "replace") for key in self._keys]

    def header(self, index: int) -> Header:
        return self._look(index, lambda data: probe(io.BytesIO(data)))

    def pixels(self, index: int) -> np.ndarray:
        return self._look(index, decode)

    def _look(self, index: int, read: Callable[[bytes], Any]) -> Any:
        try:
            with self._env.begin() as transaction:
                return read(transaction.get(self._keys[index]))
        except Exception as error:  # a damaged file can raise nearly anything inside an image library
            raise BadImage(self.where, self.names[index], reason_for(error)) from error

    def close(self) -> None:
        self._env.close()


def open_collection(path: str | os.PathLike, max_images: int | None = None) -> Collection:
    """Recognise the kind of source by its name. Raises `UserError` for what cannot be read."""
    path = Path(path)
    if path.is_dir() and (path.name.endswith("_lmdb") or (path / "data.mdb").is_file()):
        return LmdbCollection(path, max_images)
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return ArrayCollection(str(path), *read_cifar10(path))
    if path.is_file() and "-images-idx3-ubyte" in path.name:
        return ArrayCollection(str(path), *read_mnist(path))
    return FileCollection(path)


def read_cifar10(path: Path) -> tuple[np.ndarray, list[int]]:
    """The training images of cifar-10-python.tar.gz, uint8 `[N, 32, 32, 3]`, and their classes."""
    images, labels = [], []
    try:
        with tarfile.open(path) as archive:
            members = {PurePosixPath(member.name).name: member for member in _small_members(archive, path)}
            for name in sorted(name for name in members if name.startswith("data_batch_")):
                file = archive.extractfile(members[name])
                assert file is not None
                batch = _ArrayUnpickler(file, encoding="bytes").load()
                images.append(np.asarray(batch[b"data"].array).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
                labels += [int(label) for label in batch[b"labels"]]
    except _UnsafePickle as error:
        raise UserError(f"{path}: refused, for its pickle asks for {error}, which CIFAR-10 does not need") from error
    except UserError:
        raise
    except Exception as error:  # what a damaged archive or pickle raises is not documented
        raise UserError(
            f"{path}: is not a readable CIFAR-10 archive ({reason_for(error)}); {_CIFAR_WAY_OUT}"
        ) from error
    if not images or sum(map(len, images)) != len(labels):
        raise UserError(f"{path}: holds no CIFAR-10 training batches with labels; {_CIFAR_WAY_OUT}")
    return np.concatenate(images), labels


def _small_members(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The files of a tarball; refused as soon as they are more than CIFAR-10, before they are unpacked to get past them."""
    num_bytes = 0
    for member in archive:
        num_bytes += max(member.size, 0) + tarfile.BLOCKSIZE
        if num_bytes > MAX_ARRAY_BYTES:
            raise UserError(f"{path}: unpacks into far more than CIFAR-10; {_CIFAR_WAY_OUT}")
        if member.isfile():
            yield member


_CIFAR_WAY_OUT = "use cifar-10-python.tar.gz as published"


class _UnsafePickle(Exception):
    """A pickle that asks for more than an array."""


class _PickledDtype:
    """Stands in for numpy's dtype, so that none of numpy's own unpickling runs on data from outside."""

    def __init__(self, code: str | bytes, *_: object):
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        return


class _PickledArray:
    """Stands in for numpy's array."""

    array = np.zeros(0, dtype=np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, raw = state
        if dtype.code not in ("u1", "|u1") or is_fortran:
            raise ValueError(f"an array of type {dtype.code} instead of bytes")
        self.array = np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def _reconstruct(*_: object) -> _PickledArray:
    return _PickledArray()


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise _UnsafePickle(f"the encoding {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and byte arrays. Every other name in the pickle is refused, none is called."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledDtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self.ALLOWED[module_name, global_name]
        except KeyError:
            raise _UnsafePickle(f"{module_name}.{global_name}") from None


def read_mnist(path: Path) -> tuple[np.ndarray, list[int] | None]:
    """Images of an MNIST file, uint8 `[N, H, W, 1]` (28x28 padded to 32x32), and the classes in the file beside it."""
    images = _read_idx(path, num_dims=3)
    if images.shape[1:] == (28, 28):
        images = np.pad(images, [(0, 0), (2, 2), (2, 2)])
    label_path = path.with_name(path.name.replace("-images-idx3-", "-labels-idx1-"))
    if not label_path.is_file():
        return images[..., np.newaxis], None
    labels = _read_idx(label_path, num_dims=1)
    if len(labels) != len(images):
        raise UserError(f"{label_path}: has {len(labels):,} labels for {len(images):,} images; download both again")
    return images[..., np.newaxis], labels.tolist()


def _read_idx(path: Path, num_dims: int) -> np.ndarray:
    """An IDX file of bytes: a magic number, big-endian dimensions, the values."""
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            magic, *shape = struct.unpack(f">{1 + num_dims}I", file.read(4 * (1 + num_dims)))
            num_values = int(np.prod(shape, dtype=np.float64))
            if magic != 0x800 + num_dims or num_values > MAX_ARRAY_BYTES:
                raise ValueError("its first bytes are not those of an MNIST file")
            data = file.read(num_values)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path}: is not a readable MNIST file ({reason_for(error)}); download it again") from error
    if len(data) != num_values or num_values == 0:
        raise UserError(f"{path}: ends after {len(data):,} of {num_values:,} bytes; download it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


# Pixels --------------------------------------------------------------------------------------------------------------


class TooSmall(Exception):
    """An image that a transform would have to enlarge."""


@dataclass(frozen=True)
class Plan:
    """What every image is turned into."""

    channels: int
    bits: int
    size: Size
    transform: str | None
    resample: Image.Resampling = Image.Resampling.LANCZOS
    pad_color: str | None = None
    trim: bool = False

    def apply(self, pixels: np.ndarray) -> "tuple[np.ndarray, list[str]]":
        """`[H, W, C]` of any type -> of this plan's, and which of `CHANGES` were made. Raises `TooSmall`."""
        changes = ["hidden"] if self.channels == 4 and has_hidden(pixels) else []
        pixels = clear_hidden(to_bits(pixels, self.bits))
        if self.trim:
            trimmed = trim_border(pixels)
            changes += ["trimmed"] if trimmed.shape != pixels.shape else []
            pixels = trimmed
        pixels = to_channels(pixels, self.channels)
        if self.transform is None and pixels.shape[1] * self.size[1] != pixels.shape[0] * self.size[0]:
            changes.append("stretched")
        return clear_hidden(self._fit(pixels)), changes

    def _fit(self, pixels: np.ndarray) -> np.ndarray:
        width, height = self.size
        if self.transform == "center-crop":
            side = min(pixels.shape[:2])
            return resize(crop_center(pixels, side, side), self.size, self.resample)
        if self.transform == "center-crop-wide":
            return letterbox(pixels, self.size, self.resample)
        if self.transform == "center-crop-dhariwal":
            return crop_center(shrink_by_halves(pixels, width), width, height)
        if self.transform == "pad":
            return pad(pixels, self.size, self.resample, pad_values(self.pad_color, pixels.shape[2], pixels.dtype))
        return resize(pixels, self.size, self.resample)

    @property
    def output_size(self) -> Size:
        """The size of the files: a letterbox is square."""
        return (self.size[0], self.size[0]) if self.transform == "center-crop-wide" else self.size


def to_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    """8-bit pixels as 16-bit or the other way, rounded: 255 is 65,535."""
    if bits == 16 and pixels.dtype == np.uint8:
        return pixels.astype(np.uint16) * 257
    if bits == 8 and pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels


def trim_border(pixels: np.ndarray) -> np.ndarray:
    """Cut off what is transparent all around or, in an opaque image, the colour that all four corners have.

    An image of nothing else stays as it is.
    """
    if pixels.shape[2] == 4 and (pixels[:, :, 3] == 0).any():
        is_content = pixels[:, :, 3] > 0
    else:
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
        if (corners != corners[0]).any():
            return pixels
        is_content = (pixels != corners[0]).any(axis=2)
    rows, columns = np.flatnonzero(is_content.any(axis=1)), np.flatnonzero(is_content.any(axis=0))
    if len(rows) == 0:
        return pixels
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def pad_values(color: str | None, channels: int, dtype: np.dtype) -> np.ndarray:
    """A colour by its name or `#rrggbb` as `[channels]`; None: transparent, or white where there is no alpha.

    Raises `UserError`.
    """
    if color is None:
        return np.array([0, 0, 0, 0] if channels == 4 else [np.iinfo(dtype).max] * channels).astype(dtype)
    try:
        value = ImageColor.getcolor(color, "RGB")
    except ValueError as error:
        raise UserError(f"--pad-color={color}: is no colour; use a name such as black, or #rrggbb") from error
    pixel = to_bits(np.array(value, np.uint8).reshape(1, 1, 3), 8 * np.dtype(dtype).itemsize)
    return to_channels(pixel, channels)[0, 0]


def pad(pixels: np.ndarray, size: Size, resample: Image.Resampling, color: np.ndarray) -> np.ndarray:
    """As large as it fits into the size, its shape kept, in the middle of the colour `[C]`.

    With `NEAREST` images are enlarged by whole factors only, so that all pixels of a sprite stay alike.
    """
    height, width = pixels.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    if resample == Image.Resampling.NEAREST and scale > 1:
        scale = int(scale)
    inner = max(round(width * scale), 1), max(round(height * scale), 1)
    canvas = np.broadcast_to(color, [size[1], size[0], pixels.shape[2]]).copy()
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = resize(pixels, inner, resample)
    return canvas


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Gray, RGB and RGBA into each other; alpha is composited onto white, colour weighed as the eye does."""
    if pixels.shape[2] <= channels:
        return widen(pixels, channels)
    white = np.iinfo(pixels.dtype).max
    color = pixels[:, :, :3].astype(np.float64)
    if pixels.shape[2] == 4:
        color = white + (color - white) * (pixels[:, :, 3:] / white)
    color = color if channels == 3 else (color @ LUMA)[:, :, np.newaxis]
    return color.round().astype(pixels.dtype)


def resize(pixels: np.ndarray, size: Size, resample: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """`[H, W, C]` to (width, height). Colours count by their alpha: what is transparent does not bleed out."""
    if pixels.shape[1::-1] == size:
        return pixels
    if pixels.dtype == np.uint16:
        return _resize_16(pixels, size, resample)
    gray = pixels.shape[2] == 1
    resized = np.asarray(
        Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if gray else pixels)).resize(size, resample)
    )
    return resized[:, :, np.newaxis] if gray else resized


def _resize_16(pixels: np.ndarray, size: Size, resample: Image.Resampling) -> np.ndarray:
    white, values = 65535, pixels.astype(np.float32)
    if pixels.shape[2] == 4:
        values[:, :, :3] *= values[:, :, 3:] / white
    planes = [Image.fromarray(np.ascontiguousarray(values[:, :, i])) for i in range(pixels.shape[2])]
    values = np.stack([np.asarray(plane.resize(size, resample)) for plane in planes], axis=-1)
    if pixels.shape[2] == 4:
        alpha = values[:, :, 3:].clip(0, white)
        values[:, :, :3] *= np.divide(white, alpha, out=np.zeros_like(alpha), where=alpha >= 0.5)
    return values.clip(0, white).round().astype(np.uint16)


def crop_center(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def letterbox(pixels: np.ndarray, size: Size, resample: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """The middle rows at `size`, on a black (or transparent) square of its width: the official `center-crop-wide`.

    As many rows are taken as the whole image has at the new width. So images wider than that lose more and are squeezed,
    and those whose shape is wider than the size are too small.
    """
    width, height = size
    num_rows = round(width * pixels.shape[0] / pixels.shape[1])
    if pixels.shape[1] < width or num_rows < height:
        raise TooSmall
    strip = resize(crop_center(pixels, pixels.shape[1], num_rows), size, resample)
    canvas = np.zeros([width, width, pixels.shape[2]], dtype=pixels.dtype)
    top = (width - height) // 2
    canvas[top : top + height] = strip
    return canvas


def shrink_by_halves(pixels: np.ndarray, side: int) -> np.ndarray:
    """Shorter side = `side`: 2x2 averages while twice the size remains, then bicubic (Dhariwal & Nichol 2021)."""
    while min(pixels.shape[:2]) >= 2 * side:
        height, width = pixels.shape[:2]
        pixels = resize(pixels, (width // 2, height // 2), Image.Resampling.BOX)
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    return resize(pixels, (round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)


# Output --------------------------------------------------------------------------------------------------------------


class Output:
    """A folder or zip that appears under its name when it is complete, and leaves nothing behind otherwise."""

    def __init__(self, dest: str | os.PathLike):
        """Raises `UserError` where something stands at `dest` already, or where it cannot be written."""
        self.dest = Path(dest)
        self.is_zip = self.dest.suffix.lower() == ".zip"
        if not self.is_zip and self.dest.suffix.lower() in (".tar", ".gz", ".tgz", ".7z", ".rar", ".png", ".jpg"):
            raise UserError(f"--dest: {self.dest}: only folders and .zip files can be written; choose such a name")
        self._refuse_existing()
        self._temporary = self.dest.with_name(f".{self.dest.name}.{os.getpid()}.tmp")
        self._new_folders: list[Path] = []
        self._archive: zipfile.ZipFile | None = None
        self._is_complete = False

    def _refuse_existing(self) -> None:
        if self.dest.is_dir() and not self.is_zip and not any(self.dest.iterdir()):
            return
        if os.path.lexists(self.dest):
            raise UserError(f"--dest: {self.dest}: exists and is not overwritten; choose another name or remove it")

    def __enter__(self) -> "Output":
        try:
            self._make_folder(self.dest.absolute().parent)
            if self.is_zip:
                self._archive = zipfile.ZipFile(self._temporary, "x", zipfile.ZIP_STORED)
            else:
                self._temporary.mkdir()
        except OSError as error:
            self._discard()
            raise self._write_error(error) from error
        return self

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir()
            self._new_folders.append(folder)

    def write(self, name: str, data: bytes) -> None:
        try:
            if self._archive is not None:
                # A fixed date: the same images give the same archive, byte for byte.
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o644 << 16
                self._archive.writestr(info, data)
            else:
                path = self._temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        except OSError as error:
            raise self._write_error(error) from error

    def complete(self) -> None:
        """Give the finished output its name."""
        self._refuse_existing()
        try:
            if self._archive is not None:
                self._archive.close()
            elif self.dest.is_dir():
                self.dest.rmdir()
            os.rename(self._temporary, self.dest)
        except OSError as error:
            raise self._write_error(error) from error
        self._is_complete = True

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._is_complete:
            self._discard()

    def _discard(self) -> None:
        if self._archive is not None and self._archive.fp is not None:
            self._archive.fp.close()  # not the archive, which would write its directory to what may be a full disk
            self._archive.fp = None
        # The error that led here is the one to report.
        with contextlib.suppress(OSError):
            if self._temporary.is_dir():
                shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.unlink(missing_ok=True)
            for folder in reversed(self._new_folders):
                folder.rmdir()

    def _write_error(self, error: OSError) -> UserError:
        return UserError(
            f"--dest: {self.dest}: cannot be written ({reason_for(error)}); choose another place or make room"
        )


# Conversion ----------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What was written."""

    num_images: int = 0
    size: Size = (0, 0)
    channels: int = 0
    bits: int = 0
    labels: str = "no labels"
    skipped: list[str] = field(default_factory=list)
    sheet: Path | None = None  # a picture of some of them


def convert(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    max_images: int | None = None,
    sample_seed: int | None = None,
    transform: str | None = None,
    size: tuple[int | None, int | None] | None = None,
    channels: str = "keep",
    bits: str = "auto",
    resample: str = "lanczos",
    pad_color: str | None = None,
    trim: bool = False,
    sheet: bool = False,
    strict: bool = False,
    num_workers: int | None = None,
    report: Report = tqdm.write,
) -> Result:
    """Write the images of `source` into the folder or zip `dest`; `report` is told what is skipped or changed.

    `size` (width, height) is needed by transforms and by images of differing sizes; where one side is None the images
    keep theirs. `max_images` are the first ones, or with `sample_seed` a random sample. `sheet`: a picture of some of
    them beside `dest`. With `strict`, an image that cannot be read ends the conversion. Raises `UserError`, and then
    nothing has been written.
    """
    pad_values(pad_color, 3, np.dtype(np.uint8))
    output = Output(dest)
    collection = open_collection(source, max_images if sample_seed is None else None)
    try:
        job = _Conversion(collection, strict, report)
        indices, headers = job.read_headers(choose(len(collection.names), max_images, sample_seed))
        kind = job.pixel_type(indices, headers, CHANNELS[channels], BITS[bits])
        plan = Plan(*kind, job.complete_size(size, indices, headers), transform, RESAMPLE[resample], pad_color, trim)
        with output:
            result = job.write(indices, plan, output, num_workers or default_workers())
        if sheet:
            job.save_sheet(output.dest.with_name(output.dest.name + ".png"))
        return result
    finally:
        collection.close()


def choose(count: int, max_images: int | None, sample_seed: int | None) -> np.ndarray:
    """The numbers of the images taken, ascending: all, the first ones, or with a seed a random sample."""
    if max_images is None or max_images >= count:
        return np.arange(count)
    if sample_seed is None:
        return np.arange(max_images)
    return np.sort(np.random.RandomState(sample_seed % (1 << 32)).permutation(count)[:max_images])


CHANGES = {
    "hidden": "colours where it is transparent, which nobody sees and networks do: they are written as black",
    "trimmed": "a border, which is cut off (--trim)",
    "stretched": "not the shape of the result, and is stretched; --transform=pad or center-crop keeps shapes",
}


def default_workers() -> int:
    """As many threads as this process may use processors, up to 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 16)


class _Conversion:
    """The steps of `convert`, and what they skip."""

    def __init__(self, collection: Collection, strict: bool, report: Report):
        self.collection, self.strict, self.report = collection, strict, report
        self.result = Result()
        self._changes: dict[str, Counter[int]] = {change: Counter() for change in CHANGES}
        self._shown: list[np.ndarray] = []
        for remark in collection.remarks():
            report(remark)

    def skip(self, name: str, reason: str) -> None:
        self.result.skipped.append(name)
        self.report(f"Skipped {name}: {reason}")

    def skip_bad(self, error: BadImage) -> None:
        if self.strict:
            raise UserError(f"{error.where}: {error.name} cannot be read ({error.reason}); remove it, or drop --strict")
        self.skip(error.name, error.reason)

    def read_headers(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The indices of those images that can be read, and their headers."""
        indices, headers = array("L"), np.empty(len(chosen), HEADER_DTYPE)
        for index in tqdm(map(int, chosen), "Looking", len(chosen), unit="img", leave=False, disable=None):
            try:
                headers[len(indices)] = self.collection.header(index)
                indices.append(index)
            except BadImage as error:
                self.skip_bad(error)
        if not indices:
            raise UserError(f"{self.collection.where}: none of its images can be read; check where it comes from")
        found = np.array(indices), headers[: len(indices)]
        self._say_animated(*found)
        return found

    def _say_animated(self, indices: np.ndarray, headers: np.ndarray) -> None:
        animated = indices[headers["animated"]].tolist()
        if animated:
            count = f" and {len(animated) - 1:,} more" if len(animated) > 1 else ""
            name = printable(self.collection.names[animated[0]])
            self.report(f"{name}{count}: several pictures in one file, of which the first is taken")

    def pixel_type(self, indices: np.ndarray, headers: np.ndarray, channels: int, bits: int) -> tuple[int, int]:
        """Channels and bits that hold every image without loss, unless they are asked for."""
        kinds, first, counts = np.unique(headers[["channels", "bits"]], return_index=True, return_counts=True)
        wanted = channels or int(kinds["channels"].max()), bits or int(kinds["bits"].max())
        if len(kinds) > 1:
            found = ", ".join(
                f"{count:,} {_kind(*kind)} such as {self._name(indices[place])}"
                for kind, place, count in zip(kinds.tolist(), first.tolist(), counts.tolist(), strict=True)
            )
            self.report(f"The images are of several kinds ({found}): all are written as {_kind(*wanted)}")
        if not bits:
            self._say_depths(indices, headers)
        return wanted

    def _say_depths(self, indices: np.ndarray, headers: np.ndarray) -> None:
        deep = headers["bits"] == 16
        if deep.any() and not deep.all():
            names = ", ".join(self._name(index) for index in indices[deep][:3])
            more = f" and {int(deep.sum()) - 3:,} more" if deep.sum() > 3 else ""
            self.report(
                f"{int(deep.sum()):,} of {len(deep):,} images have 16 bits ({names}{more}), so that all get them; "
                "--bits=8 writes 8"
            )

    def _name(self, index: int) -> str:
        return printable(self.collection.names[int(index)])

    def complete_size(
        self, size: tuple[int | None, int | None] | None, indices: np.ndarray, headers: np.ndarray
    ) -> Size:
        """The size of the result; where a side is not given, the one that all images have. Raises `UserError`."""
        width, height = size or (None, None)
        if width is not None and height is not None:
            return width, height
        if width is None and height is None:
            return self.common_size(indices, headers)
        side, flag = ("width", "--width") if width is None else ("height", "--height")
        sides = headers[side]
        if (sides != sides[0]).any():
            other = self._name(indices[int((sides != sides[0]).argmax())])
            raise UserError(
                f"{self.collection.where}: {self._name(indices[0])} and {other} differ in {side}; give it with {flag}"
            )
        return (int(sides[0]), height) if height is not None else (width or 0, int(sides[0]))

    def common_size(self, indices: np.ndarray, headers: np.ndarray) -> Size:
        """The one size of all images. Raises `UserError`."""
        width, height = int(headers["width"][0]), int(headers["height"][0])
        differs = (headers["width"] != width) | (headers["height"] != height)
        if differs.any():
            other = int(differs.argmax())
            names = [printable(self.collection.names[int(indices[place])]) for place in (0, other)]
            raise UserError(
                f"{self.collection.where}: {names[0]} is {width}x{height} and {names[1]} is {headers['width'][other]}x"
                f"{headers['height'][other]}; give them one size with --resolution=WxH (and --transform=center-crop)"
            )
        return width, height

    def write(self, indices: np.ndarray, plan: Plan, output: Output, num_workers: int) -> Result:
        """Convert and write, in order."""
        entries: list[tuple[str, Label]] = []
        labels = self.collection.labels

        shown = set(indices[np.linspace(0, len(indices) - 1, min(len(indices), SHEET_IMAGES)).astype(int)].tolist())

        def work(index: int) -> tuple[bytes, list[str], np.ndarray | None]:
            pixels, changes = plan.apply(self.collection.pixels(index))
            return encode_png(pixels), changes, sheet_cell(pixels) if index in shown else None

        bar = tqdm(total=len(indices), desc="Converting", unit="img", disable=None)
        with bar, ThreadPoolExecutor(num_workers) as pool:
            for index, future in _in_order(pool, work, indices, ahead=4 * num_workers):
                bar.update()
                data = self._data_or_skip(index, future, plan)
                if data is None:
                    continue
                number = f"{self.result.num_images:08d}"
                name = f"{number[:5]}/img{number}.png"
                output.write(name, data)
                self.result.num_images += 1
                if labels is not None:
                    entries.append((name, np.asarray(labels[index]).tolist()))
        return self._finish(entries, plan, output)

    def _data_or_skip(self, index: int, future: "Future[_Converted]", plan: Plan) -> bytes | None:
        try:
            data, changes, cell = future.result()
            for change in changes:
                self._changes[change][index] += 1
            if cell is not None:
                self._shown.append(cell)
            return data
        except BadImage as error:
            self.skip_bad(error)
        except TooSmall:
            self.skip(self.collection.names[index], f"smaller than {plan.size[0]}x{plan.size[1]}")
        return None

    def _finish(self, entries: list[tuple[str, Label]], plan: Plan, output: Output) -> Result:
        if self.result.num_images == 0:
            raise UserError(
                f"{self.collection.where}: none of its images could be converted, so that nothing is written"
            )
        self._say_changes()
        output.write(LABEL_FILE, json.dumps({"labels": entries or None}).encode())
        output.complete()
        self.result.size, self.result.channels, self.result.bits = plan.output_size, plan.channels, plan.bits
        self.result.labels = _describe_labels([label for _, label in entries])
        return self.result

    def _say_changes(self) -> None:
        for change, found in self._changes.items():
            if found:
                more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
                self.report(f"{self._name(min(found))}{more}: has {CHANGES[change]}")

    def save_sheet(self, path: Path) -> None:
        """Some of the images in one picture. What stands there already is not touched."""
        if os.path.lexists(path):
            self.report(f"{path}: exists and is not overwritten, so that there is no new picture of the images")
            return
        if not self._shown:
            return
        import torch  # takes longer than many a conversion

        from training.dataset import to_float
        from training.sampling.grids import save_grid

        cells = torch.from_numpy(np.stack(self._shown)).permute(0, 3, 1, 2)
        try:
            save_grid(path, to_float(cells), SHEET_COLUMNS)
        except (OSError, UserError) as error:  # the set itself is complete
            self.report(f"{path}: no picture of the images ({reason_for(error)})")
            return
        self.result.sheet = path


_Converted = tuple[bytes, list[str], np.ndarray | None]


def sheet_cell(pixels: np.ndarray) -> np.ndarray:
    """uint8 `[h, w, C]`: small images enlarged by a whole factor, large ones made smaller."""
    smallest, largest = SHEET_CELL
    pixels = to_bits(pixels, 8)
    height, width = pixels.shape[:2]
    if max(height, width) > largest:
        scale = largest / max(height, width)
        return resize(pixels, (max(round(width * scale), 1), max(round(height * scale), 1)))
    factor = -(-smallest // max(height, width))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], _Converted], indices: np.ndarray, ahead: int
) -> Iterator[tuple[int, "Future[_Converted]"]]:
    """Futures in the order of the indices, no more than `ahead` at work or waiting."""
    pending: deque[tuple[int, Future[_Converted]]] = deque()
    try:
        for index in map(int, indices):
            pending.append((index, pool.submit(work, index)))
            if len(pending) >= ahead:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        for _, future in pending:
            future.cancel()


def _kind(channels: int, bits: int) -> str:
    return CHANNEL_NAMES[channels] if bits == 8 else f"16-bit {CHANNEL_NAMES[channels]}"


def _describe_labels(labels: list[Label]) -> str:
    if not labels:
        return "no labels"
    if isinstance(labels[0], int):
        return f"labels of {len(set(labels)):,} classes"
    return f"labels of {len(labels[0])} numbers"
