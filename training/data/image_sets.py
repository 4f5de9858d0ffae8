"""Images in files as metrics, core-sets and priors want them: by number, each the same whoever asks."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metrics.feature_stats import Images, Reading
from torch_utils import seeding
from training.data.image_files import BadImage, ImageFiles, content_fingerprint, open_files
from training.data.image_tensors import to_uint8
from training.data.labels import find_classes
from training.data.pixels import eight_bits
from training.data.shards import set_name

NOISE = "noise"  # the name under which plain noise can be compared with data sets
NOISE_IMAGES, NOISE_SIDE = 10_000, 32
THREADS = 4


class ImageSet:
    """The images of a zip or folder, or of several, as they are: mixed sizes, depths and channel counts are fine."""

    reads_ahead = may_skip = True

    def __init__(self, path: str | Path, files: ImageFiles | None = None):
        """Raises `UserError` where there are no images. files: those of the path, where they are open already."""
        self._files = open_files(path) if files is None else files
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="decode")
        self.name = set_name(path)
        self.key: str | None = content_fingerprint(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int]) -> Reading:
        return Reading.of(self._pool.map(self._read, indices))

    def sizes(self) -> Counter[tuple[int, int]]:
        """How many images have which width and height, by their headers; those that cannot be read count nowhere."""
        return Counter(size for size in self._pool.map(self._size, range(len(self))) if size is not None)

    def _size(self, index: int) -> tuple[int, int] | None:
        try:
            header = self._files.probe(index)
        except BadImage:
            return None
        return header.width, header.height

    def classes(self) -> np.ndarray:
        """The class number of every image, int64 `[N]`. Raises `UserError` where there are none."""
        return find_classes(self._files)

    def identities(self, indices: np.ndarray) -> list[str]:
        """What an image is known by, whatever its file is called. indices: ascending."""
        return [identity for _, identity in self._files.identities(indices)]

    def _read(self, index: int) -> tuple[torch.Tensor | None, str]:
        try:
            pixels = self._files.decode(int(index))
        except BadImage as error:
            return None, f"{error.name}: {error.reason}"
        pixels = eight_bits(pixels)
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1))), ""  # Pillow's own memory is not writable


class SubsetImages:
    """Some of the images of a set. indices: ascending."""

    reads_ahead = True

    def __init__(self, images: ImageSet, indices: np.ndarray):
        self.images, self.indices, self.may_skip = images, indices, images.may_skip
        chosen = hashlib.sha256(indices.astype(np.int64).tobytes()).hexdigest()
        self.name = images.name
        self.key: str | None = f"{chosen} of {images.key}"

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int]) -> Reading:
        return self.images.read(self.indices[np.asarray(indices, dtype=np.int64)].tolist())


class NoiseImages:
    """Pixels of Gaussian noise: what a plain generator starts from, seen as images."""

    name = NOISE
    reads_ahead = False
    may_skip = True

    def __init__(self, num_images: int = NOISE_IMAGES, side: int = NOISE_SIDE):
        self.num_images, self.side = num_images, side
        self.key: str | None = f"noise {num_images} {side}"

    def __len__(self) -> int:
        return self.num_images

    def read(self, indices: Sequence[int]) -> Reading:
        return Reading.of((self._image(index), "") for index in indices)

    def _image(self, index: int) -> torch.Tensor:
        noise = torch.randn([3, self.side, self.side], generator=seeding.generator("metric-noise", index))
        return to_uint8(noise / 2)  # hardly a pixel is clipped


class MirroredImages:
    """A set, and behind it all its images mirrored left to right."""

    reads_ahead = True

    def __init__(self, images: Images):
        self.images, self.may_skip = images, images.may_skip
        self.name = images.name
        self.key: str | None = f"mirrored {images.key}"

    def __len__(self) -> int:
        return 2 * len(self.images)

    def read(self, indices: Sequence[int]) -> Reading:
        found = self.images.read([index % len(self.images) for index in indices])
        images = [
            image.flip(2) if indices[place] >= len(self.images) else image
            for image, place in zip(found.images, found.places, strict=True)
        ]
        return Reading(images, found.places, found.problems)


def name_apart(images: dict[str, Images]) -> None:
    """Sets of the same name are named by their paths, so that tables, pictures and messages tell them apart."""
    counts = Counter(one.name for one in images.values())
    for path, one in images.items():
        if counts[one.name] > 1:
            one.name = path


class DatasetImages:
    """The images of a `training.dataset.Dataset`, or of a subclass of somebody else."""

    reads_ahead, may_skip = True, False
    key: str | None = None

    def __init__(self, dataset: Any):
        self.dataset, self.name = dataset, dataset.name

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, indices: Sequence[int]) -> Reading:
        images = (np.asarray(self.dataset[int(index)][0]) for index in indices)
        pixels = (np.array(x >> 8 if x.dtype == np.uint16 else x, dtype=np.uint8) for x in images)
        return Reading.of((torch.from_numpy(x), "") for x in pixels)
