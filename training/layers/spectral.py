"""Spectral normalisation (Miyato 2018): layers whose weights are divided by their largest singular value."""

from typing import Any

import torch


class SpectralNorm(torch.nn.Module):
    """Base: `normalized_weight()` is the weight over its singular value, estimated by power iteration (Miyato 2018, alg. 1).

    The left singular vector `u` is a buffer; it moves where `advance` is called, once a step, and nowhere else: what a
    layer computes does not depend on how often it was called.
    """

    weight: torch.nn.Parameter
    u: torch.Tensor

    def start(self) -> None:
        """Call at the end of the constructor."""
        self.register_buffer("u", torch.nn.functional.normalize(torch.randn([len(self.weight)]), dim=0))

    def normalized_weight(self) -> torch.Tensor:
        # For a unit vector u, |W^T u| has the derivative u v^T with v = W^T u / |W^T u|, as Miyato 2018, eq. 9.
        sigma = torch.linalg.vector_norm(self.u @ self.weight.flatten(1))
        return self.weight / sigma.clamp(min=1e-12)

    @torch.no_grad()
    def advance(self) -> None:
        """One power iteration."""
        matrix = self.weight.flatten(1)  # [out, in]
        v = torch.nn.functional.normalize(self.u @ matrix, dim=0)
        self.u.copy_(torch.nn.functional.normalize(matrix @ v, dim=0))


class SpectralConv2d(SpectralNorm):
    """Convolution that keeps the size, `[n, in, h, w] -> [n, out, h, w]`, or with its stride (and an even kernel) divides it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        stride: int = 1,
        padding: int | None = None,
    ):
        """padding: None for what keeps the size."""
        super().__init__()
        self.padding = (kernel_size - 1) // 2 if padding is None else padding
        self.stride = stride
        self.weight = torch.nn.Parameter(torch.empty([out_channels, in_channels, kernel_size, kernel_size]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels])) if bias else None
        self.start()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, self.normalized_weight(), self.bias, self.stride, self.padding)


class SpectralLinear(SpectralNorm):
    """`[n, in] -> [n, out]`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty([out_features, in_features]))
        self.bias = torch.nn.Parameter(torch.zeros([out_features])) if bias else None
        self.start()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.normalized_weight(), self.bias)


def advance_spectral_norms(network: torch.nn.Module, num_iterations: int = 1) -> None:
    """Power iterations in all layers of a network."""
    for module in network.modules():
        if isinstance(module, SpectralNorm):
            for _ in range(num_iterations):
                module.advance()


def plain_conv(in_channels: int, out_channels: int, kernel_size: int, bias: bool = True) -> torch.nn.Conv2d:
    """A convolution like `SpectralConv2d`, without the norm."""
    return torch.nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)


def conv(is_spectral: bool, *args: Any, **kwargs: Any) -> torch.nn.Module:
    return SpectralConv2d(*args, **kwargs) if is_spectral else plain_conv(*args, **kwargs)


def linear(is_spectral: bool, *args: Any, **kwargs: Any) -> torch.nn.Module:
    return SpectralLinear(*args, **kwargs) if is_spectral else torch.nn.Linear(*args, **kwargs)
