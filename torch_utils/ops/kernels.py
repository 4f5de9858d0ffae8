"""The operators behind the fast ops: `torch.ops.spider_stylegan.*`, with shapes and derivatives for every device.

What runs on a device is elsewhere: csrc/cpu (C++, built by cpu_build.py) and csrc/cuda (built by cuda_build.py). Both
implement the schemas below. Each operator is linear or piecewise linear, so that derivatives of all orders are operators
of the same set: `upfirdn2d` transposed is another `upfirdn2d`, and the derivative of an activation is a product with a
slope that the signs of the forward pass decide. Operators keep these signs, and neither input nor output, for the backward
pass: what a caller does to a result in place does not matter to them.

Filters are correlated where `flip` is set and convolved otherwise. Sizes and offsets are pairs (x, y), paddings
(left, right, top, bottom), `size` is (height, width).
"""

from collections.abc import Sequence

import torch

from torch_utils.ops import cpu_build, cuda_build, cuda_ops
from torch_utils.ops.cuda_ops import PER_BYTE, taps_of
from torch_utils.ops.dispatch import register_provider

LIBRARY = "spider_stylegan"
SCHEMAS = (
    # clamp(gain lrelu(x + b)): alpha 1 is linear, 0 is relu; clamp may be infinite. The second result holds two bits per
    # element in the order of memory: not positive, clamped. It is empty unless asked for.
    "bias_act(Tensor x, Tensor? b, int dim, float alpha, float gain, float clamp, bool note_signs) -> (Tensor, Tensor)",
    # dy times the slope that the mask shows; `strides` are those of the result that the mask was noted with.
    "bias_act_derivative(Tensor dy, Tensor mask, int[] strides, float alpha, float gain) -> Tensor",
    "upfirdn2d(Tensor x, Tensor? f, int[] up, int[] down, int[] padding, bool flip, float gain) -> Tensor",
    # The second result holds two bits per upsampled pixel: not positive, clamped. It is empty unless asked for.
    "filtered_lrelu(Tensor x, Tensor? fu, Tensor? fd, Tensor? b, int up, int down, int[] padding, float gain, "
    "float slope, float clamp, bool flip, bool note_signs) -> (Tensor, Tensor)",
    # Up with fu, times gain, gain * slope or 0 as the mask says, down with fd; y of height and width `size`.
    "filtered_lrelu_derivative(Tensor x, Tensor mask, Tensor? fu, Tensor? fd, int up, int down, int[] before_up, "
    "int[] before_down, int[] size, float gain, float slope, bool flip_up, bool flip_down, int[] mid_size) -> Tensor",
)
LANES = 16  # planes in a word of a CPU mask

_library = torch.library.Library(LIBRARY, "DEF")
for _schema in SCHEMAS:
    _library.define(_schema)
ops = getattr(torch.ops, LIBRARY)


def empty_mask(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What notes two bits for each pixel of upsampled images `[N, C, height, width]`."""
    n, c = x.shape[:2]
    if x.device.type == "cpu":
        return x.new_empty([n * -(-c // LANES), height, width], dtype=torch.int32)
    return x.new_empty([n * c, height, -(-width // PER_BYTE)], dtype=torch.uint8)


def output_size(size: int, up: int, down: int, padding: int, taps: int) -> int:
    return (size * up + padding - taps) // down + 1


def _empty_image(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    memory_format = (
        torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
    return x.new_empty([x.shape[0], x.shape[1], height, width]).to(memory_format=memory_format)


# bias_act


@torch.library.register_fake(f"{LIBRARY}::bias_act")
def _(x, b, dim, alpha, gain, clamp, note_signs):
    is_on_cpu = x.device.type == "cpu"
    size = -(-x.numel() // (LANES if is_on_cpu else PER_BYTE)) if note_signs else 0
    return torch.empty_like(x), x.new_empty([size], dtype=torch.int32 if is_on_cpu else torch.uint8)


@torch.library.register_fake(f"{LIBRARY}::bias_act_derivative")
def _(dy, mask, strides, alpha, gain):
    return torch.empty_strided(dy.shape, strides, dtype=dy.dtype, device=dy.device)


def is_linear(alpha: float, clamp: float) -> bool:
    """Whether a leaky ReLU has one slope everywhere, so that its derivative needs no signs."""
    return alpha == 1 and clamp == float("inf")


def _bias_act_setup(ctx, inputs, output):
    _, b, ctx.dim, ctx.alpha, ctx.gain, clamp, note_signs = inputs
    ctx.has_bias, ctx.is_linear, ctx.note_signs = b is not None, is_linear(ctx.alpha, clamp), note_signs
    ctx.strides = list(output[0].stride())
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1] if note_signs else None)


def _bias_act_backward(ctx, dy, _):
    if ctx.is_linear:
        dx = dy if ctx.gain == 1 else dy * ctx.gain
    else:
        assert ctx.note_signs, "note_signs is needed for a gradient"
        dx = ops.bias_act_derivative(dy, *ctx.saved_tensors, ctx.strides, ctx.alpha, ctx.gain)
    db = None
    if ctx.has_bias and ctx.needs_input_grad[1]:
        others = [axis for axis in range(dx.ndim) if axis != ctx.dim % dx.ndim]
        db = dx.sum(others) if others else dx  # an empty list stands for all axes
    return dx, db, None, None, None, None, None


def _bias_act_derivative_setup(ctx, inputs, output):
    _, mask, *ctx.rest = inputs
    ctx.save_for_backward(mask)


def _bias_act_derivative_backward(ctx, ddx):
    return ops.bias_act_derivative(ddx, *ctx.saved_tensors, *ctx.rest), None, None, None, None


# upfirdn2d


@torch.library.register_fake(f"{LIBRARY}::upfirdn2d")
def _(x, f, up, down, padding, flip, gain):
    width, height = taps_of(f)
    return _empty_image(
        x,
        output_size(x.shape[2], up[1], down[1], padding[2] + padding[3], height),
        output_size(x.shape[3], up[0], down[0], padding[0] + padding[1], width),
    )


def _upfirdn2d_setup(ctx, inputs, output):
    x, f, ctx.up, ctx.down, ctx.padding, ctx.flip, ctx.gain = inputs
    ctx.size, ctx.size_out = x.shape[2:], output.shape[2:]
    ctx.save_for_backward(f)


def _upfirdn2d_backward(ctx, dy):
    (f,) = ctx.saved_tensors
    padding: list[int] = []
    for axis, taps in enumerate(taps_of(f)):
        before = taps - 1 - ctx.padding[2 * axis]
        padded = (ctx.size[1 - axis] - 1) * ctx.up[axis] + taps
        padding += [before, padded - ctx.size_out[1 - axis] * ctx.down[axis] - before]
    dx = ops.upfirdn2d(dy, f, ctx.down, ctx.up, padding, not ctx.flip, ctx.gain)
    return dx, None, None, None, None, None, None


# filtered_lrelu


@torch.library.register_fake(f"{LIBRARY}::filtered_lrelu")
def _(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip, note_signs):
    (wu, hu), (wd, hd) = taps_of(fu), taps_of(fd)
    height = output_size(x.shape[2], up, 1, padding[2] + padding[3], hu)
    width = output_size(x.shape[3], up, 1, padding[0] + padding[1], wu)
    y = _empty_image(x, output_size(height, 1, down, 0, hd), output_size(width, 1, down, 0, wd))
    mask = empty_mask(x, height, width)
    return y, mask if note_signs else mask.new_empty([0])


@torch.library.register_fake(f"{LIBRARY}::filtered_lrelu_derivative")
def _(x, mask, fu, fd, up, down, before_up, before_down, size, gain, slope, flip_up, flip_down, mid_size):
    return _empty_image(x, *size)


def _filtered_lrelu_setup(ctx, inputs, output):
    x, fu, fd, b, ctx.up, ctx.down, padding, ctx.gain, ctx.slope, _, ctx.flip, ctx.note_signs = inputs
    ctx.before = (padding[0], padding[2])
    ctx.size, ctx.has_bias = x.shape[2:], b is not None
    (width, height), (left, right, top, bottom) = taps_of(fu), padding
    ctx.mid_size = [
        output_size(x.shape[2], ctx.up, 1, top + bottom, height),
        output_size(x.shape[3], ctx.up, 1, left + right, width),
    ]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(fu, fd, output[1])


def _filtered_lrelu_backward(ctx, dy, _):
    assert ctx.note_signs, "note_signs is needed for a gradient"
    fu, fd, mask = ctx.saved_tensors
    dx = ops.filtered_lrelu_derivative(
        dy, mask, fd, fu, ctx.down, ctx.up,
        *_transposed_offsets(fu, fd, ctx.before, (0, 0)),
        list(ctx.size), ctx.gain * ctx.up**2, ctx.slope, not ctx.flip, not ctx.flip, ctx.mid_size,
    )  # fmt: skip
    db = dx.sum([0, 2, 3]) if ctx.has_bias and ctx.needs_input_grad[3] else None
    return dx, None, None, db, None, None, None, None, None, None, None, None


def _derivative_setup(ctx, inputs, output):
    x, mask, fu, fd, ctx.up, ctx.down, ctx.before_up, ctx.before_down, _, *ctx.rest = inputs
    ctx.size = x.shape[2:]
    ctx.save_for_backward(mask, fu, fd)


def _derivative_backward(ctx, dy):
    mask, fu, fd = ctx.saved_tensors
    gain, slope, flip_up, flip_down, mid_size = ctx.rest
    dx = ops.filtered_lrelu_derivative(
        dy, mask, fd, fu, ctx.down, ctx.up,
        *_transposed_offsets(fu, fd, ctx.before_up, ctx.before_down),
        list(ctx.size), gain, slope, not flip_down, not flip_up, mid_size,
    )  # fmt: skip
    return dx, *[None] * 13


def _transposed_offsets(
    fu: torch.Tensor | None, fd: torch.Tensor | None, before_up: Sequence[int], before_down: Sequence[int]
) -> tuple[list[int], list[int]]:
    """`before_up` and `before_down` of the transposed operator, which goes up with fd and down with fu."""
    return (
        [taps - 1 - before for taps, before in zip(taps_of(fd), before_down, strict=True)],
        [taps - 1 - before for taps, before in zip(taps_of(fu), before_up, strict=True)],
    )


for _name, _backward, _setup in (
    ("bias_act", _bias_act_backward, _bias_act_setup),
    ("bias_act_derivative", _bias_act_derivative_backward, _bias_act_derivative_setup),
    ("upfirdn2d", _upfirdn2d_backward, _upfirdn2d_setup),
    ("filtered_lrelu", _filtered_lrelu_backward, _filtered_lrelu_setup),
    ("filtered_lrelu_derivative", _derivative_backward, _derivative_setup),
):
    torch.library.register_autograd(f"{LIBRARY}::{_name}", _backward, setup_context=_setup)

for _name in ("bias_act", "bias_act_derivative", "upfirdn2d", "filtered_lrelu", "filtered_lrelu_derivative"):
    torch.library.impl(f"{LIBRARY}::{_name}", "cuda")(getattr(cuda_ops, _name))

register_provider("cpu", cpu_build.PROVIDER)
register_provider("cuda", cuda_build.PROVIDER)


def wants_gradient(x: torch.Tensor, b: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad))


def takes_filtered_lrelu(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, up: int, down: int) -> bool:
    """Whether one kernel does it all; elsewhere it is put together from the other operators."""
    return x.device.type != "cuda" or (cuda_ops.is_fused(fu, up) and cuda_ops.is_fused(fd, down))
