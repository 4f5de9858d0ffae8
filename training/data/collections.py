"""Image collections as people have them: folders, zips, CIFAR-10, MNIST and LSUN, by index."""

import gzip
import io
import pickle
import struct
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dnnlib.errors import UserError
from training.data.image_files import BadImage, open_files
from training.data.image_names import counted
from training.data.labels import Label, find_labels
from training.data.pixels import Header, decode, probe, reason_for

MAX_IMAGE_BYTES = 1 << 28  # of an encoded image
MAX_ARRAY_BYTES = 1 << 30  # of MNIST and CIFAR files; the real ones have less than 600 MB


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


class EncodedCollection(Collection):
    """Images as encoded bytes. A subclass gives `data(index)`, which may raise whatever a damaged file makes a library raise."""

    def data(self, index: int) -> bytes:
        raise NotImplementedError

    def header(self, index: int) -> Header:
        return self._look(index, lambda data: probe(io.BytesIO(data)))

    def pixels(self, index: int) -> np.ndarray:
        return self._look(index, decode)

    def _look(self, index: int, read: Callable[[bytes], Any]) -> Any:
        try:
            data = self.data(index)
            check_size(len(data))
            return read(data)
        except Exception as error:  # a damaged file can raise nearly anything inside an image library
            raise BadImage(self.where, self.names[index], reason_for(error)) from error


def check_size(num_bytes: int) -> None:
    """Raises `ValueError` for more than an image has."""
    if num_bytes > MAX_IMAGE_BYTES:
        raise ValueError(f"more than {MAX_IMAGE_BYTES >> 20} MB")


class LmdbCollection(EncodedCollection):
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

    def data(self, index: int) -> bytes:
        with self._env.begin() as transaction:
            return transaction.get(self._keys[index])

    def close(self) -> None:
        self._env.close()


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


_CIFAR_WAY_OUT = "use cifar-10-python.tar.gz as published, or a tar of images that is not compressed"


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
