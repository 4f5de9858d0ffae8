"""The kernel inception distance: theory, a literal double loop, errors that cover, golden numbers."""

import numpy as np
import pytest

from dnnlib.errors import UserError
from metrics.kernel_inception_distance import kernel_inception_distance, squared_mmd, sums_of, variances_of_terms
from tests.helpers.golden import golden_cases


def features(num: int, seed: int, shift: float = 0.0, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=[num, dim]) + shift


def test_equals_a_double_loop():
    x, y = features(7, 0), features(7, 1, 0.5)

    def k(a, b):
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    within = sum(k(z[i], z[j]) for z in (x, y) for i in range(7) for j in range(7) if i != j) / 42
    across = sum(k(a, b) for a in x for b in y) / 49
    assert squared_mmd(x, y) == pytest.approx(within - 2 * across, rel=1e-12)


def test_unbiased_and_covered_by_its_error():
    """Equal distributions: zero on average. Others: the error covers the value of very many samples."""
    zeros = [squared_mmd(features(40, 2 * seed), features(40, 2 * seed + 1)) for seed in range(400)]
    assert abs(np.mean(zeros)) < 3 * np.std(zeros) / 20
    truth = squared_mmd(features(4000, 0), features(4000, 1, 0.3))
    hits = 0
    for seed in range(200):
        x, y = features(500, 1000 + seed), features(500, 3000 + seed, 0.3)
        kid = kernel_inception_distance(x, y, num_subsets=20, max_subset_size=100, seed=seed)
        hits += abs(kid.value - truth) < 1.96 * kid.error
    assert 180 <= hits <= 199


def test_grows_with_the_distance_and_does_not_depend_on_the_order_of_sets():
    x = features(300, 0)
    values = [kernel_inception_distance(x, features(300, 1, shift)).value for shift in (0, 0.5, 1, 2)]
    assert values == sorted(values)
    y = features(300, 1, 0.5)
    assert kernel_inception_distance(x, y).value == pytest.approx(kernel_inception_distance(y, x).value)


@pytest.mark.parametrize("shift", [0.0, 0.1])
@pytest.mark.parametrize(("num", "size"), [(100, 100), (200, 50)])
def test_the_error_is_the_spread_whether_or_not_the_sets_are_equal(num, size, shift):
    """Where they are equal it was 2.2 times the spread of the values; of one subset there was none."""
    truth = 0.0 if shift == 0 else squared_mmd(features(2000, 0), features(2000, 1, shift))
    kids = [
        kernel_inception_distance(features(num, 10 + seed), features(num, 1000 + seed, shift), 10, size, seed)
        for seed in range(100)
    ]
    values, errors = (np.array(column) for column in list(zip(*kids, strict=True))[:2])
    # A hundred values tell their spread to 7 %, with longer tails than a Gaussian's to about twice that.
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(values.std(), rel=0.3)
    assert np.mean(abs(values - truth) < 1.96 * errors) > 0.85


def test_the_variances_of_the_terms_by_hand():
    """Of a linear kernel without its constant, k(x, y) = x y in one dimension: f = g = (E x - E y) x up to the sign."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        x, y = 1 + rng.normal(size=[30]), 1.5 + 2 * rng.normal(size=[30])
        within = [sums_of(np.outer(z, z), leave_out_diagonal=True) for z in (x, y)]
        variances = variances_of_terms(within, sums_of(np.outer(x, y)))
        found.append([*variances.first, *variances.second])
    # Var f = 0.5^2 Var x, Var g = 0.5^2 Var y; what is left is the product of deviations.
    assert np.mean(found, axis=0) == pytest.approx([0.25, 1, 1, 16, 4], rel=0.15)


def test_few_images_and_what_others_publish():
    x, y = features(50, 0), features(50, 1)
    assert kernel_inception_distance(x, y).error > 0  # of one subset
    assert kernel_inception_distance(x, y).std is None
    assert kernel_inception_distance(x[:3], y[:3]).error is None
    kid = kernel_inception_distance(x, y, 10, 20, seed=3)
    rng = np.random.RandomState(3)
    values = []
    for _ in range(10):
        part = y[rng.choice(50, 20, replace=False)]
        values.append(squared_mmd(x[rng.choice(50, 20, replace=False)], part))
    assert kid.value == np.mean(values) and kid.std == np.std(values)


@pytest.mark.parametrize("scale", [1, 30, 1e20])
@pytest.mark.parametrize("shift", [0, 0.01])
def test_products_in_float32_decide_nothing(monkeypatch, scale, shift):
    """They were in float64 and cost twice as much; features of 1e20 overflow in float32."""
    monkeypatch.setattr("metrics.kernel_inception_distance.SINGLE_SIZE", 0)
    basis = features(40, 0, dim=256)
    x, y = (
        (scale * (features(500, seed, dim=40) @ basis / 10 + where).clip(min=0)).astype(np.float32)
        for seed, where in ((1, 0.3), (2, 0.3 + shift))
    )
    single, double = (kernel_inception_distance(*pair, 3, 200) for pair in ((x, y), (x.astype(float), y.astype(float))))
    assert abs(single.value - double.value) < 1e-4 * double.error
    assert single.error == pytest.approx(double.error, rel=1e-5)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_degree(degree):
    x, y = features(9, 0), features(9, 1, 0.5)
    k = [(a @ b.T / 8 + 1) ** degree for a, b in ((x, x), (y, y), (x, y))]
    within = sum((each.sum() - np.trace(each)) / 72 for each in k[:2])
    assert kernel_inception_distance(x, y, degree=degree).value == pytest.approx(within - 2 * k[2].mean(), rel=1e-12)
    with pytest.raises(ValueError, match="degree"):
        kernel_inception_distance(x, y, degree=0)


@pytest.mark.parametrize("case", golden_cases("metrics", "kid"))
def test_golden(case):
    inputs, expected = case.inputs(), case.outputs()
    kid = kernel_inception_distance(
        inputs["real"],
        inputs["gen"],
        case.args["num_subsets"],
        case.args["max_subset_size"],
        seed=case.args["numpy_global_seed"],
    )
    assert kid.value == pytest.approx(float(expected["f64_kid"]), rel=1e-6)
    # The reference computes in float32: its own difference from float64 is the tolerance.
    assert kid.value == pytest.approx(float(expected["ref_kid"]), rel=1e-4, abs=1e-6)


def test_refuses_what_is_not_finite():
    x = features(10, 0)
    x[2, 2] = np.nan
    with pytest.raises(UserError, match="generated images: 1 of 10"):
        kernel_inception_distance(features(10, 1), x)
    with pytest.raises(ValueError, match="8 and of 5 dimensions"):
        kernel_inception_distance(features(10, 1), features(10, 0, dim=5))


@pytest.mark.parametrize("seed", [-3, 2**32, 10**30])
def test_any_seed_will_do(seed):
    x = np.random.default_rng(0).normal(size=[20, 4])
    assert kernel_inception_distance(x[:10], x[10:], seed=seed).value is not None
