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
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from dnnlib.bars import tqdm
from dnnlib.errors import UserError
from training.dataset_labels import LABEL_FILE, Label, find_labels
from training.file_index import HEADER_DTYPE
from training.image_files import (
    CHANNEL_NAMES,
    BadImage,
    Header,
    decode,
    encode_png,
    open_files,
    probe,
    reason_for,
    widen,
)
from training.zip_index import printable

CHANNELS = {"keep": 0, "gray": 1, "rgb": 3, "rgba": 4}
TRANSFORMS = ("center-crop", "center-crop-wide", "center-crop-dhariwal")
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

    def header(self, index: int) -> Header:
        return self._files.probe(index)

    def pixels(self, index: int) -> np.ndarray:
        return self._files.decode(index)

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

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """`[H, W, C]` of any type -> of this plan's. Raises `TooSmall`."""
        pixels = to_channels(to_bits(pixels, self.bits), self.channels)
        width, height = self.size
        if self.transform == "center-crop":
            side = min(pixels.shape[:2])
            return resize(crop_center(pixels, side, side), self.size)
        if self.transform == "center-crop-wide":
            return letterbox(pixels, self.size)
        if self.transform == "center-crop-dhariwal":
            return crop_center(shrink_by_halves(pixels, width), width, height)
        return resize(pixels, self.size)

    @property
    def output_size(self) -> Size:
        """The size of the files: a letterbox is square."""
        return (self.size[0], self.size[0]) if self.transform == "center-crop-wide" else self.size


def to_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    """8-bit pixels as 16-bit where asked for: 255 becomes 65,535."""
    return pixels.astype(np.uint16) * 257 if bits == 16 and pixels.dtype == np.uint8 else pixels


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


def letterbox(pixels: np.ndarray, size: Size) -> np.ndarray:
    """The largest centred part of the wanted aspect, at `size`, on a black (or transparent) square of its width."""
    width, height = size
    crop_height = round(height * pixels.shape[1] / width)
    if pixels.shape[1] < width or pixels.shape[0] < crop_height:
        raise TooSmall
    strip = resize(crop_center(pixels, pixels.shape[1], crop_height), size)
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


def convert(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    max_images: int | None = None,
    transform: str | None = None,
    size: Size | None = None,
    channels: str = "keep",
    strict: bool = False,
    num_workers: int | None = None,
    report: Report = tqdm.write,
) -> Result:
    """Write the images of `source` into the folder or zip `dest`; `report` is told what is skipped or changed.

    `size` (width, height) is needed by transforms and by images of differing sizes. With `strict`, an image that
    cannot be read ends the conversion. Raises `UserError`, and then nothing has been written.
    """
    output = Output(dest)
    collection = open_collection(source, max_images)
    try:
        count = len(collection.names) if max_images is None else min(max_images, len(collection.names))
        job = _Conversion(collection, strict, report)
        indices, headers = job.read_headers(count)
        plan = Plan(*job.pixel_type(headers, CHANNELS[channels]), size or job.common_size(indices, headers), transform)
        with output:
            return job.write(indices, plan, output, num_workers or default_workers())
    finally:
        collection.close()


def default_workers() -> int:
    """As many threads as this process may use processors, up to 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 16)


class _Conversion:
    """The steps of `convert`, and what they skip."""

    def __init__(self, collection: Collection, strict: bool, report: Report):
        self.collection, self.strict, self.report = collection, strict, report
        self.result = Result()

    def skip(self, name: str, reason: str) -> None:
        self.result.skipped.append(name)
        self.report(f"Skipped {name}: {reason}")

    def skip_bad(self, error: BadImage) -> None:
        if self.strict:
            raise UserError(f"{error.where}: {error.name} cannot be read ({error.reason}); remove it, or drop --strict")
        self.skip(error.name, error.reason)

    def read_headers(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The indices of the images that can be read, and their headers."""
        indices, headers = array("L"), np.empty(count, HEADER_DTYPE)
        for index in tqdm(range(count), "Looking", unit="img", leave=False, disable=None):
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

    def pixel_type(self, headers: np.ndarray, channels: int) -> tuple[int, int]:
        """Channels and bits that hold every image without loss, unless channels are asked for."""
        kinds, counts = np.unique(headers[["channels", "bits"]], return_counts=True)
        wanted = channels or int(kinds["channels"].max()), int(kinds["bits"].max())
        if len(kinds) > 1:
            found = ", ".join(
                f"{count:,} {_kind(*kind)}" for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True)
            )
            self.report(f"The images are of several kinds ({found}): all are written as {_kind(*wanted)}")
        return wanted

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

        def work(index: int) -> bytes:
            return encode_png(plan.apply(self.collection.pixels(index)))

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

    def _data_or_skip(self, index: int, future: "Future[bytes]", plan: Plan) -> bytes | None:
        try:
            return future.result()
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
        output.write(LABEL_FILE, json.dumps({"labels": entries or None}).encode())
        output.complete()
        self.result.size, self.result.channels, self.result.bits = plan.output_size, plan.channels, plan.bits
        self.result.labels = _describe_labels([label for _, label in entries])
        return self.result


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], bytes], indices: np.ndarray, ahead: int
) -> Iterator[tuple[int, "Future[bytes]"]]:
    """Futures in the order of the indices, no more than `ahead` at work or waiting."""
    pending: deque[tuple[int, Future[bytes]]] = deque()
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
