"""The kernel inception distance: theory, a literal double loop, errors that cover, golden numbers."""

import numpy as np
import pytest

from dnnlib.errors import UserError
from metrics.kernel_inception_distance import kernel_inception_distance, squared_mmd
from tests.conftest import golden_cases


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
    truth = squared_mmd(features(6000, 0), features(6000, 1, 0.3))
    hits = 0
    for seed in range(200):
        x, y = features(500, 1000 + seed), features(500, 3000 + seed, 0.3)
        kid = kernel_inception_distance(x, y, num_subsets=50, max_subset_size=100, seed=seed)
        hits += abs(kid.value - truth) < 1.96 * kid.error
    assert 180 <= hits <= 199


def test_grows_with_the_distance_and_does_not_depend_on_the_order_of_sets():
    x = features(300, 0)
    values = [kernel_inception_distance(x, features(300, 1, shift)).value for shift in (0, 0.5, 1, 2)]
    assert values == sorted(values)
    y = features(300, 1, 0.5)
    assert kernel_inception_distance(x, y).value == pytest.approx(kernel_inception_distance(y, x).value)


def test_one_subset_of_everything_has_no_error():
    assert kernel_inception_distance(features(50, 0), features(50, 1)).error is None
    assert kernel_inception_distance(features(50, 0), features(50, 1), max_subset_size=20).error > 0


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
