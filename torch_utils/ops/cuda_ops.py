"""What the operators of kernels.py do on a GPU: sizes, tiles and launches. The arithmetic is in csrc/cuda."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from torch_utils.ops import cuda_build
from torch_utils.ops.cuda_build import ELEMENTS, THREADS, Defines

FUSED_FACTORS = (1, 2, 4)
SHARED_BYTES = 46 * 1024  # of the 48 KB that every GPU gives a block without asking
TILES = ((32, 32), (32, 16), (16, 16), (16, 8), (8, 8), (4, 4))  # width and height of a block's outputs
BLOCK_COST = 1024  # what starting a block costs, in samples: an estimate
MAX_BLOCKS = 2**31 - 1
PER_BYTE = 4  # elements whose notes share a byte
PLAIN, ACTIVATE, ACTIVATE_AND_NOTE, DERIVATIVE = range(4)  # MODE of resample.cu


def is_fused(f: torch.Tensor | None, factor: int) -> bool:
    """Whether resample.cu takes a filter and its factor: it wants squares."""
    return factor in FUSED_FACTORS and (f is None or f.ndim == 1 or f.shape[0] == f.shape[1])


class Half(NamedTuple):
    """The way up, or the way down."""

    f: torch.Tensor | None
    factor: int
    before: tuple[int, int]  # x, y
    flip: bool
    gain: float  # of the filter along both axes

    @property
    def taps(self) -> int:
        return 1 if self.f is None else self.f.shape[-1]

    @property
    def is_2d(self) -> bool:
        return self.f is not None and self.f.ndim == 2

    @property
    def gain_per_pass(self) -> float:
        return self.gain if self.is_2d else self.gain**0.5


def resample(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    up: Half,
    down: Half,
    mid_size: tuple[int, int],
    size: tuple[int, int],
    mode: int,
    notes: torch.Tensor | None,
    gains: tuple[float, float, float],
) -> torch.Tensor:
    """Up, activation, down; sizes are (height, width), gains those of positive and negative samples and the clamp."""
    x = x.contiguous()
    n, c, in_h, in_w = x.shape
    y = x.new_empty([n, c, *size])
    if y.numel() == 0:
        return y
    tile, defines = plan(x.dtype, up, down, size, mode)
    tiles_x, tiles_y = -(-size[1] // tile[0]), -(-size[0] // tile[1])
    taps = [None if half.f is None else half.f.contiguous() for half in (up, down)]
    sizes = [c, in_h, in_w, *mid_size, *size, tiles_x, tiles_y, up.flip, down.flip]
    args = [
        x, y, None if bias is None else bias.contiguous(), *taps, notes, *map(np.int32, sizes),
        *map(np.float32, (up.gain_per_pass, down.gain_per_pass, *gains)),
    ]  # fmt: skip
    cuda_build.launch("resample", defines, check_blocks(n * c * tiles_x * tiles_y), x.device, args)
    return y


def plan(dtype: torch.dtype, up: Half, down: Half, size: tuple[int, int], mode: int) -> tuple[tuple[int, int], Defines]:
    """The tile that loads and computes the fewest samples among those that fit, and the constants of its kernel."""
    plans = [plan_tile(dtype, up, down, tile, mode) for tile in TILES]
    fitting = [(tile, dict(defines)) for tile, defines, shared in plans if shared <= SHARED_BYTES]

    def cost(choice: tuple[tuple[int, int], dict[str, int]]) -> int:
        (width, height), c = choice
        return (
            -(-size[1] // width)
            * -(-size[0] // height)
            * (c["MID_W"] * c["MID_H"] + c["IN_W"] * c["IN_H"] + BLOCK_COST)
        )

    tile, constants = min(fitting, key=cost)
    return tile, tuple(constants.items())


def plan_tile(
    dtype: torch.dtype, up: Half, down: Half, tile: tuple[int, int], mode: int
) -> tuple[tuple[int, int], Defines, int]:
    """Constants of resample.cu for a tile, and the bytes of shared memory that it takes."""
    shift = [-down.before[axis] % 4 for axis in (0, 1)]
    mid = [shift[axis] + (tile[axis] - 1) * down.factor + down.taps for axis in (0, 1)]
    mid[0] = -(-mid[0] // 4) * 4
    inner = [pixels_seen(mid[axis], up, axis) for axis in (0, 1)]
    constants = {
        "ELEMENT": ELEMENTS[dtype], "MODE": mode, "UP": up.factor, "DOWN": down.factor, "TU": up.taps, "TD": down.taps,
        "UP_2D": int(up.is_2d), "DOWN_2D": int(down.is_2d), "TW": tile[0], "TH": tile[1],
        "SHIFT_X": shift[0], "SHIFT_Y": shift[1], "BEFORE_UP_X": up.before[0], "BEFORE_UP_Y": up.before[1],
        "BEFORE_DOWN_X": down.before[0], "BEFORE_DOWN_Y": down.before[1],
        "MID_W": mid[0], "MID_H": mid[1], "IN_W": inner[0], "IN_H": inner[1],
    }  # fmt: skip
    inputs, samples = inner[1] * (-(-inner[0] // 4) * 4), mid[0] * mid[1]
    half_up = 0 if up.is_2d else inner[1] * mid[0]
    half_down = 0 if down.is_2d else mid[1] * tile[0]
    if up.is_2d:
        buffers = max(inputs, half_down) + samples
    else:
        buffers = max(inputs, samples) + max(half_up, half_down)
    filters = sum(half.taps ** (2 if half.is_2d else 1) for half in (up, down))
    return tile, tuple(constants.items()), (buffers + filters) * np.dtype(np.float32).itemsize


def pixels_seen(samples: int, up: Half, axis: int) -> int:
    """Pixels of x along an axis that so many samples of u come from, the first at a multiple of 4."""

    def first(k: int) -> int:
        return (k + (up.before[axis] - k) % up.factor - up.before[axis]) // up.factor

    return first(samples - 1) - first(0) + -(-up.taps // up.factor)


def check_blocks(blocks: int) -> int:
    if blocks > MAX_BLOCKS:
        raise ValueError(f"x needs {blocks} blocks, a GPU takes up to {MAX_BLOCKS}: divide the batch")
    return blocks


# The operators.


def filtered_lrelu(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip, note_signs):
    (wu, hu), (wd, hd) = taps_of(fu), taps_of(fd)
    mid = (sum(padding[2:]) + x.shape[2] * up - hu + 1, sum(padding[:2]) + x.shape[3] * up - wu + 1)
    size = ((mid[0] - hd) // down + 1, (mid[1] - wd) // down + 1)
    notes_shape = [x.shape[0] * x.shape[1], mid[0], -(-mid[1] // 4)] if note_signs else [0]
    notes = torch.empty(notes_shape, dtype=torch.uint8, device=x.device)
    way_up = Half(fu, up, (padding[0], padding[2]), flip, float(up**2))
    way_down = Half(fd, down, (0, 0), flip, 1.0)
    mode = ACTIVATE_AND_NOTE if note_signs else ACTIVATE
    y = resample(x, b, way_up, way_down, mid, size, mode, notes, (gain, gain * slope, clamp))
    return y.contiguous(memory_format=layout_of(x)), notes


def filtered_lrelu_derivative(
    x, mask, fu, fd, up, down, before_up, before_down, size, gain, slope, flip_up, flip_down, mid_size
):
    way_up = Half(fu, up, tuple(before_up), flip_up, 1.0)
    way_down = Half(fd, down, tuple(before_down), flip_down, 1.0)
    gains = (gain, gain * slope, float("inf"))
    y = resample(x, None, way_up, way_down, tuple(mid_size), tuple(size), DERIVATIVE, mask, gains)
    return y.contiguous(memory_format=layout_of(x))


def upfirdn2d(x, f, up, down, padding, flip, gain):
    width, height = taps_of(f)
    mid = [x.shape[2] * up[1] + sum(padding[2:]) - height + 1, x.shape[3] * up[0] + sum(padding[:2]) - width + 1]
    size = ((mid[0] - 1) // down[1] + 1, (mid[1] - 1) // down[0] + 1)
    before = (padding[0], padding[2])
    is_plain = x.is_contiguous() and up[0] == up[1] and down[0] == down[1] and gain > 0 and 1 in (up[0], down[0])
    if not is_plain or not is_fused(f, max(up[0], down[0])):
        return upfirdn2d_any(x, f, up, down, before, size, flip, gain)
    identity = Half(None, 1, (0, 0), False, 1.0)
    if up[0] > 1:
        way_up, way_down, mid_size = Half(f, up[0], before, flip, gain), identity, (mid[0], mid[1])
    else:
        way_up, way_down, mid_size = identity, Half(f, down[0], before, flip, gain), (x.shape[2], x.shape[3])
    return resample(x, None, way_up, way_down, mid_size, size, PLAIN, None, (1.0, 1.0, float("inf")))


def upfirdn2d_any(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    before: tuple[int, int],
    size: tuple[int, int],
    flip: bool,
    gain: float,
) -> torch.Tensor:
    """Any layout, factors and gain, by upfirdn2d.cu."""
    n, c, in_h, in_w = x.shape
    f = torch.ones([1], device=x.device) if f is None else f.contiguous()
    layout = layout_of(x)
    y = x.new_empty([n, c, *size]).to(memory_format=layout)
    if y.numel() == 0:
        return y
    width, height = taps_of(f)
    defines = tuple(
        {
            "ELEMENT": ELEMENTS[x.dtype], "UP_X": up[0], "UP_Y": up[1], "DOWN_X": down[0], "DOWN_Y": down[1],
            "TAPS_X": width, "TAPS_Y": height, "SEPARABLE": int(f.ndim == 1),
        }.items()
    )  # fmt: skip
    args = [
        x, y, f, *map(np.int32, (c, in_h, in_w, *size)), np.int64(y.numel()),
        np.int32(layout == torch.channels_last), *map(np.int64, x.stride()), *map(np.int32, (*before, flip)),
        np.float32(gain),
    ]  # fmt: skip
    cuda_build.launch("upfirdn2d", defines, blocks_for(y.numel()), x.device, args)
    return y


def bias_act(x, b, dim, alpha, gain, clamp, note_signs):
    x = x.contiguous(memory_format=layout_of(x))
    y = torch.empty_like(x)
    notes = torch.empty([bytes_for(x) if note_signs else 0], dtype=torch.uint8, device=x.device)
    if y.numel() == 0:
        return y, notes
    channels, inner = (1, 1) if b is None or x.shape[dim] == 1 else (x.shape[dim], x.stride(dim))
    bias = None if b is None else b.contiguous()
    args = [
        x, bias, y, notes if note_signs else None, np.int64(x.numel()), np.int32(channels), np.int64(inner),
        *map(np.float32, (gain, gain * alpha, clamp)),
    ]  # fmt: skip
    launch_elementwise("bias_act", x, args)
    return y, notes


def bias_act_derivative(dy, mask, strides, alpha, gain):
    dx = torch.empty_strided(dy.shape, strides, dtype=dy.dtype, device=dy.device)
    if dx.numel() == 0:
        return dx
    dy = dy if dy.stride() == dx.stride() else torch.empty_like(dx).copy_(dy)
    gains = map(np.float32, (gain, gain * alpha))
    launch_elementwise("bias_act_derivative", dx, [dy, mask, dx, np.int64(dx.numel()), *gains])
    return dx


def launch_elementwise(name: str, x: torch.Tensor, args: list) -> None:
    """A thread for each byte of notes."""
    cuda_build.launch(name, (("ELEMENT", ELEMENTS[x.dtype]),), blocks_for(bytes_for(x)), x.device, args)


def bytes_for(x: torch.Tensor) -> int:
    """Bytes that hold two bits for each element."""
    return -(-x.numel() // PER_BYTE)


def blocks_for(threads: int) -> int:
    return check_blocks(-(-threads // THREADS))


def taps_of(f: torch.Tensor | None) -> tuple[int, int]:
    """(width, height) of a filter."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def layout_of(x: torch.Tensor) -> torch.memory_format:
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format
