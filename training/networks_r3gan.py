"""R3GAN (Huang 2024, "The GAN is dead; long live the GAN! A Modern Baseline GAN"): residual networks without norms.

Configuration E (sec. 4): every resolution has two bottlenecks of 1x1, grouped 3x3 and 1x1 convolutions with leaky ReLUs;
weights start as in Fixup (Zhang 2019), so that every residual branch is 0; resolutions are joined by bilinear resampling
and a 1x1 convolution where the number of feature maps changes. G starts from learned 4x4 maps, scaled by a linear layer of
w; D ends with one 4x4 filter per feature map. Feature maps are `channel_base / side`, at most `channel_max`.
"""

import math
from typing import Any

import torch
from torch.nn.functional import conv2d, leaky_relu

from torch_utils import persistence
from torch_utils.ops import upfirdn2d
from training.conv_generator import ConvGenerator, ConvSynthesis
from training.discriminator import ImageDiscriminator
from training.layers.pyramid import channels_at, sides

START = 4  # side of the smallest feature maps
BLOCKS = 2  # for each resolution
EXPANSION = 2  # feature maps inside a block, over those between blocks
GROUP = 16  # feature maps per group of the 3x3 convolutions
SLOPE = 0.2
RESAMPLE_FILTER = [1, 3, 3, 1]  # bilinear at factor 2
RELU_GAIN = math.sqrt(2 / (1 + SLOPE**2))


class Bottleneck(torch.nn.Module):
    """`[n, C, h, w]` -> the same: x + 1x1(lrelu(3x3(lrelu(1x1(x)))))."""

    def __init__(self, num_channels: int):
        super().__init__()
        inner = EXPANSION * num_channels
        groups = inner // math.gcd(inner, GROUP)
        self.expand = torch.nn.Conv2d(num_channels, inner, 1)
        self.mix = torch.nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.reduce = torch.nn.Conv2d(inner, num_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = leaky_relu(self.expand(x), SLOPE)
        return x + self.reduce(leaky_relu(self.mix(y), SLOPE))

    def start(self, num_blocks: int) -> None:
        """Fixup (Zhang 2019, sec. 3): a branch of m = 3 layers is scaled by num_blocks^(-1 / (2m - 2)), its last is 0."""
        gain = RELU_GAIN * num_blocks**-0.25
        scaled_normal(self.expand, gain)
        scaled_normal(self.mix, gain)
        torch.nn.init.zeros_(self.reduce.weight)


class Stage(torch.nn.Module):
    """The blocks of one resolution, with a 1x1 convolution to its number of feature maps before them, if need be."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int):
        super().__init__()
        self.adapt = None if in_channels == out_channels else torch.nn.Conv2d(in_channels, out_channels, 1, bias=False)
        blocks = [Bottleneck(out_channels) for _ in range(BLOCKS)]
        self.blocks = torch.nn.Sequential(*blocks)
        if self.adapt is not None:
            scaled_normal(self.adapt, 1.0)
        for block in blocks:
            block.start(num_blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, in, h, w]` -> `[n, out, h, w]`."""
        return self.blocks(x if self.adapt is None else self.adapt(x))


class SynthesisNetwork(ConvSynthesis):
    """w to image."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        channel_base: int = 24576,
        channel_max: int = 768,
    ):
        super().__init__()
        channels = [channels_at(side, channel_base, channel_max) for side in sides(img_resolution)]
        self.basis = torch.nn.Parameter(torch.randn([channels[0], START, START]))
        self.scale = torch.nn.Linear(w_dim, channels[0], bias=False)
        ends = zip([channels[0], *channels[:-1]], channels, strict=True)
        self.stages = torch.nn.ModuleList(Stage(*pair, BLOCKS * len(channels)) for pair in ends)
        self.to_image = torch.nn.Conv2d(channels[-1], img_channels, 1, bias=False)
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(RESAMPLE_FILTER))
        scaled_normal(self.scale, 1.0)
        scaled_normal(self.to_image, 1.0)

    def images(self, ws: torch.Tensor, update_emas: bool) -> torch.Tensor:
        x = self.scale(ws[:, 0])[:, :, None, None] * self.basis  # [n, channels, 4, 4]
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else upfirdn2d.upsample2d(x, self.resample_filter))
        return self.to_image(x)


@persistence.persistent_class
class Generator(ConvGenerator):
    """R3GAN."""

    synthesis_network = SynthesisNetwork


@persistence.persistent_class
class Discriminator(ImageDiscriminator):
    """`D(img, c) -> logits [n, 1]`: the way back, then one 4x4 filter per feature map, linear, label projection."""

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 24576,
        channel_max: int = 768,
        embed_dim: int = 128,
    ):
        super().__init__(c_dim, img_resolution, img_channels)
        channels = [channels_at(side, channel_base, channel_max) for side in reversed(sides(img_resolution))]
        self.from_image = torch.nn.Conv2d(img_channels, channels[0], 1, bias=False)
        ends = zip([channels[0], *channels[:-1]], channels, strict=True)
        self.stages = torch.nn.ModuleList(Stage(*pair, BLOCKS * len(channels)) for pair in ends)
        self.basis = torch.nn.Parameter(torch.randn([channels[-1], 1, START, START]) / START)
        self.out = torch.nn.Linear(channels[-1], embed_dim if c_dim > 0 else 1, bias=False)
        self.embed = torch.nn.Linear(c_dim, embed_dim, bias=False) if c_dim > 0 else None
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(RESAMPLE_FILTER))
        scaled_normal(self.from_image, 1.0)
        scaled_normal(self.out, 1.0)
        if self.embed is not None:
            torch.nn.init.normal_(self.embed.weight)

    def logits(self, img: torch.Tensor, c: torch.Tensor | None, update_emas: bool) -> torch.Tensor:
        x = self.from_image(img)
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else upfirdn2d.downsample2d(x, self.resample_filter))
        h = self.out(conv2d(x, self.basis, groups=len(self.basis)).flatten(1))  # [n, 1 or embed_dim]
        if self.embed is None:
            return h
        assert c is not None
        return (h * self.embed(c.to(torch.float32))).sum(dim=1, keepdim=True) / math.sqrt(h.shape[1])


def scaled_normal(layer: Any, gain: float) -> None:
    """Weights from N(0, gain^2 / fan-in) (He 2015), no bias."""
    torch.nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        torch.nn.init.zeros_(layer.bias)
