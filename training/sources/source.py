"""What feeds the generator: noise, images of a friendly neighbour, or a trained network (Asokan & Seelamantula 2023).

A source is asked in two steps. `draw` makes the random choices for a whole batch, cheaply and on the CPU; `materialize`
turns the choices of some rows into tensors on the device. So every process can draw for the whole batch and materialise
its own rows. `LatentFeed` sees a source through an encoder and is what training, sampling and video use.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dnnlib.bars import tqdm
from dnnlib.errors import UserError
from torch_utils import persistence, seeding
from training.data.image_files import ImageFiles, content_fingerprint, fingerprint_at, open_files
from training.data.image_tensors import small
from training.data.labels import MAX_CLASSES, find_classes
from training.data.pixels import eight_bits, widen
from training.data.shards import set_exists
from training.sources.class_pairs import ClassPairs

MAX_SIDE = 64  # pixels; the encoders look at no more than 32, and pictures of pairs are small
MAX_BYTES = 4 << 30  # of decoded images in memory; a random subset of larger sources is used
STORED_IMAGES, STORED_BYTES = 1000, 8 << 20  # what travels inside a snapshot


@dataclass(frozen=True)
class Draw:
    """The random choices that n samples come from, each `[n, …]` on the CPU; None for what the source does not choose."""

    z: torch.Tensor | None = None
    """Of noise: the sample itself, `[n, z_dim]`."""
    index: torch.Tensor | None = None
    """Of a list of images: which one, int64 `[n]`."""
    place: torch.Tensor | None = None
    """Of images that a label decides on (`Source.match`): where among those of its class, float64 `[n]` in [0, 1)."""
    stage: "Draw | None" = None
    """Of a network: what its own feed has chosen."""
    noise: torch.Tensor | None = None
    """Of a feed with `--source-noise`: standard normal, `[n, z_dim]`, for z."""
    last_noise: torch.Tensor | None = None
    """Of a seed and a cascade: what is added to z of its last stage, `[n, z_dim]`."""
    pool: torch.Tensor | None = None
    """Of a stage cache: which output, int64 `[n]`."""

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Draw":
        """The same with all choices changed in one way: other rows, another order."""
        return Draw(
            **{name: value.each(change) if isinstance(value, Draw) else change(value) for name, value in self._made()}
        )

    def rows(self, index: torch.Tensor | slice) -> "Draw":
        """Some of the samples."""
        return self.each(lambda value: value[index])

    def _made(self) -> Iterator[tuple[str, Any]]:
        return ((name, value) for name, value in vars(self).items() if value is not None)

    def __len__(self) -> int:
        return len(next(self._made())[1])

    @staticmethod
    def cat(draws: "Sequence[Draw]") -> "Draw":
        """Several, of one source, as one."""
        names = [name for name, _ in draws[0]._made()]
        parts = {name: [getattr(draw, name) for draw in draws] for name in names}
        return Draw(**{name: Draw.cat(part) if name == "stage" else torch.cat(part) for name, part in parts.items()})


class Source:
    """Base of the sources: `sample(n, generator) -> x`, images `[n, C, h, w]` in [-1, 1] or noise `[n, z_dim]`."""

    device = torch.device("cpu")
    has_images = True
    is_list = False  # whether every sample is one of a list, the one that `Draw.index` says
    pairs: ClassPairs | None = None  # which classes of it feed which classes of the target, where they are paired

    @property
    def is_whole(self) -> bool:
        """Whether it is all that a network was trained on."""
        return True

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return False

    @property
    def img_channels(self) -> int | None:
        """The channels of its images; None for noise."""
        raise NotImplementedError

    def draw(self, n: int, generator: torch.Generator | None) -> Draw:
        """The random choices for n samples, on the CPU."""
        raise NotImplementedError

    def draw_of_seed(self, seed: int, generator: torch.Generator) -> Draw:
        """The choices for the one sample that a seed stands for; generator: of the seed."""
        return self.draw(1, generator)

    def match(self, draw: Draw, c: torch.Tensor | None) -> Draw:
        """The choices for samples with labels c `[n, c_dim]`: others where the source has classes paired with those."""
        return draw

    def materialize(self, draw: Draw) -> torch.Tensor:
        """The samples that the choices stand for, on the source's device."""
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator | None = None, c: torch.Tensor | None = None) -> torch.Tensor:
        return self.materialize(self.match(self.draw(n, generator), c))

    def to(self, device: torch.device | str) -> "Source":
        self.device = torch.device(device)
        return self

    def all_batches(self, batch_size: int = 256) -> Iterator[torch.Tensor]:
        """Samples that stand for the whole source, for the statistics of an encoder."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Kind, path and fingerprint, as JSON data."""
        raise NotImplementedError

    @property
    def root(self) -> "Source":
        """The source that feeds the first network of the chain: this one, unless it is a network."""
        return self

    def chained(self, generator: torch.nn.Module) -> torch.nn.Module:
        """The generator as it runs from `root`: itself, unless the source is a network."""
        return generator

    def misfit(self, z_dim: int, c_dim: int) -> str | None:
        """Why a generator of such latents and labels cannot be fed by it, as a sentence; None where it can."""
        return None

    def renamed(self, rename: Callable[[str], str]) -> "Source":
        """The same with another path, as a file shall say it."""
        return self

    def reopened(self, places: Sequence[str] = ()) -> "Source":
        """The source with all that it had in training, where that lies at one of the places."""
        return self

    def points(self, draw: Draw, latents: Callable[[Draw], torch.Tensor], is_trainable: bool) -> torch.Tensor:
        """What distances between samples are measured by, `[n, d]`: z as G gets it, unless that costs too much or moves.

        latents: from choices to z. is_trainable: whether the encoder is, so that z moves while a step goes on; what a
        core-set chooses must not depend on which of its phases a run was stopped after.
        """
        return latents(draw)


@persistence.persistent_class
class GaussianSource(Source):
    """Plain noise, the StyleGAN default."""

    has_images = False
    img_channels = None

    def __init__(self, z_dim: int):
        self.z_dim = z_dim

    def draw(self, n: int, generator: torch.Generator | None) -> Draw:
        return Draw(z=torch.randn([n, self.z_dim], generator=generator))

    def draw_of_seed(self, seed: int, generator: torch.Generator) -> Draw:
        return Draw(z=gaussian_latent(seed, self.z_dim))

    def misfit(self, z_dim: int, c_dim: int) -> str | None:
        return None if self.z_dim == z_dim else f"the source makes z of {self.z_dim} numbers, and G_ema takes {z_dim}"

    def materialize(self, draw: Draw) -> torch.Tensor:
        assert draw.z is not None
        return draw.z.to(self.device)

    def describe(self) -> dict[str, Any]:
        return {"kind": "gaussian", "z_dim": self.z_dim}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        assert not state


@persistence.persistent_class
class ImageSource(Source):
    """Images of another data set, of any size and channel count, held in memory at no more than 64 pixels a side.

    `ImageSource.open(path)` reads a zip or folder. The object that a snapshot brings back holds a stored subset of up to
    1,000 of the images, so that a generator works without the files that it was trained from.

    With `pairs` the source image of a sample is one of the class that the sample's label is paired with: `match` turns
    what was drawn into such images. Images of other classes are left out.
    """

    is_list = True

    def __init__(
        self,
        path: str,
        num_images: int,
        image_shape: list[int],
        fingerprint: str,
        label_fingerprint: str | None = None,
    ):
        self.path = str(path)
        self.num_images = int(num_images)
        self.image_shape = list(image_shape)  # [C, h, w]
        self.fingerprint = fingerprint
        self.label_fingerprint = label_fingerprint  # of the classes of all images, where they are paired
        self.images = torch.zeros([0, *image_shape], dtype=torch.uint8)
        self.names: list[str] | None = None  # of the images' files, where they have just been read
        self._thumbnails: torch.Tensor | None = None

    @property
    def img_channels(self) -> int:
        return self.image_shape[0]

    @property
    def is_whole(self) -> bool:
        return len(self.images) == self.num_images

    @property
    def is_empty(self) -> bool:
        return len(self.images) == 0

    @classmethod
    def open(
        cls,
        path: str | Path,
        max_side: int = MAX_SIDE,
        seed: int = 0,
        verbose: bool = False,
        pairs: Sequence[int] | None = None,
    ) -> "ImageSource":
        """Read a zip or folder, or several; `UserError` names a missing path, an archive without images or a broken image.

        pairs: for every class of the target the class of the source that feeds it.
        """
        files = open_files(path)
        try:
            shape = common_shape(files, max_side)
            indices = choose_images(len(files), int(np.prod(shape)), seed)
            classes = None if pairs is None else find_classes(files)
            if classes is not None:
                indices = indices[np.isin(classes[indices], pairs)]
            images = read_images(files, indices, shape, verbose)
            fingerprint = content_fingerprint(files)
        finally:
            files.close()
        arguments = {} if classes is None else {"label_fingerprint": hashlib.sha256(classes.tobytes()).hexdigest()}
        source = cls(str(path), len(files), list(shape), fingerprint, **arguments)
        source.images = torch.from_numpy(images)
        source.names = [files.names[index] for index in indices]
        if classes is not None:
            source.pairs = ClassPairs(pairs, torch.from_numpy(classes[indices]))
        return source

    def to(self, device: torch.device | str) -> "ImageSource":
        super().to(device)
        self._thumbnails = None
        return self

    def reopened(self, places: Sequence[str] = ()) -> "ImageSource":
        """The source with all images again where the files lie at one of the places, or at the path, and hold the same; else the
        stored subset. What is no data set today is no place."""
        if self.is_whole:
            return self
        for place in dict.fromkeys([*places, self.path]):
            with contextlib.suppress(UserError, OSError, ValueError):
                if not set_exists(place) or fingerprint_at(place) != self.fingerprint:
                    continue
                full = ImageSource.open(place, pairs=None if self.pairs is None else self.pairs.sources.tolist())
                if full.label_fingerprint == self.label_fingerprint:
                    return full
        return self

    def draw(self, n: int, generator: torch.Generator | None) -> Draw:
        if self.pairs is not None:
            return Draw(place=torch.rand([n], dtype=torch.float64, generator=generator))
        return Draw(index=torch.randint(len(self.images), [n], generator=generator))

    def match(self, draw: Draw, c: torch.Tensor | None) -> Draw:
        if self.pairs is None:
            return draw
        assert c is not None, "the classes of this source are paired with labels, and there are none"
        assert draw.place is not None
        return dataclasses.replace(draw, place=None, index=self.pairs.choose(draw.place, c))

    def materialize(self, draw: Draw) -> torch.Tensor:
        assert draw.index is not None, "no label has decided on these images"
        return self.images[draw.index].to(self.device, torch.float32) / 127.5 - 1

    def points(self, draw: Draw, latents: Callable[[Draw], torch.Tensor], is_trainable: bool) -> torch.Tensor:
        """Under a trained encoder the images themselves, 8x8."""
        if not is_trainable:
            return latents(draw)
        if self._thumbnails is None:
            self._thumbnails = torch.cat([small(images) for images in self.all_batches()])  # [N, C * 8 * 8]
        assert draw.index is not None
        return self._thumbnails[draw.index.to(self.device)]

    def misfit(self, z_dim: int, c_dim: int) -> str | None:
        if self.pairs is None or len(self.pairs) == c_dim:
            return None
        return f"the source pairs {len(self.pairs)} classes, and G_ema has {c_dim}"

    def renamed(self, rename: Callable[[str], str]) -> "ImageSource":
        return persistence.with_arguments(self, path=rename(self.path))

    def all_batches(self, batch_size: int = 256) -> Iterator[torch.Tensor]:
        for first in range(0, len(self.images), batch_size):
            yield self.materialize(Draw(index=torch.arange(first, min(first + batch_size, len(self.images)))))

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "images",
            "path": self.path,
            "num_images": self.num_images,
            "images_used": len(self.images),
            "image_shape": self.image_shape,
            "fingerprint": self.fingerprint,
        } | ({} if self.pairs is None else {"labels": self.label_fingerprint, "pairs": self.pairs.sources.tolist()})

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The stored subset: images from all over the set; of every class where classes are paired."""
        limit = min(STORED_IMAGES, max(STORED_BYTES // int(np.prod(self.image_shape)), 1), len(self.images))
        if self.pairs is not None:
            index = self.pairs.spread(limit)
            classes = self.pairs.classes[index]
            return {"images": self.images[index], "classes": classes, "class_pairs": self.pairs.sources}
        return {
            "images": self.images[seeding.spread(len(self.images), limit, "keepsake")]
        }  # a part of the seed: never renamed

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        images = state["images"]
        if images.dtype != torch.uint8 or images.shape[1:] != self.images.shape[1:] or len(images) > self.num_images:
            raise UserError(
                f"the images of a source are {list(images.shape)} {images.dtype}, not uint8 {self.image_shape}"
            )
        self.images = images
        if "classes" in state:
            check_classes(state["classes"], state["class_pairs"], len(images))
            self.pairs = ClassPairs(state["class_pairs"], state["classes"])


def gaussian_latent(seed: int, z_dim: int) -> torch.Tensor:
    """z `[1, z_dim]` of a seed, the one that StyleGAN users know under this number."""
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).to(torch.float32)


def check_classes(classes: torch.Tensor, pairs: torch.Tensor, num_images: int) -> None:
    """Raise `UserError` for numbers in a snapshot that are no classes."""
    for name, numbers in (("classes", classes), ("class pairs", pairs)):
        if numbers.dtype != torch.int64 or numbers.ndim != 1 or len(numbers) == 0:
            raise UserError(f"the {name} of a source are {list(numbers.shape)} {numbers.dtype}, not int64 numbers")
        if not 0 <= int(numbers.min()) <= int(numbers.max()) < MAX_CLASSES:
            raise UserError(f"the {name} of a source are no numbers of classes")
    if len(classes) != num_images:
        raise UserError(f"a source has {len(classes)} classes for {num_images} images")


def common_shape(files: ImageFiles, max_side: int) -> tuple[int, int, int]:
    """`(C, h, w)` that all images are brought to: the widest channel count; the common size, reduced to `max_side`.

    Images of mixed sizes or proportions are brought to a square.
    """
    headers = files.headers()
    channels, height, width = (int(headers[field].max()) for field in ("channels", "height", "width"))
    if headers["height"].min() < height or headers["width"].min() < width:
        side = min(max_side, max(height, width))
        return channels, side, side
    scale = min(1.0, max_side / max(height, width))
    return channels, max(round(height * scale), 1), max(round(width * scale), 1)


def choose_images(count: int, bytes_each: int, seed: int) -> np.ndarray:
    """Which of `count` images fit into memory, ascending: all, or a random subset."""
    limit = max(MAX_BYTES // bytes_each, 1)
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def read_images(files: ImageFiles, indices: np.ndarray, shape: tuple[int, int, int], verbose: bool) -> np.ndarray:
    """uint8 `[N, C, h, w]`; decoding runs in threads."""
    images = np.empty([len(indices), *shape], dtype=np.uint8)

    def read(row: int) -> None:
        images[row] = fit_image(files.decode(int(indices[row])), shape)

    with ThreadPoolExecutor() as pool:
        reads = pool.map(read, range(len(indices)))
        for _ in tqdm(
            reads, total=len(indices), desc="Source images", unit="img", disable=None if verbose else True, leave=False
        ):
            pass
    return images


def fit_image(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """`[H, W, C]` of 8 or 16 bits -> uint8 `[C, h, w]`, antialiased; alpha weighs the colours."""
    pixels = eight_bits(pixels)
    channels, height, width = shape
    pixels = widen(pixels, channels)
    if pixels.shape[:2] != (height, width):
        image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)
