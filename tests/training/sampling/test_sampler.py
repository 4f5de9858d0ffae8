"""What a seed decides, and the loops between seeds."""

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from dnnlib.files import prepare_folder
from tests.helpers.tiny import SIDE, Z_DIM, generator2, generator3, save, write_images
from training.data.grids import rgb_pixels
from training.sampling.sampler import (
    Latents,
    Look,
    Sampler,
    choose_seeds,
    default_batch,
    label,
    match_channels,
    move_image,
    open_sampler,
    stages_of,
)
from training.sampling.walks import Loop, StageWalk, Walk, arrange_seeds, root_mean_square
from training.sources.cascade import Cascade
from training.sources.source import Draw, GaussianSource, ImageSource

FLATTEN = {"kind": "flatten", "norm": "standardize"}
CLOSE = dict(rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> ImageSource:
    return ImageSource.open(write_images(tmp_path_factory.mktemp("source"), num=6))


@pytest.fixture(scope="module")
def gaussian() -> Sampler:
    return Sampler(generator2(), GaussianSource(Z_DIM))


@pytest.fixture(scope="module")
def spider(source) -> Sampler:
    return Sampler(fitted(generator2(encoder={**FLATTEN, "noise_std": 0.5}), source), source)


@pytest.fixture(scope="module")
def cascade() -> Sampler:
    """From noise, with source noise in the second stage."""
    second = generator2(seed=1, channels=4, encoder={**FLATTEN, "norm": "none", "noise_std": 0.5})
    return Sampler(Cascade.chain(generator2(), second), GaussianSource(Z_DIM))


def fitted(G, source):
    G.mapping.encoder.fit(source.all_batches())
    return G


# Seeds.


def test_gaussian_latent_is_the_one_that_users_know(gaussian, cascade):
    expected = np.concatenate([np.random.RandomState(seed).randn(1, Z_DIM) for seed in (3, 85)])
    for sampler in (gaussian, cascade):
        np.testing.assert_array_equal(sampler.latents([3, 85]).z.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("name", ["gaussian", "spider", "cascade"])
@pytest.mark.parametrize("noise_mode", ["const", "random"])
def test_image_of_a_seed_stands_alone(request, name, noise_mode):
    sampler, look = request.getfixturevalue(name), Look(truncation_psi=0.7, noise_mode=noise_mode)
    together = sampler.images([5, 0, 7, 2], look)
    torch.manual_seed(99)  # the global stream is of no consequence
    alone = torch.cat([sampler.images([seed], look) for seed in (5, 0, 7, 2)])
    torch.testing.assert_close(together, alone, **CLOSE)
    assert not torch.allclose(alone[0], alone[1], atol=0.01)
    assert torch.equal(sampler.images([7], look), sampler.images([7], look))


def test_noise_modes_differ(gaussian):
    const, random, none = (gaussian.images([1], Look(noise_mode=mode)) for mode in ("const", "random", "none"))
    assert not torch.allclose(const, random, atol=0.01)
    assert not torch.allclose(const, none, atol=0.01)


def test_images_are_those_of_the_generator(gaussian):
    expected = gaussian.network(gaussian.latents([4]).z, None, truncation_psi=0.5, noise_mode="none")
    actual = gaussian.images([4], Look(truncation_psi=0.5, noise_mode="none"))
    torch.testing.assert_close(actual, expected)


def test_source_noise_comes_from_the_seed(spider):
    encoder = spider.network.mapping.encoder
    clean = encoder(torch.cat([spider.pictures_before([seed])[0] for seed in range(40)]))
    noise = spider.latents(list(range(40))).z - clean
    assert noise.std().item() == pytest.approx(encoder.noise_std, rel=0.1)


def test_source_noise_of_the_last_stage(cascade):
    noise = cascade.latents(list(range(40))).noise
    assert noise.shape == (40, Z_DIM)
    assert noise.std().item() == pytest.approx(0.5, rel=0.1)
    latents = cascade.latents([3])
    silent = cascade.ws(Latents(latents.z), Look())
    assert torch.equal(silent, cascade.network.mapping(latents.z, None))
    assert not torch.allclose(cascade.ws(latents, Look()), silent)


def test_pictures_before(gaussian, spider, cascade, source):
    assert not gaussian.has_pictures and gaussian.pictures_before([0]) == []
    (shown,) = spider.pictures_before([3])
    assert any(torch.equal(shown[0], image) for image in next(source.all_batches()))
    (stage_one,) = cascade.pictures_before([3])
    expected = cascade.network.first(cascade.latents([3]).z, None, noise_mode="const").clamp(-1, 1)
    torch.testing.assert_close(stage_one, expected)


def test_conditional():
    sampler = Sampler(generator2(c_dim=3), GaussianSource(Z_DIM))
    first, last = (sampler.images([0, 1], Look(class_idx=index)) for index in (0, 2))
    assert not torch.allclose(first, last, atol=0.01)
    assert label(0, 5) is None
    assert label(3, 2).tolist() == [[0, 0, 1]]
    with pytest.raises(UserError, match=r"--class is needed.* 0 to 2"):
        label(3, None)
    with pytest.raises(UserError, match=r"--class=3.* 0 to 2"):
        label(3, 3)


# Where the images come from.


def test_chosen_images(tmp_path, spider, source):
    path = save(tmp_path / "spider.pkl", spider.network, source)
    sampler = open_sampler(str(path), str(write_images(tmp_path / "other", num=4, channels=1, seed=5)), "cpu")
    assert choose_seeds(sampler, None) == [0, 1, 2, 3]
    assert choose_seeds(sampler, [2]) == [2]
    with pytest.raises(UserError, match=r"--seeds.*image 4.*0 to 3"):
        choose_seeds(sampler, [1, 4])
    (shown,) = sampler.pictures_before([2, 0])
    assert shown.shape == (2, 3, SIDE, SIDE)  # as many channels as the network was trained with
    expected = ImageSource.open(tmp_path / "other").materialize(Draw(index=torch.tensor([2, 0])))
    torch.testing.assert_close(shown, expected.expand_as(shown))


def test_snapshot_carries_its_source(tmp_path, spider, source):
    path = save(tmp_path / "spider.pkl", spider.network, source)
    torch.testing.assert_close(
        open_sampler(str(path), device="cpu").images([3], Look()), spider.images([3], Look()), **CLOSE
    )


def test_chosen_images_enter_a_cascade_where_images_go(tmp_path, cascade):
    path = save(tmp_path / "cascade.pkl", cascade.network, GaussianSource(Z_DIM))
    sampler = open_sampler(str(path), str(write_images(tmp_path / "images", num=3)), "cpu")
    assert len(sampler.stages) == 1 and sampler.picks_images
    assert sampler.images([1], Look()).shape == (1, 4, SIDE, SIDE)


def test_three_stages(source):
    chain = Cascade.chain(fitted(generator2(encoder=FLATTEN), source), generator2(seed=1, encoder=FLATTEN))
    chain = Cascade.chain(chain, generator2(seed=2, encoder=FLATTEN))
    sampler = Sampler(chain, source)
    assert stages_of(chain) == sampler.stages and len(sampler.stages) == 3
    assert len(sampler.pictures_before([0, 1])) == 3
    torch.testing.assert_close(
        sampler.images([0], Look()), chain(sampler.latents([0]).z, None, noise_mode="const"), **CLOSE
    )


def test_unknown_network_source_images_and_device(tmp_path, gaussian, source):
    with pytest.raises(UserError, match=r"--network: .*nowhere\.pkl: no such file"):
        open_sampler("nowhere.pkl")
    path = save(tmp_path / "gaussian.pkl", gaussian.network, None)
    with pytest.raises(UserError, match=r"--source-images: .*trained on noise"):
        open_sampler(str(path), str(write_images(tmp_path / "images", num=1)))
    path = save(tmp_path / "no-source.pkl", generator2(encoder=FLATTEN), None)
    with pytest.raises(UserError, match=r"--source-images: .*how many channels"):
        open_sampler(str(path), str(tmp_path / "images"))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"--device=cuda"):
            open_sampler(str(path), device="cuda")
    with pytest.raises(UserError, match=r"--seeds is needed"):
        choose_seeds(gaussian, None)
    empty = ImageSource("gone.zip", 0, [3, SIDE, SIDE], "")
    path = save(tmp_path / "empty.pkl", generator2(encoder=FLATTEN), empty)
    with pytest.raises(UserError, match=r"no source images.*--source-images"):
        open_sampler(str(path))


@pytest.mark.parametrize("before", [1, 3, 4])
@pytest.mark.parametrize("after", [1, 3, 4])
def test_match_channels(before, after):
    white = torch.full([2, before, 3, 5], 255, dtype=torch.uint8)
    matched = match_channels(white, after)
    assert matched.shape == (2, after, 3, 5) and matched.dtype == torch.uint8
    assert torch.all(matched == 255)


def test_transparent_shows_white():
    clear = torch.zeros([1, 4, 2, 2], dtype=torch.uint8)
    assert torch.all(match_channels(clear, 3) == 255)


# Moving the image.


@pytest.mark.parametrize("radial", [False, True])
@pytest.mark.parametrize(("x", "y"), [(4, 0), (-2, 3)])
def test_translation_by_whole_pixels(radial, x, y):
    sampler = Sampler(generator3(radial=radial), GaussianSource(Z_DIM))
    still = sampler.images([0, 1], Look())
    move_image(sampler, (x / SIDE, y / SIDE), 0)
    moved = sampler.images([0, 1], Look())
    shifted = torch.roll(still, (y, x), dims=(2, 3))
    inside = slice(5, -5)
    torch.testing.assert_close(moved[:, :, inside, inside], shifted[:, :, inside, inside], rtol=0, atol=1e-3)
    assert not torch.allclose(moved, still, atol=0.05)


def test_rotation_is_against_the_clock_and_comes_first():
    sampler = Sampler(generator3(radial=True), GaussianSource(Z_DIM))
    turned = torch.rot90(sampler.images([0], Look()), 1, dims=(2, 3))
    move_image(sampler, (0, 0), 90)
    torch.testing.assert_close(sampler.images([0], Look()), turned, rtol=0, atol=1e-3)
    move_image(sampler, (0.25, 0), 90)
    torch.testing.assert_close(sampler.images([0], Look())[..., 4:], turned[..., :-4], rtol=0, atol=1e-3)


def test_only_stylegan3_moves(gaussian, cascade):
    for sampler in (gaussian, cascade):
        with pytest.raises(UserError, match=r"--translate"):
            move_image(sampler, (0.1, 0), 0)


# Loops.


@pytest.mark.parametrize("num_keys", [1, 2, 3, 7])
def test_loop_passes_through_its_keys_and_closes(num_keys):
    keys = np.random.default_rng(0).normal(size=(2, num_keys, 5))
    loop = Loop(keys)
    for points in (loop.at, loop.rescaled_at):
        np.testing.assert_allclose(points(np.arange(num_keys)), keys.transpose(1, 0, 2), atol=1e-9)
        np.testing.assert_allclose(points(np.array([num_keys - 1e-9])), keys[None, :, 0], atol=1e-6)
    step = 1e-4  # the same direction before and after the seam
    before, seam, after = loop.at(np.array([num_keys - step, 0, step]))
    np.testing.assert_allclose(seam - before, after - seam, atol=1e-6)


def test_rescaled_loop_keeps_its_magnitude():
    keys = np.random.default_rng(0).normal(size=(3, 4, 50))
    loop, times = Loop(keys), np.linspace(0, 4, 41)
    magnitudes = root_mean_square(loop.rescaled_at(times))
    limits = root_mean_square(keys)
    assert np.all(magnitudes >= limits.min() - 1e-9) and np.all(magnitudes <= limits.max() + 1e-9)
    assert root_mean_square(loop.at(times)).min() < limits.min()


@pytest.mark.parametrize("batch", [1, 4, 5])
@pytest.mark.parametrize("name", ["gaussian", "spider", "cascade"])
def test_walk_shows_the_seeds(request, name, batch):
    sampler, look = request.getfixturevalue(name), Look(truncation_psi=0.5)
    seeds = np.array([[0, 1, 2], [3, 4, 5]])
    pictures = np.stack(list(Walk(sampler, seeds, look, batch).pictures(np.arange(3.0))))
    assert pictures.shape == (3, 2, 1, SIDE, SIDE, 3)
    expected = rgb_pixels(sampler.images(seeds.T.flatten().tolist(), look)).reshape(pictures.shape)
    assert np.abs(pictures.astype(int) - expected).max() <= 1


def test_stage_walk_shows_every_stage(cascade):
    seeds = np.array([[0, 1, 2], [3, 4, 5]])
    pictures = np.stack(list(StageWalk(cascade, seeds, Look(), batch=4).pictures(np.arange(6) / 2)))
    assert pictures.shape == (6, 2, 2, SIDE, SIDE, 3)
    flat = seeds.T.flatten().tolist()
    expected = np.stack(
        [rgb_pixels(cascade.pictures_before(flat)[0]), rgb_pixels(cascade.images(flat, Look()))], axis=1
    )
    assert np.abs(pictures[::2].astype(int) - expected.reshape(3, *pictures.shape[1:])).max() <= 1


def test_arrange_seeds():
    assert arrange_seeds([0, 1, 2, 3, 4, 5], 2).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrange_seeds([0, 1, 2], 2, num_keyframes=2).tolist() == [[0, 1], [2, 0]]
    assert arrange_seeds([0, 1, 2], 1, num_keyframes=2).tolist() == [[0, 1]]
    shuffled = arrange_seeds(list(range(8)), 2, shuffle_seed=1)
    expected = np.arange(8)
    np.random.RandomState(1).shuffle(expected)
    assert shuffled.flatten().tolist() == expected.tolist()
    for too_few in ([0, 1], [0, 1, 2, 3, 4]):
        with pytest.raises(UserError, match=r"--seeds.*4 cells of --grid"):
            arrange_seeds(too_few, 4)


# Odds and ends.


def test_default_batch():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [default_batch(side, cpu) for side in (16, 64, 256)] == [16, 4, 1]
    assert [default_batch(side, gpu) for side in (64, 256, 1024)] == [16, 8, 1]
    assert default_batch([32, 64], cpu) == 8


def test_prepare_folder(tmp_path):
    prepare_folder(tmp_path / "a" / "b", "--outdir")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--outdir: .*cannot be written"):
        prepare_folder(tmp_path / "file" / "c", "--outdir")
