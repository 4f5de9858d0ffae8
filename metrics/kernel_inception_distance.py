"""The kernel inception distance (Binkowski 2018): an unbiased squared MMD under a polynomial kernel, cubic by default.

    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),    k(x, y) = (x.y / d + 1)^3

It is unbiased on few samples, where the Fréchet distance reads too high, and may come out slightly below 0.

Its variance is a sum over the terms of Hoeffding's decomposition, which are uncorrelated:

    Var(N, M) = 4 Var f / N + 4 Var g / M + 2 Var k_xx / N (N - 1) + 2 Var k_yy / M (M - 1) + 4 Var k_xy / N M

with f(x) = E k(x, x') - E k(x, y), g(y) = E k(y, y') - E k(x, y), and k_xx, k_yy, k_xy what is left of a kernel's value
without the effects of its row and its column. Where the two distributions are equal f and g are constant, and the
second-order terms are all there is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from metrics.features import as_feature_pair
from metrics.settings import DEGREE, NUM_SUBSETS, SUBSET_SIZE

SINGLE_SIZE = 1 << 19  # values in a subset's features; of fewer, products in float64 cost next to nothing
FEWEST_FOR_ERROR = 4  # samples in a subset; of fewer nothing is left beside the effects of rows and columns


@dataclass(frozen=True)
class KIDOptions:
    """How a KID is computed. Another degree is another distance; subsets change its noise only."""

    num_subsets: int = NUM_SUBSETS
    max_subset_size: int = SUBSET_SIZE
    degree: int = DEGREE

    def __post_init__(self):
        if self.num_subsets < 1 or self.max_subset_size < 2 or self.degree < 1:
            raise ValueError(f"{self}: at least one subset, of two samples, and degree 1 are needed")


class KID(NamedTuple):
    value: float
    error: float | None
    """One standard error; None where subsets have fewer than four samples."""
    std: float | None = None
    """The standard deviation over the subsets, which others publish: of a value from one subset, not of `value`. None
    of one subset."""


class Subset(NamedTuple):
    """What one subset says."""

    value: float
    variances: "Variances | None"


class Sums(NamedTuple):
    """Over `[m, m]` values of a kernel."""

    rows: np.ndarray  # [m]
    columns: np.ndarray  # [m]
    squares: float


class Variances(NamedTuple):
    """Unbiased estimates of the variances of the terms; below 0 where they are near it."""

    first: np.ndarray  # [2] of f and g
    second: np.ndarray  # [3] of k_xx, k_yy, k_xy


def kernel_inception_distance(
    real: ArrayLike,
    gen: ArrayLike,
    num_subsets: int = NUM_SUBSETS,
    max_subset_size: int = SUBSET_SIZE,
    seed: int = 0,
    degree: int = DEGREE,
) -> KID:
    """Mean over random subsets of the features `[N, d]` and `[M, d]`, in float64 but for products of float32 features.

    Subsets are drawn by NumPy's RandomState under `seed`, generated ones first; where one holds everything there is one
    only. Raises `UserError` on features that are not finite, `ValueError` on shapes that do not meet.
    """
    KIDOptions(num_subsets, max_subset_size, degree)
    pair = as_feature_pair(real, gen, ("real images", "generated images"))
    # Not in 16 bits, which do not average out.
    x, y = (z.cpu().to(torch.promote_types(z.dtype, torch.float32)).numpy() for z in pair)
    size = min(len(x), len(y), max_subset_size)
    if size == len(x) == len(y):
        num_subsets = 1
    rng = np.random.RandomState(seed % 2**32)  # it knows no other seeds
    subsets = []
    for _ in range(num_subsets):
        part_y = y[rng.choice(len(y), size, replace=False)]
        part_x = x[rng.choice(len(x), size, replace=False)]
        subsets.append(measure(part_x, part_y, degree))
    values = [subset.value for subset in subsets]
    error = standard_error([subset.variances for subset in subsets], len(x), len(y), size)
    return KID(float(np.mean(values)), error, float(np.std(values)) if num_subsets > 1 else None)


def squared_mmd(x: np.ndarray, y: np.ndarray, degree: int = DEGREE) -> float:
    """The unbiased estimate from `[m, d]` and `[m, d]`; products of features as precise as these, all else in float64."""
    return measure(x, y, degree).value


def measure(x: np.ndarray, y: np.ndarray, degree: int) -> Subset:
    """The squared MMD of `[m, d]` and `[m, d]` and the variances of its terms."""
    with np.errstate(over="ignore", invalid="ignore"):
        within = [sums_of(kernel(z, z, degree), leave_out_diagonal=True) for z in (x, y)]
        found = subset_of(within, sums_of(kernel(x, y, degree)))
    if not math.isfinite(found.value) and np.float32 in (x.dtype, y.dtype):  # products may be too large for it
        return measure(x.astype(np.float64), y.astype(np.float64), degree)
    return found


def sums_of(k: np.ndarray, leave_out_diagonal: bool = False) -> Sums:
    """Sums over `[m, m]` kernel values, whose diagonal may become 0. As products, which are faster than NumPy's sums."""
    if leave_out_diagonal:
        np.fill_diagonal(k, 0)
    ones = np.ones(len(k))
    return Sums(k @ ones, ones @ k, float(np.vdot(k, k)))


def subset_of(within: Sequence[Sums], across: Sums) -> Subset:
    """within: sums of k_xx and k_yy without their diagonals; across: those of k_xy."""
    m = len(across.rows)
    value = float(sum(k.rows.sum() for k in within) / (m * (m - 1)) - 2 * across.rows.sum() / m**2)
    return Subset(value, variances_of_terms(within, across) if m >= FEWEST_FOR_ERROR else None)


def kernel(x: np.ndarray, y: np.ndarray, degree: int) -> np.ndarray:
    """`[m, n]` float64.

    Large products of float32 features are in float32: their rounding averages out, to a millionth of the KID's standard
    error for a subset of 1,000.
    """
    base = products(x, y)
    base *= 1 / x.shape[1]
    base += 1
    if degree == 1:
        return base
    power = base * base
    for _ in range(degree - 2):  # `**` costs more than the product
        power *= base
    return power


def products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x y^T, `[m, n]` float64. Of x and itself NumPy computes one half."""
    if x.size >= SINGLE_SIZE:
        return (x @ y.T).astype(np.float64)
    x, y = (x.astype(np.float64),) * 2 if y is x else (x.astype(np.float64), y.astype(np.float64))
    return x @ y.T


def variances_of_terms(within: Sequence[Sums], across: Sums) -> Variances:
    """Estimate them by an analysis of variance of the kernels' values, without the diagonals of k_xx and k_yy."""
    m = len(across.rows)
    left_xy = two_way(across)
    first, second = [], []
    for k, sums in zip(within, (across.rows, across.columns), strict=True):
        own, left = one_way(k)
        second.append(left)
        # The effects are those of f or g and the mean of what is left in a row.
        first.append(np.var(own - effects_across(sums), ddof=1) - left / (m - 2) - left_xy / m)
    return Variances(np.array(first), np.array([*second, left_xy]))


def one_way(k: Sums) -> tuple[np.ndarray, float]:
    """Effects `[m]` of a symmetric `[m, m]` without its diagonal, and the variance of what is left, of m (m - 3) / 2."""
    m = len(k.rows)
    mean = k.rows.sum() / (m * (m - 1))
    effects = (k.rows / (m - 1) - mean) * (m - 1) / (m - 2)
    # Twice the sum of squares over i < j: those of the mean and of both effects are orthogonal to what is left.
    squares = k.squares - m * (m - 1) * mean**2 - 2 * (m - 2) * np.vdot(effects, effects)
    return effects, float(squares / (m * (m - 3)))


def two_way(k: Sums) -> float:
    """The variance of what rows and columns of `[m, m]` leave, of (m - 1)^2."""
    m = len(k.rows)
    effects = sum(np.square(effects_across(sums)).sum() for sums in (k.rows, k.columns))
    return float((k.squares - (k.rows.sum() / m) ** 2 - m * effects) / (m - 1) ** 2)


def effects_across(sums: np.ndarray) -> np.ndarray:
    """Effects `[m]` of the rows, or columns, of an `[m, m]`, from their sums."""
    return (sums - sums.mean()) / len(sums)


def standard_error(variances: list[Variances | None], num_x: int, num_y: int, size: int) -> float | None:
    """The standard error of the mean over subsets of `size` samples of `num_x` and `num_y`.

    Over all subsets the mean would be the estimate from all samples; so many of them leave their share of what one
    subset has beyond that.
    """
    known = [each for each in variances if each is not None]
    if not known:
        return None
    first = np.mean([each.first for each in known], axis=0)
    second = np.mean([each.second for each in known], axis=0).clip(min=0)
    of_all, of_one = (variance_of_value(first, second, *sizes) for sizes in ((num_x, num_y), (size, size)))
    return math.sqrt(of_all + max(of_one - of_all, 0) / len(known))


def variance_of_value(first: np.ndarray, second: np.ndarray, num_x: int, num_y: int) -> float:
    """The variance of the estimate from so many samples."""
    first_order = 4 * (first[0] / num_x + first[1] / num_y)
    pairs = np.array([num_x * (num_x - 1), num_y * (num_y - 1), num_x * num_y])
    return float(max(first_order, 0.0) + (np.array([2, 2, 4]) * second / pairs).sum())


def compute_kid(opts: Any, max_real: int | None, num_gen: int, num_subsets: int, max_subset_size: int) -> float:
    """The official name of the KID of `num_gen` generated images. opts: a `metric_utils.MetricOptions`."""
    real, gen = opts.both("inception", max_real, num_gen)
    return kernel_inception_distance(real, gen, num_subsets, max_subset_size, seed=opts.seed)[0]
