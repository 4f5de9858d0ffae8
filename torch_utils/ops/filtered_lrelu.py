"""The alias-free non-linearity of StyleGAN3: a leaky ReLU at a higher sampling rate."""

from collections.abc import Sequence

import numpy as np
import torch

from torch_utils.ops import dispatch
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import parse_padding, parse_scaling, upfirdn2d


def filtered_lrelu(
    x: torch.Tensor,
    fu: torch.Tensor | None = None,
    fd: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = np.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str = "cuda",
) -> torch.Tensor:
    """Add a bias, upsample by `up` with `fu`, leaky ReLU, gain, clamp, downsample by `down` with `fd`.

    `x`: `[N, C, H, W]`. `b`: `[C]`, the dtype of `x`, or None. `fu`, `fd`: float32 filters of `setup_filter` or None.
    `up`, `down`: integers (the same along both axes). `padding`: round the upsampled image, before `fu`, as in
    `upfirdn2d`. `slope`: of the leaky ReLU below zero. `clamp`: bound on the magnitude after the gain, None for none.
    Returns `[N, C, (H * up + top + bottom - (fu_height - 1) - fd_height) // down + 1, ...]` (Karras 2021, sec. 3.2).
    Raises ValueError or TypeError that names the argument.
    """
    up, down = _one_factor("up", up), _one_factor("down", down)
    op = dispatch.select("filtered_lrelu", x.device, impl)
    return op(x, fu, fd, b, up, down, parse_padding(padding), gain, slope, clamp, flip_filter)


def _filtered_lrelu_ref(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter):
    x = bias_act(x, b, impl="ref")
    # lrelu(gain x) is gain lrelu(x) for gain > 0: one pass over the upsampled image less.
    early, late = (gain, 1) if gain > 0 else (1, gain)
    x = upfirdn2d(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up**2 * early, impl="ref")
    x = bias_act(x, act="lrelu", alpha=slope, gain=late, clamp=clamp, impl="ref")
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter, impl="ref")


dispatch.register("filtered_lrelu", dispatch.REFERENCE, _filtered_lrelu_ref)


def _one_factor(name, value):
    x, y = parse_scaling(name, value)
    if x != y:
        raise ValueError(f"{name} is {value}, must be the same along both axes")
    return x
