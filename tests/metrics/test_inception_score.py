"""The inception score: closed forms and golden numbers."""

import math

import numpy as np
import pytest

from dnnlib.errors import UserError
from metrics.feature_stats import content_order
from metrics.inception_score import inception_score
from tests.helpers.golden import golden_cases


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


class Named:
    """Sixty pictures of ten colours, each six times, under names that sort as `colours` has them."""

    def __init__(self, colours):
        self.colours = colours

    def __len__(self):
        return len(self.colours)

    def identities(self, indices):
        return [f"colour {self.colours[index]}" for index in indices]


def test_names_of_files_change_nothing():
    """The score of 60 pictures of 10 colours was 1.000 where they were named by class, and 5.010 where they were shuffled."""
    by_class = np.repeat(np.arange(10), 6)
    shuffled = np.random.default_rng(1).permutation(by_class)
    scores = []
    for colours in (by_class, shuffled):
        order = content_order(Named(colours), np.arange(60), seed=0)
        assert sorted(order) == list(range(60))
        scores.append(inception_score(np.eye(10)[colours[order]]))
    assert scores[0] == scores[1] and scores[0].mean == pytest.approx(4.8, abs=0.5)


def test_the_order_is_random_and_follows_the_seed():
    images = Named(np.repeat(np.arange(10), 6))
    orders = [content_order(images, np.arange(60), seed).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len(content_order(object(), np.array([3, 8, 9]), 0)) == 3  # what has no files
