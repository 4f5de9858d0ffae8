"""Precision and recall (Kynkäänniemi 2019), density and coverage (Naeem 2020): who lies in whose neighbourhood.

A sample's neighbourhood is the ball that reaches to its k-th nearest neighbour among its own kind. Precision is the share
of generated images in the neighbourhood of some real one, recall the share of real images in that of some generated
one. Density counts the real neighbourhoods that a generated image is in, divided by k, and coverage is the share of real
neighbourhoods that hold a generated image: both forgive a stray real image, which would make precision too kind.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike

from metrics.features import as_feature_pair

CHUNK_ELEMENTS = 1 << 24  # of distances at a time: 128 MB


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    density: float
    coverage: float


def precision_recall(real: ArrayLike, gen: ArrayLike, nhood_size: int = 3) -> PrecisionRecall:
    """Of features `[N, d]` and `[M, d]`; distances in float64."""
    x, y = as_pair(real, gen, nhood_size)
    precision = inside_any(y, x, neighbour_radii(x, nhood_size)).double().mean()
    recall = inside_any(x, y, neighbour_radii(y, nhood_size)).double().mean()
    return PrecisionRecall(float(precision), float(recall))


def density_coverage(real: ArrayLike, gen: ArrayLike, nhood_size: int = 5) -> DensityCoverage:
    """Of features `[N, d]` and `[M, d]`; distances in float64."""
    x, y = as_pair(real, gen, nhood_size)
    radii = neighbour_radii(x, nhood_size)
    num_balls = 0
    is_covered = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for d2 in squared_distances(y, x):
        is_inside = d2 < radii.square()  # [chunk, N]
        num_balls += int(is_inside.sum())
        is_covered |= is_inside.any(dim=0)
    return DensityCoverage(num_balls / (nhood_size * len(y)), float(is_covered.double().mean()))


def neighbour_radii(x: torch.Tensor, nhood_size: int) -> torch.Tensor:
    """`[N]` the distance from each sample to its `nhood_size`-th nearest other one."""
    # The sample itself is the first of those found, at a distance of about 0.
    nearest = [d2.kthvalue(nhood_size + 1, dim=1).values for d2 in squared_distances(x, x)]
    return torch.cat(nearest).sqrt()


def inside_any(probes: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """bool `[P]`: whether a probe lies in the ball of some centre."""
    return torch.cat([(d2 <= radii.square()).any(dim=1) for d2 in squared_distances(probes, centres)])


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> Iterator[torch.Tensor]:
    """Chunks `[chunk, M]` of the squared distances between `[N, d]` and `[M, d]`."""
    norms = b.square().sum(dim=1)
    step = max(CHUNK_ELEMENTS // len(b), 1)
    for first in range(0, len(a), step):
        part = a[first : first + step]
        d2 = torch.addmm(norms[None, :], part, b.T, alpha=-2) + part.square().sum(dim=1, keepdim=True)
        yield d2.clamp_(min=0)


def as_pair(real: ArrayLike, gen: ArrayLike, nhood_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 tensors about a common origin: distances do not change, and fewer digits cancel."""
    if nhood_size < 1:
        raise ValueError(f"nhood_size must be at least 1, not {nhood_size}")
    x, y = as_feature_pair(real, gen, ("real images", "generated images"), at_least=nhood_size + 1)
    x, y = x.double(), y.double()
    origin = x.mean(dim=0)
    return x - origin, y - origin


def compute_pr(
    opts: Any, max_real: int | None, num_gen: int, nhood_size: int, row_batch_size: int = 0, col_batch_size: int = 0
) -> tuple[float, float]:
    """The official name of precision and recall of `num_gen` generated images. opts: a `metric_utils.MetricOptions`."""
    real, gen = opts.both("vgg16", max_real, num_gen)
    return precision_recall(real, gen, nhood_size)[:2]
