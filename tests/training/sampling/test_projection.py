"""The projector: pictures that a network made are found again, whatever the network; files of latents."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.errors import UserError
from metrics.detectors import open_tiny
from tests.helpers.tiny import Z_DIM, generator2, generator3
from training import networks_dcgan
from training.sampling.latent_spaces import open_space
from training.sampling.projection import Projector, Search, correlation, load_latents, pace, save_latents
from training.sampling.sampler import Look, Sampler
from training.sampling.targets import cropped_middle, fitted, read_targets
from training.sources.source import GaussianSource


def dcgan():
    """With weights that make pictures of different latents differ."""
    torch.manual_seed(0)
    G = networks_dcgan.Generator(Z_DIM, 0, 16, 3, channel_base=128, channel_max=16)
    for parameter in G.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return G


def projected(G, space, steps=150, pixel_weight=100.0, **known):
    """By pixels mostly: what random networks make says nothing to a perceptual network."""
    sampler = Sampler(G, GaussianSource(G.z_dim))
    targets = sampler.images([5, 6], Look())
    search = Search(steps=steps, pixel_weight=pixel_weight, **known)
    projector = Projector(sampler, open_tiny("cpu"), open_space(space, sampler, Look(), search.seed), search)
    *_, found = projector.run(targets, keep_every=50)
    return projector, projector.finished(found, targets), targets


@pytest.mark.parametrize(
    ("make", "space"),
    [(generator2, "w"), (generator2, "w+"), (generator2, "z"), (generator3, "w"), (generator3, "w+"), (dcgan, "z")],
)
def test_a_picture_of_the_network_is_found_again(make, space):
    G = make()
    projector, found, targets = projected(G, space)
    start = Projector(projector.sampler, projector.eye, projector.space, Search(steps=1))
    (mean,) = start.run(targets)
    assert (found.psnr(targets) > mean.psnr(targets) + 0.4).all()
    assert (found.psnr(targets) - mean.psnr(targets)).mean() > 1.2
    assert found.ws.shape == (2, G.num_ws, G.w_dim)
    assert found.points.shape[1:] == {"z": (Z_DIM,), "w": (1, G.w_dim), "w+": (G.num_ws, G.w_dim)}[space]
    assert len(found.frames) == 3 and found.frames[0].shape == targets.shape
    again = projected(make(), space)[1]
    assert torch.equal(again.points, found.points)  # the same seed, the same result
    assert not torch.equal(
        projected(make(), space, steps=20, seed=1)[1].points, projected(make(), space, steps=20)[1].points
    )


def test_noise_maps_stay_noise():
    _, found, _ = projected(generator2(), "w", steps=30)
    assert found.noise_maps and all(name.endswith("noise_const") for name in found.noise_maps)
    for maps in found.noise_maps.values():
        assert torch.allclose(maps.mean(dim=[1, 2, 3]), torch.zeros(2), atol=1e-5)
        assert torch.allclose(maps.square().mean(dim=[1, 2, 3]), torch.ones(2), atol=1e-3)
    assert projected(generator2(), "w", steps=3, has_noise_maps=False)[1].noise_maps == {}


def test_correlation_sees_signal_at_every_scale():
    torch.manual_seed(0)
    noise = torch.randn(1, 1, 64, 64)
    coarse = torch.nn.functional.interpolate(torch.randn(1, 1, 16, 16), scale_factor=4)
    assert correlation(noise) < 0.1 < 0.3 < correlation(coarse)
    pattern = torch.nn.functional.interpolate(torch.randn(1, 1, 8, 8), scale_factor=8)
    assert correlation(noise + 0.3 * pattern) > 0.5  # which is 8 % of the variance


def test_the_pace_rises_stays_and_falls():
    values = [pace(t, 0.05, 0.25) for t in (0, 0.025, 0.05, 0.5, 0.75, 0.875, 1)]
    assert values == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0])


@pytest.mark.parametrize("space", ["w", "z"])
def test_latents_travel_in_files(tmp_path, space):
    projector, found, _ = projected(generator2(), space, steps=5)
    save_latents(tmp_path / "found.npz", found, 1, space)
    ws, maps = load_latents(str(tmp_path / "found.npz"), projector.G)
    image = torch.func.functional_call(projector.G.synthesis, maps, (ws,), {"noise_mode": "const"})
    assert torch.allclose(image, found.images[1:2], atol=1e-5)


def test_files_of_other_programs(tmp_path):
    G = generator2()
    w = np.random.default_rng(0).normal(size=[1, G.num_ws, G.w_dim]).astype(np.float32)
    np.savez(tmp_path / "projected_w.npz", w=w)
    np.savez(tmp_path / "flat.npz", w=w[0])
    np.savez(tmp_path / "more.npz", w=w, name="photo.png", steps=5)
    for name in ("projected_w.npz", "flat.npz", "more.npz"):
        ws, maps = load_latents(str(tmp_path / name), G)
        assert np.array_equal(ws.numpy(), w) and maps == {}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"w": np.zeros([1, 3, 5])}, r"w has shape \[1, 3, 5\], and this network takes \[n, "),
        ({"z": np.zeros([1, 3])}, r"z has shape \[1, 3\], and this network takes \[n, "),
        ({"x": np.zeros(3)}, "holds neither w nor z"),
        ({"w": np.zeros([1, 6, 16]), "noise.b9": np.zeros([2, 2])}, r"its noise map b9 \[2, 2\] is not one"),
        ({"w": np.zeros([1, 6, 16]), "noise.b4.conv1.resample_filter": np.zeros([4, 4])}, "is not one of this"),
        ({"w": np.zeros([0, 6, 16])}, r"w has shape \[0, 6, 16\]"),
        ({"w": np.full([1, 6, 16], np.nan)}, "its w holds NaN or infinite"),
        ({"w": np.array(["a"], dtype=object)}, r"cannot be read \(it holds something else\)"),
        (b"text", r"cannot be read \(it holds something else\)"),
    ],
)
def test_other_files_are_one_line(tmp_path, arrays, words):
    path = tmp_path / "w.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    else:
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=words):
        load_latents(str(path), generator2())


def test_targets_of_any_size_and_kind(tmp_path):
    G = generator2()
    side = G.img_resolution
    for name, mode, size in (("a", "L", (40, 30)), ("b", "RGBA", (7, 90)), ("c", "RGB", (side, side))):
        Image.new(mode, size, 90 if mode == "L" else tuple([90] * len(mode))).save(tmp_path / f"{name}.png")
    targets = read_targets(str(tmp_path), G)
    assert [target.name for target in targets] == ["a", "b", "c"]
    assert all(target.image.shape == (3, side, side) for target in targets)
    assert targets[0].changes == f"cropped to 30x30, resized to {side}x{side}, RGB instead of gray"
    assert targets[2].changes == ""
    (alone,) = read_targets(str(tmp_path / "c.png"), G)
    assert torch.equal(alone.image, targets[2].image)


def test_the_middle_is_kept():
    image = torch.arange(5 * 8).reshape(1, 5, 8)
    assert torch.equal(cropped_middle(image, 1.0), image[:, :, 1:6])
    assert torch.equal(cropped_middle(image, 2.0), image[:, :, 3:5])


def test_sixteen_bits_are_eight_here():
    G = generator2()
    pixels = np.full([4, 4, 1], 65535, dtype=np.uint16)
    assert torch.equal(fitted("white", pixels, G).image, torch.ones(3, G.img_resolution, G.img_resolution))


def test_names_that_are_taken_are_not_given_again(tmp_path):
    G = generator2()
    for name in ("x", "s/x", "x-2", "t/x"):
        (tmp_path / f"{name}.png").parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    names = [target.name for target in read_targets(str(tmp_path), G)]
    assert len(set(names)) == 4 and {"x", "x-2"} < set(names)


def test_a_decompression_bomb_is_one_line(tmp_path):
    header = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"bomb\.png cannot be read"):
        read_targets(str(tmp_path / "bomb.png"), generator2())


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
