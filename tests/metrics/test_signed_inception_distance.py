"""The SID: what theory says of it, a literal double loop, and errors that cover as often as they claim."""

import math

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from metrics.signed_inception_distance import (
    DEFAULT_RADII,
    FEW_DIMENSIONS,
    ORDERS,
    PUBLISHED_FEATURES,
    PUBLISHED_ROUNDS,
    Cube,
    draw_cloud,
    power_,
    psi_,
    psi_pull,
    signed_inception_distance,
)


def gaussian(num: int, dim: int, seed: int, spread: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    return spread * torch.randn([num, dim], generator=gen, dtype=torch.float64) + shift


def kernel(d: float, k: int) -> float:
    if k in (0, 2):
        return d**k * math.log(d)
    return math.copysign(1, k) * d**k


def literal(source: np.ndarray, target: np.ndarray, radius: float, u: np.ndarray, order: int) -> float:
    """The definition, a probe and a feature at a time."""
    mean = target.mean(axis=0)
    sigma = np.sqrt(((target - mean) ** 2).mean(axis=0)).mean()
    total = 0.0
    for row in u:
        x = mean + radius * sigma / 2 * row
        total += sum(kernel(float(np.linalg.norm(x - s)), order) for s in source) / len(source)
        total -= sum(kernel(float(np.linalg.norm(x - t)), order) for t in target) / len(target)
    return total / len(u)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dim", [1, FEW_DIMENSIONS, FEW_DIMENSIONS + 1, 20])
def test_equals_a_double_loop(order, dim):
    source, target = gaussian(7, dim, 0, 1.3, 0.4), gaussian(9, dim, 1)
    radii = (1e-3, 0.5, 24.5)
    actual = signed_inception_distance(source, target, order=order, radii=radii, probes=6, seed=3)
    u = draw_cloud(6, dim, 3).numpy()
    for radius, value in zip(radii, actual.sid, strict=True):
        expected = literal(source.numpy(), target.numpy(), radius, u, order)
        assert value == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert actual.csid == pytest.approx(actual.sid.sum(), rel=1e-12)


def test_a_mean_far_from_the_origin_costs_no_digits():
    source, target = gaussian(30, 12, 0, 1.1), gaussian(40, 12, 1)
    near = signed_inception_distance(source, target, radii=(0.01, 1), probes=20)
    far = signed_inception_distance(source + 1e3, target + 1e3, radii=(0.01, 1), probes=20)
    np.testing.assert_allclose(far.sid, near.sid, rtol=1e-9)


def test_the_radii_are_those_of_the_paper():
    assert DEFAULT_RADII[0] == 0.5 and DEFAULT_RADII[-1] == 24.5 and len(DEFAULT_RADII) == 49


@pytest.mark.parametrize("order", [-1, 0, 1, 2, 3])
def test_zero_for_two_halves_of_one_set(order):
    features = gaussian(4000, 24, 5)
    result = signed_inception_distance(features[:2000], features[2000:], order=order, probes=200)
    assert abs(result.csid) < 3 * result.csid_se
    assert (np.abs(result.sid) < 3.5 * result.se).all()


def test_exactly_zero_for_one_set_against_itself():
    features = gaussian(50, 16, 5)
    assert signed_inception_distance(features, features, probes=50).csid == 0


def test_antisymmetric_when_the_cube_is_fixed():
    a, b = gaussian(60, 16, 0, 1.2), gaussian(80, 16, 1, shift=0.3)
    cube = Cube.around(gaussian(100, 16, 2))
    there = signed_inception_distance(a, b, probes=50, cube=cube)
    back = signed_inception_distance(b, a, probes=50, cube=cube)
    np.testing.assert_allclose(there.sid, -back.sid, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("spread", "shift", "sign"), [(1.5, 0.0, 1), (0.6, 0.0, -1), (1.0, 1.0, 1)])
def test_sign_on_gaussians_of_known_spread(spread, shift, sign):
    result = signed_inception_distance(gaussian(500, 32, 0, spread, shift), gaussian(600, 32, 1), probes=200)
    assert sign * result.csid > 10 * result.csid_se
    assert (sign * result.sid > 0).all()


def test_a_point_of_known_distance():
    """Order 3 in one dimension, a single place on either side: E|x - a|^3 over x in mu + [-h, h]."""
    source, target = torch.full([2, 1], 5.0), torch.tensor([[-1.0], [1.0]])
    result = signed_inception_distance(source, target, order=3, radii=(2,), probes=200_000)
    # mu = 0, sigma = 1, h = 1: E(5-x)^3 = 125 + 15 E x^2 = 130; E|x -+ 1|^3 = (integral of y^3 over [0, 2]) / 2 = 2.
    assert result.sid[0] == pytest.approx(128, abs=5 * result.se_probes[0])
    assert result.se_probes[0] < 0.2


@pytest.mark.parametrize("dim", [3, 20])
@pytest.mark.parametrize("spread", [1.0, 1.4])
def test_errors_cover_the_truth_as_often_as_they_claim(dim, spread):
    """200 repetitions of features and probes, against the value for very many of both."""
    radii = (0.5, 4.0, 12.0)
    population = signed_inception_distance(
        gaussian(10_000, dim, 1, spread, 0.7), gaussian(10_000, dim, 2), radii=radii, probes=5_000, seed=-1
    )
    hits, hits_csid = np.zeros(len(radii)), 0
    for turn in range(200):
        source, target = gaussian(250, dim, 1000 + turn, spread, 0.7), gaussian(300, dim, 5000 + turn)
        result = signed_inception_distance(source, target, radii=radii, probes=100, seed=turn)
        hits += np.abs(result.sid - population.sid) < 1.96 * result.se
        hits_csid += abs(result.csid - population.csid) < 1.96 * result.csid_se
    assert (hits >= 180).all() and (hits <= 198).all()
    assert 180 <= hits_csid <= 198


@pytest.mark.parametrize("order", ORDERS)
def test_the_pull_is_the_derivative_of_the_kernel(order):
    d, step = torch.linspace(0.3, 4, 20, dtype=torch.float64), 1e-5
    derivative = (psi_((d + step).square(), order) - psi_((d - step).square(), order)) / (2 * step)
    torch.testing.assert_close(psi_pull(d.square(), order) * d, derivative, rtol=1e-7, atol=0)


def test_the_same_seed_gives_the_same_number_and_another_seed_another():
    source, target = gaussian(40, 12, 0), gaussian(50, 12, 1)
    results = [signed_inception_distance(source, target, probes=30, seed=seed).csid for seed in (7, 7, 8)]
    assert results[0] == results[1] != results[2]


def test_chunks_do_not_matter(monkeypatch):
    source, target = gaussian(100, 12, 0, 1.2).float(), gaussian(90, 12, 1).float()
    whole = signed_inception_distance(source, target, probes=30)
    monkeypatch.setattr("metrics.signed_inception_distance.CHUNK_ELEMENTS", 70)
    parts = signed_inception_distance(source.numpy(), target.numpy(), probes=30)
    np.testing.assert_allclose(parts.sid, whole.sid, rtol=1e-10)
    np.testing.assert_allclose(parts.se, whole.se, rtol=1e-8)


def test_the_published_estimator_agrees_within_its_noise():
    source, target = gaussian(900, 16, 0, 1.3), gaussian(800, 16, 1)
    shared = signed_inception_distance(source, target, radii=(0.5, 6.0, 20.0), probes=300)
    published = signed_inception_distance(source, target, radii=(0.5, 6.0, 20.0), probes=100, mode="published")
    assert published.mode == "published"
    assert (np.abs(published.sid - shared.sid) < 4 * np.hypot(published.se, shared.se)).all()
    assert (published.se > shared.se_probes).all()


def test_the_published_estimator_follows_its_code():
    """Twenty rounds of 500 probes (ten were taken), and a plain power at every order: 1 at order 0, d^2 at order 2."""
    d2 = torch.tensor([0.25, 1.0, 9.0], dtype=torch.float64)
    assert power_(d2.clone(), 0).tolist() == [1, 1, 1] and power_(d2.clone(), 2).tolist() == d2.tolist()
    for order in (-5, -3, -2, -1, 1, 3):
        torch.testing.assert_close(power_(d2.clone(), order), psi_(d2.clone(), order))
    source, target = gaussian(30, 9, 0, 1.3), gaussian(30, 9, 1)
    published = signed_inception_distance(source, target, radii=(2.0,), mode="published")
    assert (published.num_probes, PUBLISHED_ROUNDS, PUBLISHED_FEATURES) == (500, 20, 500)
    assert signed_inception_distance(source, target, radii=(2.0,), order=0, mode="published").csid == 0


def test_results_are_plain_data():
    data = signed_inception_distance(gaussian(20, 9, 0), gaussian(20, 9, 1), radii=(1, 2), probes=10).as_dict()
    assert data["radii"] == [1.0, 2.0] and len(data["sid"]) == 2 and data["num_probes"] == 10


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_features_that_are_not_finite(bad):
    features = gaussian(10, 4, 0)
    features[3, 1] = bad
    with pytest.raises(UserError, match="source: 1 of 10 samples"):
        signed_inception_distance(features, gaussian(10, 4, 1))


@pytest.mark.parametrize("order", [-5, -3, -1, 0, 1])
def test_a_probe_on_a_feature(order):
    """Where the kernel is infinite, the SID was -inf or NaN without a word."""
    source, target = gaussian(10, 3, 0), gaussian(10, 3, 1)
    source[2] = draw_cloud(20, 3, 0)[4]
    cube = Cube(torch.zeros(3, dtype=torch.float64), 2.0, torch.ones(3, dtype=torch.float64))  # at radius 1 x is u
    if order == 1:
        assert math.isfinite(signed_inception_distance(source, target, order, (1.0,), 20, cube=cube).csid)
        return
    with pytest.raises(UserError, match=rf"SID\(1\) of order {order} is not finite: a probe lies on a feature"):
        signed_inception_distance(source, target, order, (1.0, 2.0), 20, cube=cube)


def test_refuses_what_it_cannot_measure():
    good = gaussian(10, 4, 0)
    with pytest.raises(ValueError, match="4 and of 5 dimensions"):
        signed_inception_distance(good, gaussian(10, 5, 1))
    with pytest.raises(ValueError, match="order 4"):
        signed_inception_distance(good, good, order=4)
    with pytest.raises(ValueError, match="radii"):
        signed_inception_distance(good, good, radii=(0.0, 1.0))
    with pytest.raises(ValueError, match="probes=1"):
        signed_inception_distance(good, good, probes=1)
    with pytest.raises(ValueError, match="mode 'fast'"):
        signed_inception_distance(good, good, mode="fast")
    with pytest.raises(UserError, match="at least 2 samples are needed, not 1"):
        signed_inception_distance(good[:1], good)
    with pytest.raises(UserError, match="all its features are equal"):
        signed_inception_distance(good, torch.ones([5, 4]))
