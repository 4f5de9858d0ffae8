"""How far the demo's generated digits are from the handwritten ones, snapshot by snapshot."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dnnlib.errors import UserError
from metrics.frechet_distance import Gaussian, fit_gaussian, frechet_distance, frechet_distance_of_features
from torch_utils import seeding
from training.checkpoints.snapshot import load_snapshot
from training.data.image_tensors import to_uint8
from training.sources.feed import LatentFeed
from training.sources.source import GaussianSource, ImageSource

NUM_COMPONENTS = 40
METRIC = f"fd[pixel-pca{NUM_COMPONENTS}]"
"""Named for what it is: a Fréchet distance on principal components of the target's pixels. It is no FID."""
NUM_HALVES = 10  # random divisions of the target in two that the floor is the mean of
BATCH = 256


class PixelSpace:
    """The feature space: pixels in [-1, 1], projected on the principal components of the target."""

    def __init__(self, target: np.ndarray):
        """target: uint8 `[N, h, w]`."""
        pixels = to_vectors(target)
        self.mean = pixels.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(pixels.T))
        self.components = vectors[:, : -NUM_COMPONENTS - 1 : -1]  # [d, 40], the largest first
        self.share_of_variance = float(values[-NUM_COMPONENTS:].sum() / values.sum())
        self.target = self.fit(target)

    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[n, h, w]` -> `[n, 40]`."""
        return (to_vectors(images) - self.mean) @ self.components

    def fit(self, images: np.ndarray) -> Gaussian:
        return fit_gaussian(self.features(images), "generated images")

    def distance(self, images: np.ndarray) -> float:
        """`fd[pixel-pca40]` from uint8 images `[n, h, w]` to the target."""
        return frechet_distance(self.fit(images), self.target)

    def floor(self, target: np.ndarray, seed: int = 0) -> float:
        """The distance between two halves of the target: what images cannot be told from it would still get."""
        rng = np.random.default_rng(seed)
        distances = []
        for _ in range(NUM_HALVES):
            first, second = np.array_split(self.features(target)[rng.permutation(len(target))], 2)
            distances.append(frechet_distance_of_features(first, second))
        return float(np.mean(distances))


def to_vectors(images: np.ndarray) -> np.ndarray:
    """uint8 `[n, h, w]` -> `[n, h * w]` in [-1, 1]."""
    return images.reshape(len(images), -1) / 127.5 - 1


@dataclass
class Snapshot:
    """What one snapshot generates."""

    kimg: float
    distance: float
    images: np.ndarray  # uint8 [n, h, w]
    source_index: np.ndarray | None
    """Which source image each of them was made from `[n]`; None for noise."""


def evaluate(path: Path, space: PixelSpace, num: int, source: ImageSource, seed: int) -> Snapshot:
    """Generate `num` images from a snapshot, from the same latents whichever snapshot it is, and measure them.

    source: all images of the source; a snapshot carries at most 1,000 of those that its generator was trained on.
    """
    contents = load_snapshot(path)
    G = contents["G_ema"]
    is_spider = not isinstance(contents["source"], GaussianSource)
    feed = LatentFeed(source if is_spider else contents["source"], G.mapping.encoder)
    draw = feed.draw(num, seeding.generator(seed, "demo"))
    images = generate(G, feed.latents(draw), seed)
    index = None if draw.index is None else draw.index.numpy()
    return Snapshot(contents["meta"]["cur_nimg"] / 1000, space.distance(images), images, index)


@torch.no_grad()
def generate(G: torch.nn.Module, z: torch.Tensor, seed: int) -> np.ndarray:
    """Grey images of latents `[n, z_dim]`, rounded to eight bits as they would be in files: uint8 `[n, h, w]`."""
    parts = []
    for number, part in enumerate(z.split(BATCH)):
        with seeding.batch_rows(seeding.Rows(len(part)), seed, "demo noise", number):
            images = G(part, torch.zeros([len(part), G.c_dim]), noise_mode="random")
        if not images.isfinite().all():  # eight bits cannot say so
            raise UserError("a trained generator makes images that are NaN or infinite; try another --seed")
        parts.append(to_uint8(images)[:, 0].numpy())
    return np.concatenate(parts)


def same_class_share(
    snapshot: Snapshot, source_classes: np.ndarray, target: np.ndarray, target_classes: np.ndarray
) -> float:
    """How many generated digits are the digit that they were made from, going by the nearest handwritten one."""
    assert snapshot.source_index is not None
    made, known = to_vectors(snapshot.images), to_vectors(target)
    squares = np.square(known).sum(axis=1) - 2 * made @ known.T  # [n, N], less |made|^2
    shown = target_classes[squares.argmin(axis=1)]
    return float((shown == source_classes[snapshot.source_index]).mean())
