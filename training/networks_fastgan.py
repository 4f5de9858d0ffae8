"""FastGAN's generator (Liu 2021, "Towards Faster and Stabilized GAN Training for High-Fidelity Few-shot Image Synthesis").

z to 4x4, then blocks that double the side: nearest neighbours, 3x3, batch norm, gated linear units; every second size has
two such convolutions. Skip-layer excitation: small feature maps say which of the large ones count. It is written from the
paper, which leaves things open: two convolutions stand at 16, 64 and 256 pixels here (at 8, 32, 128 in its authors' code),
weights begin orthogonal, 32 pixels are gated, too. Noise on feature maps is not built, nor is its discriminator: the
projected one (Sauer 2021) goes with it.
"""

import torch
from torch.nn.functional import adaptive_avg_pool2d, glu, interpolate, leaky_relu

from torch_utils import persistence
from training.conv_generator import ConvGenerator, ConvSynthesis
from training.layers.batch_norm import BatchNorm
from training.layers.pyramid import channels_at, sides
from training.layers.spectral import SpectralConv2d, SpectralLinear, advance_spectral_norms

START = 4  # side of the first feature maps
SKIP = 16  # a layer is gated by that of a 16th of its side, or by the first feature maps
SMALLEST_GATED = 32  # side
SLOPE = 0.1  # of the leaky ReLU in a gate


class GatedConv(torch.nn.Module):
    """3x3, batch norm, and half of the maps gate the others (Dauphin 2017)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = SpectralConv2d(in_channels, 2 * out_channels, kernel_size=3, bias=False)
        self.norm = BatchNorm(2 * out_channels)

    def forward(self, x: torch.Tensor, update_emas: bool) -> torch.Tensor:
        """`[n, in, h, w]` -> `[n, out, h, w]`."""
        return glu(self.norm(self.conv(x), update_emas), dim=1)


class SkipLayerExcitation(torch.nn.Module):
    """Gates of `[n, large]` feature maps from smaller ones (Liu 2021, eq. 1)."""

    def __init__(self, small: int, large: int):
        super().__init__()
        self.squeeze = SpectralConv2d(small, large, kernel_size=START, bias=False, padding=0)
        self.weigh = SpectralConv2d(large, large, kernel_size=1, bias=False)

    def forward(self, small: torch.Tensor) -> torch.Tensor:
        """`[n, small, h, w]` -> `[n, large, 1, 1]` in (0, 1)."""
        x = self.squeeze(adaptive_avg_pool2d(small, START))
        return self.weigh(leaky_relu(x, SLOPE)).sigmoid()


class SynthesisNetwork(ConvSynthesis):
    """w to image."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        channel_base: int = 16384,
        channel_max: int = 512,
    ):
        super().__init__()
        all_sides = sides(img_resolution)
        channels = [channels_at(side, channel_base, channel_max) for side in all_sides]
        self.project = SpectralLinear(w_dim, 2 * channels[0] * START**2, bias=False)
        self.norm = BatchNorm(2 * channels[0])
        self.blocks, self.gates = torch.nn.ModuleList(), torch.nn.ModuleDict()
        for level in range(1, len(all_sides)):
            first = GatedConv(channels[level - 1], channels[level])
            more = [] if level % 2 else [GatedConv(channels[level], channels[level])]
            self.blocks.append(torch.nn.ModuleList([first, *more]))
            if all_sides[level] >= SMALLEST_GATED:
                self.gates[str(level)] = SkipLayerExcitation(channels[gating_level(level)], channels[level])
        self.to_image = SpectralConv2d(channels[-1], img_channels, kernel_size=3)
        self.apply(initialize)
        advance_spectral_norms(self, 15)

    def images(self, ws: torch.Tensor, update_emas: bool) -> torch.Tensor:
        if update_emas:
            advance_spectral_norms(self)
        x = self.project(ws[:, 0]).unflatten(1, (-1, START, START))
        x = glu(self.norm(x, update_emas), dim=1)
        seen = [x]
        for level, block in enumerate(self.blocks, start=1):
            x = interpolate(x, scale_factor=2)
            assert isinstance(block, torch.nn.ModuleList)
            for conv in block:
                x = conv(x, update_emas)
            if str(level) in self.gates:
                x = x * self.gates[str(level)](seen[gating_level(level)])
            seen.append(x)
        return self.to_image(x).tanh()


@persistence.persistent_class
class Generator(ConvGenerator):
    """FastGAN."""

    synthesis_network = SynthesisNetwork


def gating_level(level: int) -> int:
    return max(level - SKIP.bit_length() + 1, 0)


def initialize(module: torch.nn.Module) -> None:
    if isinstance(module, SpectralConv2d | SpectralLinear):
        torch.nn.init.orthogonal_(module.weight)
