"""Core-sets: batches that cover more than random ones of their size (Small-GAN, Sinha et al. 2020).

A batch is drawn `factor` times too large, and the greedy k-center subset is kept (Gonzalez 1985: at most twice the best
possible radius). `PriorCoreset` chooses among the latents of the generator, `TargetCoreset` among the real images. What a
batch holds stays a function of its position: every process chooses for the whole batch and takes its own rows.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from dnnlib.errors import naming
from metrics.detectors import open_detector
from metrics.feature_stats import compute_features
from torch_utils import distributed, seeding
from training.config.run_config import TrainingConfig
from training.data.image_sets import ImageSet, MirroredImages
from training.data.image_tensors import resize
from training.dataset import sample_order
from training.sources.feed import LatentFeed
from training.sources.network_source import NetworkSource
from training.sources.source import Draw, ImageSource
from training.sources.stage_cache import StageCache

PROJECTED_DIMS = 64  # of the detector's features
PROJECTION_ROWS = 1 << 16  # that are projected at a time
KEY_SIDE = 8  # pixels of the source images that are compared where the encoder is trained
KEPT_CHOICES = 16  # batches: more than a loader is ahead


class Coverage(NamedTuple):
    """Largest distance of a candidate to the nearest one that was chosen, and what a plain batch would have reached."""

    radius: float
    random_radius: float


def greedy_k_center(points: torch.Tensor, k: int) -> torch.Tensor:
    """Indices `[..., k]` of points `[..., N, d]`, in the order in which they are chosen; see `farthest_first`."""
    return farthest_first(points, k)[0]


@torch.no_grad()
def farthest_first(points: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Farthest-point traversal of `[..., N, d]`: indices int64 `[..., k]` and the radius `[...]` that they reach.

    Starts at the point nearest to the mean, so that the order of the points decides ties only: there, the lower index
    is chosen. Distances are Euclidean, in float32, by differences: those of equal points are 0. Needs 1 <= k <= N.
    """
    assert 1 <= k <= points.shape[-2]
    points = points.to(torch.float32)
    nearest = torch.full(points.shape[:-1], torch.inf, device=points.device)  # [..., N] squared, to what is chosen
    pick = squared_distances(points, points.mean(dim=-2, keepdim=True)).argmin(dim=-1, keepdim=True)  # [..., 1]
    picks = []
    for _ in range(k):
        picks.append(pick)
        centre = points.gather(-2, pick.unsqueeze(-1).expand(*pick.shape, points.shape[-1]))  # [..., 1, d]
        nearest = torch.minimum(nearest, squared_distances(points, centre))
        nearest.scatter_(-1, pick, -1.0)  # never again, not even among equal points
        pick = nearest.argmax(dim=-1, keepdim=True)
    return torch.cat(picks, dim=-1), nearest.amax(dim=-1).clamp(min=0).sqrt()


def squared_distances(points: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Of points `[..., N, d]` to one `[..., 1, d]`: `[..., N]`."""
    return (points - centre).square().sum(dim=-1)


def coverage_radius(points: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Largest distance of points `[..., N, d]` to the nearest of `[..., k, d]`: `[...]`."""
    # By differences, as those of the choice: of copies a matrix product would leave a radius above 0.
    distances = torch.cdist(points, chosen, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.amin(dim=-1).amax(dim=-1)


def choose_rows(points: torch.Tensor, k: int) -> tuple[torch.Tensor, list[Coverage]]:
    """Rows `[B, k]` of each of B sets of candidates `[B, N, d]`, ascending and on the CPU, and how well they cover it.

    In the order of the candidates, not of the choice, which runs from the outliers inwards: micro-batches, groups of
    the minibatch standard deviation and the half of path lengths are random parts of the batch. The first k candidates
    are what a plain batch is.
    """
    rows, radii = farthest_first(points, k)
    random_radii = coverage_radius(points, points[:, :k])
    coverage = [Coverage(*pair) for pair in zip(radii.tolist(), random_radii.tolist(), strict=True)]
    return rows.sort(dim=1).values.cpu(), coverage


class PriorCoreset:
    """Chooses among what the generator is fed."""

    def __init__(self, feed: LatentFeed | StageCache, factor: int):
        self.feed = feed
        self.factor = factor
        self.thumbnails = functools.cache(thumbnails)

    def choose(self, candidates: Sequence[Draw], n: int) -> tuple[list[Draw], list[Coverage]]:
        """n of each of several draws, which all have as many rows; one after another would launch as many kernels each."""
        points = torch.stack([self.keys(self.feed, draw) for draw in candidates])  # [B, N, d]
        rows, coverage = choose_rows(points, n)
        chosen = [
            {name: value[index] for name, value in draw.items()} for draw, index in zip(candidates, rows, strict=True)
        ]
        return chosen, coverage

    @torch.no_grad()
    def keys(self, feed: LatentFeed | StageCache, draw: Draw) -> torch.Tensor:
        """What distances are measured between, `[N, d]` on the device: z as the generator gets it, with two exceptions.

        Of a trained network as source it is the z of that network: images of all candidates would cost `factor` times
        what the stage costs, unless a pool holds them. Under a trained encoder it is the source images, 8x8: z moves while
        a step goes on, and what is chosen must not depend on which of its phases a run was stopped after.
        """
        if isinstance(feed, StageCache):
            values = feed.values(draw)  # z, or under a trained encoder images
            return feed.latents(draw) if values.ndim == 2 else small(values)
        if isinstance(feed.source, NetworkSource):
            return self.keys(feed.source.feed, feed.source.own_draw(draw))
        if isinstance(feed.source, ImageSource) and feed.encoder.is_trainable:
            return self.thumbnails(feed.source)[draw["index"].to(feed.source.device)]
        return feed.latents(draw)


def thumbnails(source: ImageSource) -> torch.Tensor:
    """All images of a source, small: `[N, C * 8 * 8]` on its device."""
    return torch.cat([small(images) for images in source.all_batches()])


def small(images: torch.Tensor) -> torch.Tensor:
    """`[n, C, h, w]` -> `[n, C * 8 * 8]`."""
    return resize(images, (KEY_SIDE, KEY_SIDE)).flatten(1)


class TargetChoice(NamedTuple):
    indices: np.ndarray  # [n] of the dataset
    coverage: Coverage


class TargetCoreset:
    """Chooses among the real images: which ones a batch holds is a function of where it begins.

    The candidates of a batch are the next `factor` times as many positions of the shuffled sequence: every image is a
    candidate once an epoch, and an epoch is over after 1 / factor of the images. The choice is made on the CPU,
    where indices are needed to decode images ahead of the step.
    """

    def __init__(self, features: torch.Tensor, factor: int, seed: int):
        """features: `[N, d]` of all images (mirrored ones included) on the CPU."""
        self.features = features
        self.factor = factor
        self.seed = seed
        self.choose = functools.lru_cache(KEPT_CHOICES)(self._choose)

    def _choose(self, start: int, count: int) -> TargetChoice:
        candidates = sample_order(len(self.features), self.seed, self.factor * start, self.factor * count)
        rows, (coverage,) = choose_rows(self.features[torch.from_numpy(candidates)].unsqueeze(0), count)
        return TargetChoice(candidates[rows[0].numpy()], coverage)

    def order(self, start: int, count: int) -> np.ndarray:
        """Indices of the batch of `count` images that begins at `start` images seen, int64 `[count]`."""
        return self.choose(start, count).indices

    def coverage(self, start: int, count: int) -> Coverage:
        return self.choose(start, count).coverage


def open_target_coreset(config: TrainingConfig, device: torch.device) -> TargetCoreset | None:
    """From the features of all images, computed once and kept in the metrics' cache; None without `--coreset=target`.

    On all ranks, each of which computes its share. Raises `UserError` where an image cannot be read.
    """
    if config.coreset is None or "target" not in config.coreset["of"]:
        return None
    distributed.print0("Core-set: features of all images of --data...")
    images = ImageSet(config.training_set_kwargs["path"])
    images.may_skip = False  # every image is somebody's neighbour
    whole = MirroredImages(images) if config.training_set_kwargs["xflip"] else images
    name, weights = coreset_detector(config.detector, config.detector_weights)
    detector = open_detector(name, weights, device=device)
    with naming("--coreset=target"):
        features = compute_features(whole, detector, is_verbose=True).features
    return TargetCoreset(projected(features, config.seed), config.coreset["factor"], config.seed)


def coreset_detector(name: str, weights: str | None) -> tuple[str, str | None]:
    """Name and weights of what `--detector` means for core-sets: tiny, unless one is named."""
    return ("tiny", None) if name == "auto" else (name, weights)


def projected(features: torch.Tensor, seed: int, dims: int = PROJECTED_DIMS) -> torch.Tensor:
    """`[N, d]` -> `[N, dims]` by a fixed Gaussian matrix, which keeps distances on average; fewer dimensions stay."""
    if features.shape[1] <= dims:
        return features.clone()
    gen = seeding.generator(seed, "core-set projection")
    matrix = torch.randn([features.shape[1], dims], generator=gen) / dims**0.5
    return torch.cat([part @ matrix for part in features.split(PROJECTION_ROWS)])
