"""Ranking sources: order, ties, tables, files."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.detectors import open_detector
from metrics.feature_stats import Reading
from metrics.friendly_neighbours import Request, rank_sources, table, write_reports
from metrics.kernel_inception_distance import KID
from metrics.sid_plots import draw_curves, draw_matrix


class Blobs:
    """Images of a soft blob in a colour of its own, more or less noisy."""

    reads_ahead = may_skip = True

    def __init__(self, name: str, color: float, noise: float, num: int = 80):
        self.name, self.key, self.color, self.noise, self.num = name, None, color, noise, num

    def __len__(self):
        return self.num

    def read(self, indices):
        return Reading.of((self.image(index), "") for index in indices)

    def image(self, index):
        gen = torch.Generator().manual_seed(index)
        y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
        at = torch.rand([2], generator=gen) - 0.5
        blob = torch.exp(-4 * ((x - at[0]) ** 2 + (y - at[1]) ** 2))
        image = self.color * blob + self.noise * torch.randn([3, 32, 32], generator=gen)
        return (255 * image.clamp(0, 1)).to(torch.uint8)


TARGET = Blobs("target", 0.8, 0.02)
SOURCES = {
    "path/noisy.zip": Blobs("noisy", 0.8, 0.5),
    "path/close.zip": Blobs("close", 0.75, 0.03),
    "path/same.zip": Blobs("same", 0.75, 0.03),
}


@pytest.fixture(scope="module")
def ranking():
    return rank_sources(TARGET, SOURCES, open_detector("tiny"), Request(probes=100, is_verbose=False))


def test_the_closest_source_is_first(ranking):
    assert ranking.neighbours[-1].name == "noisy"
    assert ranking.best.path in ("path/close.zip", "path/same.zip")
    assert [one.rank for one in ranking.neighbours] == [1, 2, 3]
    fids = [one.fid for one in ranking.neighbours]
    assert fids == sorted(fids)
    assert ranking.neighbours[-1].kid.value > ranking.best.kid.value


def test_sources_that_cannot_be_told_apart_are_tied(ranking):
    assert ranking.best.tied_with == (ranking.neighbours[1].name,)
    assert ranking.neighbours[2].tied_with == ()


def test_the_table_names_the_detector_and_warns(ranking):
    text = table(ranking)
    lines = text.splitlines()
    assert "CSID[tiny]" in lines[1] and "FID[tiny]" in lines[1]
    assert lines[2].split()[0] == "1" and "±" in lines[2] and "tied with" in lines[2]
    assert any("under 2048 images" in line for line in lines[4:])


def test_the_table_says_when_kid_disagrees(ranking):
    first, second, third = ranking.neighbours
    closer = dataclasses.replace(third, kid=KID(-1.0, None))
    changed = dataclasses.replace(ranking, neighbours=[first, second, closer])
    assert table(changed).splitlines()[-1].startswith("Note: by KID noisy is the closest")
    agreeing = dataclasses.replace(ranking, neighbours=[dataclasses.replace(first, kid=KID(-1.0, None)), second, third])
    assert "Note" not in table(agreeing)


def test_reports(ranking, tmp_path):
    write_reports(tmp_path, [ranking], "python calc_sid.py")
    contents = json.loads((tmp_path / "sid.json").read_text())
    (first,) = contents["rankings"]
    assert first["sources"][0]["csid"] == ranking.best.sid.csid
    assert len(first["sources"][0]["curve"]["sid"]) == 49
    rows = list(csv.DictReader((tmp_path / "sid.csv").read_text().splitlines()))
    assert len(rows) == 3 * 49
    assert float(rows[0]["radius"]) == 0.5 and rows[0]["detector"] == "tiny"
    assert {path.name for path in tmp_path.iterdir()} == {"sid.json", "sid.csv"}


def test_pictures_show_something(ranking, tmp_path):
    draw_curves(tmp_path / "sid.png", ranking)
    draw_matrix(tmp_path / "matrix.png", ["a", "b"], np.array([[0, 1.5], [-2, 0]]), "tiny")
    for name in ("sid.png", "matrix.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
