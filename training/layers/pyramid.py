"""Sizes of images and of the blocks that make them, and the feature maps there."""

from collections.abc import Sequence

import numpy as np

from dnnlib.errors import UserError

MIN_BASE, MAX_BASE = 4, 15  # sides of the constant that the synthesis starts from


def image_size(img_resolution: int | Sequence[int]) -> tuple[int, int]:
    """`(height, width)` of a resolution given as one number or as `[height, width]`."""
    if isinstance(img_resolution, int | np.integer):
        return int(img_resolution), int(img_resolution)
    height, width = img_resolution
    return int(height), int(width)


def resolution_pyramid(img_resolution: int | Sequence[int], is_generated: bool = False) -> list[tuple[int, int]]:
    """Sizes `(height, width)` from the smallest block to the image, each twice the one before.

    A square power of two starts at 4x4. In general both sides are a small number (4 to 15) times the same power of two.
    A generator (`is_generated`) may also consist of its smallest block alone, and start at 4x8, 4x16 and so on; a
    discriminator looks at the image in the block above its smallest.
    """
    height, width = image_size(img_resolution)
    levels = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) // 2 >= MIN_BASE:
        height, width, levels = height // 2, width // 2, levels + 1
    is_start = min(height, width) >= MIN_BASE and max(height, width) <= MAX_BASE
    if is_generated:
        is_start |= min(height, width) == MIN_BASE and max(height, width) in {MIN_BASE << level for level in range(16)}
    if not is_start or (levels == 0 and not is_generated):
        full_height, full_width = image_size(img_resolution)
        raise UserError(
            f"images of {full_width}x{full_height} do not suit these networks: both sides must be {MIN_BASE} to "
            f"{MAX_BASE} times the same power of two (32x32, 48x32, 1280x768); resize with dataset_tool.py --resolution=WxH"
        )
    return [(height << level, width << level) for level in range(levels + 1)]


def block_name(size: tuple[int, int]) -> str:
    """`b16` for a square block, `b16x24` (height x width) otherwise."""
    height, width = size
    return f"b{height}" if height == width else f"b{height}x{width}"


def nominal_resolution(level: int) -> int:
    """The square resolution that a block of this level has when the pyramid starts at 4x4; channels depend on it."""
    return 4 << level


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps of a square resolution: inversely proportional to its side, at most `channel_max`."""
    return min(channel_base // resolution, channel_max)


def sides(img_resolution: int) -> list[int]:
    """Sides of square feature maps, from 4 to the image's."""
    return [MIN_BASE << level for level in range((img_resolution // MIN_BASE).bit_length())]
