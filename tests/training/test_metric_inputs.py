"""What metrics look at: images as they lie, and images of a generator that do not depend on the batch."""

import numpy as np
import torch
from PIL import Image

from tests.tiny import generator2
from tests.training.test_source import write_images
from training.metric_inputs import GeneratedImages, ImageSet, MirroredImages, NoiseImages
from training.source import GaussianSource, LatentFeed


def test_images_as_they_are(tmp_path):
    for name, mode, size in (("a.png", "L", (8, 6)), ("b.png", "RGBA", (5, 5)), ("c.png", "RGB", (7, 9))):
        Image.new(mode, size).save(tmp_path / name)
    Image.fromarray(np.full([4, 4], 40_000, dtype=np.uint16)).save(tmp_path / "d.png")
    (tmp_path / "e.png").write_bytes(b"no image")
    images = ImageSet(tmp_path)
    found = images.read(range(5))
    assert [tuple(image.shape) for image in found[:4]] == [(1, 6, 8), (4, 5, 5), (3, 9, 7), (1, 4, 4)]
    assert int(found[3][0, 0, 0]) == 40_000 >> 8
    assert found[4].startswith("e.png: ")


def test_the_key_follows_the_content(tmp_path):
    first = ImageSet(write_images(tmp_path / "a", size=(8, 8), count=3))
    same = ImageSet(write_images(tmp_path / "b", size=(8, 8), count=3))
    other = ImageSet(write_images(tmp_path / "c", size=(8, 8), count=3, seed=1))
    assert first.key == same.key != other.key


def test_mirrored_images_come_after_the_others(tmp_path):
    images = ImageSet(write_images(tmp_path / "a", size=(8, 8), count=3))
    both = MirroredImages(images)
    assert len(both) == 6
    assert torch.equal(both.read([4])[0], images.read([1])[0].flip(2))
    assert both.key != images.key


def test_noise_is_the_same_every_time():
    noise = NoiseImages(10)
    assert torch.equal(noise.read([3])[0], noise.read([1, 3])[1])
    assert 100 < noise.read([0])[0].float().mean() < 155


def test_generated_images_do_not_depend_on_the_batch():
    G = generator2()  # its pixel noise counts
    images = GeneratedImages(G, LatentFeed(GaussianSource(G.z_dim), G.mapping.encoder), 20)
    together = images.read([3, 4, 5])
    alone = images.read([4])[0]
    assert (together[1].int() - alone.int()).abs().max() <= 1
    assert (together[0].int() - alone.int()).abs().float().mean() > 1
    other_seed = GeneratedImages(G, images.feed, 20, seed=1).read([4])[0]
    assert not torch.equal(other_seed, alone)


def test_labels_come_from_those_of_the_data():
    G = generator2(c_dim=3)
    labels = torch.eye(3)[[0, 0, 2]]
    images = GeneratedImages(G, LatentFeed(GaussianSource(G.z_dim), G.mapping.encoder), 20, labels=labels)
    _, c = images.latents(range(40))
    counts = c.sum(dim=0)
    assert counts[1] == 0 and counts[0] > counts[2] > 0
