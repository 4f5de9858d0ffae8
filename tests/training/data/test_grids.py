"""Pictures: cells in reading order, transparency on white."""

import errno

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.sid_plots import draw_matrix
from training.data.grids import rgb_pixels, save_grid, save_labelled, save_pairs, tile
from training.run.evaluation import draw_history


def flat(value, channels=3, height=4, width=6):
    return torch.full([1, channels, height, width], value)


def test_cells_are_in_reading_order():
    pixels = np.stack([np.full([2, 3, 3], value, dtype=np.uint8) for value in (10, 20, 30)])
    picture = tile(pixels, columns=2)
    assert picture.shape == (4, 6, 3)
    assert (picture[0, 0, 0], picture[0, 3, 0], picture[2, 0, 0], picture[2, 3, 0]) == (10, 20, 30, 255)


def test_gray_and_transparency():
    assert rgb_pixels(flat(-1.0, channels=1)).shape == (1, 4, 6, 3)
    rgba = flat(-1.0, channels=4)
    assert (rgb_pixels(rgba) == 255).all()  # black, but fully transparent
    rgba[:, 3] = 1
    assert (rgb_pixels(rgba) == 0).all()


def test_values_outside_are_clamped():
    assert (rgb_pixels(flat(7.0)) == 255).all()


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


WRITERS = {
    "grid": lambda path: save_grid(path, flat(0.0), columns=1),
    "pairs": lambda path: save_pairs(path, flat(0.0), flat(1.0), columns=1),
    "labelled": lambda path: save_labelled(path, np.zeros([1, 1, 4, 6, 3], np.uint8), ["column"], ["row"]),
    "history": lambda path: draw_history(path, {"fid1k": [(1.0, 2.0, 0.1)]}),
    "matrix": lambda path: draw_matrix(path, ["a", "b"], np.eye(2), "tiny"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_picture_is_whole_or_the_one_before(tmp_path, monkeypatch, name):
    path = tmp_path / "picture.png"
    WRITERS[name](path)
    before = path.read_bytes()
    Image.open(path).verify()

    def full_disk(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):  # which a run tolerates
        WRITERS[name](path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path):
    path = tmp_path / "nowhere" / "picture.png"
    with pytest.raises(FileNotFoundError) as caught:
        save_grid(path, flat(0.0), columns=1)
    assert caught.value.filename == str(path)
