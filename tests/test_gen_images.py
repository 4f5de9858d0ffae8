"""gen_images.py from its command line."""

import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import gen_images
from dnnlib.errors import UserError
from gen_images import parse_size, parse_vec2
from shared_options import parse_range
from tests.helpers.golden import ROOT
from tests.helpers.tiny import SIDE, Z_DIM, generator2, generator3, save, write_images
from training.data.grid_cells import GridCells
from training.data.grids import GAP, save_grid
from training.sampling.picture_files import write_picture
from training.sources.cascade import Cascade
from training.sources.source import GaussianSource, ImageSource

FLATTEN = {"kind": "flatten"}


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("snapshots")
    source = ImageSource.open(write_images(folder / "source", num=5))
    spider = generator2(encoder=FLATTEN)
    spider.mapping.encoder.fit(source.all_batches())
    return {
        "gaussian": save(folder / "gaussian.pkl", generator2(), GaussianSource(Z_DIM)),
        "gray": save(folder / "gray.pkl", generator2(channels=1), None),
        "spider": save(folder / "spider.pkl", spider, source),
        "cascade": save(
            folder / "cascade.pkl", Cascade.chain(spider, generator2(seed=1, channels=4, encoder=FLATTEN)), source
        ),
        "conditional": save(folder / "conditional.pkl", generator2(c_dim=3), GaussianSource(Z_DIM)),
        "stylegan3": save(folder / "stylegan3.pkl", generator3(), GaussianSource(Z_DIM)),
    }


@pytest.fixture
def run(snapshots, tmp_path):
    """Run the command on a snapshot by name; the folder that it wrote to and what it said."""

    def run(name: str, *args: str, outdir: str = "out") -> tuple[Path, str]:
        folder = tmp_path / outdir
        arguments = [f"--network={snapshots[name]}", f"--outdir={folder}", "--device=cpu", *args]
        result = CliRunner().invoke(gen_images.main, arguments, standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return folder, result.output

    return run


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is written.


def test_one_png_per_seed(run):
    folder, said = run("gaussian", "--seeds=0,7-8")
    assert names(folder) == ["seed0000.png", "seed0007.png", "seed0008.png"]
    assert "3 images of 16x16 pixels, RGB" in said and str(folder) in said
    assert Image.open(folder / "seed0007.png").mode == "RGB"


def test_an_image_depends_on_its_seed_alone(run):
    together, _ = run("gaussian", "--seeds=0-4", "--batch=3", "--noise-mode=random", outdir="a")
    again, _ = run("gaussian", "--seeds=0-4", "--batch=3", "--noise-mode=random", outdir="b")
    alone, _ = run("gaussian", "--seeds=4", "--batch=1", "--noise-mode=random", outdir="c")
    for name in names(together):
        assert (together / name).read_bytes() == (again / name).read_bytes()
    assert np.abs(pixels(together / "seed0004.png") - pixels(alone / "seed0004.png")).max() <= 1


def test_old_files_stay_and_same_names_are_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "out" / "seed0000.png").write_text("old")
    folder, _ = run("gaussian", "--seeds=0")
    assert (folder / "mine.txt").read_text() == "mine"
    assert pixels(folder / "seed0000.png").shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(("name", "mode"), [("gray", "L"), ("gaussian", "RGB"), ("cascade", "RGBA")])
def test_channels_are_kept(run, name, mode):
    folder, _ = run(name, "--seeds=0")
    assert Image.open(folder / "seed0000.png").mode == mode


def test_truncation(run):
    mean = [pixels(run("gaussian", "--seeds=0,1", "--trunc=0")[0] / name) for name in ("seed0000.png", "seed0001.png")]
    assert np.array_equal(*mean)
    folder, _ = run("gaussian", "--seeds=0", "--truncation-psi=1")
    assert not np.array_equal(pixels(folder / "seed0000.png"), mean[0])


def test_grid(run):
    folder, said = run("gaussian", "--seeds=0-4", "--grid=3x2")
    grid = pixels(folder / "grid.png")
    assert grid.shape == (2 * SIDE, 3 * SIDE, 3) and "grid.png" in said
    assert np.array_equal(grid[SIDE:, :SIDE], pixels(folder / "seed0003.png"))
    assert np.all(grid[SIDE:, 2 * SIDE :] == 255)


def test_alpha_becomes_all_or_nothing(run):
    """71 % of the pixels of generated sprites were partly transparent, where the data have none."""
    plain, _ = run("cascade", "--seeds=0,1", outdir="a")
    folder, _ = run("cascade", "--seeds=0,1", "--alpha-threshold=0.5", "--grid=2x1", outdir="b")
    before, after = pixels(plain / "seed0001.png"), pixels(folder / "seed0001.png")
    assert ((before[..., 3] > 0) & (before[..., 3] < 255)).mean() > 0
    assert np.array_equal(after[..., 3], np.where(before[..., 3] >= 127.5, 255, 0))
    # Colours under alpha 0 stayed, and showed as fringes in programs that blend.
    assert np.array_equal(after[..., :3], before[..., :3] * (after[..., 3:] > 0))
    shown = np.where(after[..., 3:] == 255, after[..., :3], 255)
    assert np.array_equal(pixels(folder / "grid.png")[:, SIDE:], shown)


def test_a_full_disk_leaves_no_half_of_a_picture(tmp_path, monkeypatch):
    def write_some(path, data):
        with open(path, "wb") as file:
            file.write(data[:5])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write_some)
    with pytest.raises(OSError, match="No space left"):
        write_picture(tmp_path / "seed0000.png", b"a whole picture")
    assert list(tmp_path.iterdir()) == []


def test_scale(run):
    plain, _ = run("spider", "--seeds=0-2", "--grid=3x1", "--pairs", outdir="a")
    folder, said = run("spider", "--seeds=0-2", "--grid=3x1", "--pairs", "--scale=3", outdir="b")
    assert "images of 48x48 pixels" in said
    for name in ("seed0001.png", "grid.png", "pairs.png"):
        assert np.array_equal(pixels(folder / name), pixels(plain / name).repeat(3, axis=0).repeat(3, axis=1))


def test_pairs_of_source_images(run, tmp_path):
    photos = write_images(tmp_path / "photos", num=3, seed=9)
    folder, _ = run("spider", f"--source-images={photos}", "--pairs", "--grid=3x1")
    pairs = pixels(folder / "pairs.png")
    assert names(folder) == ["00.png", "01.png", "02.png", "grid.png", "pairs.png"]  # as the images are called
    assert pairs.shape == (2 * SIDE + GAP, 3 * SIDE, 3)
    assert np.array_equal(pairs[:SIDE, SIDE : 2 * SIDE], pixels(photos / "01.png"))
    assert np.array_equal(pairs[SIDE : 2 * SIDE, SIDE : 2 * SIDE], pixels(folder / "01.png"))


def test_pairs_of_a_cascade_show_all_stages(run):
    folder, _ = run("cascade", "--seeds=0-8", "--pairs")
    assert pixels(folder / "pairs.png").shape == (2 * (3 * SIDE + GAP), 8 * SIDE, 3)


def test_seeds_pick_among_the_chosen_images(run, tmp_path):
    photos = write_images(tmp_path / "photos", num=3, seed=9)
    every, _ = run("spider", f"--source-images={photos}", outdir="a")
    one, _ = run("spider", f"--source-images={photos}", "--seeds=2", outdir="b")
    assert names(one) == ["02.png"]
    assert np.abs(pixels(every / "02.png") - pixels(one / "02.png")).max() <= 1


def test_images_unlike_those_of_the_training_are_named(run, tmp_path):
    """Blocks of colours were the source; a checkerboard of black and white has a z three times as long."""
    photos = write_images(tmp_path / "photos", num=2, seed=9)
    board = np.kron([[0, 255] * 2, [255, 0] * 2] * 2, np.ones([4, 4]))[..., None].repeat(3, axis=2).astype(np.uint8)
    Image.fromarray(board).save(photos / "board.png")
    _, said = run("spider", f"--source-images={photos}")
    assert (
        "Warning: board.png: far outside of the images that the network was trained on" in said and "00.png" not in said
    )


def test_class(run):
    images = [pixels(run("conditional", "--seeds=0", f"--class={index}")[0] / "seed0000.png") for index in (0, 2)]
    assert not np.array_equal(*images)
    _, said = run("gaussian", "--seeds=0", "--class=1")
    assert "Warning: --class=1 is ignored" in said
    for choice in ("all", "any", "3-5"):
        _, said = run("gaussian", "--seeds=0", f"--class={choice}", outdir="out")
        assert "is ignored, since the network is not conditional" in said


def test_several_classes_do_not_overwrite_each_other(run, snapshots):
    folder, said = run("conditional", "--seeds=0,1", "--class=all", "--grid=2x3")
    assert names(folder) == ["grid.png", *(f"seed{seed:04d}-class{c:02d}.png" for seed in (0, 1) for c in range(3))]
    assert "6 images" in said
    grid, (alone, _) = pixels(folder / "grid.png"), run("conditional", "--seeds=1", "--class=2", outdir="alone")
    in_its_row = grid[2 * SIDE :, SIDE:]  # a row for each class
    assert np.abs(in_its_row - pixels(alone / "seed0001.png")).max() <= 1
    assert names(run("conditional", "--seeds=0", "--class=0,2", outdir="two")[0]) == [
        "seed0000-class00.png",
        "seed0000-class02.png",
    ]


def test_any_class_is_drawn_by_the_seed(run):
    folder, _ = run("conditional", "--seeds=0-9", "--class=any", "--batch=3")
    again, _ = run("conditional", "--seeds=9", "--class=any", outdir="again")
    assert names(again)[0] in names(folder) and len({name[-6:] for name in names(folder)}) > 1
    assert np.abs(pixels(again / names(again)[0]) - pixels(folder / names(again)[0])).max() <= 1


def test_a_label_vector_takes_the_place_of_a_class(run):
    one, _ = run("conditional", "--seeds=0", "--class=1", outdir="one")
    vector, _ = run("conditional", "--seeds=0", "--label=0,1,0", outdir="vector")
    between, _ = run("conditional", "--seeds=0", "--label=0.5,0.5,0", outdir="between")
    assert np.array_equal(pixels(one / "seed0000.png"), pixels(vector / "seed0000.png"))
    assert not np.array_equal(pixels(one / "seed0000.png"), pixels(between / "seed0000.png"))


def test_a_noise_seed_leaves_the_latent(run):
    plain, other, again, none = (
        pixels(run("gaussian", "--seeds=3", *args, outdir=f"n{number}")[0] / "seed0003.png")
        for number, args in enumerate(
            [["--noise-mode=random"], ["--noise-seed=1"], ["--noise-seed=1", "--batch=1"], ["--noise-mode=none"]]
        )
    )
    assert np.array_equal(other, again) and not np.array_equal(other, plain)
    assert 0 < np.abs(other - none).mean() < np.abs(none - none.mean()).mean()  # the same picture, other details


def test_cells_of_a_runs_picture_are_made_again(run, tmp_path):
    G = generator2()
    z = torch.randn(5, Z_DIM, generator=torch.Generator().manual_seed(1))
    images = G(z, None, noise_mode="const")
    save_grid(tmp_path / "fakes000001.png", images, 3, texts=GridCells(z, None, tuple(range(5))).text())
    folder, _ = run("gaussian", f"--from-grid={tmp_path / 'fakes000001.png'}", "--grid=3x2")
    assert names(folder) == [*(f"cell{number:04d}.png" for number in range(5)), "grid.png"]
    assert np.abs(pixels(folder / "grid.png") - pixels(tmp_path / "fakes000001.png")).max() <= 1
    some, _ = run("gaussian", f"--from-grid={tmp_path / 'fakes000001.png'}", "--cells=4,0", outdir="some")
    assert names(some) == ["cell0000.png", "cell0004.png"]
    assert np.array_equal(pixels(some / "cell0004.png"), pixels(folder / "cell0004.png"))


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("gaussian", ["--seeds=0", "--label=1"], "--label: the network is not conditional"),
        ("conditional", ["--seeds=0", "--label=1,2"], "--label: 2 numbers, and the network takes 3"),
        ("conditional", ["--seeds=0", "--label=1,2,3", "--class=1"], "--label and --class both say"),
        ("conditional", ["--seeds=0", "--class=1,7"], "--class=7: the network's classes are 0 to 2"),
        ("stylegan3", ["--seeds=0", "--noise-seed=1"], "--noise-seed: this network has no pixel noise"),
        ("gaussian", ["--seeds=0", "--noise-seed=1", "--noise-mode=none"], "do not go together"),
        ("gaussian", ["--seeds=0", "--cells=1"], "--cells needs --from-grid"),
        ("gaussian", ["--from-grid=GRID", "--seeds=1"], "--from-grid goes without --seeds"),
        ("gaussian", ["--from-grid=GRID", "--projected-w=x.npz"], "--projected-w and --from-grid both say"),
        ("gaussian", ["--from-grid=GRID", "--cells=2"], "there is no cell 2; "),
        ("conditional", ["--from-grid=GRID"], f"was made from z of {Z_DIM} and labels of 0 numbers"),
    ],
)
def test_looks_that_cannot_be_are_one_line(run, tmp_path, name, args, words):
    cells = GridCells(torch.zeros(2, Z_DIM), None, (0, 1))
    save_grid(tmp_path / "fakes.png", torch.zeros(2, 3, SIDE, SIDE), 2, texts=cells.text())
    with pytest.raises(UserError, match=words):
        run(name, *[arg.replace("GRID", str(tmp_path / "fakes.png")) for arg in args])
    assert not (tmp_path / "out").exists()


def test_translation(run):
    still, _ = run("stylegan3", "--seeds=0", outdir="a")
    moved, _ = run("stylegan3", "--seeds=0", "--translate=0.25,-0.125", outdir="b")
    expected = np.roll(pixels(still / "seed0000.png"), (-2, 4), axis=(0, 1))[4:-4, 5:-4]
    assert np.abs(pixels(moved / "seed0000.png")[4:-4, 5:-4] - expected).max() <= 1
    turned, _ = run("stylegan3", "--seeds=0", "--rotate=45", outdir="c")
    assert not np.array_equal(pixels(turned / "seed0000.png"), pixels(still / "seed0000.png"))


# What the flags take.


def test_parse():
    assert parse_range("0,3, 5-7,3") == [0, 3, 5, 6, 7, 3]
    assert parse_range([1, 2]) == [1, 2]
    assert parse_vec2("0.5,-1") == (0.5, -1.0)
    assert parse_size("4x2") == (4, 2)
    for parse, texts in {
        parse_range: ["5-2", "a", "", "1,,2", "-1", "4294967296", "0-99999999"],
        parse_vec2: ["1", "1,2,3", "a,b"],
        parse_size: ["4", "0x2", "axb"],
    }.items():
        for text in texts:
            with pytest.raises(click.BadParameter):
                parse(text)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("gaussian", [], "--seeds is needed"),
        ("gaussian", ["--seeds=0-4", "--grid=2x2"], "--grid=2x2 is too small for 5 images; use --grid=2x3"),
        ("gaussian", ["--seeds=0", "--pairs"], "--pairs: .*noise"),
        ("gaussian", ["--seeds=0", "--translate=0.1,0"], "--translate.*StyleGAN3"),
        ("stylegan3", ["--seeds=0", "--translate=nan,0"], "--translate.*finite"),
        ("gaussian", ["--seeds=0", "--rotate=5"], "--rotate.*StyleGAN3"),
        ("conditional", ["--seeds=0"], "--class is needed.*0 to 2"),
        ("conditional", ["--seeds=0", "--class=-1"], "--class=-1.*0 to 2"),
        (
            "gaussian",
            ["--seeds=0", "--alpha-threshold=0.5"],
            "--alpha-threshold: the network makes RGB images, which have no",
        ),
        ("cascade", ["--seeds=0", "--alpha-threshold=1.5"], "1.5 is not in the range"),
        ("cascade", ["--seeds=0", "--alpha-threshold=nan"], "nan is no finite number|nan is not in the range"),
        ("gaussian", ["--seeds=0", "--trunc=nan"], "nan is no finite number"),
        ("gaussian", ["--seeds=0", "--scale=65"], "65 is not in the range"),
        ("gaussian", ["--seeds=0-999", "--grid=1000x1", "--scale=64"], "--scale=64: makes a picture .* use 22 at most"),
        ("spider", ["--source-images=nowhere.zip"], r"--source-images: nowhere\.zip: no such file"),
        ("gaussian", ["--seeds=5-2"], "'5-2' is no seed or range"),
        ("gaussian", ["--seeds=a"], "'a' is no seed or range"),
    ],
)
def test_bad_input_writes_nothing(run, tmp_path, name, args, message):
    with pytest.raises((UserError, click.UsageError), match=message):
        run(name, *args)
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--outdir: .*cannot be written"):
        run("gaussian", "--seeds=0", outdir="file/out")


def test_as_a_program(tmp_path):
    command = [sys.executable, str(ROOT / "gen_images.py"), "--network=nowhere.pkl", "--seeds=0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --network: nowhere.pkl: no such file") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
