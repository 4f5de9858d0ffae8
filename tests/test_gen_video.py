"""gen_video.py from its command line."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import gen_video
from dnnlib.errors import UserError
from tests.helpers.golden import ROOT
from tests.helpers.tiny import SIDE, Z_DIM, generator2, save, write_images
from training.data.grids import rgb_pixels
from training.data.videos import even_sides
from training.sampling.sampler import Look, open_sampler
from training.sources.cascade import Cascade
from training.sources.source import GaussianSource, ImageSource

FLATTEN = {"kind": "flatten"}


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("snapshots")
    source = ImageSource.open(write_images(folder / "source", num=5))
    spider = generator2(encoder=FLATTEN)
    spider.mapping.encoder.fit(source.all_batches())
    cascade = Cascade.chain(generator2(), generator2(seed=1, channels=4, encoder=FLATTEN))
    return {
        "gaussian": save(folder / "gaussian.pkl", generator2(), GaussianSource(Z_DIM)),
        "spider": save(folder / "spider.pkl", spider, source),
        "cascade": save(folder / "cascade.pkl", cascade, GaussianSource(Z_DIM)),
        "conditional": save(folder / "conditional.pkl", generator2(c_dim=3), GaussianSource(Z_DIM)),
    }


@pytest.fixture
def run(snapshots, tmp_path, monkeypatch):
    """Run the command on a snapshot by name in a folder of its own; what it said."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(name: str, *args: str) -> str:
        arguments = [f"--network={snapshots[name]}", "--device=cpu", *args]
        result = CliRunner().invoke(gen_video.main, arguments, standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.output

    return run


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_mp4(run):
    pytest.importorskip("imageio_ffmpeg")
    imageio = pytest.importorskip("imageio.v2")
    said = run(
        "gaussian", "--seeds=0-3", "--grid=2x1", "--w-frames=5", "--fps=10", "--output=new/loop.mp4", "--sheet=3"
    )
    with imageio.get_reader("new/loop.mp4") as video:
        assert video.get_meta_data()["fps"] == 10
        frames = [np.asarray(frame) for frame in video]
    assert [frame.shape for frame in frames] == [(SIDE, 2 * SIDE, 3)] * 10
    assert sorted(path.name for path in Path("new").iterdir()) == ["loop-sheet.png", "loop.mp4"]
    assert "10 frames, 1.0 s" in said


def test_odd_sides_get_a_line():
    frame = np.zeros([5, 8, 3], dtype=np.uint8)
    assert even_sides(frame).shape == (6, 8, 3)
    assert np.all(even_sides(frame)[5] == 255)


def test_gif_needs_no_extra_package(run, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "imageio_ffmpeg" else found(name, *rest)
    )
    said = run("gaussian", "--seeds=0-1", "--w-frames=4", "--fps=25", "--output=loop.gif")
    with Image.open("loop.gif") as image:
        assert (image.n_frames, image.size, image.info["duration"]) == (8, (SIDE, SIDE), 40)
    assert "(8 frames, 0.3 s)" in said
    with pytest.raises(UserError, match=r"--output=loop.mp4: .*pip install imageio-ffmpeg"):
        run("gaussian", "--seeds=0-1", "--output=loop.mp4")


@pytest.mark.parametrize(
    ("frames", "fps", "words"),
    [
        (30, 60, "60 frames, 1.2 s, 50 frames per second where a GIF cannot have 60"),
        (30, 240, "60 frames, 1.2 s, 50 frames"),
        (60, 48, "120 frames, 2.4 s, 50 frames"),
        (10, 3, "20 frames, 6.6 s, 3.03 frames"),
    ],
)
def test_the_length_printed_is_that_of_the_gif(run, frames, fps, words):
    """1.0, 0.2, 2.5 and 6.7 s were printed: frames by --fps, of which the format has but hundredths of a second."""
    assert words in run("gaussian", "--seeds=0-1", f"--w-frames={frames}", f"--fps={fps}", "--output=loop.gif")
    length = 0
    with Image.open("loop.gif") as image:
        for frame in range(image.n_frames):
            image.seek(frame)
            length += image.info["duration"] / 1000
    assert f"{length:.1f} s" in words


def test_a_loop_that_stands_still_is_refused_and_one_that_moves_beside_it_is_not(run):
    """A video of one seed was made without a word."""
    for args in (["--seeds=5"], ["--seeds=0-3", "--grid=2x2"], ["--seeds=7,7,7"], ["--seeds=5", "--num-keyframes=4"]):
        with pytest.raises(UserError, match=r"--seeds: a video of one seed.* stands still; give"):
            run("gaussian", *args, "--output=loop.gif")
    assert list(Path.cwd().iterdir()) == []
    run("gaussian", "--seeds=1,1,1,2", "--grid=2x1", "--w-frames=2", "--output=loop.gif")


def test_sheet_shows_seeds_and_what_lies_between(run, snapshots):
    run("gaussian", "--seeds=0-3", "--grid=1x2", "--sheet=4", "--trunc=0.7")
    sheet = pixels("sheet.png")
    assert sheet.shape == (2 * SIDE, 4 * SIDE, 3)
    images = open_sampler(str(snapshots["gaussian"]), device="cpu").images([0, 1, 2, 3], Look(truncation_psi=0.7))
    top, bottom = np.concatenate(rgb_pixels(images)[:2], axis=1), np.concatenate(rgb_pixels(images)[2:], axis=1)
    shown = sheet.reshape(2, SIDE, 4, SIDE, 3)[:, :, ::2].reshape(2, SIDE, 2 * SIDE, 3)
    assert np.abs(shown - np.stack([top, bottom])).max() <= 1


def test_sheet_under_another_name(run):
    run("gaussian", "--seeds=0", "--sheet=2", "--output=figures/loop.png")
    assert pixels("figures/loop.png").shape == (SIDE, 2 * SIDE, 3)


def test_between_source_images(run, snapshots, tmp_path):
    photos = write_images(tmp_path / "photos", num=3, seed=9)
    run("spider", f"--source-images={photos}", "--sheet=3")
    images = open_sampler(str(snapshots["spider"]), str(photos), "cpu").images([0, 1, 2], Look())
    assert np.abs(pixels("sheet.png") - np.concatenate(rgb_pixels(images), axis=1)).max() <= 1


def test_stages_of_a_cascade(run):
    run("cascade", "--seeds=0-3", "--grid=2x1", "--stages", "--sheet=3", "--w-frames=2", "--output=loop.gif")
    assert pixels("loop-sheet.png").shape == (4 * SIDE, 3 * SIDE, 3)
    with Image.open("loop.gif") as image:
        assert image.size == (4 * SIDE, SIDE)
        frame = np.asarray(image.convert("RGB")).astype(int)
    # Side by side in the frame, one under the other in the sheet; a GIF has but 256 colours.
    sheet = pixels("loop-sheet.png")[:, :SIDE].reshape(4, SIDE, SIDE, 3)
    assert np.abs(frame - np.concatenate(sheet, axis=1)).mean() < 12


def test_shuffle_and_class(run):
    run("gaussian", "--seeds=0-3", "--sheet=4", "--shuffle-seed=1", "--output=a.png")
    run("gaussian", "--seeds=3,2,0,1", "--sheet=4", "--output=b.png")  # RandomState(1) shuffles so
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    run("conditional", "--seeds=0", "--sheet=1", "--class=1", "--output=c.png")
    run("conditional", "--seeds=0", "--sheet=1", "--class=2", "--output=d.png")
    assert not np.array_equal(pixels("c.png"), pixels("d.png"))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("gaussian", ["--seeds=0-3"], "--output=FILE.mp4 is needed, or --sheet"),
        ("gaussian", ["--seeds=0-3", "--output=loop.avi"], "--output=loop.avi: give FILE.mp4"),
        ("gaussian", ["--seeds=0-3", "--output=loop.png"], "--output=loop.png: .*--sheet"),
        ("gaussian", ["--seeds=0-2", "--grid=2x2", "--output=loop.gif"], "--seeds: 3 .*4 cells of --grid"),
        ("gaussian", ["--output=loop.gif"], "--seeds is needed"),
        ("gaussian", ["--seeds=0", "--stages", "--output=loop.gif"], "--stages: .*single stage"),
        ("conditional", ["--seeds=0", "--output=loop.gif"], "--class is needed"),
        ("gaussian", ["--seeds=0-1", "--output=/dev/null/loop.gif"], "--output: .*cannot be written"),
    ],
)
def test_bad_input_writes_nothing(run, name, args, message):
    with pytest.raises(UserError, match=message):
        run(name, *args)
    assert list(Path.cwd().iterdir()) == []


def test_nothing_is_left_of_a_broken_video(run, monkeypatch):
    def broken(path, frames, fps):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.data.videos.save_gif", broken)
    with pytest.raises(UserError, match=r"--output: .*No space left"):
        run("gaussian", "--seeds=0-1", "--output=loop.gif")
    assert list(Path.cwd().iterdir()) == []


def test_as_a_program(tmp_path):
    command = [sys.executable, str(ROOT / "gen_video.py"), "--network=nowhere.pkl", "--seeds=0", "--output=a.gif"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --network: nowhere.pkl: no such file") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
