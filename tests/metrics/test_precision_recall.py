"""Precision, recall, density and coverage: who must be inside, a literal loop, golden booleans."""

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from metrics import precision_recall as pr
from tests.helpers.golden import golden_cases


def features(num: int, seed: int, spread: float = 1.0, dim: int = 6) -> np.ndarray:
    return spread * np.random.default_rng(seed).normal(size=[num, dim])


def test_all_or_nothing():
    x = features(100, 0)
    assert pr.precision_recall(x, x + 1e-9) == (1, 1)
    assert pr.precision_recall(x, x + 100) == (0, 0)
    assert pr.density_coverage(x, x + 100) == (0, 0)
    assert pr.density_coverage(x, x + 1e-9).coverage == 1


def test_narrow_samples_are_precise_and_wide_ones_recall():
    narrow = pr.precision_recall(features(400, 0), features(400, 1, 0.3))
    wide = pr.precision_recall(features(400, 0), features(400, 1, 2.0))
    assert narrow.precision > 0.95 > 0.5 > narrow.recall
    assert wide.precision < 0.6 < 0.9 < wide.recall


def test_density_and_coverage_of_equal_distributions():
    """Naeem 2020, section 3: both expectations have closed forms, density 1 and coverage 1 - (1/2)^k for N = M."""
    density, coverage = pr.density_coverage(features(3000, 0, dim=3), features(3000, 1, dim=3), nhood_size=5)
    assert density == pytest.approx(1, abs=0.05)
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.02)


def test_a_stray_real_image_fools_precision_but_not_density():
    real = np.concatenate([features(200, 0, 0.1), [[50.0] * 6]])
    fake = features(200, 1, 5.0) + 20
    assert pr.precision_recall(real, fake).precision > 0.9
    assert pr.density_coverage(real, fake).density < 0.3


def literal(x: np.ndarray, y: np.ndarray, k: int, ties: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both pairs of numbers by way of every difference, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    xx, yy, yx = (np.stack([np.square(b - row).sum(axis=1) for row in a]) for a, b in ((x, x), (y, y), (y, x)))
    rx, ry = np.sort(xx, axis=1)[:, k], np.sort(yy, axis=1)[:, k]
    inside, on_sphere = (yx < rx).sum(axis=0), (yx == rx).sum(axis=0)
    missing = k - (xx < rx[:, None]).sum(axis=1) if ties == "shared" else 0
    held = inside + missing * on_sphere / (xx == rx[:, None]).sum(axis=1)
    pr_ = (yx <= rx).any(axis=1).mean(), (yx <= ry[:, None]).any(axis=0).mean()
    return pr_, (held.sum() / k / len(y), (held > 0).mean())


def with_ties(kind: str, num: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    pool = rng.normal(size=[num, dim])
    if kind == "lattice":
        return rng.integers(0, 3, size=[num, dim]).astype(np.float32)
    if kind == "copies":
        return pool[rng.integers(0, num // 5, num)].astype(np.float32)
    if kind == "far from the origin":
        return pool + 1e6
    if kind == "tight modes":
        return pool[rng.integers(0, 3, num)] * (1 + 1e-6 * rng.normal(size=[num, 1]))
    if kind == "tiny numbers":
        return 1e-300 * pool
    return pool.astype(np.float32)


@pytest.mark.parametrize("chunk", [100, 1 << 20])
@pytest.mark.parametrize("kind", ["no ties", "lattice", "copies", "far from the origin", "tight modes", "tiny numbers"])
def test_equals_a_literal_loop(monkeypatch, kind, chunk):
    monkeypatch.setattr(pr, "CHUNK_ELEMENTS", chunk)
    for dim, k in ((2, 3), (70, 5)):
        pool = with_ties(kind, 53, dim, np.random.default_rng(dim))
        x, y = pool[:30], np.concatenate([pool[:4], pool[30:]])  # some are remembered
        for ties in pr.TIES:
            expected = literal(
                x * 1e300 if kind == "tiny numbers" else x, y * 1e300 if kind == "tiny numbers" else y, k, ties
            )
            assert pr.precision_recall(x, y, k) == pytest.approx(expected[0], rel=1e-12)
            assert pr.density_coverage(x, y, k, ties) == pytest.approx(expected[1], rel=1e-12)


@pytest.mark.parametrize("dim", [64, 512, 2048])
def test_copies_are_their_own_neighbours(dim):
    """By rounding, precision of 300 images x 4 copies was 0.967, 0.953, 0.807; density and coverage of 2 x 12 were 0."""
    x = features(300, 0, dim=dim).clip(min=0).astype(np.float32)
    four, twelve, five = np.repeat(x, 4, axis=0), np.repeat(x[:2], 12, axis=0), np.repeat(x[:100], 5, axis=0)
    for copies, k in ((x, 5), (four, 3), (twelve, 5), (five, 3)):
        assert pr.precision_recall(copies, copies, k) == (1, 1)
        assert pr.density_coverage(copies, copies, k) == (1, 1)


def test_an_open_ball_of_radius_zero_is_empty():
    """What prdc would say of five copies each (k = 3) if it did not round: 0, 0; by rounding it was 0.357, 0.214."""
    copies = np.repeat(features(100, 0, dim=512).astype(np.float32), 5, axis=0)
    assert pr.precision_recall(copies, copies, 3) == (1, 1)
    assert pr.density_coverage(copies, copies, 3, ties="open") == (0, 0)


def test_a_set_against_itself_and_a_generator_that_remembers():
    """Density of 800 images (k = 5) against themselves was 1.090, of a generator that remembers half 0.600 for 0.554."""
    x = features(400, 0, dim=128).clip(min=0).astype(np.float32)
    assert pr.density_coverage(x, x) == (1, 1) == pr.density_coverage(x, x, ties="open")
    half = np.concatenate([x[:200], features(200, 1, dim=128).clip(min=0).astype(np.float32)])
    one = np.repeat(x[:1], 400, axis=0)
    for y, k in ((half, 5), (one, 3)):
        expected_pr, expected_dc = literal(x, y, k, "open")
        assert pr.precision_recall(x, y, k) == pytest.approx(expected_pr, rel=1e-12)
        assert pr.density_coverage(x, y, k) == pytest.approx(expected_dc, rel=1e-12)


def test_tight_modes_are_told_apart_by_a_product_in_float64(monkeypatch):
    """Differences of every pair of a nearly collapsed generator would take hours."""
    num_differences = []
    by_differences = pr.exact_squared_distances
    monkeypatch.setattr(
        pr, "exact_squared_distances", lambda a, b, i, j: num_differences.append(len(i)) or by_differences(a, b, i, j)
    )
    rng = np.random.default_rng(0)
    y = np.repeat(rng.normal(size=[2, 300]), 100, axis=0) * (1 + 1e-4 * rng.normal(size=[200, 300]))
    pr.precision_recall(features(200, 0, dim=300), y.astype(np.float32))
    assert sum(num_differences) < 0.1 * 3 * 200**2


@pytest.mark.parametrize("case", golden_cases("metrics", "pr"))
def test_golden(case):
    inputs, expected = case.inputs(), case.outputs()
    k = case.args["nhood_size"]
    real, gen = pr.as_samples(inputs["real"], inputs["gen"], k)
    assert (len(real), len(gen)) == (len(inputs["real"]), len(inputs["gen"]))  # all distinct
    for samples, name in ((real, "f64_kth_real"), (gen, "f64_kth_gen")):
        radii = pr.neighbourhoods(samples, k).radii2.sqrt() / samples.scale
        torch.testing.assert_close(radii, expected[name], rtol=1e-9, atol=0)
    result = pr.precision_recall(inputs["real"], inputs["gen"], k)
    assert result == (float(expected["f64_precision"]), float(expected["f64_recall"]))
    # The reference rounds to float16, by which a few samples change sides.
    assert result == pytest.approx((float(expected["ref_precision"]), float(expected["ref_recall"])), abs=0.02)


def test_refuses_too_few_samples():
    with pytest.raises(UserError, match="at least 4 samples are needed, not 3"):
        pr.precision_recall(features(3, 0), features(9, 1))
    with pytest.raises(ValueError, match="nhood_size"):
        pr.density_coverage(features(9, 0), features(9, 1), nhood_size=0)
    with pytest.raises(ValueError, match="choose shared or open"):
        pr.density_coverage(features(9, 0), features(9, 1), ties="closed")
