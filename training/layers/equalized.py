"""Pieces that the networks share: the equalised linear layer and the pyramid of resolutions."""

from collections.abc import Sequence

import numpy as np
import torch

from torch_utils.ops.bias_act import bias_act


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
