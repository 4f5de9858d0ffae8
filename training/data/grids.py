"""Pictures of a run: grids of images with equal cells, source images above what they became."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from dnnlib.files import whole_file
from training.data.image_tensors import resize, to_uint8
from training.data.sheets import png_info

BACKGROUND = 255  # behind transparent pixels
GAP = 2  # pixels between the pairs
LABEL_HEIGHT, LABEL_WIDTH = 14, 40  # pixels above columns and before rows
SMALLEST_CELL = 64  # pixels, so that a label has room above it


@dataclass(frozen=True)
class Finish:
    """What is done to images before they are saved."""

    alpha_threshold: float | None = None
    """Alpha below it becomes 0, and 1 from it on; None leaves alpha alone."""
    scale: int = 1
    """Whole factor by which pixels are repeated."""

    def threshold(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 `[n, C, h, w]`, every pixel opaque, or transparent and black, as in data sets."""
        if self.alpha_threshold is None:
            return images
        alpha = torch.where(images[:, 3:].float() / 255 >= self.alpha_threshold, 255, 0).to(torch.uint8)
        return torch.cat([images[:, :3] * (alpha > 0), alpha], dim=1)

    def enlarge(self, pixels: np.ndarray) -> np.ndarray:
        """`[h, w, C]` -> `[scale * h, scale * w, C]`."""
        return pixels.repeat(self.scale, axis=0).repeat(self.scale, axis=1)


PLAIN = Finish()


def grid_size(height: int, width: int, device: str) -> tuple[int, int]:
    """`(columns, rows)`: fills about a screen on a GPU; on a CPU 40 images at most, since drawing them takes time."""
    if device == "cpu":
        return 8, 5
    return int(np.clip(3840 // width, 4, 16)), int(np.clip(2160 // height, 3, 9))


def rgb_pixels(images: torch.Tensor) -> np.ndarray:
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


def save_png(path: Path, picture: Image.Image, texts: Mapping[str, str] | None = None) -> None:
    """A sheet, marked as one. Whole or not at all: somebody may be looking, and the next one has the same name."""
    with whole_file(path) as file:
        picture.save(file, format="PNG", pnginfo=png_info(texts))


def save_grid(
    path: Path, images: torch.Tensor, columns: int, finish: Finish = PLAIN, texts: Mapping[str, str] | None = None
) -> None:
    """Images `[n, C, h, w]` in [-1, 1] as one PNG. finish: its scale is that of the whole picture; texts: what the file says."""
    save_png(path, Image.fromarray(finish.enlarge(tile(rgb_pixels(images), columns))), texts)


def save_pairs(path: Path, sources: torch.Tensor, fakes: torch.Tensor, columns: int) -> None:
    """Rows of source images, each above what the generator made of it."""
    save_stacks(path, [sources, fakes], columns)


def save_stacks(path: Path, images: list[torch.Tensor], columns: int, finish: Finish = PLAIN) -> None:
    """Cells in which image i of the first tensor `[n, C, h, w]` stands above image i of the second, and so on.

    All are shown at the size of the last.
    """
    height, width = images[-1].shape[2:]
    rows = [rgb_pixels(resize(part, (height, width))) for part in images]
    gap = np.full([len(rows[-1]), GAP, width, 3], BACKGROUND, dtype=np.uint8)
    save_png(path, Image.fromarray(finish.enlarge(tile(np.concatenate([*rows, gap], axis=1), columns))))


def save_labelled(path: Path, cells: np.ndarray, columns: list[str], rows: list[str], finish: Finish = PLAIN) -> None:
    """Cells uint8 `[R, C, h, w, 3]` as one PNG with a line of text above each column and before each row.

    Cells are enlarged by the finish's scale; small ones by more.
    """
    factor = max(-(-SMALLEST_CELL // min(cells.shape[2:4])), finish.scale)
    cells = cells.repeat(factor, axis=2).repeat(factor, axis=3)
    num_columns, height, width = cells.shape[1:4]
    picture = tile(cells.reshape(-1, height, width, 3), num_columns)
    sheet = Image.new("RGB", (LABEL_WIDTH + picture.shape[1], LABEL_HEIGHT + picture.shape[0]), (BACKGROUND,) * 3)
    sheet.paste(Image.fromarray(picture), (LABEL_WIDTH, LABEL_HEIGHT))
    draw = ImageDraw.Draw(sheet)
    for index, text in enumerate(columns):
        draw.text((LABEL_WIDTH + index * width + 2, 1), text, fill=(0, 0, 0))
    for index, text in enumerate(rows):
        draw.text((2, LABEL_HEIGHT + index * height + 2), text, fill=(0, 0, 0))
    save_png(path, sheet)
