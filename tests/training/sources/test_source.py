"""Sources, what travels of them in a snapshot, and cascades."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.errors import UserError
from tests.helpers.sources import gen, generator, save, write_images
from torch_utils import persistence
from training.checkpoints import snapshot
from training.sources.cascade import Cascade, stage_images, uniform_classes
from training.sources.encoders import build_encoder
from training.sources.feed import LatentFeed
from training.sources.network_source import NetworkSource
from training.sources.source import Draw, GaussianSource, ImageSource


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(20, 30), (64, 64), (130, 100)])
def test_images_of_any_size_and_channel_count(tmp_path, mode, size):
    source = ImageSource.open(write_images(tmp_path / "a", mode=mode, size=size))
    x = source.sample(5, gen())
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    scale = min(1, 64 / max(size))
    assert x.shape == (5, channels, round(size[0] * scale), round(size[1] * scale))
    assert x.dtype == torch.float32
    assert -1 <= x.min() < -0.2
    assert 0.2 < x.max() <= 1


def test_pixels_are_kept(tmp_path):
    folder = write_images(tmp_path / "a", count=1, size=(8, 8))
    x = ImageSource.open(folder).sample(1, gen())
    expected = torch.from_numpy(np.asarray(Image.open(folder / "000.png")).transpose(2, 0, 1).copy()) / 127.5 - 1
    assert torch.allclose(x[0], expected)


def test_mixed_sizes_and_modes_meet(tmp_path):
    write_images(tmp_path / "a", count=3, size=(20, 30))
    write_images(tmp_path / "a" / "b", count=2, size=(16, 16), mode="L")
    assert ImageSource.open(tmp_path / "a").sample(4, gen()).shape == (4, 3, 30, 30)


def test_a_sample_depends_on_the_generator_only(tmp_path):
    source = ImageSource.open(write_images(tmp_path / "a"))
    assert torch.equal(source.sample(6, gen(1)), source.sample(6, gen(1)))
    assert not torch.equal(source.sample(6, gen(1)), source.sample(6, gen(2)))


def test_the_fingerprint_is_of_the_contents(tmp_path):
    one = ImageSource.open(write_images(tmp_path / "a", seed=1)).describe()
    moved = ImageSource.open(write_images(tmp_path / "b", seed=1)).describe()
    other = ImageSource.open(write_images(tmp_path / "c", seed=2)).describe()
    assert one["fingerprint"] == moved["fingerprint"] != other["fingerprint"]
    assert one["kind"] == "images"
    assert one["num_images"] == 12


def test_a_stored_subset_travels(tmp_path, monkeypatch):
    monkeypatch.setattr("training.sources.source.STORED_IMAGES", 5)
    source = ImageSource.open(write_images(tmp_path / "a"))
    twin = persistence.load(io.BytesIO(pickle.dumps(source)))
    assert len(twin.images) == 5
    places = [next(i for i, image in enumerate(source.images) if torch.equal(image, kept)) for kept in twin.images]
    edges = [0, 2, 4, 7, 9, 12]  # one of each fifth, whatever takes turns in the files
    assert all(first <= place < last for first, place, last in zip(edges[:-1], places, edges[1:], strict=True))
    assert twin.sample(3, gen()).shape == (3, 3, 20, 30)
    assert twin.describe() == {**source.describe(), "images_used": 5}


@pytest.mark.parametrize("what", ["missing.zip", "empty"])
def test_sources_that_are_not_there(tmp_path, what):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=what.replace(".", r"\.")):
        ImageSource.open(tmp_path / what)


def test_the_table_equals_encoding_each_image(tmp_path):
    source = ImageSource.open(write_images(tmp_path / "a"))
    encoder = build_encoder("flatten", 64)
    feed = LatentFeed(source, encoder)
    feed.fit()
    draw = feed.draw(7, gen())
    assert torch.allclose(feed.latents(draw), encoder(feed.images(draw)), atol=1e-6)


def test_noise_is_added_to_z_and_only_there(tmp_path):
    source = ImageSource.open(write_images(tmp_path / "a"))
    quiet, noisy = build_encoder("flatten", 64), build_encoder("flatten", 64, noise_std=0.5)
    for encoder in (quiet, noisy):
        encoder.fit(source.all_batches())
    feed = LatentFeed(source, noisy)
    draw = feed.draw(2000, gen())
    difference = feed.latents(draw) - LatentFeed(source, quiet).latents(Draw(index=draw.index))
    assert difference.std() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(feed.images(draw), source.materialize(draw))
    x = feed.images(draw)[:1]
    assert torch.equal(noisy(x), noisy(x))


def test_a_network_source_is_its_generator(tmp_path):
    G = generator()
    source = NetworkSource(G, GaussianSource(16), "somewhere", "abc")
    draw = source.draw(3, gen())
    assert torch.equal(source.materialize(draw), G(draw.stage.z, None, noise_mode="const").clamp(-1, 1))
    assert torch.equal(source.sample(3, gen(1)), source.sample(3, gen(1)))
    assert source.describe()["source"]["kind"] == "gaussian"
    encoder = build_encoder("flatten", 16)
    LatentFeed(source, encoder).fit()
    assert encoder.mean.abs().sum() > 0


@pytest.mark.parametrize("root", ["gaussian", "images"])
def test_a_cascade_of_three_stages_is_self_contained(tmp_path, root):
    """Stage by stage through files, as training does; the earlier files are deleted before the last is used."""
    flatten = {"kind": "flatten", "norm": "standardize", "noise_std": 0.0}
    if root == "gaussian":
        first, source = generator(seed=1), GaussianSource(16)
    else:
        first, source = generator(flatten, seed=1), ImageSource.open(write_images(tmp_path / "a"))
        LatentFeed(source, first.mapping.encoder).fit()
    path = save(tmp_path / "stage1.pkl", first, source)
    for stage in (2, 3):
        stage_source = snapshot.open_network_source(str(path))
        G = generator(flatten, seed=stage)
        LatentFeed(stage_source, G.mapping.encoder).fit()
        draw = stage_source.draw(4, gen())
        expected = G(stage_source.materialize(draw), None, noise_mode="const")
        contents_path = save(tmp_path / f"stage{stage}.pkl", Cascade.chain(stage_source.network, G), stage_source.root)
        path.unlink()
        path = contents_path
    contents = snapshot.load_snapshot(path)
    feed = snapshot.feed_of(contents)
    z = feed.latents(feed.draw(4, gen()))
    assert torch.allclose(contents["G_ema"](z, None, noise_mode="const"), expected, atol=1e-5)
    assert len(contents["G_ema"].stages(z)) == 2
    assert contents["G_ema"](torch.randn(2, 16), None).shape == (2, 3, 16, 16)  # plain noise works too


def test_each_stage_has_noise_of_its_own(tmp_path):
    """Latents of different sizes, noise on both."""
    images = ImageSource.open(write_images(tmp_path / "a"))
    first = generator({"kind": "flatten", "noise_std": 0.5})
    stage = NetworkSource(first, images, "somewhere", "abc")
    quiet, noisy = build_encoder("flatten", 36, norm="none"), build_encoder("flatten", 36, norm="none", noise_std=0.3)
    draw = LatentFeed(stage, noisy).draw(4, gen())
    assert draw.noise.shape == (4, 36)
    assert draw.stage.noise.shape == (4, 16)
    difference = LatentFeed(stage, noisy).latents(draw) - quiet(stage.materialize(draw))
    assert torch.allclose(difference, 0.3 * draw.noise, atol=1e-6)


def test_a_stage_draws_from_all_images_where_they_still_lie(tmp_path, monkeypatch):
    monkeypatch.setattr("training.sources.source.STORED_IMAGES", 5)
    folder = write_images(tmp_path / "a")
    path = save(tmp_path / "s.pkl", generator({"kind": "flatten"}), ImageSource.open(folder))
    assert len(snapshot.load_snapshot(path)["source"].images) == 5
    assert len(snapshot.open_network_source(str(path)).root.images) == 12
    write_images(folder, count=1, seed=7)  # other contents under the same name
    assert len(snapshot.open_network_source(str(path)).root.images) == 5


def test_mapping_and_synthesis_of_a_cascade_are_its_forward():
    cascade = Cascade.chain(generator(), generator({"kind": "flatten"}, seed=1))
    z = torch.randn(3, 16)
    ws = cascade.mapping(z, None, truncation_psi=0.7)
    assert ws.shape == (3, cascade.num_ws, cascade.w_dim)
    images = cascade.synthesis(ws, noise_mode="const")
    assert torch.equal(images, cascade(z, None, truncation_psi=0.7, noise_mode="const"))


def test_a_conditional_stage_draws_its_classes_evenly():
    z = torch.randn(6000, 4, generator=gen())
    counts = uniform_classes(z, 3).sum(dim=0)
    assert counts.sum() == 6000
    assert (counts / 2000 - 1).abs().max() < 0.1
    G = generator(c_dim=3)
    assert torch.equal(stage_images(G, z[:2, :1].repeat(1, 16)), stage_images(G, z[:2, :1].repeat(1, 16)))


def test_a_snapshot_is_recognised_by_its_contents(tmp_path):
    path = save(tmp_path / "renamed.bin", generator(), GaussianSource(16))
    assert snapshot.is_snapshot(str(path))
    assert not snapshot.is_snapshot(str(tmp_path))
    assert not snapshot.is_snapshot("images.zip")
    assert snapshot.is_snapshot("missing.pkl")


def test_a_pickle_without_a_generator_is_no_snapshot(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"x\.pkl: no snapshot of this project"):
        snapshot.load_snapshot(tmp_path / "x.pkl")
    with pytest.raises(UserError, match="no such file"):
        snapshot.load_snapshot(tmp_path / "y.pkl")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(tmp_path / "s.pkl", generator(), GaussianSource(16))
    before = path.read_bytes()
    monkeypatch.setattr("pickle.dump", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match="disk full"):
        save(path, generator(seed=1), GaussianSource(16))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.pkl"]
