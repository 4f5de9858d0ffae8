"""What metrics look at: images as they lie, and images of a generator that do not depend on the batch."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.errors import UserError
from metrics.detectors import open_detector
from metrics.feature_stats import compute_features
from tests.helpers.sources import write_images
from tests.helpers.tiny import generator2
from training.data.image_sets import ImageSet, MirroredImages, NoiseImages, name_apart
from training.sampling.generated_images import GeneratedImages, open_generated
from training.sources.feed import LatentFeed
from training.sources.source import GaussianSource, ImageSource


def test_images_as_they_are(tmp_path):
    for name, mode, size in (("a.png", "L", (8, 6)), ("b.png", "RGBA", (5, 5)), ("c.png", "RGB", (7, 9))):
        Image.new(mode, size).save(tmp_path / name)
    Image.fromarray(np.full([4, 4], 40_000, dtype=np.uint16)).save(tmp_path / "d.png")
    (tmp_path / "e.png").write_bytes(b"no image")
    images = ImageSet(tmp_path)
    found = images.read(range(5))
    assert found.places == [0, 1, 2, 3]
    assert [tuple(image.shape) for image in found.images] == [(1, 6, 8), (4, 5, 5), (3, 9, 7), (1, 4, 4)]
    assert int(found.images[3][0, 0, 0]) == 40_000 >> 8
    assert len(found.problems) == 1 and found.problems[0].startswith("e.png: ")


def test_the_key_follows_the_content(tmp_path):
    first = ImageSet(write_images(tmp_path / "a", size=(8, 8), count=3))
    same = ImageSet(write_images(tmp_path / "b", size=(8, 8), count=3))
    other = ImageSet(write_images(tmp_path / "c", size=(8, 8), count=3, seed=1))
    assert first.key == same.key != other.key


def test_mirrored_images_come_after_the_others(tmp_path):
    images = ImageSet(write_images(tmp_path / "a", size=(8, 8), count=3))
    both = MirroredImages(images)
    assert len(both) == 6
    assert torch.equal(both.read([4]).images[0], images.read([1]).images[0].flip(2))
    assert both.key != images.key


def test_noise_is_the_same_every_time():
    noise = NoiseImages(10)
    assert torch.equal(noise.read([3]).images[0], noise.read([1, 3]).images[1])
    assert 100 < noise.read([0]).images[0].float().mean() < 155


def test_generated_images_do_not_depend_on_the_batch():
    G = generator2()  # its pixel noise counts
    images = GeneratedImages(G, LatentFeed(GaussianSource(G.z_dim), G.mapping.encoder), 20)
    together = images.read([3, 4, 5]).images
    alone = images.read([4]).images[0]
    assert (together[1].int() - alone.int()).abs().max() <= 1
    assert (together[0].int() - alone.int()).abs().float().mean() > 1
    other_seed = GeneratedImages(G, images.feed, 20, seed=1).read([4]).images[0]
    assert not torch.equal(other_seed, alone)


def test_labels_come_from_those_of_the_data():
    G = generator2(c_dim=3)
    labels = torch.eye(3)[[0, 0, 2]]
    images = GeneratedImages(G, LatentFeed(GaussianSource(G.z_dim), G.mapping.encoder), 20, labels=labels)
    _, c = images.latents(range(40))
    counts = c.sum(dim=0)
    assert counts[1] == 0 and counts[0] > counts[2] > 0


def spider_snapshot(tmp_path, num_images):
    """Contents of a snapshot as a reader finds them: with three of the source's images."""
    folder = write_images(tmp_path / "source", size=(8, 8), count=num_images)
    source = ImageSource.open(folder)
    kept = ImageSource(source.path, source.num_images, source.image_shape, source.fingerprint)
    kept.images = source.images[:3].clone()
    G = generator2(encoder={"kind": "flatten", "norm": "none"})
    return {"G_ema": G, "source": kept}, source, folder


def test_generated_images_come_from_all_of_the_source_where_it_still_lies(tmp_path):
    """A thousand images that come again and again made the numbers of a snapshot worse than those of its training."""
    contents, source, _ = spider_snapshot(tmp_path, 20)
    images = open_generated(contents, "network.pkl", 50)
    assert torch.equal(images.feed.source.images, source.images)
    assert images.note is None and images.first(9).note is None


def test_a_source_that_is_gone_is_a_note(tmp_path):
    contents, _, folder = spider_snapshot(tmp_path, 20)
    (folder / "000.png").write_bytes(b"no image")
    for _ in range(2):  # changed, then gone
        images = open_generated(contents, "network.pkl", 50).first(9)
        assert len(images.feed.source.images) == 3
        assert "3 source images that the snapshot carries, not from all 20" in images.note
        shutil.rmtree(folder, ignore_errors=True)


def test_images_of_a_diverged_network_are_no_images():
    """As pixels NaN became a grey picture like any other, whose numbers looked fine."""
    G = generator2()
    next(G.synthesis.parameters()).fill_(float("nan"))
    images = GeneratedImages(G, LatentFeed(GaussianSource(G.z_dim), G.mapping.encoder), 20)
    assert images.read([3]).problems == ["number 3: NaN or infinite"]
    with pytest.raises(UserError, match=r"20 of 20 images .* has diverged, use an earlier snapshot"):
        compute_features(images, open_detector("tiny"))


def test_sets_of_one_name_are_named_by_their_paths(tmp_path):
    paths = [str(write_images(tmp_path / name, size=(8, 8), count=2)) for name in ("a/set", "b/set", "b/other")]
    images = {path: ImageSet(path) for path in paths}
    name_apart(images)
    assert [one.name for one in images.values()] == [*paths[:2], "other"]
