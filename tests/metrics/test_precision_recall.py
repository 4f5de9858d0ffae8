"""Precision, recall, density and coverage: who must be inside, a literal loop, golden booleans."""

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from metrics import precision_recall as pr
from tests.conftest import golden_cases


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


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_equals_a_literal_loop(monkeypatch, chunk):
    monkeypatch.setattr(pr, "CHUNK_ELEMENTS", chunk)
    x, y, k = features(30, 0), features(23, 1, 1.2), 3
    radii = [sorted(np.linalg.norm(x - row, axis=1))[k] for row in x]
    inside = np.array([[np.linalg.norm(b - a) < r for a, r in zip(x, radii, strict=True)] for b in y])  # [23, 30]
    assert pr.precision_recall(x, y, k).precision == pytest.approx(inside.any(axis=1).mean())
    assert pr.density_coverage(x, y, k) == pytest.approx((inside.sum() / (k * 23), inside.any(axis=0).mean()))


@pytest.mark.parametrize("case", golden_cases("metrics", "pr"))
def test_golden(case):
    inputs, expected = case.inputs(), case.outputs()
    real, gen, k = inputs["real"].double(), inputs["gen"].double(), case.args["nhood_size"]
    radii_real, radii_gen = pr.neighbour_radii(real, k), pr.neighbour_radii(gen, k)
    torch.testing.assert_close(radii_real, expected["f64_kth_real"], rtol=1e-9, atol=0)
    torch.testing.assert_close(radii_gen, expected["f64_kth_gen"], rtol=1e-9, atol=0)
    assert torch.equal(pr.inside_any(gen, real, radii_real), expected["f64_inside_real_manifold"])
    assert torch.equal(pr.inside_any(real, gen, radii_gen), expected["f64_inside_gen_manifold"])
    result = pr.precision_recall(inputs["real"], inputs["gen"], k)
    assert result == (float(expected["f64_precision"]), float(expected["f64_recall"]))
    # The reference rounds to float16, by which a few samples change sides.
    assert result == pytest.approx((float(expected["ref_precision"]), float(expected["ref_recall"])), abs=0.02)


def test_refuses_too_few_samples():
    with pytest.raises(UserError, match="at least 4 samples are needed, not 3"):
        pr.precision_recall(features(3, 0), features(9, 1))
    with pytest.raises(ValueError, match="nhood_size"):
        pr.density_coverage(features(9, 0), features(9, 1), nhood_size=0)
