"""Progressive GAN (Karras 2018, "Progressive Growing of GANs for Improved Quality, Stability, and Variation").

Table 2: 4x4 maps, then two 3x3 convolutions at every resolution; equalised learning rate (sec. 4.1), pixel norm in G
(sec. 4.2), minibatch standard deviation in D (sec. 3). Feature maps are `channel_base / side`, at most `channel_max`.

Both networks grow while training goes on: `position` is 0 at 4x4, 1 at 8x8, and in between what is faded in (fig. 2). It
follows from the images seen and is a buffer, so that a snapshot generates at the stage it was saved at. Images always
have their full size: lower stages are shown enlarged.
"""

import math
from typing import Any

import torch
from torch.nn.functional import avg_pool2d, interpolate

from torch_utils import persistence
from training.conv_generator import ConvGenerator, ConvSynthesis
from training.discriminator import ImageDiscriminator, MinibatchStdLayer
from training.generator import normalize_2nd_moment
from training.layers.equalized import EqualizedConv2d, EqualizedLinear
from training.layers.pyramid import channels_at

START = 4  # side of the smallest feature maps


class Growth(torch.nn.Module):
    """How far a network has grown.

    grow_kimg: thousands of images that a stage takes, and as many that the next one takes to be faded in.
    """

    position: torch.Tensor

    def __init__(self, img_resolution: int, grow_kimg: float):
        super().__init__()
        self.grow_nimg = grow_kimg * 1000
        self.top_level = (img_resolution // START).bit_length() - 1
        self.register_buffer("position", torch.zeros([]))

    def set_progress(self, cur_nimg: float) -> None:
        """Grow to what is due after so many images; weights that came from a grown network stay grown."""
        due = min(position_at(cur_nimg / self.grow_nimg), self.top_level)
        self.position.copy_(self.position.clamp(min=due))

    def stage(self) -> tuple[int, float]:
        """(level of the highest resolution in use, its alpha between 0 and 1)."""
        position = float(self.position)
        level = math.ceil(position)
        return level, 1 - (level - position)

    def enlarge(self, images: torch.Tensor, level: int) -> torch.Tensor:
        """Images of a level at full size."""
        return repeated(images, 2 ** (self.top_level - level))

    def reduce(self, images: torch.Tensor, level: int) -> torch.Tensor:
        """Images of full size at that of a level."""
        return averaged(images, 2 ** (self.top_level - level))


def position_at(periods: float) -> float:
    """Level after so many periods: one at 4x4, then one of fading and one of rest for each level."""
    level = math.floor((periods + 1) / 2)
    return level - 1 + min(periods - (2 * level - 1), 1) if level > 0 else 0.0


def repeated(images: torch.Tensor, factor: int) -> torch.Tensor:
    return images if factor == 1 else interpolate(images, scale_factor=factor, mode="nearest")


def averaged(images: torch.Tensor, factor: int) -> torch.Tensor:
    return images if factor == 1 else avg_pool2d(images, factor)


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
        grow_kimg: float = 800,
    ):
        super().__init__()
        self.growth = Growth(img_resolution, grow_kimg)
        channels = level_channels(self.growth.top_level, channel_base, channel_max)
        self.start = EqualizedLinear(w_dim, channels[0] * START**2, activation="lrelu")
        self.conv = EqualizedConv2d(channels[0], channels[0], kernel_size=3, stride=1)
        self.blocks = torch.nn.ModuleList()  # of the levels from 1 up
        for below, here in zip(channels[:-1], channels[1:], strict=True):
            convs = [EqualizedConv2d(below, here, 3, 1), EqualizedConv2d(here, here, 3, 1)]
            self.blocks.append(torch.nn.ModuleList(convs))
        self.to_image = torch.nn.ModuleList(
            EqualizedConv2d(here, img_channels, 1, 1, activation="linear") for here in channels
        )

    def images(self, ws: torch.Tensor, update_emas: bool) -> torch.Tensor:
        level, alpha = self.growth.stage()
        x = self.start(normalize_2nd_moment(ws[:, 0])).unflatten(1, (-1, START, START))
        x = before = normalize_2nd_moment(self.conv(normalize_2nd_moment(x)))  # over feature maps: pixel norm
        for block in list(self.blocks)[:level]:
            before = repeated(x, 2)
            x = before
            for conv in block.children():
                x = normalize_2nd_moment(conv(x))
        images = self.to_image[level](x)
        if alpha < 1:
            images = self.to_image[level - 1](before).lerp(images, alpha)
        return self.growth.enlarge(images, level)


@persistence.persistent_class
class Generator(ConvGenerator):
    """Progressive GAN."""

    synthesis_network = SynthesisNetwork

    def set_progress(self, cur_nimg: float) -> None:
        self.synthesis.growth.set_progress(cur_nimg)


class Epilogue(torch.nn.Module):
    """4x4: minibatch standard deviation, 3x3, 4x4, and the linear layer, whose features labels are projected onto."""

    def __init__(self, in_channels: int, c_dim: int, mbstd_group_size: int | None = 4):
        super().__init__()
        self.mbstd = MinibatchStdLayer(mbstd_group_size)
        self.conv = EqualizedConv2d(in_channels + 1, in_channels, kernel_size=3, stride=1)
        self.fc = EqualizedLinear(in_channels * START**2, in_channels, activation="lrelu")
        self.out = EqualizedLinear(in_channels, 1)
        self.embed = EqualizedLinear(c_dim, in_channels, bias=False) if c_dim > 0 else None

    def forward(self, x: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        h = self.fc(self.conv(self.mbstd(x)).flatten(1))  # [n, features]
        if self.embed is None:
            return self.out(h)
        assert c is not None
        return self.out(h) + (self.embed(c.to(torch.float32)) * h).sum(dim=1, keepdim=True) / math.sqrt(h.shape[1])


@persistence.persistent_class
class Discriminator(ImageDiscriminator):
    """`D(img, c) -> logits [n, 1]`, from the image at the size of the stage."""

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 16384,
        channel_max: int = 512,
        grow_kimg: float = 800,
        epilogue_kwargs: dict[str, Any] = {},
    ):
        super().__init__(c_dim, img_resolution, img_channels)
        self.growth = Growth(img_resolution, grow_kimg)
        channels = level_channels(self.growth.top_level, channel_base, channel_max)
        self.from_image = torch.nn.ModuleList(EqualizedConv2d(img_channels, here, 1, 1) for here in channels)
        self.blocks = torch.nn.ModuleList()  # of the levels from 1 up
        for below, here in zip(channels[:-1], channels[1:], strict=True):
            self.blocks.append(
                torch.nn.Sequential(EqualizedConv2d(here, here, 3, 1), EqualizedConv2d(here, below, 3, 1))
            )
        self.epilogue = Epilogue(channels[0], c_dim, **epilogue_kwargs)

    def set_progress(self, cur_nimg: float) -> None:
        self.growth.set_progress(cur_nimg)

    def preprocess_real(self, images: torch.Tensor) -> torch.Tensor:
        """Bring images to the stage's resolution; while it is faded in, mix them with the one below (Karras 2018, app. A.1)."""
        level, alpha = self.growth.stage()
        images = self.growth.reduce(images, level)
        if alpha < 1:
            images = repeated(averaged(images, 2), 2).lerp(images, alpha)
        return self.growth.enlarge(images, level)

    def logits(self, img: torch.Tensor, c: torch.Tensor | None, update_emas: bool) -> torch.Tensor:
        level, alpha = self.growth.stage()
        img = self.growth.reduce(img, level)
        x = self.from_image[level](img)
        for index in range(level, 0, -1):
            x = averaged(self.blocks[index - 1](x), 2)
            if index == level and alpha < 1:
                x = self.from_image[level - 1](averaged(img, 2)).lerp(x, alpha)
        return self.epilogue(x, c)


def level_channels(top_level: int, channel_base: int, channel_max: int) -> list[int]:
    """Feature maps from 4x4 up."""
    return [channels_at(START << level, channel_base, channel_max) for level in range(top_level + 1)]
