"""project.py at the command line, and the pictures made again from what it found."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dnnlib.cli
import gen_images
import project
from tests.helpers import tiny
from tests.helpers.golden import ROOT
from training import networks_dcgan
from training.sources.source import GaussianSource


def call(script, *args):
    """(exit code, what was printed is left to capsys)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__name__, *map(str, args)])
        with pytest.raises(SystemExit) as leaving:
            dnnlib.cli.run(script.main)
    return leaving.value.code


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    dcgan = networks_dcgan.Generator(tiny.Z_DIM, 0, 16, 4, channel_base=64, channel_max=8)
    sources = {"style": tiny.generator2(), "three": tiny.generator3(), "dcgan": dcgan}
    return {
        name: tiny.save(root / f"network-snapshot-00000{number}.pkl", G, GaussianSource(tiny.Z_DIM))
        for number, (name, G) in enumerate(sources.items())
    }


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a", (30, 20)), ("b", (16, 16))):
        pixels = np.random.default_rng(len(name)).integers(0, 256, [size[1], size[0], 3], dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize(
    ("name", "space", "key"), [("style", "w", "w"), ("style", "w+", "w"), ("three", "z", "z"), ("dcgan", None, "z")]
)
def test_a_picture_is_looked_for_and_made_again(tmp_path, networks, photos, capsys, name, space, key):
    args = [f"--network={networks[name]}", "--num-steps=4", "--device=cpu", *([f"--space={space}"] if space else [])]
    assert call(project, *args, f"--target={photos / 'a.png'}", f"--outdir={tmp_path / 'out'}", "--save-video=1") == 0
    printed = capsys.readouterr().out
    assert "a: cropped to 20x20, resized to" in printed and "dB, distance" in printed and "[tiny]" in printed
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"target.png", "proj.png", "proj.gif", f"projected_{key}.npz"}
    again = tmp_path / "again"
    latents = tmp_path / "out" / f"projected_{key}.npz"
    assert call(gen_images, f"--network={networks[name]}", f"--projected-w={latents}", f"--outdir={again}") == 0
    before, now = (
        np.asarray(Image.open(path), dtype=int) for path in (tmp_path / "out" / "proj.png", again / "proj00.png")
    )
    assert np.abs(before - now).max() <= 2


def test_several_pictures_have_files_of_their_own(tmp_path, networks, photos):
    args = [f"--network={networks['style']}", f"--target={photos}", "--num-steps=2", f"--outdir={tmp_path / 'out'}"]
    assert call(project, *args, "--batch=1") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}-{file}" for name in "ab" for file in ("target.png", "proj.png", "projected_w.npz")
    }


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--network=dcgan", "--target=PHOTOS", "--space=w"], "--space=w: this network has no w; use --space=z"),
        (["--network=style", "--target=nowhere.png"], "--target: nowhere.png"),
        (["--network=style", "--target=TEXT"], "--target: "),
        (["--network=style", "--target=EMPTY"], "--target: "),
        (["--network=style", "--target=PHOTOS", "--class=3", "--num-steps=0"], "--num-steps"),
    ],
)
def test_what_cannot_be_looked_for_is_one_line(tmp_path, networks, photos, capsys, args, words):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    names = {"PHOTOS": photos, "TEXT": tmp_path / "text.png", "EMPTY": tmp_path / "empty", **networks}
    known = [arg.partition("=")[0] + "=" + str(names.get(arg.partition("=")[2], arg.partition("=")[2])) for arg in args]
    assert call(project, *known, f"--outdir={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_latents_of_another_network_are_one_line(tmp_path, networks, capsys):
    np.savez(tmp_path / "w.npz", w=np.zeros([1, 3, 5], dtype=np.float32))
    args = [f"--network={networks['style']}", f"--projected-w={tmp_path / 'w.npz'}", f"--outdir={tmp_path / 'out'}"]
    assert call(gen_images, *args) == 2
    assert "--projected-w: " in (error := capsys.readouterr().err) and "w has shape [1, 3, 5]" in error
    assert not (tmp_path / "out").exists()


def test_help_does_not_wait_for_torch():
    code = "import sys, project; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
