"""project.py at the command line, and the pictures made again from what it found."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import directions
import dnnlib.cli
import gen_images
import project
import style_mixing
from dnnlib.interrupts import STOPPED
from tests.helpers import tiny
from tests.helpers.golden import ROOT, SHARED
from training import networks_dcgan
from training.sampling import projecting
from training.sampling.projection import Projector
from training.sources.cascade import Cascade
from training.sources.source import GaussianSource, ImageSource


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
    images = ImageSource.open(tiny.write_images(root / "source", num=5))
    spider = tiny.generator2(encoder={"kind": "flatten"})
    spider.mapping.encoder.fit(images.all_batches())
    cascade = Cascade.chain(spider, tiny.generator2(seed=1, encoder={"kind": "flatten"}))
    fed = {"spider": (spider, images), "cascade": (cascade, images), "noise-cascade": (
        Cascade.chain(tiny.generator2(), tiny.generator2(seed=1, encoder={"kind": "flatten"})), GaussianSource(tiny.Z_DIM)
    ), "conditional": (tiny.generator2(c_dim=3), GaussianSource(tiny.Z_DIM))}  # fmt: skip
    return {name: tiny.save(root / f"{name}.pkl", *pair) for name, pair in fed.items()} | {
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


@pytest.mark.parametrize(("name", "space"), [("style", "w"), ("style", "w+"), ("three", "z"), ("dcgan", None)])
def test_a_picture_is_looked_for_and_made_again(tmp_path, networks, photos, capsys, name, space):
    args = [f"--network={networks[name]}", "--num-steps=4", "--device=cpu", *([f"--space={space}"] if space else [])]
    assert call(project, *args, f"--target={photos / 'a.png'}", f"--outdir={tmp_path / 'out'}", "--save-video=1") == 0
    printed = capsys.readouterr().out
    assert "a: cropped to 20x20, resized to" in printed and "dB, distance" in printed and "[tiny]" in printed
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"target.png", "proj.png", "proj.gif", "projected_w.npz"}
    again = tmp_path / "again"
    latents = tmp_path / "out" / "projected_w.npz"
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


@pytest.mark.parametrize("name", ["spider", "cascade", "noise-cascade"])
def test_a_source_image_is_looked_for(tmp_path, networks, name, capsys):
    """The picture of one of them is found again, and source.png makes proj.png."""
    network, out = f"--network={networks[name]}", tmp_path / "out"
    pick = (
        ["--seeds=3"]
        if name == "noise-cascade"
        else ["--seeds=3", f"--source-images={networks[name].parent / 'source'}"]
    )
    assert call(gen_images, network, *pick, f"--outdir={tmp_path / 'made'}") == 0
    target = tmp_path / "made" / ("seed0003.png" if name == "noise-cascade" else "03.png")
    assert call(project, network, f"--target={target}", "--space=source", "--num-steps=3", f"--outdir={out}") == 0
    files = {path.name for path in out.iterdir()}
    assert files == {"nearest-source.png", "nearest.png", "source.png", "target.png", "proj.png", "projected_w.npz"}
    printed = capsys.readouterr().out
    assert f"is {'seed' if name == 'noise-cascade' else 'image'} 3 (counted from 0), " in printed
    assert np.abs(pixels(out / "nearest.png") - pixels(target)).max() <= 1
    if name == "spider":
        (tmp_path / "photos").mkdir()
        (out / "source.png").rename(tmp_path / "photos" / "source.png")
        again = tmp_path / "again"
        assert call(gen_images, network, f"--source-images={tmp_path / 'photos'}", f"--outdir={again}") == 0
        assert np.abs(pixels(again / "source.png") - pixels(out / "proj.png")).max() <= 1


@pytest.mark.parametrize(("name", "args"), [("style", ["--space=w+"]), ("dcgan", []), ("cascade", [])])
def test_tuning_brings_the_network_nearer(tmp_path, networks, photos, capsys, name, args):
    network, out = f"--network={networks[name]}", tmp_path / "out"
    assert call(project, network, f"--target={photos}", "--num-steps=3", "--tune=60", *args, f"--outdir={out}") == 0
    printed = capsys.readouterr().out
    decibels = re.findall(r"(\S+) dB, tuned (\S+) dB", printed)
    assert (
        decibels[0][0] != decibels[0][1]
        and len(decibels) == 2
        and all(float(after) >= float(before) for before, after in decibels)
    )
    assert "The tuned network: " in printed
    latents = out / "b-projected_w.npz"
    again = tmp_path / "again"
    assert (
        call(gen_images, f"--network={out / 'network-tuned.pkl'}", f"--projected-w={latents}", f"--outdir={again}") == 0
    )
    assert np.abs(pixels(again / "proj00.png") - pixels(out / "b-tuned.png")).max() <= 2


def test_time_is_said_before_the_search(tmp_path, networks, photos, capsys):
    args = [f"--network={networks['style']}", f"--target={photos}", "--num-steps=6", f"--outdir={tmp_path / 'out'}"]
    assert call(project, *args, "--batch=1") == 0
    said = capsys.readouterr().out
    assert "of processor time): 12 steps, 1 picture at a time" in said
    assert said.index("About ") < said.index("after 6 steps")


@pytest.mark.parametrize("choice", ["--class=1", "--class=any", "--label=0.5,0.5,0"])
def test_conditional_networks_are_searched(tmp_path, networks, photos, choice):
    args = [f"--network={networks['conditional']}", f"--target={photos / 'b.png'}", "--num-steps=2", choice]
    assert call(project, *args, f"--outdir={tmp_path / 'out'}") == 0
    w = np.load(tmp_path / "out" / "projected_w.npz")["w"]
    assert w.shape == (1, tiny.generator2().num_ws, 16)


def test_the_result_is_that_of_the_picture_alone(tmp_path, networks, photos):
    args = [f"--network={networks['style']}", f"--target={photos}", "--num-steps=5"]
    for batch in (1, 2):
        assert call(project, *args, f"--batch={batch}", f"--outdir={tmp_path / str(batch)}") == 0
    one, two = (np.load(tmp_path / str(batch) / "b-projected_w.npz")["w"] for batch in (1, 2))
    assert np.abs(one - two).max() < 1e-3 < np.abs(one).max()


@pytest.mark.parametrize("steps", [1, 3])
def test_what_is_missing_is_said(tmp_path, networks, photos, capsys, monkeypatch, steps):
    """Ctrl-C in the search for the first of two pictures, before tuning."""
    whole = Projector.run

    def interrupted(self, targets, keep_every=None, first=0):
        for found in whole(self, targets, keep_every, first):
            yield found
            if found.steps == steps and self.search.steps == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(projecting, "say_time", lambda *args: None)
    monkeypatch.setattr(Projector, "run", interrupted)
    args = [f"--network={networks['style']}", f"--target={photos}", "--num-steps=4", "--batch=1", "--tune=9"]
    assert call(project, *args, f"--outdir={tmp_path / 'out'}") == STOPPED
    said = capsys.readouterr().out
    assert "Not looked for: b" in said and "The network was not tuned" in said and f"after {steps} steps" in said
    assert (tmp_path / "out" / "a-proj.png").exists() and not (tmp_path / "out" / "b-proj.png").exists()


def test_a_search_among_source_images_keeps_what_it_has(tmp_path, networks, photos, capsys, monkeypatch):
    whole = projecting.nearest_sources

    def interrupted(*args):
        yield next(whole(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(projecting, "nearest_sources", interrupted)
    args = [f"--network={networks['noise-cascade']}", f"--target={photos / 'b.png'}", "--space=source", "--batch=2"]
    assert call(project, *args, f"--outdir={tmp_path / 'out'}") == STOPPED
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"nearest-source.png", "nearest.png"}
    said = capsys.readouterr()
    assert "nearest of 2 is seed" in said.out and "to look at 1,000 source images first" in said.out + said.err


@pytest.mark.parametrize("name", ["stylegan2_ada_c0", "stylegan2_c0", "stylegan3r_c0", "stylegan3t_c4"])
def test_official_pickles(tmp_path, photos, name):
    path = SHARED / "golden" / "pickles" / f"{name}.pkl"
    if not path.is_file():
        pytest.skip("the official pickles (../shared/golden) are not on this machine")
    network = [f"--network={path}", *(["--class=any"] if name.endswith("c4") else [])]
    found = tmp_path / "found"
    assert (
        call(project, *network, f"--target={photos / 'b.png'}", "--num-steps=2", "--tune=2", f"--outdir={found}") == 0
    )
    assert call(directions, *network, "--count=1", "--seeds=0", f"--outdir={tmp_path / 'directions'}") == 0
    assert call(style_mixing, *network, "--rows=0", "--cols=1", f"--outdir={tmp_path / 'mixed'}") == 0
    moved = f"--direction={tmp_path / 'directions' / 'directions.npz'}:0=2"
    again = [f"--network={found / 'network-tuned.pkl'}", f"--projected-w={found / 'projected_w.npz'}"]
    for strength, args in (("still", []), ("moved", [moved])):
        assert call(gen_images, *again, *args, f"--outdir={tmp_path / strength}") == 0
    still, other = (pixels(tmp_path / strength / "proj00.png") for strength in ("still", "moved"))
    assert np.abs(still - pixels(found / "tuned.png")).max() <= 2 and not np.array_equal(still, other)


def test_truncation_of_what_was_found(tmp_path, networks):
    G = tiny.generator2()
    np.savez(tmp_path / "w.npz", w=np.random.default_rng(0).normal(size=[1, G.num_ws, G.w_dim]).astype(np.float32))
    args = [f"--network={networks['style']}", f"--projected-w={tmp_path / 'w.npz'}"]
    assert call(gen_images, *args, "--trunc=0", f"--outdir={tmp_path / 'a'}") == 0
    assert (
        call(gen_images, f"--network={networks['style']}", "--seeds=0", "--trunc=0", f"--outdir={tmp_path / 'b'}") == 0
    )
    assert np.abs(pixels(tmp_path / "a" / "proj00.png") - pixels(tmp_path / "b" / "seed0000.png")).max() <= 1


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=int)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--network=dcgan", "--target=PHOTOS", "--space=w"], "--space=w: this network has no w; use --space=z"),
        (["--network=style", "--target=PHOTOS", "--space=source"], "--space=source: the network was trained on noise"),
        (["--network=spider", "--target=PHOTOS", "--source-images=PHOTOS"], "--source-images: go with --space=source"),
        (["--network=conditional", "--target=PHOTOS"], "--class is needed"),
        (["--network=conditional", "--target=PHOTOS", "--class=any", "--space=z"], "told; give one --class"),
        (
            ["--network=style", "--target=PHOTOS", "--vgg-weights=nowhere.pt"],
            "--vgg-weights and --lpips-weights go together",
        ),
        (["--network=style", "--target=PHOTOS", "--vgg-weights=nowhere.pt", "--lpips-weights=x.pt"], "nowhere.pt"),
        (["--network=three", "--target=PHOTOS", "--noise-maps=1"], "--noise-maps=1: there is no pixel noise"),
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
