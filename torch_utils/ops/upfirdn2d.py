"""Pad, upsample, filter and downsample images: the resampling of StyleGAN2 and StyleGAN3."""

import functools
import math
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from torch_utils.ops import dispatch, kernels
from torch_utils.ops.bias_act import finite


def setup_filter(
    f: torch.Tensor | np.ndarray | Sequence | float | None,
    device: torch.device | str = torch.device("cpu"),
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> torch.Tensor:
    """A float32 FIR filter for `upfirdn2d` on `device`: `[taps]` (used along both axes) or `[height, width]`.

    `f`: taps as a number, a list, an array or a tensor of one or two dimensions; None is the identity. `normalize`
    makes the taps sum to 1 (over each axis), `flip_filter` reverses them, `gain` is that of the filter as a whole.
    `separable` None keeps a one-dimensional `f` so from 8 taps on and expands a shorter one to two dimensions.
    Raises ValueError that names the argument.
    """
    gain = finite("gain", gain)
    taps = torch.as_tensor(1 if f is None else f, dtype=torch.float32, device=device)
    if taps.ndim > 2 or taps.numel() == 0:
        raise ValueError(f"f has shape {list(taps.shape)}, must have one or two dimensions and be non-empty")
    taps = taps.reshape(1) if taps.ndim == 0 else taps
    if separable is None:
        separable = taps.ndim == 1 and taps.numel() >= 8
    if separable and taps.ndim != 1:
        raise ValueError("separable is True, but f has two dimensions")
    if taps.ndim == 1 and not separable:
        taps = torch.outer(taps, taps)
    if not bool(taps.isfinite().all()):
        raise ValueError("f has taps that are NaN or infinite")
    if gain < 0 and taps.ndim == 1:
        raise ValueError(
            f"gain is {gain}, must be at least 0 for a separable filter: its root is taken along each axis"
        )
    if normalize:
        if float(taps.sum()) == 0:
            raise ValueError("f has taps that sum to 0: they cannot be normalised; set normalize=False")
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    return taps * gain ** (taps.ndim / 2)


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Per channel: insert zeros, pad, filter, keep every `down`-th pixel.

    `x`: `[N, C, H, W]`, floating point. `f`: float32 filter of `setup_filter`, None is the identity. `up`, `down`:
    integers or [x, y]; `up - 1` zeros follow every pixel. `padding`: zeros round the upsampled image as an integer,
    [x, y] or [left, right, top, bottom], negative to crop. The filter is convolved with the image, correlated with
    `flip_filter`; only positions where all of it lies on the padded image count. `gain` scales the result.
    Returns `[N, C, (H * up + top + bottom - f_height) // down + 1, ...]` of the dtype of `x`.
    Raises ValueError that names the argument.
    """
    check_image(x)
    up, down, padding = parse_scaling("up", up), parse_scaling("down", down), parse_padding(padding)
    spec = Resampling(up, down, padding)
    gain = finite("gain", gain)
    if min(_output_size(spec, _size(x), filter_size(f))) < 1:
        raise ValueError(f"padding {padding} leaves less of the {_size(x)} image than the {filter_size(f)} taps of f")
    check_filter("f", f, x)
    extent = extent_of(x, [f], (*up, *down), up, padding)
    return dispatch.select("upfirdn2d", x, impl, extent)(x, f, up, down, padding, flip_filter, gain)


def filter2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Filter `x` `[N, C, H, W]`, keeping its size; `padding` is added to what that needs. See `upfirdn2d`."""
    return upfirdn2d(x, f, padding=add_padding(padding, same_padding(f)), flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Enlarge `x` `[N, C, H, W]` by `up`; `padding` is added to what that needs. The mean is kept. See `upfirdn2d`."""
    up_x, up_y = parse_scaling("up", up)
    padding = add_padding(padding, upsample_padding(f, (up_x, up_y)))
    return upfirdn2d(x, f, up=up, padding=padding, flip_filter=flip_filter, gain=gain * up_x * up_y, impl=impl)


def downsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Shrink `x` `[N, C, H, W]` by `down`; `padding` is added to what that needs. See `upfirdn2d`."""
    padding = add_padding(padding, downsample_padding(f, parse_scaling("down", down)))
    return upfirdn2d(x, f, down=down, padding=padding, flip_filter=flip_filter, gain=gain, impl=impl)


# Padding [left, right, top, bottom] that centres the filter.


def same_padding(f: torch.Tensor | None) -> tuple[int, int, int, int]:
    """So that the output has the size of the input."""
    width, height = filter_size(f)
    return width // 2, (width - 1) // 2, height // 2, (height - 1) // 2


def upsample_padding(f: torch.Tensor | None, up: tuple[int, int]) -> tuple[int, int, int, int]:
    """So that the output is `up` times the size of the input."""
    width, height = filter_size(f)
    return (width + up[0] - 1) // 2, (width - up[0]) // 2, (height + up[1] - 1) // 2, (height - up[1]) // 2


def downsample_padding(f: torch.Tensor | None, down: tuple[int, int]) -> tuple[int, int, int, int]:
    """So that the output is 1 / `down` of the size of the input."""
    width, height = filter_size(f)
    return (width - down[0] + 1) // 2, (width - down[0]) // 2, (height - down[1] + 1) // 2, (height - down[1]) // 2


# The reference.


LEAST_TILE = 4  # pixels that a block of a GPU makes along an axis, at least
FAST_CONV_PADDING = 3  # a CPU convolution that pads by more itself takes about 5 times as long


class Resampling(NamedTuple):
    """y[m] = sum_k taps[k] * x_up[m * down + k - before] along each axis; pairs are (x, y)."""

    up: tuple[int, int]
    down: tuple[int, int]
    padding: tuple[int, int, int, int]  # left, right, top, bottom of the upsampled image

    def adjoint(self, size_in: tuple[int, int], size_out: tuple[int, int], taps: tuple[int, int]) -> "Resampling":
        """The transposed operator, for the reversed taps. All sizes are (width, height)."""

        def padding(axis: int) -> tuple[int, int]:
            before = taps[axis] - 1 - self.padding[2 * axis]
            padded = (size_in[axis] - 1) * self.up[axis] + taps[axis]
            return before, padded - size_out[axis] * self.down[axis] - before

        return Resampling(self.down, self.up, (*padding(0), *padding(1)))


class _Resample(torch.autograd.Function):
    """Resampling is linear in the image, so that its derivative of any order is the same op again, transposed.

    On a CPU torch's own second derivative of a depthwise convolution takes about ten times as long.
    """

    @staticmethod
    def forward(ctx, x, taps, spec):
        y = _resample(x, taps, spec)
        ctx.save_for_backward(taps)
        ctx.adjoint = spec.adjoint(_size(x), _size(y), _size(taps))
        # Autograd lets nobody change a view in place of what only this function has seen; an exporter does not know `data`.
        return y if torch.compiler.is_compiling() else y.data

    @staticmethod
    def backward(ctx, dy):
        (taps,) = ctx.saved_tensors
        return _Resample.apply(dy, taps.flip([0, 1]), ctx.adjoint), None, None


def _resampled(x, taps, spec):
    return _resample(x, taps, spec) if torch.jit.is_tracing() else _Resample.apply(x, taps, spec)  # which has no record


def _upfirdn2d_ref(x, f, up, down, padding, flip_filter, gain):
    f = torch.ones([1, 1], device=x.device) if f is None else f
    taps = (f if flip_filter else f.flip(list(range(f.ndim)))).to(x.dtype)
    if taps.ndim == 2:
        return _resampled(x, taps * gain, Resampling(up, down, padding))
    taps, sign = taps * abs(gain) ** 0.5, math.copysign(1, gain)
    x = _resampled(x, taps[:, None] * sign, Resampling((1, up[1]), (1, down[1]), (0, 0, *padding[2:])))
    return _resampled(x, taps[None, :], Resampling((up[0], 1), (down[0], 1), (*padding[:2], 0, 0)))


def _upfirdn2d_kernel(x, f, up, down, padding, flip_filter, gain):
    return kernels.ops.upfirdn2d(x, f, up, down, padding, flip_filter, gain)


dispatch.register("upfirdn2d", _upfirdn2d_ref, _upfirdn2d_kernel)


def _resample(x, taps, spec):
    """Correlate `x` `[N, C, H, W]` with `taps` `[height, width]`, never touching an inserted zero."""
    size = _output_size(spec, _size(x), _size(taps))
    x, spec = _crop(x, spec)
    n, c, h, w = x.shape
    if x.numel() == 0:  # an empty batch, or all of the image was cropped
        return x.new_zeros([n, c, size[1], size[0]])
    if not (
        torch.compiler.is_compiling() or torch.jit.is_tracing()
    ):  # groups in a recorded graph must not follow the batch
        x = x.reshape(1, n * c, h, w)  # every plane a channel: as fast for 3 channels as for 64
    weight = taps.expand(x.shape[1], 1, *taps.shape)
    if spec.up != (1, 1):
        y = _spread(x, weight, spec)
    elif weight[0].numel() == 1 and spec.down == (1, 1):
        y = F.pad(x * taps, spec.padding)
    else:
        y = _gather(x, weight, spec)
    return y.reshape(n, c, *y.shape[2:])


def _crop(x, spec):
    """Drop the pixels that negative padding keeps out of the result. What is left of that is less than `up`."""
    (up_x, up_y), (left, right, top, bottom) = spec.up, spec.padding
    left, top = max(-(left // up_x), 0), max(-(top // up_y), 0)  # rounded up
    right, bottom = max(-right // up_x, 0), max(-bottom // up_y, 0)  # rounded down: zeros follow the last pixel
    h, w = x.shape[2:]
    x = x[:, :, top : max(h - bottom, top), left : max(w - right, left)]
    skipped = (left * up_x, right * up_x, top * up_y, bottom * up_y)
    return x, spec._replace(padding=add_padding(spec.padding, skipped))


def _gather(x, weight, spec):
    """Strided depthwise convolution."""
    left, right, top, bottom = spec.padding
    if left != right or top != bottom or max(left, top) > FAST_CONV_PADDING:
        x, left, top = F.pad(x, spec.padding), 0, 0
    return F.conv2d(x, weight, stride=spec.down[::-1], padding=[top, left], groups=x.shape[1])


def _spread(x, weight, spec):
    """Transposed strided depthwise convolution. It makes every output that an input reaches; the surplus is cropped."""
    crop, rest = [], []
    for axis, taps in enumerate((weight.shape[3], weight.shape[2])):
        lead = taps - 1 - spec.padding[2 * axis]
        trail = taps - spec.up[axis] - spec.padding[2 * axis + 1]
        crop.append(max(min(lead, trail), 0))
        rest += [crop[axis] - lead, crop[axis] - trail]
    y = F.conv_transpose2d(x, weight.flip([2, 3]), stride=spec.up[::-1], padding=crop[::-1], groups=x.shape[1])
    y = F.pad(y, rest) if any(rest) else y
    return y[:, :, :: spec.down[1], :: spec.down[0]]


def _size(x):
    return int(x.shape[-1]), int(x.shape[-2])


def _output_size(spec, size, taps):
    """(width, height) of the result; not positive where the padded image is smaller than the filter."""
    pads = (sum(spec.padding[:2]), sum(spec.padding[2:]))
    return tuple((size[a] * spec.up[a] + pads[a] - taps[a]) // spec.down[a] + 1 for a in (0, 1))


# Arguments.


def filter_size(f: torch.Tensor | None, name: str = "f") -> tuple[int, int]:
    """(width, height) of a filter in taps; ValueError for what is no filter."""
    if f is None:
        return 1, 1
    if not isinstance(f, torch.Tensor) or f.dtype != torch.float32:
        raise ValueError(f"{name} must be None or a float32 tensor (see setup_filter)")
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"{name} has shape {list(f.shape)}, must be [taps] or [height, width]")
    if f.requires_grad:
        raise ValueError(f"{name} requires a gradient, which no op gives; detach it")
    return int(f.shape[-1]), int(f.shape[0])


def check_filter(name: str, f: torch.Tensor | None, x: torch.Tensor) -> None:
    """ValueError where `f` is not beside `x`."""
    if f is not None and f.device != x.device:
        raise ValueError(f"{name} is on {f.device}, must be on {x.device} like x")


def extent_of(
    x: torch.Tensor,
    filters: Sequence[torch.Tensor | None],
    factors: Sequence[int],
    up: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> dispatch.Extent:
    """What kernels must take to run such a call, and its derivatives."""
    left, right, top, bottom = padding
    width = x.shape[3] * up[0] + max(left, 0) + max(right, 0)
    height = x.shape[2] * up[1] + max(top, 0) + max(bottom, 0)
    return dispatch.Extent(
        taps=max(max(filter_size(f)) for f in filters),
        factor=max(factors),
        plane=width * height,
        blocks=x.shape[0] * x.shape[1] * -(-width // LEAST_TILE) * -(-height // LEAST_TILE),
    )


def parse_scaling(name: str, scaling: int | Sequence[int]) -> tuple[int, int]:
    """(x, y) of an `up` or `down`."""
    values = _integers(name, scaling, lengths=(1, 2))
    if min(values) < 1:
        raise ValueError(f"{name} is {scaling}, must be at least 1")
    return values[0], values[-1]


def one_factor(name: str, scaling: int | Sequence[int]) -> int:
    """An `up` or `down` that is the same along both axes."""
    x, y = parse_scaling(name, scaling)
    if x != y:
        raise ValueError(f"{name} is {scaling}, must be the same along both axes")
    return x


def parse_padding(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom)."""
    values = _integers("padding", padding, lengths=(1, 2, 4))
    if len(values) < 4:
        values = [values[0], values[0], values[-1], values[-1]]
    return values[0], values[1], values[2], values[3]


def add_padding(padding: int | Sequence[int], extra: Sequence[int]) -> tuple[int, int, int, int]:
    """A caller's padding and (left, right, top, bottom) of our own."""
    left, right, top, bottom = (own + more for own, more in zip(parse_padding(padding), extra, strict=True))
    return left, right, top, bottom


def _integers(name, value, lengths):
    values = [value] if isinstance(value, numbers.Number) else list(value)
    if torch.jit.is_tracing():  # which makes tensors of sizes, and of what follows from them
        values = [int(v) if isinstance(v, torch.Tensor) and v.ndim == 0 else v for v in values]
    if not all(isinstance(v, numbers.Integral) for v in values):
        raise ValueError(f"{name} is {value!r}, must hold integers")
    if len(values) not in lengths:
        raise ValueError(f"{name} is {value!r}, must hold {' or '.join(map(str, lengths))} integers")
    return [int(v) for v in values]


def check_image(x: torch.Tensor) -> None:
    """ValueError for what is no batch of images."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise ValueError("x must be a floating point tensor")
    if x.ndim != 4:
        raise ValueError(f"x has shape {list(x.shape)}, must be [N, C, H, W]")


# Official names, which copies of the official conv2d_resample import.
_parse_padding, _get_filter_size = parse_padding, filter_size
_parse_scaling = functools.partial(parse_scaling, "scaling")
