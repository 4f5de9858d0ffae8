"""The inception score: closed forms and golden numbers."""

import math

import numpy as np
import pytest

from dnnlib.errors import UserError
from metrics.inception_score import inception_score
from tests.conftest import golden_cases


def test_certain_and_spread_over_k_classes_scores_k():
    probs = np.eye(5)[np.arange(100) % 5]
    assert inception_score(probs, num_splits=4) == pytest.approx((5, 0))


def test_the_same_answer_for_every_image_scores_one():
    assert inception_score(np.full([60, 7], 1 / 7)).mean == pytest.approx(1)
    assert inception_score(np.eye(7)[[3] * 60]).mean == pytest.approx(1)


def test_two_kinds_of_images_by_hand():
    probs = np.array([[0.9, 0.1], [0.1, 0.9]])
    kl = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert inception_score(probs, num_splits=1).mean == pytest.approx(math.exp(kl), rel=1e-12)


@pytest.mark.parametrize("case", golden_cases("metrics", "is"))
def test_golden(case):
    score, expected = inception_score(case.inputs()["probs"], case.args["num_splits"]), case.outputs()
    assert score.mean == pytest.approx(float(expected["f64_is_mean"]), rel=1e-9)
    assert score.std == pytest.approx(float(expected["f64_is_std"]), rel=1e-6, abs=1e-9)
    assert score.mean == pytest.approx(float(expected["ref_is_mean"]), rel=1e-6)


def test_refuses_what_are_no_probabilities():
    with pytest.raises(ValueError, match="probabilities"):
        inception_score(np.random.default_rng(0).normal(size=[20, 4]))
    with pytest.raises(UserError, match="at least 10 samples"):
        inception_score(np.eye(4))
