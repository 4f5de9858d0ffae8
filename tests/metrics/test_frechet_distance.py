"""The Fréchet distance: theory first, then an independent implementation's numbers."""

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from metrics.frechet_distance import (
    Gaussian,
    fit_gaussian,
    frechet_distance,
    frechet_distance_of_features,
    trace_of_root,
)
from tests.helpers.golden import golden_cases


def random_features(num: int, dim: int, seed: int) -> np.ndarray:
    """`[num, dim]` with a mean and correlations of their own."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=[num, dim]) @ rng.normal(size=[dim, dim]) + rng.normal(size=dim)


def random_rotation(dim: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=[dim, dim]))[0]


@pytest.mark.parametrize("num", [5, 9, 200])  # fewer samples than dimensions, one more than they are, many
def test_zero_on_equal_input(num):
    x = random_features(num, 8, seed=0)
    scale = np.trace(fit_gaussian(x).covariance)
    # A zero eigenvalue comes out as about 1e-16 of the largest squared, and its root as 1e-8.
    assert 0 <= frechet_distance_of_features(x, x) < 1e-6 * scale
    assert frechet_distance_of_features(x, x[::-1]) < 1e-6 * scale


@pytest.mark.parametrize(
    ("num_a", "num_b", "dim"), [(100, 100, 7), (300, 40, 16), (6, 50, 16), (50, 6, 16), (30, 2, 1)]
)
def test_symmetry_and_sign(num_a, num_b, dim):
    a, b = random_features(num_a, dim, seed=1), random_features(num_b, dim, seed=2)
    there, back = frechet_distance_of_features(a, b), frechet_distance_of_features(b, a)
    assert there > 0
    assert there == pytest.approx(back, rel=1e-6)


def test_closed_form_of_diagonal_gaussians():
    """Axis by axis: (m1 - m2)^2 + (s1 - s2)^2."""
    rng = np.random.default_rng(3)
    means, deviations = rng.normal(size=[2, 12]), rng.uniform(0.1, 3, size=[2, 12])
    deviations[0, :3] = 0  # axes without any spread
    a, b = (Gaussian(mean, np.diag(std**2)) for mean, std in zip(means, deviations, strict=True))
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_one_dimension_by_hand():
    """{0, 2} has mean 1 and deviation 1; {0, 6} has mean 3 and deviation 3: 2^2 + 2^2. (Divided by N - 1 it is not.)"""
    assert frechet_distance_of_features([[0.0], [2.0]], [[0.0], [6.0]]) == pytest.approx(8, rel=1e-12)


def test_shift_counts_squared():
    x = random_features(100, 5, seed=4)
    shift = np.array([3.0, 0, 0, 4.0, 0])
    assert frechet_distance_of_features(x, x + shift) == pytest.approx(25, rel=1e-9)


def test_scaling_by_s_is_the_total_variance_times_one_minus_s_squared():
    x = random_features(500, 6, seed=5)
    x -= x.mean(axis=0)
    expected = (1 - 0.3) ** 2 * np.trace(fit_gaussian(x).covariance)
    assert frechet_distance_of_features(x, 0.3 * x) == pytest.approx(expected, rel=1e-9)


def test_invariance_under_rotation_order_and_common_shift():
    a, b = random_features(80, 9, seed=6), random_features(120, 9, seed=7)
    expected = frechet_distance_of_features(a, b)
    rotation = random_rotation(9, seed=8)
    assert frechet_distance_of_features(a @ rotation, b @ rotation) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_of_features(a[::-1], b[np.random.default_rng(0).permutation(120)]) == pytest.approx(
        expected
    )
    assert frechet_distance_of_features(a + 5, b + 5) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_of_features(7 * a, 7 * b) == pytest.approx(49 * expected, rel=1e-9)


def test_grows_with_the_distance():
    a = random_features(200, 4, seed=9)
    distances = [frechet_distance_of_features(a, a + step) for step in (0, 0.5, 1, 2, 4)]
    assert distances == sorted(distances)


def test_trace_of_root_of_commuting_matrices():
    rotation = random_rotation(5, seed=10)
    left, right = np.array([4, 1, 0, 9, 2.0]), np.array([1, 16, 5, 0, 2.0])
    a, b = (rotation * left) @ rotation.T, (rotation * right) @ rotation.T
    assert trace_of_root(a, b) == pytest.approx(np.sqrt(left * right).sum(), abs=1e-6)


def test_takes_tensors_of_any_precision():
    x, y = (random_features(40, 3, seed=seed).astype(np.float32) for seed in (11, 12))
    expected = frechet_distance_of_features(x, y)
    assert frechet_distance_of_features(torch.from_numpy(x), torch.from_numpy(y).double()) == expected


@pytest.mark.parametrize("kind", ["plain", "far from the origin", "an odd beginning"])
def test_is_exact_to_fourteen_digits_and_leaves_the_features_alone(monkeypatch, kind):
    """Against extended precision; a part of the features is what the others are measured from."""
    monkeypatch.setattr("metrics.frechet_distance.CHUNK", 100)
    x = random_features(1000, 6, seed=0)
    if kind == "far from the origin":
        x += 1e4
    if kind == "an odd beginning":
        x[:100] = 50
    kept = x.copy()
    gaussian = fit_gaussian(x)
    exact = x.astype(np.longdouble)
    centred = exact - exact.mean(axis=0)
    covariance = centred.T @ centred / len(x)
    assert abs(gaussian.covariance - covariance).max() < 1e-14 * abs(covariance).max()
    assert abs(gaussian.mean - exact.mean(axis=0)).max() < 1e-14 * abs(exact).max()
    assert np.array_equal(x, kept)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(bad):
    x = random_features(10, 3, seed=13)
    x[4, 1] = x[7, 0] = bad
    with pytest.raises(UserError, match="fakes: 2 of 10 samples"):
        fit_gaussian(x, "fakes")
    with pytest.raises(UserError, match="second set: 2 of 10"):
        frechet_distance_of_features(np.zeros([5, 3]), x)


def test_takes_features_whose_sum_overflows():
    x = np.full([4, 2], 3e38, dtype=np.float32)
    assert fit_gaussian(x).covariance.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("num", [0, 1])
def test_refuses_too_few_samples(num):
    with pytest.raises(UserError, match=f"at least 2 samples are needed, not {num}"):
        fit_gaussian(np.zeros([num, 4]))


def test_refuses_shapes_that_do_not_meet():
    with pytest.raises(ValueError, match="3 and of 4 dimensions"):
        frechet_distance_of_features(np.zeros([5, 3]), np.zeros([5, 4]))
    with pytest.raises(ValueError, match=r"\[N, d\]"):
        fit_gaussian(np.zeros([5]))


@pytest.mark.parametrize("case", golden_cases("metrics", "fid"))
def test_golden(case):
    inputs, expected = case.inputs(), case.outputs()
    # With fewer samples than dimensions the reference's matrix root is good to about 1e-6.
    is_full_rank = min(len(inputs["real"]), len(inputs["gen"])) > inputs["real"].shape[1]
    tolerance = 1e-9 if is_full_rank else 1e-6
    for side in ("real", "gen"):
        gaussian = fit_gaussian(inputs[side])
        np.testing.assert_allclose(gaussian.mean, expected[f"mu_{side}"].numpy(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(gaussian.covariance, expected[f"sigma_{side}"].numpy(), rtol=1e-9, atol=1e-12)
    distance = frechet_distance_of_features(inputs["real"], inputs["gen"])
    assert distance == pytest.approx(float(expected["f64_fid"]), abs=tolerance * max(1, float(expected["f64_fid"])))
    assert distance == pytest.approx(float(expected["ref_fid"]), rel=1e-7)
