"""The signed inception distance (SID) between two sets of features (Asokan & Seelamantula 2023, sections 3 and A).

Probes x in a cube round the target's mean ask how far the features of either set are:

    SID(r) = E_x[ mean_i psi(x - s_i) - mean_j psi(x - t_j) ],    x = mu + (r sigma / 2) u,    u ~ U[-1, 1]^n

with mu the target's mean, sigma the mean over the dimensions of its standard deviations, and CSID = sum over r of SID(r).
It is signed and asymmetric, source first: at order 1 it is positive where the source lies farther from the target's
centre, or wider round it, than the target itself does. 0 says that the probes cannot tell them apart.

One cloud u serves every radius and every feature, since with h = r sigma / 2

    |x - s|^2 = |s - mu|^2 + h^2 |u|^2 - 2 h u.(s - mu)

so that a curve costs one matrix product and, for each radius, a few passes over [probes, features].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from dnnlib.bars import tqdm
from dnnlib.errors import UserError
from metrics.features import as_feature_pair
from metrics.progress_bar import progress_bar
from metrics.settings import DEFAULT_PROBES, ORDERS, PUBLISHED_PROBES
from torch_utils import seeding

DEFAULT_RADII = tuple(0.5 * step for step in range(1, 50))  # side of the cube in units of sigma: 0.5, 1.0, … 24.5
CHUNK_ELEMENTS = 1 << 20  # of [features, probes]: a few buffers of it stay in a processor's cache
PULL_PROBES = 128  # tell well enough how SID(r) depends on the cube's place; only errors need to know
FEW_DIMENSIONS = 8  # so few that a probe may hit a feature, where the expanded square would cancel

PUBLISHED_FEATURES = 500  # drawn anew for each radius and round, from either side
PUBLISHED_ROUNDS = 20
PUBLISHED_BLEND = 0.5  # what a round keeps of the rounds before it


@dataclass(frozen=True)
class SID:
    """A curve of signed distances, and their sum. Standard errors are of one standard deviation."""

    order: int
    radii: np.ndarray  # [R] side of the cube, in units of sigma
    sid: np.ndarray  # [R]
    se_features: np.ndarray  # [R] from the choice of the features on both sides (the cube's place and size included)
    se_probes: np.ndarray  # [R] from the choice of the probes
    csid: float
    csid_se: float  # from both
    num_source: int
    num_target: int
    num_probes: int
    seed: int
    mode: str  # shared: one cloud, all features; published: the estimator of the paper's code

    @property
    def se(self) -> np.ndarray:
        """`[R]`, from features and probes together."""
        return np.hypot(self.se_features, self.se_probes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Cube:
    """Where probes are drawn: round the target's mean, in units of its spread."""

    mean: torch.Tensor  # [n] float64
    sigma: float  # the mean over the dimensions of the standard deviations
    deviations: torch.Tensor  # [n] the standard deviations

    @classmethod
    def around(cls, target: torch.Tensor) -> "Cube":
        """target: `[M, n]`."""
        deviations, mean = torch.std_mean(target.double(), dim=0, correction=0)
        return cls(mean, float(deviations.mean()), deviations)

    def half_side(self, radius: float) -> float:
        """h, the reach of the probes in each dimension."""
        return radius * self.sigma / 2


def signed_inception_distance(
    source: ArrayLike | torch.Tensor,
    target: ArrayLike | torch.Tensor,
    order: int = 1,
    radii: Sequence[float] = DEFAULT_RADII,
    probes: int | None = None,
    seed: int = 0,
    mode: str = "shared",
    cube: Cube | None = None,
    progress: str | None = None,
) -> SID:
    """The SID of features `[N, n]` against reference features `[M, n]`; float64 throughout.

    order: k of the kernel, one of `ORDERS`, see `psi_`; 0 is the logarithm. radii: sides of the probes' cube in units of
    sigma. probes: 1,000 unless given. mode: `shared` (one cloud of probes, all features), or `published`, the estimator of
    the paper's code, for comparing with older numbers: it is far slower and noisier, takes 500 probes unless told
    otherwise, and its kernel is a plain power, see `power_`. cube: probe somewhere else than round the target. progress: what a
    bar is called; None for no bar. The same seed gives the same numbers.

    With few target features in many dimensions SID(r) reads too high by about sqrt(n) sigma / M: the target's mean is
    nearer to its own features than to those of another sample. Raises `UserError` on features that are not finite, or
    that have no spread, and where a probe meets a feature at order 0 or below; `ValueError` on shapes that do not meet
    and on unknown orders.
    """
    probes = default_probes(mode) if probes is None else probes
    check_request(order, radii, probes, mode)
    s, t = as_feature_pair(source, target, ("source", "target"))
    cube = Cube.around(t) if cube is None else cube
    if not cube.sigma > 0:
        raise UserError(
            "target: all its features are equal, so that there is no spread to measure by; use other images"
        )
    if mode == "published":
        return finite(published_estimate(s, t, order, radii, probes, seed, cube, progress))
    u = draw_cloud(probes, s.shape[1], seed, s.device)
    with progress_bar(len(s) + len(t), progress or "", "feature", progress is not None) as bar:
        source_side, target_side = (measure(features, u, cube, order, radii, bar) for features in (s, t))
    per_target = influence_of_target(source_side, target_side, t, cube)
    per_probe = source_side.per_probe - target_side.per_probe  # [R, P]
    variance_features = variance_of_mean(source_side.per_feature) + variance_of_mean(per_target)
    variance_probes = variance_of_mean(per_probe)
    total = [values.sum(dim=0, keepdim=True) for values in (source_side.per_feature, per_target, per_probe)]
    sid = SID(
        order=order,
        radii=np.asarray(radii, dtype=np.float64),
        sid=per_probe.mean(dim=1).cpu().numpy(),
        se_features=variance_features.sqrt().cpu().numpy(),
        se_probes=variance_probes.sqrt().cpu().numpy(),
        csid=float(per_probe.mean(dim=1).sum()),
        csid_se=math.sqrt(sum(float(variance_of_mean(values)) for values in total)),
        num_source=len(s),
        num_target=len(t),
        num_probes=probes,
        seed=seed,
        mode=mode,
    )
    return finite(sid)


def finite(sid: SID) -> SID:
    """The same. Raises `UserError` where a probe met a feature: kernels of order 0 and below are infinite at d = 0."""
    if not np.isfinite(sid.sid).all():
        radius = sid.radii[~np.isfinite(sid.sid)][0]
        raise UserError(
            f"SID({radius:g}) of order {sid.order} is not finite: a probe lies on a feature; use another seed, or order 1"
        )
    return sid


def psi_(d2: torch.Tensor, order: int) -> torch.Tensor:
    """The kernel of order k at squared distances d^2, which it may overwrite.

    psi_k(d) = sign(k) d^k for odd k and for k < 0, d^k ln d for even k >= 0 (Asokan & Seelamantula 2023, eq. 1).
    """
    if order < -1:
        return d2.pow_(order / 2).neg_()
    if order == -1:
        return d2.rsqrt_().neg_()
    if order == 0:
        return d2.log_().mul_(0.5)
    if order == 1:
        return d2.sqrt_()
    if order == 2:
        return d2.log().mul_(d2).mul_(0.5)
    assert order == 3
    return d2.sqrt().mul_(d2)


def power_(d2: torch.Tensor, order: int) -> torch.Tensor:
    """The kernel of the paper's code at squared distances d^2, which it may overwrite: sign(k) d^k for every k.

    It differs from `psi_` at orders 0, where it is 1 and the SID 0, and 2.
    """
    return d2.pow_(order / 2) if order >= 0 else d2.pow_(order / 2).neg_()


def psi_pull(d2: torch.Tensor, order: int) -> torch.Tensor:
    """psi'(d) / d at squared distances d^2: the derivative of psi for a probe at x is this times x - s."""
    if order == 2:
        return d2.log() + 1
    if order == 0:
        return d2.reciprocal()
    return abs(order) * d2 ** (order / 2 - 1)


@dataclass(frozen=True)
class Side:
    """What the probes see of one set of features."""

    per_feature: torch.Tensor  # [R, N] psi, mean over the probes
    per_probe: torch.Tensor  # [R, P] psi, mean over the features
    d_mean: torch.Tensor  # [R, n] derivative of the overall mean of psi with respect to the cube's mean
    d_sigma: torch.Tensor  # [R] and with respect to its sigma


def measure(features: torch.Tensor, u: torch.Tensor, cube: Cube, order: int, radii: Sequence[float], bar: tqdm) -> Side:
    """All radii, a chunk of features at a time, so that a chunk stays in the cache while the radii pass over it."""
    num, num_probes = len(features), len(u)
    u_pull = u[:PULL_PROBES]
    num_pull = len(u_pull)
    rows = max(CHUNK_ELEMENTS // num_probes, 1)
    halves = [cube.half_side(radius) for radius in radii]
    u2 = u.square().sum(dim=1)  # [P]
    per_feature, pull_feature = u.new_zeros([len(radii), num]), u.new_zeros([len(radii), num])
    per_probe, pull_probe = u.new_zeros([len(radii), num_probes]), u.new_zeros([len(radii), num_pull])
    pulled, pulled_norm = u.new_zeros([len(radii), u.shape[1]]), u.new_zeros([len(radii)])  # sums of pull times
    centre, centre_norm = u.new_zeros([u.shape[1]]), u.new_zeros([])  # s - mu and |s - mu|^2, and sums of these
    for first in range(0, num, rows):
        part = slice(first, min(first + rows, num))
        centred = features[part].double() - cube.mean  # [F, n]
        norms = centred.square().sum(dim=1)  # [F]
        products = centred @ u.T  # [F, P]
        buffer = torch.empty_like(products)  # fresh memory for every radius would cost more than the sums
        centre += centred.sum(dim=0)
        centre_norm += norms.sum()
        for index, half in enumerate(halves):
            d2 = distances_to_probes(centred, norms, products, u, u2, half, buffer)
            pull = psi_pull(d2[:, :num_pull], order)
            value = psi_(d2, order)
            per_feature[index, part] = value.mean(dim=1)
            pull_feature[index, part] = pull.mean(dim=1)
            per_probe[index] += value.sum(dim=0)
            pull_probe[index] += pull.sum(dim=0)
        pulled += pull_feature[:, part] @ centred
        pulled_norm += pull_feature[:, part] @ norms
        bar.update(len(centred))
    per_probe, pull_probe = per_probe / num, pull_probe / num
    h = torch.tensor(halves, dtype=torch.float64, device=u.device)  # [R]
    d_mean = h[:, None] * (pull_probe @ u_pull) / num_pull - pulled / num
    # psi'(d) d, by which 2 h u.(x - s) = d^2 - |s - mu|^2 + h^2 |u|^2 gives the derivative along u.
    mean_u2 = u2[:num_pull].mean()
    mean_d2 = centre_norm / num + h.square() * mean_u2 - 2 * h * (u_pull.mean(dim=0) @ centre) / num
    growth = order * per_probe[:, :num_pull].mean(dim=1)
    growth = growth + {0: torch.ones_like(h), 2: mean_d2}.get(order, torch.zeros_like(h))
    along_u = (growth - pulled_norm / num + h.square() * (pull_probe @ u2[:num_pull]) / num_pull) / (2 * h)
    return Side(per_feature, per_probe, d_mean, along_u * h / cube.sigma)


def distances_to_probes(
    centred: torch.Tensor,
    norms: torch.Tensor,
    products: torch.Tensor,
    u: torch.Tensor,
    u2: torch.Tensor,
    h: float,
    out: torch.Tensor,
) -> torch.Tensor:
    """`[F, P]` from features (relative to the cube's mean) to the probes h u, written into `out`."""
    if u.shape[1] <= FEW_DIMENSIONS:
        return torch.sum((centred[:, None] - h * u).square_(), dim=2, out=out)
    return torch.add(norms[:, None], products, alpha=-2 * h, out=out).add_(h * h * u2)


def influence_of_target(source_side: Side, target_side: Side, target: torch.Tensor, cube: Cube) -> torch.Tensor:
    """`[R, M]` by how much each target feature moves SID(r), times M: through its own term, and through the cube.

    The cube's mean and sigma are estimated from the same features, which the delta method accounts for.
    """
    d_mean = source_side.d_mean - target_side.d_mean  # [R, n]
    d_sigma = source_side.d_sigma - target_side.d_sigma  # [R]
    moved = torch.empty_like(target_side.per_feature)
    spread = cube.deviations.clamp(min=torch.finfo(torch.float64).tiny)
    rows = max(CHUNK_ELEMENTS // target.shape[1], 1)
    for first in range(0, len(target), rows):
        centred = target[first : first + rows].double() - cube.mean
        sigma = ((centred.square() - cube.deviations.square()) / (2 * spread)).mean(dim=1)  # [F]
        moved[:, first : first + rows] = d_mean @ centred.T + d_sigma[:, None] * sigma
    return moved - target_side.per_feature


def variance_of_mean(values: torch.Tensor) -> torch.Tensor:
    """`[R, N]` -> `[R]`, the variance of the mean over N."""
    return values.var(dim=1) / values.shape[1]


def draw_cloud(probes: int, dimensions: int, seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """u `[P, n]` float64, uniform in [-1, 1]."""
    gen = seeding.generator("sid-probes", seed)
    return (2 * torch.rand([probes, dimensions], generator=gen, dtype=torch.float64) - 1).to(device)


def published_estimate(
    source: torch.Tensor,
    target: torch.Tensor,
    order: int,
    radii: Sequence[float],
    probes: int,
    seed: int,
    cube: Cube,
    progress: str | None,
) -> SID:
    """The estimator of the paper's code: for each radius and round new probes and 500 features of either side.

    Twenty rounds are blended half and half with what came before, so that the last ones count most. That code adds over
    its 500 probes where the paper has a mean, which is kept here: its numbers are 500 times as large. Both errors are
    drawn together: `se_probes` holds them, from the spread of the rounds, and `se_features` is 0.
    """
    weights = PUBLISHED_BLEND ** torch.arange(PUBLISHED_ROUNDS, dtype=torch.float64).flip(0)
    weights[1:] *= 1 - PUBLISHED_BLEND  # the first round starts the blend
    values = torch.empty([len(radii), PUBLISHED_ROUNDS], dtype=torch.float64)
    gen = seeding.generator("sid-published", seed)
    with progress_bar(len(radii), progress or "", "radius", progress is not None) as bar:
        for index, radius in enumerate(radii):
            for turn in range(PUBLISHED_ROUNDS):
                u = 2 * torch.rand([probes, source.shape[1]], generator=gen, dtype=torch.float64) - 1
                x = cube.mean + cube.half_side(radius) * u.to(source.device)
                first, second = (mean_of_some(x, features, order, gen) for features in (source, target))
                values[index, turn] = first - second
            bar.update()
    sid = values @ weights
    errors = values.std(dim=1) * weights.square().sum().sqrt()
    return SID(
        order=order,
        radii=np.asarray(radii, dtype=np.float64),
        sid=sid.numpy(),
        se_features=np.zeros(len(radii)),
        se_probes=errors.numpy(),
        csid=float(sid.sum()),
        csid_se=float(errors.square().sum().sqrt()),
        num_source=len(source),
        num_target=len(target),
        num_probes=probes,
        seed=seed,
        mode="published",
    )


def mean_of_some(x: torch.Tensor, features: torch.Tensor, order: int, gen: torch.Generator) -> float:
    """The mean of the kernel from probes `[P, n]` to 500 of the features."""
    chosen = torch.randperm(len(features), generator=gen)[:PUBLISHED_FEATURES]
    # As in `distances_to_probes`, few dimensions take differences.
    mode = "donot_use_mm_for_euclid_dist" if x.shape[1] <= FEW_DIMENSIONS else "use_mm_for_euclid_dist"
    return float(power_(torch.cdist(x, features[chosen].double(), compute_mode=mode).square(), order).mean())


def default_probes(mode: str) -> int:
    return PUBLISHED_PROBES if mode == "published" else DEFAULT_PROBES


def check_request(order: int, radii: Sequence[float], probes: int, mode: str) -> None:
    if order not in ORDERS:
        raise ValueError(f"order {order} is not known; choose from {', '.join(map(str, ORDERS))}")
    if not radii or not all(math.isfinite(radius) and radius > 0 for radius in radii):
        raise ValueError("radii must be numbers above 0")
    if probes < 2:
        raise ValueError(f"probes={probes}: two at least, better {DEFAULT_PROBES}")
    if mode not in ("shared", "published"):
        raise ValueError(f"mode {mode!r} is not known; choose shared or published")
