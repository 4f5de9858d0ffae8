"""The alias-free non-linearity of StyleGAN3: a leaky ReLU at a higher sampling rate."""

import math
from collections.abc import Sequence

import torch

from torch_utils.ops import dispatch, kernels
from torch_utils.ops.bias_act import bias_act, check_bias, check_clamp, finite
from torch_utils.ops.upfirdn2d import (
    check_filter,
    check_image,
    extent_of,
    filter_size,
    one_factor,
    parse_padding,
    upfirdn2d,
)


def filtered_lrelu(
    x: torch.Tensor,
    fu: torch.Tensor | None = None,
    fd: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = math.sqrt(2),
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
    Raises ValueError that names the argument.
    """
    up, down, padding = one_factor("up", up), one_factor("down", down), parse_padding(padding)
    gain, slope = finite("gain", gain), finite("slope", slope)
    check_clamp(clamp)
    _check_tensors(x, fu, fd, b, up, down, padding)
    extent = extent_of(x, [fu, fd], (up, down), (up, up), padding)
    op = dispatch.select("filtered_lrelu", x, impl, extent)
    return op(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter)


def _composed(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter, impl):
    x = bias_act(x, b, impl=impl)
    # lrelu(gain x) is gain lrelu(x) for gain > 0: one pass over the upsampled image less.
    early, late = (gain, 1) if gain > 0 else (1, gain)
    x = upfirdn2d(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up**2 * early, impl=impl)
    x = bias_act(x, act="lrelu", alpha=slope, gain=late, clamp=clamp, impl=impl)
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter, impl=impl)


def _filtered_lrelu_ref(*args):
    return _composed(*args, impl=dispatch.REFERENCE)


def _filtered_lrelu_kernel(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter):
    if not kernels.takes_filtered_lrelu(x, fu, fd, up, down):
        return _composed(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter, impl="cuda")
    clamp = float("inf") if clamp is None else clamp
    y, _ = kernels.ops.filtered_lrelu(
        x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter, kernels.wants_gradient(x, b)
    )  # fmt: skip
    return y


dispatch.register("filtered_lrelu", _filtered_lrelu_ref, _filtered_lrelu_kernel)


def _check_tensors(x, fu, fd, b, up, down, padding):
    check_image(x)
    for name, f in (("fu", fu), ("fd", fd)):
        filter_size(f, name)
        check_filter(name, f, x)
    check_bias(x, b, dim=1)
    if b is not None and b.dtype != x.dtype:
        raise ValueError(f"b must be a tensor of the dtype of x, {x.dtype}")
    (wu, hu), (wd, hd) = filter_size(fu), filter_size(fd)
    width = x.shape[3] * up + padding[0] + padding[1] - (wu - 1)
    height = x.shape[2] * up + padding[2] + padding[3] - (hu - 1)
    if width < wd or height < hd:
        raise ValueError(
            f"padding {padding} leaves {width}x{height} pixels of the upsampled x, less than the {wd}x{hd} taps of fd"
        )
