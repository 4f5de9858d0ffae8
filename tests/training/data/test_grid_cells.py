"""What a run's picture says of its cells, there and back; and pictures that say it wrongly."""

import json

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dnnlib.errors import UserError
from training.data.grid_cells import KEY, GridCells, packed, read_cells
from training.data.grids import save_grid
from training.data.sheets import START_BYTES, look


@pytest.mark.parametrize("c", [None, torch.eye(3)])
def test_there_and_back(tmp_path, c):
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "fakes000001.png"
    save_grid(path, torch.zeros(3, 3, 4, 4), 2, texts=GridCells(z, c, (7, 8, 9)).text())
    found = read_cells(path)
    assert torch.equal(found.z, z) and found.seeds == (7, 8, 9)
    assert (found.c is None) if c is None else torch.equal(found.c, c)
    assert look(path.read_bytes()[:START_BYTES]).is_marked  # a sheet as before


GOOD = {"seeds": [0], "z": packed(torch.zeros(1, 2)), "c": None}


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", json.dumps({**GOOD, "seeds": []}), json.dumps({**GOOD, "seeds": ["a"]}),
        json.dumps({**GOOD, "seeds": [0, 1]}), json.dumps({**GOOD, "z": {"shape": [1, 3], "float32": GOOD["z"]["float32"]}}),
        json.dumps({**GOOD, "z": {"shape": [1, -2], "float32": ""}}), json.dumps({**GOOD, "z": {"shape": [1], "float32": "!"}}),
        json.dumps({**GOOD, "z": packed(torch.full([1, 2], torch.nan))}), json.dumps({**GOOD, "c": packed(torch.zeros(2, 2))}),
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_text_is_one_line(tmp_path, text):
    info = PngInfo()
    info.add_text(KEY, text, zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "fakes.png", pnginfo=info)
    with pytest.raises(UserError, match="what it says of its cells is damaged"):
        read_cells(tmp_path / "fakes.png")


def test_other_pictures_are_one_line(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, words in {"plain.png": "does not say", "text.png": "no image", "nowhere.png": "No such file"}.items():
        with pytest.raises(UserError, match=words):
            read_cells(tmp_path / name)
