"""The official name of the FID's module; the arithmetic is in `frechet_distance`."""

from typing import Any

from metrics.frechet_distance import frechet_distance_of_features


def compute_fid(opts: Any, max_real: int | None, num_gen: int) -> float:
    """FID of `num_gen` generated images. opts: a `metric_utils.MetricOptions`."""
    return frechet_distance_of_features(*opts.both("inception", max_real, num_gen))
