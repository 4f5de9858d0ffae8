"""Pictures that a network shall make: read safely, cropped and resized to what it makes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from dnnlib.errors import UserError
from torch_utils.misc import Network
from training.data.image_files import open_files
from training.data.image_names import distinct_stems, is_image_name
from training.data.image_tensors import resize, to_float
from training.data.pixels import CHANNEL_NAMES, decode, eight_bits, reason_for
from training.layers.pyramid import image_size
from training.sampling.sampler import match_channels

MAX_FILE_BYTES = 1 << 28


@dataclass(frozen=True)
class Target:
    """A picture to be found."""

    name: str
    """Of its file, without the ending."""
    image: torch.Tensor
    """`[C, h, w]` in [-1, 1], as the network makes them."""
    changes: str
    """What was done to it, in words; empty for nothing."""


def read_targets(path: str, G: Network) -> list[Target]:
    """An image file, or all images of a folder or zip. Raises `UserError`."""
    file = Path(path)
    if not file.exists() and is_image_name(file.name):
        raise UserError(f"{file}: no such file; give a picture, or a folder or zip of pictures")
    if file.is_file() and is_image_name(file.name):
        return [fitted(file.stem, decode_file(file), G)]
    files = open_files(path)
    names = distinct_stems(files.names)
    targets = [fitted(names[index], files.decode(index), G) for index in range(len(files))]
    files.close()
    return targets


def decode_file(file: Path) -> np.ndarray:
    """`[H, W, C]`. Raises `UserError`."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES >> 20} MB")
        return decode(file.read_bytes())
    except (
        OSError,
        ValueError,
        SyntaxError,
        MemoryError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise UserError(f"{file} cannot be read ({reason_for(error)})") from error


def fitted(name: str, pixels: np.ndarray, G: Network) -> Target:
    """Crop the middle to the network's shape, resize, give it the network's channels; pixels `[H, W, C]`."""
    changes = []
    if pixels.dtype == np.uint16:
        pixels = eight_bits(pixels)
        changes.append("8 bits instead of 16")
    image = torch.from_numpy(np.array(pixels.transpose(2, 0, 1)))  # Pillow's own memory is not writable
    height, width = image_size(G.img_resolution)
    cropped = cropped_middle(image, height / width)
    if cropped.shape != image.shape:
        changes.append(f"cropped to {cropped.shape[2]}x{cropped.shape[1]}")
    if tuple(cropped.shape[1:]) != (height, width):
        changes.append(f"resized to {width}x{height}")
    if image.shape[0] != G.img_channels:
        changes.append(
            f"{CHANNEL_NAMES.get(G.img_channels, G.img_channels)} instead of {CHANNEL_NAMES.get(image.shape[0], image.shape[0])}"
        )
    whole = to_float(match_channels(cropped[None], G.img_channels))
    return Target(name, resize(whole, (height, width))[0].clamp(-1, 1), ", ".join(changes))


def channel_name(channels: int) -> str:
    return CHANNEL_NAMES.get(channels, f"{channels} channels")


def cropped_middle(image: torch.Tensor, ratio: float) -> torch.Tensor:
    """The largest part of `[C, H, W]` around the middle whose height is `ratio` times its width."""
    height, width = image.shape[1:]
    new_height, new_width = min(height, round(width * ratio)), min(width, round(height / ratio))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return image[:, top : top + max(new_height, 1), left : left + max(new_width, 1)]
