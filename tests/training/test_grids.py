"""Pictures: cells in reading order, transparency on white."""

import numpy as np
import torch
from PIL import Image

from training.grids import save_grid, save_pairs, tile, to_rgb


def flat(value, channels=3, height=4, width=6):
    return torch.full([1, channels, height, width], value)


def test_cells_are_in_reading_order():
    pixels = np.stack([np.full([2, 3, 3], value, dtype=np.uint8) for value in (10, 20, 30)])
    picture = tile(pixels, columns=2)
    assert picture.shape == (4, 6, 3)
    assert (picture[0, 0, 0], picture[0, 3, 0], picture[2, 0, 0], picture[2, 3, 0]) == (10, 20, 30, 255)


def test_gray_and_transparency():
    assert to_rgb(flat(-1.0, channels=1)).shape == (1, 4, 6, 3)
    rgba = flat(-1.0, channels=4)
    assert (to_rgb(rgba) == 255).all()  # black, but fully transparent
    rgba[:, 3] = 1
    assert (to_rgb(rgba) == 0).all()


def test_values_outside_are_clamped():
    assert (to_rgb(flat(7.0)) == 255).all()


def test_pairs_stand_above_what_they_became(tmp_path):
    sources, fakes = torch.cat([flat(-1.0, 1, 10, 10)] * 3), torch.cat([flat(0.5)] * 3)
    save_pairs(tmp_path / "pairs.png", sources, fakes, columns=3)
    picture = np.asarray(Image.open(tmp_path / "pairs.png"))
    assert picture.shape == (4 + 4 + 2, 18, 3)
    assert (picture[:4] == 0).all()
    assert (picture[4:8] == 191).all()


def test_a_grid_is_a_png(tmp_path):
    save_grid(tmp_path / "grid.png", torch.cat([flat(0.0)] * 5), columns=4)
    assert Image.open(tmp_path / "grid.png").size == (24, 8)
