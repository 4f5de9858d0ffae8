"""directions.py: where directions come from, files of them, pictures that are moved along them."""

import numpy as np
import pytest
import torch
from PIL import Image

import directions
import gen_images
import gen_video
from tests.helpers import tiny
from tests.test_project import call, networks, photos  # noqa: F401 (fixtures)
from training.data.grids import LABEL_HEIGHT, LABEL_WIDTH, SMALLEST_CELL
from training.sampling.directions import (
    Directions,
    add_directions,
    find_directions,
    samples_of_w,
    style_axes,
    w_of_seeds,
)
from training.sampling.sampler import Look, Sampler
from training.sources.source import GaussianSource

FACTOR = SMALLEST_CELL // tiny.SIDE  # of sheets with labels


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


def test_how_pictures_are_turned_is_no_style():
    G = tiny.generator3()
    assert "input.affine.weight" in dict(G.synthesis.named_parameters())
    before = style_axes(G)
    G.synthesis.input.affine.weight.normal_()
    assert torch.equal(style_axes(G), before)


def test_principal_axes_hold_the_most_variance(sampler):
    found = find_directions(sampler, "pca", 3, Look())
    w = samples_of_w(sampler, Look())
    variances = torch.linalg.eigvalsh(torch.cov(w.T)).flip(0)
    assert torch.allclose(found.spread.square(), variances[:3], rtol=1e-3)
    assert torch.allclose(found.vectors.norm(dim=1), torch.ones(3))


def test_a_direction_leads_from_some_seeds_to_others(sampler):
    groups = [w_of_seeds(sampler, seeds, Look()) for seeds in ([1, 2, 3], [4, 5, 6])]
    means = [group.mean(dim=0) for group in groups]
    found = find_directions(sampler, "mean", 1, Look(), groups)
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
    sheet = sheet[LABEL_HEIGHT:, LABEL_WIDTH:][::FACTOR, ::FACTOR]
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


def test_folders_of_latents_and_films(tmp_path, networks):  # noqa: F811
    """Latents that lie at both ends of an axis give that axis, whichever way it is found."""
    rng, G = np.random.default_rng(0), tiny.generator2()
    axis = np.eye(G.w_dim)[3]
    for name, sign in (("plain", -1), ("smiling", 1)):
        (tmp_path / name).mkdir()
        for number in range(6):
            w = sign * 2 * axis + 0.1 * rng.normal(size=[1, G.num_ws, G.w_dim])
            np.savez(tmp_path / name / f"{number}-projected_w.npz", w=w.astype(np.float32))
    folders = [f"--folder-a={tmp_path / 'plain'}", f"--folder-b={tmp_path / 'smiling'}"]
    for method in ("mean", "svm"):
        out = tmp_path / method
        args = [f"--network={networks['style']}", f"--method={method}", *folders, "--seeds=0-2", "--save-video=1"]
        assert call(directions, *args, f"--outdir={out}") == 0
        assert {path.name for path in out.iterdir()} == {"directions.npz", "direction00.png", "direction00.gif"}
        assert np.load(out / "directions.npz")["directions"][0] @ axis > 0.97
        with Image.open(out / "direction00.gif") as film:
            assert film.n_frames == directions.FRAMES and film.size == (3 * G.img_resolution, G.img_resolution)


def test_several_directions_add_up(tmp_path, networks, sampler):  # noqa: F811
    G = sampler.generator
    Directions(torch.eye(G.w_dim)[:2], torch.ones(2), "pca", G.num_ws).save(tmp_path / "file.npz")
    add_directions(sampler, [f"{tmp_path / 'file.npz'}:{text}" for text in ("0=2", "1=-3")])
    moved = sampler.move(torch.zeros(1, G.num_ws, G.w_dim))
    assert moved[0, 0, :3].tolist() == [2, -3, 0]


@pytest.mark.parametrize(("strength", "num"), [("3", 1), ("±3", 5), ("+-3", 5)])
def test_films_along_a_direction(tmp_path, networks, sampler, strength, num):  # noqa: F811
    """`±` goes to and fro, also from a single seed, whose film would stand still."""
    G = sampler.generator
    Directions(torch.eye(G.w_dim)[:2], torch.ones(2), "pca", G.num_ws).save(tmp_path / "file.npz")
    args = [f"--network={networks['style']}", f"--direction={tmp_path / 'file.npz'}:0={strength}", "--w-frames=8"]
    film = tmp_path / "a.gif"
    assert call(gen_video, *args, "--seeds=0", f"--output={film}", "--sheet=8") == (0 if num > 1 else 2)
    if num == 1:
        return
    with Image.open(tmp_path / "a-sheet.png") as sheet:
        moments = np.split(np.asarray(sheet, dtype=int), 8, axis=1)
    assert len({moment.tobytes() for moment in moments}) == num  # the way back is the way there
    for share, column in ((3, 2), (-3, 6)):
        still = tmp_path / f"still{share}"
        direction = f"--direction={tmp_path / 'file.npz'}:0={share}"
        assert call(gen_images, f"--network={networks['style']}", "--seeds=0", direction, f"--outdir={still}") == 0
        assert np.abs(np.asarray(Image.open(still / "seed0000.png"), dtype=int) - moments[column]).max() <= 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--network=dcgan"], "--method=sefa: this network has no style weights to factorise; use --method=pca"),
        (["--network=style", "--method=mean"], "--method=mean needs --seeds-a and --seeds-b"),
        (["--network=style", "--seeds-a=1"], "--seeds-a is for --method=mean or svm, not for --method=sefa"),
        (["--network=style", "--method=mean", "--seeds-a=1", "--seeds-b=1"], "have the same mean"),
        (
            ["--network=style", "--method=svm", "--seeds-a=1", "--folder-b=x"],
            "--method=svm needs --seeds-a and --seeds-b, or",
        ),
        (
            ["--network=style", "--method=mean", "--folder-a=x", "--folder-b=x"],
            "--folder-a: x: holds no projected_w.npz",
        ),
        (
            ["--network=style", "--method=mean", "--seeds-a=1", "--seeds-b=2", "--count=7"],
            "gives one direction; leave it out",
        ),
        (["--network=style", "--count=500"], "--count=500: w has 16 dimensions"),
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
        ("FILE:0=±3", "a picture has one strength"),
        ("nowhere.npz:0=1", "nowhere.npz cannot be read"),
        ("FILE:9=1", "holds 2, 0 to 1"),
        ("FILE:0=1e9", "use 1000 at most"),
        ("WIDE:0=1", "holds directions [2, 16]"),
        ("NAN:0=1", "holds NaN or infinite"),
        ("OTHER:0=1", r"holds directions [2, 3] for 4 layers"),
    ],
)
def test_other_directions_are_one_line(tmp_path, networks, capsys, sampler, text, words):  # noqa: F811
    G = sampler.generator
    Directions(torch.eye(G.w_dim)[:2], torch.ones(2), "pca", G.num_ws).save(tmp_path / "file.npz")
    Directions(torch.eye(3)[:2], torch.ones(2), "pca", 4).save(tmp_path / "other.npz")
    Directions(torch.eye(G.w_dim)[:2], torch.ones(2, 2), "pca", G.num_ws).save(tmp_path / "wide.npz")
    Directions(torch.full([2, G.w_dim], torch.nan), torch.ones(2), "pca", G.num_ws).save(tmp_path / "nan.npz")
    text = text.replace("WIDE", str(tmp_path / "wide.npz")).replace("NAN", str(tmp_path / "nan.npz"))
    text = text.replace("FILE", str(tmp_path / "file.npz")).replace("OTHER", str(tmp_path / "other.npz"))
    assert (
        call(gen_images, f"--network={networks['style']}", "--seeds=0", f"--direction={text}", f"--outdir={tmp_path}")
        == 2
    )
    assert words in capsys.readouterr().err
