"""style_mixing.py at the command line."""

import numpy as np
import pytest
import torch
from PIL import Image

import gen_images
import style_mixing
from tests.helpers import tiny
from tests.test_project import call, networks, photos  # noqa: F401 (fixtures)


def pixels(path):
    return np.asarray(Image.open(path), dtype=int)


def test_rows_give_the_shape_and_columns_the_layers(tmp_path, networks):  # noqa: F811
    network = f"--network={networks['style']}"
    num = tiny.generator2().num_ws
    assert call(style_mixing, network, "--rows=1,2", "--cols=3-5", "--styles=1", f"--outdir={tmp_path / 'mixed'}") == 0
    names = {path.name for path in (tmp_path / "mixed").iterdir()}
    assert names == {"grid.png", *(f"{row}-{col}.png" for row in (1, 2) for col in (3, 4, 5))}
    side = tiny.generator2().img_resolution
    assert Image.open(tmp_path / "mixed" / "grid.png").size == (4 * side, 3 * side)
    assert call(gen_images, network, "--seeds=1,3", f"--outdir={tmp_path / 'plain'}") == 0
    for styles, seed in ((f"0-{num - 1}", 3),):
        assert (
            call(style_mixing, network, "--rows=1", "--cols=3", f"--styles={styles}", f"--outdir={tmp_path / 'all'}")
            == 0
        )
        assert (
            np.abs(pixels(tmp_path / "all" / "1-3.png") - pixels(tmp_path / "plain" / f"seed000{seed}.png")).max() <= 1
        )
    grid = pixels(tmp_path / "mixed" / "grid.png")
    assert np.abs(grid[side : 2 * side, :side] - pixels(tmp_path / "plain" / "seed0001.png")).max() <= 1
    assert np.abs(grid[:side, side : 2 * side] - pixels(tmp_path / "plain" / "seed0003.png")).max() <= 1
    assert (grid[:side, :side] == 255).all()


def test_layers_of_the_column():
    row, col = torch.zeros(4, 2), torch.ones(4, 2)
    assert style_mixing.mix(row, col, [1, 3])[:, 0].tolist() == [0, 1, 0, 1] and row.sum() == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--network=dcgan", "--rows=1", "--cols=2"], "there are no styles to mix"),
        (["--network=style", "--rows=1", "--cols=2", "--styles=99"], "--styles: there is no layer 99"),
        (["--network=style", "--rows=0-99", "--cols=0-99"], "10,000 pictures; use 4,096 at most"),
        (["--network=style", "--rows=x", "--cols=0"], "--rows"),
    ],
)
def test_what_cannot_be_mixed_is_one_line(tmp_path, networks, capsys, args, words):  # noqa: F811
    known = [arg.replace("=dcgan", f"={networks['dcgan']}").replace("=style", f"={networks['style']}") for arg in args]
    assert call(style_mixing, *known, f"--outdir={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()
