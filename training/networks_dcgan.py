"""DCGAN (Radford 2016, "Unsupervised Representation Learning with Deep Convolutional GANs"): strided 5x5 convolutions.

G is figure 1: z is projected to 4x4, then every layer doubles the side and halves the feature maps; D is its mirror image.
Batch norm everywhere but at G's output and D's input (sec. 3), weights from N(0, 0.02) (sec. 4). With labels, G takes
them behind z, and D projects them onto its last features.
"""

from typing import Any

import torch
from torch.nn.functional import leaky_relu, relu

from torch_utils import persistence
from training.conv_generator import ConvGenerator, ConvSynthesis
from training.discriminator import ImageDiscriminator, Projection
from training.layers.batch_norm import BatchNorm
from training.layers.pyramid import channels_at, sides

START = 4  # side of the first feature maps
KERNEL = 5
WEIGHT_STD = 0.02
SLOPE = 0.2  # of D's leaky ReLUs


class SynthesisNetwork(ConvSynthesis):
    """w to image: a projection to 4x4, then transposed convolutions."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        channel_base: int = 4096,
        channel_max: int = 1024,
    ):
        super().__init__()
        channels = [channels_at(side, channel_base, channel_max) for side in sides(img_resolution)[:-1]]
        self.project = torch.nn.Linear(w_dim, channels[0] * START**2, bias=False)
        self.norms = torch.nn.ModuleList(BatchNorm(num) for num in channels)
        ends = [*channels[1:], img_channels]
        self.convs = torch.nn.ModuleList(
            torch.nn.ConvTranspose2d(
                start, end, KERNEL, stride=2, padding=KERNEL // 2, output_padding=1, bias=index == len(ends) - 1
            )
            for index, (start, end) in enumerate(zip(channels, ends, strict=True))
        )
        self.apply(initialize)

    def images(self, ws: torch.Tensor, update_emas: bool) -> torch.Tensor:
        x = self.project(ws[:, 0]).unflatten(1, (-1, START, START))  # [n, channels, 4, 4]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(relu(norm(x, update_emas)))
        return x.tanh()


@persistence.persistent_class
class Generator(ConvGenerator):
    """DCGAN."""

    synthesis_network = SynthesisNetwork


@persistence.persistent_class
class Discriminator(ImageDiscriminator):
    """`D(img, c) -> logits [n, 1]`: strided convolutions down to 4x4, then a linear layer."""

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 4096,
        channel_max: int = 1024,
    ):
        super().__init__(c_dim, img_resolution, img_channels)
        ends = [channels_at(side, channel_base, channel_max) for side in reversed(sides(img_resolution)[:-1])]
        starts = [img_channels, *ends[:-1]]
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(start, end, KERNEL, stride=2, padding=KERNEL // 2, bias=index == 0)
            for index, (start, end) in enumerate(zip(starts, ends, strict=True))
        )
        self.norms = torch.nn.ModuleList(BatchNorm(num) for num in ends[1:])
        self.head = Projection(ends[-1] * START**2, c_dim)
        self.apply(initialize)

    def logits(self, img: torch.Tensor, c: torch.Tensor | None, update_emas: bool) -> torch.Tensor:
        x = leaky_relu(self.convs[0](img), SLOPE)
        for norm, conv in zip(self.norms, list(self.convs)[1:], strict=True):
            x = leaky_relu(norm(conv(x), update_emas), SLOPE)
        return self.head(x.flatten(1), c)


def initialize(module: Any) -> None:
    """Weights from N(0, 0.02) (sec. 4); gains of batch norm stay 1."""
    if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d):
        torch.nn.init.normal_(module.weight, std=WEIGHT_STD)
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)
