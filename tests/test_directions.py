"""directions.py: where directions come from, files of them, pictures that are moved along them."""

import numpy as np
import pytest
import torch
from PIL import Image

import directions
import gen_images
from tests.helpers import tiny
from tests.test_project import call, networks, photos  # noqa: F401 (fixtures)
from training.sampling.directions import Directions, find_directions, samples_of_w, style_axes
from training.sampling.sampler import Look, Sampler
from training.sources.source import GaussianSource


@pytest.fixture
def sampler():
    return Sampler(tiny.generator2(), GaussianSource(tiny.Z_DIM))


def test_style_axes_are_eigenvectors_of_the_weights(sampler):
    G = sampler.generator
    weights = torch.cat([value for name, value in G.synthesis.named_parameters() if name.endswith("affine.weight")])
    unit = weights / weights.norm(dim=1, keepdim=True)
    axes = style_axes(G)
    gains = (unit @ axes.T).square().sum(dim=0)
    assert torch.allclose(axes @ axes.T, torch.eye(G.w_dim), atol=1e-5)
    assert (gains.diff() < 1e-4).all()  # the largest first
    assert torch.allclose(unit.T @ (unit @ axes[0]), gains[0] * axes[0], atol=1e-3)


def test_principal_axes_hold_the_most_variance(sampler):
    found = find_directions(sampler, "pca", 3, Look())
    w = samples_of_w(sampler, Look())
    variances = torch.linalg.eigvalsh(torch.cov(w.T)).flip(0)
    assert torch.allclose(found.spread.square(), variances[:3], rtol=1e-3)
    assert torch.allclose(found.vectors.norm(dim=1), torch.ones(3))


def test_a_direction_leads_from_some_seeds_to_others(sampler):
    found = find_directions(sampler, "seeds", 1, Look(), ([1, 2, 3], [4, 5, 6]))
    means = [sampler.ws(sampler.latents(seeds, Look()), Look())[:, 0].mean(dim=0) for seeds in ([1, 2, 3], [4, 5, 6])]
    assert torch.nn.functional.cosine_similarity(found.vectors[0], means[1] - means[0], dim=0) > 0.9999


def test_only_these_layers_move():
    found = Directions(torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]), "pca", 3)
    assert found.moved(torch.zeros(1, 3, 2), 0, 1.5)[0, :, 0].tolist() == [3, 3, 3]
    assert found.moved(torch.zeros(1, 3, 2), 0, 1.5, layers=[1])[0, :, 0].tolist() == [0, 3, 0]


@pytest.mark.parametrize(("name", "method"), [("style", "sefa"), ("three", "sefa"), ("three", "pca"), ("dcgan", "pca")])
def test_sheets_and_moved_pictures(tmp_path, networks, name, method):  # noqa: F811
    network = f"--network={networks[name]}"
    assert (
        call(directions, network, f"--method={method}", "--count=2", "--seeds=0,1", f"--outdir={tmp_path / 'out'}") == 0
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "directions.npz",
        "direction00.png",
        "direction01.png",
    }
    sheet = np.asarray(Image.open(tmp_path / "out" / "direction00.png").convert("RGB"), dtype=int)
    side = sheet.shape[0] // 2
    assert sheet.shape == (2 * side, 7 * side, 3)
    file = tmp_path / "out" / "directions.npz"
    for strength, column in ((0, 3), (3, 6)):
        out = tmp_path / f"moved{strength}"
        assert (
            call(gen_images, network, "--seeds=0", f"--direction={file}:0={strength}", f"--outdir={out}", "--grid=1x1")
            == 0
        )
        picture = np.asarray(Image.open(out / "grid.png").convert("RGB"), dtype=int)
        assert np.abs(picture - sheet[:side, column * side : (column + 1) * side]).max() <= 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--network=dcgan"], "--method=sefa: this network has no style weights to factorise; use --method=pca"),
        (["--network=style", "--method=seeds"], "--method=seeds needs --seeds-a and --seeds-b"),
        (["--network=style", "--seeds-a=1"], "are for --method=seeds"),
        (["--network=style", "--method=seeds", "--seeds-a=1", "--seeds-b=1"], "their means are the same"),
        (["--network=style", "--seeds=0-99"], "100 rows; a sheet has 64 at most"),
    ],
)
def test_what_has_no_direction_is_one_line(tmp_path, networks, capsys, args, words):  # noqa: F811
    known = [arg.replace("=dcgan", f"={networks['dcgan']}").replace("=style", f"={networks['style']}") for arg in args]
    assert call(directions, *known, f"--outdir={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "give FILE.npz:K=STRENGTH"),
        ("nowhere.npz:0=1", "nowhere.npz cannot be read"),
        ("FILE:9=1", "holds 2, 0 to 1"),
        ("OTHER:0=1", r"holds directions [2, 3] for 4 layers"),
    ],
)
def test_other_directions_are_one_line(tmp_path, networks, capsys, sampler, text, words):  # noqa: F811
    G = sampler.generator
    Directions(torch.eye(G.w_dim)[:2], torch.ones(2), "pca", G.num_ws).save(tmp_path / "file.npz")
    Directions(torch.eye(3)[:2], torch.ones(2), "pca", 4).save(tmp_path / "other.npz")
    text = text.replace("FILE", str(tmp_path / "file.npz")).replace("OTHER", str(tmp_path / "other.npz"))
    assert (
        call(gen_images, f"--network={networks['style']}", "--seeds=0", f"--direction={text}", f"--outdir={tmp_path}")
        == 2
    )
    assert words in capsys.readouterr().err
