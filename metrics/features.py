"""What every metric asks of its features before it computes with them."""

import numpy as np
import torch
from numpy.typing import ArrayLike

from dnnlib.errors import UserError


def as_features(features: ArrayLike | torch.Tensor, name: str, at_least: int = 2) -> torch.Tensor:
    """`[N, d]` as a floating-point tensor where it is, finite, of `at_least` samples.

    name: what the features are of, for messages. Raises `UserError` on too few samples and on NaN or infinity,
    `ValueError` on other shapes.
    """
    # PyTorch knows no negative strides.
    x = features if isinstance(features, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(features))
    x = x if x.is_floating_point() else x.double()
    if x.ndim != 2:
        raise ValueError(f"{name}: features must be [N, d], not {list(x.shape)}")
    if len(x) < at_least:
        raise UserError(f"{name}: at least {at_least} samples are needed, not {len(x)}; use more images")
    # A finite sum has finite terms; where it is not, it may have overflowed only.
    num_bad = 0 if x.sum().isfinite() else int((~x.isfinite().all(dim=1)).sum())
    if num_bad > 0:
        raise UserError(
            f"{name}: {num_bad} of {len(x)} samples have features that are NaN or infinite; "
            "the network that made them has diverged, use an earlier snapshot; or the detector is damaged"
        )
    return x


def as_feature_pair(
    a: ArrayLike | torch.Tensor, b: ArrayLike | torch.Tensor, names: tuple[str, str], at_least: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sets as `as_features` has them. Raises `ValueError` where their dimensions do not meet."""
    x, y = as_features(a, names[0], at_least), as_features(b, names[1], at_least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and of {y.shape[1]} dimensions cannot be compared")
    return x, y
