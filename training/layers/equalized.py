"""Pieces that the networks share: the equalised linear layer and the pyramid of resolutions."""

from collections.abc import Sequence

import numpy as np
import torch

from dnnlib.errors import UserError
from torch_utils.ops.bias_act import bias_act

MIN_BASE, MAX_BASE = 4, 15  # sides of the constant that the synthesis starts from


class EqualizedLinear(torch.nn.Module):
    """Linear layer whose weights have unit variance and are scaled at run time (Karras 2018, sec. 4.1).

    `weight_init` is the standard deviation that the scaled weight starts with, times sqrt(in_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        bias: bool = True,
        lr_multiplier: float = 1.0,
        weight_init: float = 1.0,
        bias_init: float | Sequence[float] = 0.0,
    ):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self.weight_gain = lr_multiplier / float(np.sqrt(in_features))
        self.bias_gain = lr_multiplier
        self.weight = torch.nn.Parameter(torch.randn([out_features, in_features]) * (weight_init / lr_multiplier))
        start = torch.as_tensor(bias_init, dtype=torch.float32).broadcast_to([out_features])
        self.bias = torch.nn.Parameter(start / lr_multiplier) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.to(x.dtype) * self.weight_gain  # [out, in]
        bias = None if self.bias is None else self.bias.to(x.dtype) * self.bias_gain
        if self.activation == "linear":
            return torch.nn.functional.linear(x, weight, bias)
        return bias_act(x.matmul(weight.t()), bias, act=self.activation)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={self.activation}"


class EqualizedConv2d(torch.nn.Module):
    """Strided convolution with equalised weights, bias and activation: `[n, in, h, w] -> [n, out, h/stride, w/stride]`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, activation: str = "lrelu"):
        super().__init__()
        self.activation = activation
        self.stride = stride
        self.padding = (kernel_size - stride) // 2
        self.weight_gain = 1 / float(np.sqrt(in_channels * kernel_size**2))
        self.weight = torch.nn.Parameter(torch.randn([out_channels, in_channels, kernel_size, kernel_size]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.conv2d(x, self.weight * self.weight_gain, stride=self.stride, padding=self.padding)
        return bias_act(x, self.bias, act=self.activation)


def image_size(img_resolution: int | Sequence[int]) -> tuple[int, int]:
    """`(height, width)` of a resolution given as one number or as `[height, width]`."""
    if isinstance(img_resolution, int | np.integer):
        return int(img_resolution), int(img_resolution)
    height, width = img_resolution
    return int(height), int(width)


def resolution_pyramid(img_resolution: int | Sequence[int], is_generated: bool = False) -> list[tuple[int, int]]:
    """Sizes `(height, width)` from the smallest block to the image, each twice the one before.

    A square power of two starts at 4x4. In general both sides are a small number (4 to 15) times the same power of two.
    A generator (`is_generated`) may also consist of its smallest block alone, and start at 4x8, 4x16 and so on; a
    discriminator looks at the image in the block above its smallest.
    """
    height, width = image_size(img_resolution)
    levels = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) // 2 >= MIN_BASE:
        height, width, levels = height // 2, width // 2, levels + 1
    is_start = min(height, width) >= MIN_BASE and max(height, width) <= MAX_BASE
    if is_generated:
        is_start |= min(height, width) == MIN_BASE and max(height, width) in {MIN_BASE << level for level in range(16)}
    if not is_start or (levels == 0 and not is_generated):
        full_height, full_width = image_size(img_resolution)
        raise UserError(
            f"images of {full_width}x{full_height} do not suit these networks: both sides must be {MIN_BASE} to "
            f"{MAX_BASE} times the same power of two (32x32, 48x32, 1280x768); resize with dataset_tool.py --resolution=WxH"
        )
    return [(height << level, width << level) for level in range(levels + 1)]


def block_name(size: tuple[int, int]) -> str:
    """`b16` for a square block, `b16x24` (height x width) otherwise."""
    height, width = size
    return f"b{height}" if height == width else f"b{height}x{width}"


def nominal_resolution(level: int) -> int:
    """The square resolution that a block of this level has when the pyramid starts at 4x4; channels depend on it."""
    return 4 << level
