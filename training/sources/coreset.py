"""Core-sets: batches that cover more than random ones of their size (Small-GAN, Sinha et al. 2020).

A batch is drawn `factor` times too large, and the greedy k-center subset is kept (Gonzalez 1985: at most twice the best
possible radius). `PriorCoreset` chooses among the latents of the generator, `TargetCoreset` among the real images. What a
batch holds stays a function of its position: every process chooses for the whole batch and takes its own rows.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from dnnlib.errors import naming
from metrics.detectors import Detector, open_detector
from metrics.feature_stats import Images, compute_features
from torch_utils import distributed, seeding
from training.dataset import sample_order
from training.settings import CORESETS
from training.sources.feed import LatentFeed
from training.sources.source import Draw
from training.sources.stage_cache import StageCache

PRIOR, TARGET = CORESETS
PROJECTED_DIMS = 64  # of the detector's features
PROJECTION_ROWS = 1 << 16  # that are projected at a time
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
    pick = squared_distances_to(points, points.mean(dim=-2, keepdim=True)).argmin(dim=-1, keepdim=True)  # [..., 1]
    picks = []
    for _ in range(k):
        picks.append(pick)
        centre = points.gather(-2, pick.unsqueeze(-1).expand(*pick.shape, points.shape[-1]))  # [..., 1, d]
        nearest = torch.minimum(nearest, squared_distances_to(points, centre))
        nearest.scatter_(-1, pick, -1.0)  # never again, not even among equal points
        pick = nearest.argmax(dim=-1, keepdim=True)
    return torch.cat(picks, dim=-1), nearest.amax(dim=-1).clamp(min=0).sqrt()


def squared_distances_to(points: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """The squared distances of points `[..., N, d]` to one `[..., 1, d]`: `[..., N]`."""
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

    def choose(self, candidates: Sequence[Draw], n: int) -> tuple[list[Draw], list[Coverage]]:
        """n of each of several draws, which all have as many rows; one after another would launch as many kernels each."""
        points = torch.stack([self.feed.points(draw) for draw in candidates])  # [B, N, d]
        rows, coverage = choose_rows(points, n)
        return [draw.rows(index) for draw, index in zip(candidates, rows, strict=True)], coverage


class WholeBatch:
    """What stands for a `PriorCoreset` where none is asked for: the candidates are the batch."""

    factor = 1

    def choose(self, candidates: Sequence[Draw], n: int) -> tuple[list[Draw], list[Coverage]]:
        return list(candidates), []


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


class ShuffledOrder:
    """What stands for a `TargetCoreset` where none is asked for: the shuffled sequence itself."""

    def __init__(self, num_images: int, seed: int):
        self.num_images, self.seed = num_images, seed

    def order(self, start: int, count: int) -> np.ndarray:
        return sample_order(self.num_images, self.seed, start, count)

    def coverage(self, start: int, count: int) -> None:
        return None


TargetOrder: TypeAlias = TargetCoreset | ShuffledOrder


@dataclass(frozen=True)
class CoresetSpec:
    """What `--coreset` asks for; by default nothing, so that batches are plain ones."""

    of: tuple[str, ...] = ()
    """`prior` for latents, `target` for real images."""
    factor: int = 1
    """Candidates for each sample."""
    detector: str | None = None
    """Key of the detector that sees the targets."""

    def as_data(self) -> dict[str, Any] | None:
        data = {"of": list(self.of), "factor": self.factor, "detector": self.detector}
        return {name: value for name, value in data.items() if value is not None} if self.of else None

    def of_latents(self, feed: LatentFeed | StageCache) -> PriorCoreset | WholeBatch:
        """What chooses the latents of a batch."""
        return PriorCoreset(feed, self.factor) if PRIOR in self.of else WholeBatch()

    def of_targets(self, images: Images, detector: "DetectorChoice", seed: int) -> TargetOrder:
        """What chooses the real images of a batch, from the features of all, computed once and kept in the metrics' cache.

        images: of the dataset, by its numbers. On all ranks, each of which computes its share. Raises `UserError` where an
        image cannot be read.
        """
        if TARGET not in self.of:
            return ShuffledOrder(len(images), seed)
        distributed.print0("Core-set: features of all images of --data...")
        with naming("--coreset=target"):  # every image is somebody's neighbour: none may be missing
            features = compute_features(images, detector.open(), is_strict=True, is_verbose=True).features
        return TargetCoreset(projected(features, seed), self.factor, seed)


@dataclass(frozen=True)
class DetectorChoice:
    """A detector that is not open yet."""

    name: str
    weights: str | None
    device: torch.device | str

    @classmethod
    def of_coreset(cls, name: str, weights: str | None, device: torch.device | str) -> "DetectorChoice":
        """What `--detector` means for core-sets: tiny, unless one is named."""
        return cls("tiny", None, device) if name == "auto" else cls(name, weights, device)

    def open(self, verbose: bool = False) -> Detector:
        return open_detector(self.name, self.weights, device=self.device, verbose=verbose)


def projected(features: torch.Tensor, seed: int, dims: int = PROJECTED_DIMS) -> torch.Tensor:
    """`[N, d]` -> `[N, dims]` by a fixed Gaussian matrix, which keeps distances on average; fewer dimensions stay."""
    if features.shape[1] <= dims:
        return features.clone()
    gen = seeding.generator(seed, "core-set projection")
    matrix = torch.randn([features.shape[1], dims], generator=gen) / dims**0.5
    return torch.cat([part @ matrix for part in features.split(PROJECTION_ROWS)])
