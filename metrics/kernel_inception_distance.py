"""The kernel inception distance (Binkowski 2018): an unbiased squared MMD under a cubic polynomial kernel.

    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),    k(x, y) = (x.y / d + 1)^3

It is unbiased on few samples, where the Fréchet distance reads too high, and may come out slightly below 0.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metrics.features import as_feature_pair

NUM_SUBSETS, SUBSET_SIZE = 100, 1000


class KID(NamedTuple):
    value: float
    error: float | None
    """One standard error; None where one subset holds everything, so that nothing tells how far it may be off."""


def kernel_inception_distance(
    real: ArrayLike,
    gen: ArrayLike,
    num_subsets: int = NUM_SUBSETS,
    max_subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> KID:
    """Mean over random subsets of the features `[N, d]` and `[M, d]`, in float64.

    Subsets are drawn by NumPy's RandomState under `seed`, generated ones first. Raises `UserError` on features that are
    not finite, `ValueError` on shapes that do not meet.
    """
    x, y = (z.cpu().numpy() for z in as_feature_pair(real, gen, ("real images", "generated images")))
    size = min(len(x), len(y), max_subset_size)
    rng = np.random.RandomState(seed % 2**32)  # it knows no other seeds
    values = []
    for _ in range(num_subsets):
        part_y = y[rng.choice(len(y), size, replace=False)]
        part_x = x[rng.choice(len(x), size, replace=False)]
        values.append(squared_mmd(part_x, part_y))
    return KID(float(np.mean(values)), standard_error(values, size / min(len(x), len(y))))


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate from `[m, d]` and `[m, d]`, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    m = len(x)
    within = sum((kernel(z, z).sum() - kernel_of_itself(z).sum()) / (m * (m - 1)) for z in (x, y))
    return float(within - 2 * kernel(x, y).mean())


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`[m, n]`"""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_of_itself(x: np.ndarray) -> np.ndarray:
    """`[m]`, the diagonal of `kernel(x, x)`."""
    return (np.square(x).sum(axis=1) / x.shape[1] + 1) ** 3


def standard_error(values: list[float], share: float) -> float | None:
    """Of the mean over subsets that each hold `share` of the samples.

    Subsets overlap: their spread v, divided by their number, misses what they have in common. To first order v is
    S^2 (1 - share) / m, and the error of the mean S^2 / N + v / B, with S^2 the variance of a sample's contribution.
    """
    if share >= 1 or len(values) < 2:
        return None
    spread = float(np.var(values, ddof=1))
    return math.sqrt(spread * share / (1 - share) + spread / len(values))


def compute_kid(opts: Any, max_real: int | None, num_gen: int, num_subsets: int, max_subset_size: int) -> float:
    """The official name of the KID of `num_gen` generated images. opts: a `metric_utils.MetricOptions`."""
    real, gen = opts.both("inception", max_real, num_gen)
    return kernel_inception_distance(real, gen, num_subsets, max_subset_size, seed=opts.seed)[0]
