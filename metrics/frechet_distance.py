"""The Fréchet distance between two sets of features, each taken for a Gaussian (Heusel 2017; Dowson & Landau 1982).

    d^2 = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

This is arithmetic on features, whatever they are features of. It is the FID only where they are those of Inception-v3;
anything else has a name of its own. Like the FID it is a squared distance, in the features' unit squared, and it reads
too high on few samples: compare only numbers from equally many.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from dnnlib.errors import UserError
from metrics.features import as_features
from torch_utils import seeding

CHUNK = 1024  # samples converted to float64 at a time
FEWEST_PER_FEATURE = 4  # samples for each dimension, to extrapolate
POINTS = 15  # numbers of samples at which the distance is computed to extrapolate it
FEW_FOR_FID = 2048  # images; below, the covariance of Inception's features is singular


class Gaussian(NamedTuple):
    """Mean and covariance of a set of features."""

    mean: np.ndarray  # [d] float64
    covariance: np.ndarray  # [d, d] float64


def fit_gaussian(features: ArrayLike, name: str = "features") -> Gaussian:
    """Mean and covariance (divided by N) of `[N, d]`, an array or a tensor.

    name: what the features are of, for messages. Raises `UserError` on fewer than two samples and on NaN or infinity.
    """
    x = as_features(features, name)
    # About a point near the mean, no digits cancel, and one pass does.
    origin = x[:CHUNK].double().mean(dim=0)
    total = torch.zeros_like(origin)
    products = x.new_zeros([x.shape[1], x.shape[1]], dtype=torch.float64)
    room = x.new_empty([min(CHUNK, len(x)), x.shape[1]], dtype=torch.float64)  # new memory costs as much as a sum
    for chunk in x.split(CHUNK):
        shifted = room[: len(chunk)].copy_(chunk).sub_(origin)
        total += shifted.sum(dim=0)
        add_gram(products, shifted)
    mirror_lower_triangle(products)
    offset = total / len(x)
    covariance = products.div_(len(x)).addr_(offset, offset, alpha=-1)
    return Gaussian((origin + offset).cpu().numpy(), covariance.cpu().numpy())


def add_gram(total: torch.Tensor, x: torch.Tensor) -> None:
    """Add x^T x of `[n, d]` float64 to the lower triangle of `[d, d]`, in place; what is above it is left open."""
    if x.is_cuda:
        total.addmm_(x.T, x)
        return
    from scipy.linalg import blas  # takes a moment to import, and only this needs it

    # To BLAS, which counts along columns first, both matrices are their own transposes.
    blas.dsyrk(1.0, x.numpy().T, beta=1.0, c=total.numpy().T, overwrite_c=1)


def mirror_lower_triangle(matrix: torch.Tensor, side: int = 256) -> None:
    """Copy what is below the diagonal to above it, in place; in blocks, since a whole transpose leaves the caches."""
    for start in range(0, len(matrix), side):
        stop = start + side
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
        block = matrix[start:stop, start:stop]
        block.copy_(block.tril() + block.tril(diagonal=-1).T)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared distance between two Gaussians, at least 0. Symmetric."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be compared")
    shift = np.square(a.mean - b.mean).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_of_root(a.covariance, b.covariance)
    return max(float(shift + spread), 0.0)  # rounding can take it below 0 where the two are equal


def trace_of_root(a: np.ndarray, b: np.ndarray) -> float:
    """tr((A B)^(1/2)) of two covariances.

    A B has the eigenvalues of A^(1/2) B A^(1/2), and that is symmetric: its spectrum is real and well conditioned,
    where a general matrix root meets complex numbers as soon as there are fewer samples than dimensions.
    """
    root = symmetric_root(a)
    product = root @ b @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    return float(np.sqrt(eigenvalues.clip(min=0)).sum())


def symmetric_root(matrix: np.ndarray) -> np.ndarray:
    """R with R R = matrix, for a symmetric positive semi-definite `[d, d]`."""
    eigenvalues, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T


def frechet_distance_of_features(a: ArrayLike, b: ArrayLike) -> float:
    """The squared distance between features `[N, d]` and `[M, d]`."""
    return frechet_distance(fit_gaussian(a, "first set"), fit_gaussian(b, "second set"))


class Extrapolation(NamedTuple):
    """A distance for infinitely many samples of the second set."""

    value: float  # may fall below 0, by chance
    at_all: float  # the distance for the samples that there are


def extrapolated_distance(real: Gaussian, features: ArrayLike, seed: int = 0) -> Extrapolation:
    """The squared distance of `[N, d]` to a Gaussian, without what few samples add to it (Chong & Forsyth 2020).

    That is proportional to 1 / N where N is some times d: a line through the distances of random parts, from a tenth of the
    samples (twice d, at least) to all of them, ends at the value. Every part is drawn anew, by `seed`. Raises `UserError` on
    fewer than `FEWEST_PER_FEATURE` d samples.
    """
    x = as_features(features, "generated images")
    num, dim = x.shape
    if num < FEWEST_PER_FEATURE * dim:
        raise UserError(
            f"{num:,} generated images are too few to extrapolate with {dim:,} features; {FEWEST_PER_FEATURE * dim:,} are needed"
        )
    sizes = np.linspace(max(num / 10, 2 * dim), num, POINTS).round().astype(int)
    distances = []
    for number, size in enumerate(sizes):
        order = torch.randperm(num, generator=seeding.generator("extrapolation", seed, number))
        distances.append(frechet_distance(real, fit_gaussian(x[order[:size]], "generated images")))
    _, value = np.polyfit(1 / sizes, distances, 1)
    return Extrapolation(float(value), distances[-1])
