"""Sheets that the tools write are told from samples, in folders and zips, whatever they are called."""

import shutil
import zipfile

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.errors import UserError
from metrics import sid_plots
from tests.helpers.tiny import SIDE, write_images
from training.data import sheets
from training.data.grids import save_grid, save_png
from training.data.image_files import open_files
from training.data.image_sets import ImageSet
from training.dataset import ImageFolderDataset
from training.sources.source import ImageSource


def write_with_sheets(folder):
    write_images(folder, 6)
    save_grid(folder / "grid.png", torch.zeros([6, 3, SIDE, SIDE]), columns=3)
    save_png(folder / "of-any-name.png", Image.new("RGB", (SIDE, SIDE)))
    return folder


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_sheets_are_no_samples(tmp_path, capsys, kind):
    """gen_images.py wrote 32 images, grid.png and pairs.png: 34 were counted, sizes mixed, without a word."""
    path = write_with_sheets(tmp_path / "out")
    if kind == "zip":
        path = shutil.make_archive(str(tmp_path / "set"), "zip", path)
    sheets._said.clear()
    assert len(ImageSet(path)) == len(ImageFolderDataset(path)) == len(ImageSource.open(path).images) == 6
    note = f"Note: {path}: 2 of its 8 images are sheets that show many images or curves, and no sample: left out"
    assert capsys.readouterr().err.splitlines() == [f"{note} (grid.png, of-any-name.png)"]  # once


def test_older_sheets_by_their_names_and_sizes(tmp_path):
    write_images(tmp_path, 6)
    Image.new("RGB", (3 * SIDE, 2 * SIDE)).save(tmp_path / "fakes000200.png")
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "grid.png")  # the icon of a grid
    Image.new("RGB", (3 * SIDE, 2 * SIDE)).save(tmp_path / "large.png")
    names = list(open_files(tmp_path).names)
    assert "fakes000200.png" not in names and {"grid.png", "large.png"} <= set(names)


def test_nothing_but_sheets(tmp_path):
    save_grid(tmp_path / "grid.png", torch.zeros([6, 3, SIDE, SIDE]), columns=3)
    with pytest.raises(UserError, match="holds no samples: its 1 images are sheets"):
        open_files(tmp_path)


def test_curves_are_sheets(tmp_path):
    matplotlib.use("Agg")
    sid_plots.draw_matrix(tmp_path / "m.png", ["a", "b"], np.zeros([2, 2]), "tiny")
    assert sheets.look((tmp_path / "m.png").read_bytes()[: sheets.START_BYTES]).is_marked


def test_sizes_of_a_set(tmp_path):
    write_images(tmp_path, 3)
    write_images(tmp_path / "large", 2, side=32)
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert ImageSet(tmp_path).sizes() == {(16, 16): 3, (32, 32): 2}


def test_the_cache_of_a_zip_is_not_of_a_part(tmp_path, monkeypatch):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in write_with_sheets(tmp_path / "out").iterdir():
            archive.write(file, file.name)
    for _ in range(2):
        files = open_files(path)
        assert len(files.headers()) == len(files) == 6
