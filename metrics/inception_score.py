"""The inception score (Salimans 2016): exp E_x KL(p(y|x) || p(y)), over splits of the generated images."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metrics.features import as_features

NUM_SPLITS = 10


class InceptionScore(NamedTuple):
    mean: float
    std: float  # of the splits, divided by their number


def inception_score(probs: ArrayLike, num_splits: int = NUM_SPLITS) -> InceptionScore:
    """The score of class probabilities `[N, classes]`, split as they come, in float64; their order must not follow classes."""
    p = as_features(probs, "generated images", num_splits).double().cpu().numpy()
    if p.min() < 0 or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probs must be probabilities: rows from 0 to 1 that sum to 1")
    bounds = [split * len(p) // num_splits for split in range(num_splits + 1)]
    scores = [score_of_split(p[first:last]) for first, last in zip(bounds, bounds[1:], strict=False)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def score_of_split(p: np.ndarray) -> float:
    marginal = p.mean(axis=0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(marginal)), 0)  # 0 log 0 = 0
    return float(np.exp(terms.sum(axis=1).mean()))


def compute_is(opts: Any, num_gen: int, num_splits: int) -> tuple[float, float]:
    """The official name: mean and deviation for `num_gen` generated images. opts: a `metric_utils.MetricOptions`."""
    features, detector = opts.features("inception", True, num_gen)
    return inception_score(detector.probabilities(features), num_splits)[:2]
