"""Convolution on a resampled grid, without the multiplications by zero."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from torch_utils.ops.upfirdn2d import (
    add_padding,
    downsample_padding,
    one_factor,
    parse_padding,
    upfirdn2d,
    upsample_padding,
)

FAST_PADDING = (
    1  # oneDNN computes the gradient of the weights of a 3x3 convolution that pads by more with half the vector
)


def conv2d_resample(
    x: torch.Tensor,
    w: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> torch.Tensor:
    """Upsample by `up` with `f`, convolve with `w`, downsample by `down` with `f`.

    `x`: `[N, Cin, H, W]`. `w`: `[Cout, Cin // groups, kh, kw]`, the dtype of `x`. `f`: float32 filter of
    `setup_filter`, None is the identity. `padding`: zeros round the upsampled image, besides those that centre `f`, as
    in `upfirdn2d`. `flip_weight` False reverses the kernel (a convolution), True correlates as F.conv2d does.
    Returns `[N, Cout, (H * up + top + bottom - kh + 1) // down, ...]`.
    Raises ValueError that names the argument.
    """
    up, down = one_factor("up", up), one_factor("down", down)
    _check_weight(x, w, groups)
    _check_size(x, w, up, down, padding)
    padding = _total_padding(padding, f, up, down)
    w = w if flip_weight else w.flip([2, 3])
    is_pointwise = w.shape[2] == w.shape[3] == 1

    # Filtering, zero insertion and convolution commute as long as they act on one grid. Each case filters, and
    # convolves, where there are fewest pixels and channels.
    if is_pointwise and down > 1 and up == 1:
        x = upfirdn2d(x, f, down=down, padding=padding, flip_filter=flip_filter)
        return F.conv2d(x, w, groups=groups)
    if is_pointwise and up > 1 and down == 1:
        x = F.conv2d(x, w, groups=groups)
        return upfirdn2d(x, f, up=up, padding=padding, flip_filter=flip_filter, gain=up**2)
    if up > 1:
        x = _upsampling_conv(x, w, f, up, padding, groups, flip_filter)
        return upfirdn2d(x, f, down=down, flip_filter=flip_filter) if down > 1 else x
    if down > 1:
        x = upfirdn2d(x, f, padding=padding, flip_filter=flip_filter)
        return F.conv2d(x, w, stride=down, groups=groups)
    return _padded_conv(x, w, padding, groups)


def _upsampling_conv(x, w, f, up, padding, groups, flip_filter):
    """Zero insertion and convolution as one transposed convolution, then the filter."""
    kh, kw = w.shape[2:]
    # The transposed convolution acts as if kw - 1 pixels were added on both sides, and leaves out the up - 1 zeros
    # that follow the last pixel. What the filter then needs less is cropped on the way.
    left, right, top, bottom = padding
    left, right, top, bottom = left - (kw - 1), right - (kw - up), top - (kh - 1), bottom - (kh - up)
    crop_x, crop_y = max(min(-left, -right), 0), max(min(-top, -bottom), 0)
    x = F.conv_transpose2d(x, _transposed_weight(w, groups), stride=up, padding=[crop_y, crop_x], groups=groups)
    padding = [left + crop_x, right + crop_x, top + crop_y, bottom + crop_y]
    return upfirdn2d(x, f, padding=padding, flip_filter=flip_filter, gain=up**2)


def _transposed_weight(w, groups):
    """`[Cout, Cin // groups, kh, kw]` -> `[Cin, Cout // groups, kh, kw]`, reversed: it spreads, not gathers."""
    c_out, c_in, kh, kw = w.shape
    w = w.reshape(groups, c_out // groups, c_in, kh, kw).transpose(1, 2)
    return w.reshape(groups * c_in, c_out // groups, kh, kw).flip([2, 3])


def _padded_conv(x, w, padding, groups):
    left, right, top, bottom = padding
    inner_x, inner_y = (max(min(before, after), 0) for before, after in ((left, right), (top, bottom)))
    if x.device.type == "cpu":
        inner_x, inner_y = min(inner_x, FAST_PADDING), min(inner_y, FAST_PADDING)
    outer = [left - inner_x, right - inner_x, top - inner_y, bottom - inner_y]
    x = F.pad(x, outer) if any(outer) else x
    return F.conv2d(x, w, padding=[inner_y, inner_x], groups=groups)


def _total_padding(padding, f, up, down):
    if up > 1:
        padding = add_padding(padding, upsample_padding(f, (up, up)))
    if down > 1:
        padding = add_padding(padding, downsample_padding(f, (down, down)))
    return parse_padding(padding)


def _check_weight(x, w, groups):
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise ValueError("x must be a floating point tensor")
    if not isinstance(w, torch.Tensor) or w.dtype != x.dtype:
        raise ValueError(f"w must be a tensor of the dtype of x, {x.dtype}")
    if x.ndim != 4:
        raise ValueError(f"x has shape {list(x.shape)}, must be [N, C, H, W]")
    if w.device != x.device:
        raise ValueError(f"w is on {w.device}, must be on {x.device} like x")
    if groups < 1 or w.ndim != 4 or w.shape[1] * groups != x.shape[1] or w.shape[0] % groups != 0:
        raise ValueError(f"w has shape {list(w.shape)}, does not fit {x.shape[1]} channels of x in groups={groups}")


def _check_size(x, w, up, down, padding):
    left, right, top, bottom = parse_padding(padding)
    height, width = x.shape[2] * up + top + bottom - w.shape[2] + 1, x.shape[3] * up + left + right - w.shape[3] + 1
    if min(height, width) < down:
        raise ValueError(f"padding {padding} leaves less than the kernel needs of an image of {list(x.shape[2:])}")
