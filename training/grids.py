"""Pictures of a run: grids of images with equal cells, source images above what they became."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.dataset import to_uint8
from training.encoders import resize

BACKGROUND = 255  # behind transparent pixels
GAP = 2  # pixels between the pairs


def grid_size(height: int, width: int, device: str) -> tuple[int, int]:
    """`(columns, rows)`: fills about a screen on a GPU; on a CPU 40 images at most, since drawing them takes time."""
    if device == "cpu":
        return 8, 5
    return int(np.clip(3840 // width, 4, 16)), int(np.clip(2160 // height, 3, 9))


def to_rgb(images: torch.Tensor) -> np.ndarray:
    """`[n, C, h, w]` in [-1, 1] -> uint8 `[n, h, w, 3]`; transparency shows white."""
    pixels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    if pixels.shape[3] == 1:
        return pixels.repeat(3, axis=3)
    if pixels.shape[3] == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 255
        return np.rint(pixels[..., :3] * alpha + BACKGROUND * (1 - alpha)).astype(np.uint8)
    return pixels


def tile(pixels: np.ndarray, columns: int) -> np.ndarray:
    """`[n, h, w, 3]` -> one picture `[rows * h, columns * w, 3]`; missing cells stay white."""
    n, height, width, _ = pixels.shape
    rows = -(-n // columns)
    cells = np.full([rows * columns, height, width, 3], BACKGROUND, dtype=np.uint8)
    cells[:n] = pixels
    grid = cells.reshape(rows, columns, height, width, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)


def save_grid(path: Path, images: torch.Tensor, columns: int) -> None:
    """Images `[n, C, h, w]` in [-1, 1] as one PNG."""
    Image.fromarray(tile(to_rgb(images), columns)).save(path)


def save_pairs(path: Path, sources: torch.Tensor, fakes: torch.Tensor, columns: int) -> None:
    """Rows of source images, each above what the generator made of it."""
    save_stacks(path, [sources, fakes], columns)


def save_stacks(path: Path, images: list[torch.Tensor], columns: int) -> None:
    """Cells in which image i of the first tensor `[n, C, h, w]` stands above image i of the second, and so on.

    All are shown at the size of the last.
    """
    height, width = images[-1].shape[2:]
    rows = [to_rgb(resize(part, (height, width))) for part in images]
    gap = np.full([len(rows[-1]), GAP, width, 3], BACKGROUND, dtype=np.uint8)
    Image.fromarray(tile(np.concatenate([*rows, gap], axis=1), columns)).save(path)
