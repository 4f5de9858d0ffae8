"""Images and labels for training: folders and zips, kept in memory when they fit, read in a reproducible order."""

import functools
import hashlib
import io
import os
import shlex
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from dnnlib.errors import DataError, UserError
from dnnlib.memory import available_memory
from dnnlib.util import EasyDict
from metrics.feature_stats import Images
from torch_utils import seeding
from training.data.image_files import MAX_FILE_BYTES, BadImage, ImageFiles, add_identities, open_files
from training.data.image_sets import ImageSet, MirroredImages, SubsetImages
from training.data.labels import find_labels
from training.data.pixels import CHANNEL_NAMES, Header, widen
from training.data.shards import set_name

LABEL_ROWS = 1 << 12  # one-hot rows that are made at a time


class _Memory:
    """Decoded images, filled as they are first read; shared by all threads."""

    def __init__(self, num_images: int, image_shape: list[int], dtype: np.dtype):
        # The system hands out the pages only as they are written.
        self.images = np.empty([num_images, *image_shape], dtype=dtype)
        self.known = np.zeros(num_images, dtype=bool)


class Dataset(torch.utils.data.Dataset):
    """Indexable images `[C, H, W]` (uint8 or uint16) with labels. A subclass supplies the raw images and labels.

    With `xflip` the second half of the indices is the first half mirrored left to right. `max_size` keeps a random
    subset, drawn by `random_seed`, of the raw images (counted before mirroring).
    """

    def __init__(
        self,
        name: str,
        raw_shape: Sequence[int],
        max_size: int | None = None,
        use_labels: bool = False,
        xflip: bool = False,
        random_seed: int = 0,
        cache_bytes: int | None = None,
        dtype: np.dtype | type = np.uint8,
    ):
        """`raw_shape`: `[N, C, H, W]`. `cache_bytes`: memory for decoded images (None: `default_cache_bytes`)."""
        self._name = name
        self._raw_shape = list(raw_shape)
        self._dtype = np.dtype(dtype)
        self._use_labels = use_labels
        self._xflip = bool(xflip)
        self._raw_labels: np.ndarray | None = None
        self._raw_idx = _subset(self._raw_shape[0], max_size, random_seed)
        self._cache_limit = default_cache_bytes() if cache_bytes is None else cache_bytes
        self._memory: _Memory | None = None
        self._memory_lock = threading.Lock()
        self._conditions: Any = None

    def _load_raw_image(self, raw_idx: int) -> np.ndarray:
        """`[C, H, W]`. To be overridden."""
        raise NotImplementedError

    def _load_raw_labels(self) -> np.ndarray | None:
        """int64 `[N]` or float32 `[N, D]` for all raw images, None without labels. To be overridden."""
        raise NotImplementedError

    def close(self) -> None:
        """Release files and memory. The dataset stays usable: what is needed again is read again."""
        with self._memory_lock:
            self._memory = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_memory": None, "_memory_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _memory_lock=threading.Lock())

    def __len__(self) -> int:
        return len(self._raw_idx) * (2 if self._xflip else 1)

    def __getitem__(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        """The image, `[C, H, W]`, and its label, float32 `[label_dim]`. The image is the caller's own copy."""
        images = self.read_images(np.array([self._position(idx)]))
        return images[0], self.get_label(idx)

    def read_images(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Images of several indices, `[n, C, H, W]`, written into `out` if given. Safe to call from several threads."""
        out = np.empty([len(indices), *self.image_shape], dtype=self._dtype) if out is None else out
        slots = indices % len(self._raw_idx)
        memory = self._get_memory()
        known = np.zeros(len(slots), dtype=bool) if memory is None else memory.known[slots]
        if memory is not None and known.any():
            out[known] = memory.images[slots[known]]
        for i in np.flatnonzero(~known):
            out[i] = self._load_raw_image(int(self._raw_idx[slots[i]]))
            if memory is not None:
                memory.images[slots[i]] = out[i]
                memory.known[slots[i]] = True
        flipped = indices >= len(self._raw_idx)
        out[flipped] = out[flipped][..., ::-1]
        return out

    def is_in_memory(self, indices: np.ndarray) -> bool:
        """Whether all of these images are decoded already."""
        memory = self._memory
        return memory is not None and bool(memory.known[indices % len(self._raw_idx)].all())

    def _get_memory(self) -> "_Memory | None":
        if not self.fits_in_memory:
            return None
        with self._memory_lock:
            if self._memory is None:
                self._memory = _Memory(len(self._raw_idx), self.image_shape, self._dtype)
            return self._memory

    @property
    def decoded_bytes(self) -> int:
        """Size of all decoded images (mirrored copies are not stored)."""
        return len(self._raw_idx) * int(np.prod(self.image_shape)) * self._dtype.itemsize

    @property
    def fits_in_memory(self) -> bool:
        """Whether decoded images are kept."""
        return self.decoded_bytes <= self._cache_limit

    def _position(self, idx: int) -> int:
        if not -len(self) <= idx < len(self):
            raise IndexError(f"index {idx} is outside of a dataset of {len(self)} images")
        return int(idx) % len(self)

    def _get_raw_labels(self) -> np.ndarray:
        if self._raw_labels is None:
            labels = self._load_raw_labels() if self._use_labels else None
            self._raw_labels = np.zeros([self._raw_shape[0], 0], dtype=np.float32) if labels is None else labels
            assert len(self._raw_labels) == self._raw_shape[0]
        return self._raw_labels

    def get_label(self, idx: int) -> np.ndarray:
        """float32 `[label_dim]`: one-hot for classes, the vector itself otherwise; empty when labels are not used."""
        return self.get_labels(np.array([self._position(idx)]))[0]

    def get_labels(self, indices: np.ndarray) -> np.ndarray:
        """Labels of several indices, float32 `[n, label_dim]`."""
        if self._conditions is not None:
            return self._conditions[indices].numpy()
        raw = self._get_raw_labels()[self._raw_idx[indices % len(self._raw_idx)]]
        if not self.has_onehot_labels:
            return raw.astype(np.float32)
        onehot = np.zeros([len(raw), self.label_dim], dtype=np.float32)
        onehot[np.arange(len(raw)), raw] = 1
        return onehot

    def condition_on(self, conditions: Any, dim: int) -> None:
        """Use the rows of `conditions`, float32 `[n, dim]` for several indices, in place of labels."""
        assert not self._use_labels
        self._conditions = conditions
        self.label_dim = dim

    def get_classes(self) -> np.ndarray:
        """The class of every image, int64 `[N]`; only where labels are classes."""
        assert self.has_onehot_labels
        return np.tile(self._get_raw_labels()[self._raw_idx], 2 if self._xflip else 1)

    @property
    def has_own_labels(self) -> bool:
        """Whether there are labels, and images are not conditioned on something else."""
        return self._conditions is None and self.has_labels

    def get_details(self, idx: int) -> EasyDict:
        """`raw_idx` (index among all images), `xflip` (mirrored?), `raw_label` (as stored)."""
        position = self._position(idx)
        raw_idx = int(self._raw_idx[position % len(self._raw_idx)])
        raw_label = self._get_raw_labels()[raw_idx].copy()
        return EasyDict(raw_idx=raw_idx, xflip=position >= len(self._raw_idx), raw_label=raw_label)

    @property
    def raw_indices(self) -> np.ndarray:
        """Which of all images it has, ascending."""
        return self._raw_idx

    @property
    def name(self) -> str:
        return self._name

    @property
    def dtype(self) -> np.dtype:
        """uint8 or uint16."""
        return self._dtype

    @property
    def image_shape(self) -> list[int]:
        """`[C, H, W]`."""
        return list(self._raw_shape[1:])

    @property
    def num_channels(self) -> int:
        """1 (gray), 3 (RGB) or 4 (RGBA)."""
        return self.image_shape[0]

    @property
    def resolution(self) -> int:
        """The side of square images. Raises `UserError` for others; `image_shape` knows both sides."""
        _, height, width = self.image_shape
        if height != width:
            raise UserError(f"{self.name}: its images are {width}x{height}; square ones are needed here")
        return height

    @property
    def label_shape(self) -> list[int]:
        """`[label_dim]`; `[0]` when labels are not used."""
        labels = self._get_raw_labels()
        # The classes of the whole set: a subset has the same networks.
        return [int(labels.max()) + 1] if labels.dtype == np.int64 else list(labels.shape[1:])

    @functools.cached_property
    def label_dim(self) -> int:
        """Number of classes, or length of the label vectors; 0 when labels are not used."""
        (label_dim,) = self.label_shape
        return label_dim

    @property
    def has_labels(self) -> bool:
        return self.label_dim > 0

    @property
    def has_onehot_labels(self) -> bool:
        """Whether labels are classes rather than vectors."""
        return self._get_raw_labels().dtype == np.int64


class LabelTable:
    """The labels of a dataset as a tensor would hold them, float32 `[N, label_dim]`, made when rows are asked for.

    One-hot rows of ten million images with a thousand classes would be 40 GB.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.dataset), self.dataset.label_dim

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Rows by number, float32 `[n, label_dim]`."""
        return torch.from_numpy(self.dataset.get_labels(np.asarray(index)))


Labels = Any  # `[N, c_dim]`, indexed by rows: a tensor, a `LabelTable` or a `LabelDistribution`


class ImageFolderDataset(Dataset):
    """Images of a folder (with its subfolders) or zip, or of several: PNG, JPEG, WebP, BMP, TIFF, GIF, PPM, TGA.

    All must have one size and bit depth. Colours under alpha 0 are read as black. Gray images among RGB ones are read
    as RGB; transparent among opaque ones are refused. Labels come from `dataset.json`, else from subfolders. Raises
    `UserError` for what is not so.

    Subclasses override `_load_raw_image` and `_load_raw_labels`. What those written for the official class use stands
    at the end; nothing here does.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        resolution: int | None = None,
        use_labels: bool = False,
        max_size: int | None = None,
        xflip: bool = False,
        random_seed: int = 0,
        cache_bytes: int | None = None,
    ):
        """`path`: as `open_files` takes it. `resolution`: the side that the images must have.

        `cache_bytes`: as in `Dataset`; 0 keeps nothing.
        """
        self._path = Path(path)
        self._files = open_files(path)
        self._headers = self._files.headers()
        header = _common_header(self._files, self._headers)
        super().__init__(
            name=set_name(path),
            raw_shape=[len(self._files), header.channels, header.height, header.width],
            max_size=max_size,
            use_labels=use_labels,
            xflip=xflip,
            random_seed=random_seed,
            cache_bytes=cache_bytes,
            dtype=np.uint16 if header.bits == 16 else np.uint8,
        )
        self._check_resolution(resolution)
        self._label_source: str | None = None
        if use_labels:
            self._get_raw_labels()

    def _check_resolution(self, resolution: int | None) -> None:
        _, height, width = self.image_shape
        if resolution is not None and (height, width) != (resolution, resolution):
            raise DataError(
                f"{self._path}: its images are {width}x{height}, not {resolution}x{resolution}; "
                + _convert(self._path, f"--resolution={resolution}x{resolution}")
            )

    def _load_raw_image(self, raw_idx: int) -> np.ndarray:
        header = self._headers[raw_idx]
        pixels = self._files.decode(raw_idx)
        if pixels.shape != (header["height"], header["width"], header["channels"]) or pixels.dtype != self.dtype:
            raise BadImage(*self._files.where(raw_idx), "its pixels are not what its header announces")
        return widen(pixels, self.num_channels).transpose(2, 0, 1)

    def _load_raw_labels(self) -> np.ndarray | None:
        self._label_source, labels = find_labels(self._files)
        return labels

    def require_labels(self) -> None:
        """Raise `UserError` where `use_labels` found none. (Programs ask with it whether there are any: `has_labels`.)"""
        if not self.has_labels:
            raise UserError(
                f"{self._path} has no labels: put a dataset.json into it, or its images into one subfolder per class, "
                "or drop --cond"
            )

    def close(self) -> None:
        super().close()
        self._files.close()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def label_source(self) -> str | None:
        """Where labels are found, whether used or not: `dataset.json`, `subfolders`, or None."""
        if self._label_source is None and not self._use_labels:
            try:
                self._label_source, _ = find_labels(self._files)
            except UserError:  # labels that nobody asked for may be damaged
                return None
        return self._label_source

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of what the dataset holds (subset and mirroring included), wherever it lies."""
        digest = hashlib.sha256(f"xflip={self._xflip} channels={self.num_channels}\n".encode())
        add_identities(digest, self._files, self._raw_idx)
        if self._use_labels and len(self._files.parts) > 1:
            digest.update(self._get_raw_labels()[self._raw_idx].tobytes())
        elif self._use_labels:
            for first in range(0, len(self._raw_idx), LABEL_ROWS):  # one-hot rows of millions are large
                digest.update(self.get_labels(np.arange(first, min(first + LABEL_ROWS, len(self._raw_idx)))).tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a summary or a snapshot needs to know: plain values only."""
        _, height, width = self.image_shape
        as_rgb = int((self._headers["channels"] < self.num_channels).sum())
        return {
            "kind": "images",
            "name": self.name,
            "path": str(self._path),
            "fingerprint": self.fingerprint,
            "num_images": len(self._raw_idx),
            "num_available": len(self._headers),
            "width": width,
            "height": height,
            "channels": self.num_channels,
            "bits": 8 * self.dtype.itemsize,
            "gray_read_as_rgb": as_rgb,
            "animated": int(self._headers["animated"].sum()),
            "xflip": self._xflip,
            "label_source": self.label_source,
            "label_dim": self.label_dim,
            "label_kind": "class" if self.has_onehot_labels else "vector" if self.has_labels else None,
            "decoded_bytes": self.decoded_bytes,
            "kept_in_memory": self.fits_in_memory,
        }

    @property
    def files(self) -> ImageFiles:
        """The files, with the numbers that `get_details` calls `raw_idx`."""
        return self._files

    def image_set(self) -> ImageSet:
        """The images as they are in the files, for metrics. The files are not opened anew."""
        return ImageSet(self._path, self._files)

    def subset_of(self, images: ImageSet) -> Images:
        """Of all images in the files those that it has, by its own numbers."""
        return images if len(self._raw_idx) == len(images) else SubsetImages(images, self._raw_idx)

    def mirrored(self, images: Images) -> Images:
        """The images with the mirrored copies that it has behind them."""
        return MirroredImages(images) if self._xflip else images

    # Names of the official class -------------------------------------------------------------------------------------

    @property
    def _image_fnames(self) -> list[str]:
        """Names of the images by `raw_idx`."""
        return list(self._files.names)

    @property
    def _all_fnames(self) -> set[str]:
        """Names of all files."""
        parts = self._files.parts
        return set(self._files.names).union(*(part.all_names for part in parts))

    @property
    def _type(self) -> str:
        return "dir" if self._path.is_dir() else "zip"

    @staticmethod
    def _file_ext(fname: str) -> str:
        """The extension in small letters, with its dot."""
        return os.path.splitext(fname)[1].lower()

    def _open_file(self, fname: str) -> IO[bytes]:
        """Any file of the set, by its name. Raises `FileNotFoundError`."""
        for part in self._files.parts:
            if fname in part.all_names:
                return io.BytesIO(part.read_file(fname, MAX_FILE_BYTES))
        names = self._image_fnames
        if fname not in names:
            raise FileNotFoundError(f"{self._path}: holds no file named {fname}")
        return io.BytesIO(self._files.read(names.index(fname)))

    def _get_zipfile(self) -> zipfile.ZipFile:
        """The archive, opened anew."""
        return zipfile.ZipFile(self._path)


def _subset(num_images: int, max_size: int | None, random_seed: int) -> np.ndarray:
    if max_size is None or max_size >= num_images:
        return np.arange(num_images)
    if max_size < 1:
        raise UserError(f"a dataset of {max_size} images was asked for; use 1 or more")
    # The subset that the official code draws by the same seed.
    order = np.random.RandomState(random_seed % (1 << 32)).permutation(num_images)
    return np.sort(order[:max_size])


def _random_state(*key: int | str) -> np.random.RandomState:
    # RandomState's streams are frozen for good; those of numpy's newer generators may change with a release.
    seed = seeding.derive(*key)
    return np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])


def default_cache_bytes() -> int:
    """A quarter of the memory that is available now."""
    return available_memory() // 4


def _common_header(files: ImageFiles, headers: np.ndarray) -> Header:
    """The header that fits all images: one size, one bit depth, gray among RGB as RGB. Raises `UserError`."""
    first = Header(*headers[0].item())
    differs = (headers["width"] != first.width) | (headers["height"] != first.height) | (headers["bits"] != first.bits)
    differs |= (headers["channels"] == 4) != (first.channels == 4)
    if differs.any():
        index = int(differs.argmax())
        mine, other, option = _difference(first, Header(*headers[index].item()))
        (where, name), (other_where, other_name) = files.where(0), files.where(index)
        inside = "" if where == other_where else f" in {other_where}"
        raise UserError(
            f"{where}: {name} is {mine} and {other_name}{inside} is {other}; {_convert(files.path, option)}"
        )
    return first._replace(channels=int(headers["channels"].max()))


def _difference(first: Header, other: Header) -> tuple[str, str, str]:
    """How two headers differ, and the option that mends it."""
    if (first.width, first.height) != (other.width, other.height):
        size = f"{first.width}x{first.height}"
        return size, f"{other.width}x{other.height}", f"--resolution={size}"
    if first.bits != other.bits:
        return f"{first.bits}-bit", f"{other.bits}-bit", "--bits=8"
    return CHANNEL_NAMES[first.channels], CHANNEL_NAMES[other.channels], "--channels=rgb"


def _convert(path: Path, option: str) -> str:
    paths = f"--source={shlex.quote(str(path))} --dest={shlex.quote(set_name(path) + '-converted.zip')}"
    return f"make them alike with: python dataset_tool.py {paths} {option}".rstrip()


@functools.lru_cache(maxsize=4)
def _epoch_order(num_items: int, seed: int, epoch: int) -> np.ndarray:
    order = _random_state("order", seed, epoch).permutation(num_items)
    order.flags.writeable = False
    return order


def sample_order(num_items: int, seed: int, start: int, count: int) -> np.ndarray:
    """Indices of the items at positions `start` to `start + count` of an endless shuffled sequence, int64 `[count]`.

    Each epoch of `num_items` positions holds every item once, shuffled by (seed, epoch).
    """
    assert num_items > 0
    assert min(start, count) >= 0
    parts = []
    position = start
    while position < start + count:
        epoch, offset = divmod(position, num_items)
        part = _epoch_order(num_items, seed, epoch)[offset : offset + start + count - position]
        parts.append(part)
        position += len(part)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
