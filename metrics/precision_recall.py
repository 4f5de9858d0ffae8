"""Precision and recall (Kynkäänniemi 2019), density and coverage (Naeem 2020): who lies in whose neighbourhood.

A sample's neighbourhood is the ball that reaches to its k-th nearest neighbour among its own kind. Precision is the share
of generated images in the neighbourhood of some real one, recall the share of real images in that of some generated
one. Density counts the real neighbourhoods that a generated image is in, divided by k, and coverage is the share of real
neighbourhoods that hold a generated image: both forgive a stray real image, which would make precision too kind.

Copies lie exactly on the sphere of a neighbourhood, or exactly at its centre, so that rounding must not decide. Distances
are bounded by a matrix product in float32; where the bounds leave a comparison open they are computed by differences in
float64, which gives copies the same distance, and 0 to themselves.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike

from metrics.features import as_feature_pair

CHUNK_ELEMENTS = 1 << 24  # of distances at a time: 64 MB
DIFFERENCE_ELEMENTS = 1 << 16  # of differences at a time: 512 KB, which stays in a processor's cache
ROWS = 4096  # features converted to float64 at a time
BLURRED_SHARE = 1 / 32  # of open comparisons, above which a product in float64 costs less than differences
TINY = 1e-30  # covers what underflows in float32, of features whose largest value is near 1
SMALLEST_EXPONENT = -900  # of features; its reciprocal is still a number
TIES = ("shared", "open")


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    density: float
    coverage: float


def precision_recall(real: ArrayLike, gen: ArrayLike, nhood_size: int = 3) -> PrecisionRecall:
    """Return the shares of features `[M, d]` near `[N, d]`, and of these near those.

    A ball holds its sphere (Kynkäänniemi 2019, eq. 1), so that copies are always precise. Raises `UserError` on too few
    features and on those that are not finite.
    """
    x, y = as_samples(real, gen, nhood_size)
    balls_x, balls_y = neighbourhoods(x, nhood_size), neighbourhoods(y, nhood_size)
    is_precise, is_recalled = (torch.zeros_like(samples.counts, dtype=torch.bool) for samples in (y, x))
    for i, j, d2 in near_pairs(y, x, balls_y.radii2, balls_x.radii2):
        is_precise[i[d2 <= balls_x.radii2[j]]] = True
        is_recalled[j[d2 <= balls_y.radii2[i]]] = True
    return PrecisionRecall(y.share(is_precise), x.share(is_recalled))


def density_coverage(real: ArrayLike, gen: ArrayLike, nhood_size: int = 5, ties: str = "shared") -> DensityCoverage:
    """Return how densely features `[M, d]` lie in the neighbourhoods of `[N, d]`, and how many of these they cover.

    A ball is open, as in the authors' code: with itself it holds k of its own kind, so that a set has density 1 and
    coverage 1 against itself. Where copies tie for the k-th place an open ball holds fewer, down to none in a ball of
    radius 0. ties: `shared` counts what lies on the sphere by the share that its own kind needs to be k again; `open`
    leaves it out, as the authors' code would if it did not round. Raises `UserError` as `precision_recall` does.
    """
    if ties not in TIES:
        raise ValueError(f"ties {ties!r} is not known; choose {' or '.join(TIES)}")
    x, y = as_samples(real, gen, nhood_size)
    balls = neighbourhoods(x, nhood_size)
    num_inside, num_on_sphere = torch.zeros_like(x.counts), torch.zeros_like(x.counts)  # [U] generated ones
    for i, j, d2 in near_pairs(y, x, None, balls.radii2):
        num_inside.index_add_(0, j, y.counts[i] * (d2 < balls.radii2[j]))
        num_on_sphere.index_add_(0, j, y.counts[i] * (d2 == balls.radii2[j]))
    num_missing = (nhood_size - balls.num_inside) if ties == "shared" else torch.zeros_like(num_inside)
    # The product first: of a set and itself the quotient is then exact.
    held = num_inside + (num_missing * num_on_sphere).double() / balls.num_on_sphere
    density = float((x.counts * held).sum()) / (nhood_size * y.total)
    return DensityCoverage(density, x.share(held > 0))


class Points(NamedTuple):
    """Features about an origin and scaled, and how exactly a product tells their distances."""

    rows: torch.Tensor  # [n, d]
    norms: torch.Tensor  # [n] float64, squared
    slacks: torch.Tensor  # [n] float64: between a lower bound of |a - b|^2 and an upper one lie the slacks of a and b

    @classmethod
    def of(cls, rows: torch.Tensor) -> "Points":
        """The samples of `[n, d]`, float32 or float64."""
        norms = torch.cat([part.double().square().sum(dim=1) for part in rows.split(ROWS)])
        # For unit roundoff u, |a|^2 + |b|^2 - 2 a.b is off by d u (|a|^2 + |b|^2) at most for the product (Higham 2002,
        # eq. 3.5) and by a few u for the conversion and the sums.
        unit = torch.finfo(rows.dtype).eps / 2
        return cls(rows, norms, 2.1 * (rows.shape[1] + 16) * unit * norms + TINY)

    def part(self, first: int, num: int) -> "Points":
        return Points(*(values[first : first + num] for values in self))


@dataclass(frozen=True)
class Samples:
    """Features of which each distinct one is held once, about an origin and in a unit that compared sets share."""

    features: torch.Tensor  # [U, d] as they were given
    counts: torch.Tensor  # [U] int64, how often each occurs
    origin: torch.Tensor  # [d] float64
    scale: float  # a power of 2 that takes the largest value to 1 at most
    coarse: Points  # in float32

    def __len__(self) -> int:
        return len(self.features)

    @property
    def total(self) -> int:
        """The number of samples, copies included."""
        return int(self.counts.sum())

    def share(self, chosen: torch.Tensor) -> float:
        """Return the share of the samples that bool `[U]` chooses."""
        return int(self.counts[chosen].sum()) / self.total

    def parts(self, num: int) -> Iterator[tuple[int, "Samples"]]:
        """Yield so many distinct ones at a time, with the index of the first."""
        for first in range(0, len(self), num):
            rows = slice(first, first + num)
            yield (
                first,
                replace(
                    self,
                    features=self.features[rows],
                    counts=self.counts[rows],
                    coarse=self.coarse.part(first, num),
                ),
            )

    def points(self, is_fine: bool) -> Points:
        """Return them in float64 if `is_fine`, else in float32."""
        return Points.of((self.features.double() - self.origin) * self.scale) if is_fine else self.coarse


class Neighbourhoods(NamedTuple):
    """The balls round `U` distinct samples, in the samples' unit."""

    radii2: torch.Tensor  # [U] float64, squared
    num_inside: (
        torch.Tensor
    )  # [U] int64 samples of its own kind that are nearer than the radius, itself included: k at most
    num_on_sphere: torch.Tensor  # [U] int64 that are as far


def neighbourhoods(x: Samples, nhood_size: int) -> Neighbourhoods:
    """Return the balls that reach from each sample to its `nhood_size`-th nearest other one."""
    parts = []
    for _, rows in x.parts(max(CHUNK_ELEMENTS // len(x), 1)):
        i, j = candidates(rows, x, min(nhood_size + 1, len(x)))
        d2 = exact_squared_distances(rows, x, i, j)
        order = d2.argsort()
        order = order[i[order].argsort(stable=True)]  # by row, and in it by distance
        i, j, d2 = i[order], j[order], d2[order]
        num_nearer = x.counts[j].cumsum(0)  # from here on within the row; the sample itself is among its candidates
        num_before = torch.zeros_like(rows.counts).index_add_(0, i, x.counts[j]).cumsum(0)
        num_nearer -= torch.cat([num_before.new_zeros(1), num_before[:-1]])[i]
        is_beyond = num_nearer > nhood_size
        radii2 = torch.full([len(rows)], torch.inf, dtype=torch.float64, device=d2.device)
        radii2.scatter_reduce_(0, i[is_beyond], d2[is_beyond], "amin")
        counts = [
            torch.zeros_like(rows.counts).index_add_(0, i, x.counts[j] * chosen)
            for chosen in (d2 < radii2[i], d2 == radii2[i])
        ]
        parts.append((radii2, *counts))
    return Neighbourhoods(*(torch.cat(values) for values in zip(*parts, strict=True)))


def candidates(rows: Samples, x: Samples, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pairs (i, j) of rows and samples that hold the `num` nearest samples of each row."""
    for is_fine in (False, True):
        left = rows.points(is_fine)
        rights = (part.points(is_fine) for _, part in x.parts(ROWS if is_fine else len(x)))
        bounds, slacks = zip(*((lower_bounds(left, right), right.slacks) for right in rights), strict=True)
        lower = torch.cat(bounds, dim=1)
        nearest = lower.topk(num, dim=1, largest=False)
        upper = nearest.values + left.slacks[:, None] + torch.cat(slacks)[nearest.indices]
        reach = upper.amax(dim=1, keepdim=True)  # no less than the num-th smallest distance
        i, j = (lower <= round_up(reach, lower.dtype)).nonzero(as_tuple=True)
        if len(i) <= BLURRED_SHARE * lower.numel() + 2 * num * len(rows):
            break
    return i, j


def near_pairs(
    a: Samples, b: Samples, limits_a: torch.Tensor | None, limits_b: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield indices i of a, j of b and squared distances d2 of all pairs with d2 <= limits_a[i] or d2 <= limits_b[j].

    Either comparison comes out as it does for the exact distance, which d2 is where one is close. Other pairs may be
    among them. limits_a: None for none on that side.
    """
    if limits_a is None:
        limits_a = torch.full([len(a)], -torch.inf, dtype=limits_b.dtype, device=limits_b.device)
    side = max(math.isqrt(CHUNK_ELEMENTS) // 2, 1)
    for first, rows in a.parts(side):
        for start, columns in b.parts(side):
            to_row, to_column = limits_a[first : first + side], limits_b[start : start + side]
            for is_fine in (False, True):
                left, right = rows.points(is_fine), columns.points(is_fine)
                lower = lower_bounds(left, right)
                is_near = lower <= round_up(to_column, lower.dtype)
                is_near |= lower <= round_up(to_row, lower.dtype)[:, None]
                i, j = is_near.nonzero(as_tuple=True)
                low, slack = lower[i, j].double(), left.slacks[i] + right.slacks[j]
                is_open = torch.zeros_like(i, dtype=torch.bool)
                for limit in (to_row[i], to_column[j]):
                    is_open |= (low <= limit) & (low + slack >= limit)
                if int(is_open.sum()) <= BLURRED_SHARE * lower.numel():
                    break
            d2 = low + slack / 2
            d2[is_open] = exact_squared_distances(rows, columns, i[is_open], j[is_open])
            yield i + first, j + start, d2


def lower_bounds(a: Points, b: Points) -> torch.Tensor:
    """Return what the squared distances `[A, B]` are not below; they are not above these plus both slacks either."""
    shrunk_a, shrunk_b = ((points.norms - points.slacks / 2).to(points.rows.dtype) for points in (a, b))
    return torch.addmm(shrunk_b, a.rows, b.rows.T, alpha=-2).add_(shrunk_a[:, None])


def round_up(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rounded = values.to(dtype)
    return torch.nextafter(rounded, torch.full_like(rounded, torch.inf))


def exact_squared_distances(a: Samples, b: Samples, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """Return those between a[i] and b[j], `[P]` float64, by differences: the same for copies, and 0 between them."""
    step = max(DIFFERENCE_ELEMENTS // a.features.shape[1], 1)
    parts = [
        a.features[i_part].double().sub_(b.features[j_part]).mul_(a.scale).square_().sum(dim=1)
        for i_part, j_part in zip(i.split(step), j.split(step), strict=True)
    ]
    return torch.cat(parts)


def as_samples(real: ArrayLike, gen: ArrayLike, nhood_size: int) -> tuple[Samples, Samples]:
    """Return both sets about their common mean: distances do not change, and fewer digits cancel."""
    if nhood_size < 1:
        raise ValueError(f"nhood_size must be at least 1, not {nhood_size}")
    sets = as_feature_pair(real, gen, ("real images", "generated images"), at_least=nhood_size + 1)
    parts = [part for x in sets for part in x.split(ROWS)]
    origin = sum(part.double().sum(dim=0) for part in parts) / sum(map(len, parts))
    largest = max(float((part.double() - origin).abs().max()) for part in parts)
    scale = math.ldexp(1.0, -max(math.frexp(largest)[1], SMALLEST_EXPONENT))
    # TF32 may be on where there is a GPU, and its bounds are others.
    dtype = torch.float64 if origin.is_cuda else torch.float32
    first, second = (distinct(x, origin, scale, dtype) for x in sets)
    return first, second


def distinct(x: torch.Tensor, origin: torch.Tensor, scale: float, dtype: torch.dtype) -> Samples:
    """Hold each feature of `[N, d]` once: a collapsed generator makes as many copies as it makes images."""
    numbers: dict[bytes, int] = {}
    firsts: list[int] = []
    number_of: list[int] = []
    for index, row in enumerate(x.cpu().numpy()):
        digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        number_of.append(numbers.setdefault(digest, len(firsts)))
        if number_of[-1] == len(firsts):
            firsts.append(index)
    features = x if len(firsts) == len(x) else x[torch.tensor(firsts, device=x.device)]
    counts = torch.bincount(torch.tensor(number_of, device=x.device))
    coarse = torch.empty(features.shape, dtype=dtype, device=x.device)
    for part, rows in zip(coarse.split(ROWS), features.split(ROWS), strict=True):
        part.copy_((rows.double() - origin) * scale)
    return Samples(features, counts, origin, scale, Points.of(coarse))


def compute_pr(
    opts: Any, max_real: int | None, num_gen: int, nhood_size: int, row_batch_size: int = 0, col_batch_size: int = 0
) -> tuple[float, float]:
    """The official name of precision and recall of `num_gen` generated images. opts: a `metric_utils.MetricOptions`."""
    real, gen = opts.both("vgg16", max_real, num_gen)
    return precision_recall(real, gen, nhood_size)[:2]
