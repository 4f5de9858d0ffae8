"""The discriminator of projected GANs (Sauer 2021, "Projected GANs Converge Faster"): it looks at features, not at pixels.

A frozen network of ImageNet's classes sees the images at four scales. Random convolutions that never change mix its channels
(1x1) and its scales (3x3, from coarse to fine); a small discriminator with spectral norm judges each of the four results.
The frozen network is named by the hash of its weights and is not part of the state: it is opened where it is first needed.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch.nn.functional import adaptive_avg_pool2d, conv2d, interpolate, leaky_relu

from dnnlib.errors import UserError
from metrics import efficientnet
from metrics.detectors import Detector, open_detector
from metrics.efficientnet import LEVEL_CHANNELS, EfficientNetLite0
from torch_utils import persistence, seeding
from training.discriminator import ImageDiscriminator
from training.layers.pyramid import image_size
from training.layers.spectral import SpectralConv2d, advance_spectral_norms

NETWORK = "efficientnet"  # the detector whose features are looked at
STRIDE = 32  # of its coarsest level
SMALLEST, LARGEST = 64, 224  # sides at which it looks at images by default
GRID = 4  # sides of the logits of each level
WIDTHS = (64, 128, 128, 128)  # feature maps of the levels after mixing, from fine to coarse
SLOPE = 0.2  # of the leaky ReLUs
FIRST_ITERATIONS = 15  # of the power method, on the initial weights


@persistence.persistent_class
class Discriminator(ImageDiscriminator):
    """`D(img, c) -> logits [n, 64]`: 4x4 places at each of four levels, all with the same weight.

    feature_size: longer side at which the frozen network looks at images, a multiple of 32. weights_hash: how the sha256 of
    its weights begins. One channel is repeated; transparency is put on a plain colour, a random one for each image, so that
    what shall be transparent has to be. Raises `UserError` where the frozen network is not at hand.
    """

    def __init__(
        self,
        c_dim: int,
        img_resolution: int | Sequence[int],
        img_channels: int,
        feature_size: int = SMALLEST,
        weights_hash: str = "",
        widths: Sequence[int] = WIDTHS,
    ):
        super().__init__(c_dim, img_resolution, img_channels)
        self.size = feature_sides(img_resolution, feature_size)
        self.weights_hash = weights_hash
        self.mixing = RandomProjection(widths)
        sides = [[side // stride for side in self.size] for stride in (4, 8, 16, 32)]
        self.heads = torch.nn.ModuleList(
            Head(width, num_halvings(max(side)), c_dim) for width, side in zip(widths, sides, strict=True)
        )
        advance_spectral_norms(self, FIRST_ITERATIONS)

    def logits(self, img: torch.Tensor, c: torch.Tensor | None, update_emas: bool) -> torch.Tensor:
        if update_emas:
            advance_spectral_norms(self)
        x = interpolate(self.as_rgb(img), self.size, mode="bilinear", antialias=self.shrinks)
        features = frozen_network(self.weights_hash, img.device).levels(x.contiguous(memory_format=torch.channels_last))
        maps = [head(x, c) for head, x in zip(self.heads, self.mixing(features), strict=True)]
        return torch.cat([on_grid(one).flatten(1) for one in maps], dim=1)

    @property
    def shrinks(self) -> bool:
        """Whether a side becomes shorter, which would alias without a filter."""
        return any(before > now for before, now in zip(image_size(self.img_resolution), self.size, strict=True))

    def as_rgb(self, img: torch.Tensor) -> torch.Tensor:
        """`[n, 1 | 3 | 4, h, w]` -> `[n, 3, h, w]`."""
        if self.img_channels == 4:
            alpha = (img[:, 3:] + 1) / 2
            ground = seeding.rand([len(img), 3, 1, 1], device=img.device) * 2 - 1
            return ground.lerp(img[:, :3], alpha)
        return img.expand(-1, 3, -1, -1)


def on_grid(logits: torch.Tensor) -> torch.Tensor:
    """`[n, 1, h, w]` -> `[n, 1, 4, 4]`: every place counts, and no level for more than another."""
    if min(logits.shape[2:]) > GRID:
        return adaptive_avg_pool2d(logits, GRID)
    return interpolate(logits, (GRID, GRID))


class RandomProjection(torch.nn.Module):
    """Fixed random convolutions (Sauer 2021, sec. 3.2): 1x1 at each level, then 3x3 from each level to the next finer one."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        for level, (channels, width) in enumerate(zip(LEVEL_CHANNELS, widths, strict=True)):
            self.register_buffer(f"channels{level}", kaiming([width, channels, 1, 1]))
            if level > 0:
                self.register_buffer(f"scales{level}", kaiming([widths[level - 1], width, 3, 3]))

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features of the levels, from fine to coarse -> as many, `[n, width, h, w]` each."""
        mixed = [conv2d(x, getattr(self, f"channels{level}")) for level, x in enumerate(features)]
        for level in range(len(mixed) - 1, 0, -1):
            coarse = conv2d(mixed[level], getattr(self, f"scales{level}"), padding=1)
            finer = mixed[level - 1]
            coarse = interpolate(coarse, finer.shape[2:], mode="bilinear")
            mixed[level - 1] = (finer + coarse) * math.sqrt(0.5)  # as large as before
        return mixed


class Head(torch.nn.Module):
    """The discriminator of a level: strided 4x4 convolutions down to the grid, 3x3, then a logit at each place.

    With labels, places are judged by `out(h) + <embed(c), h>` (Miyato & Koyama 2018).
    """

    def __init__(self, width: int, num_halvings: int, c_dim: int):
        super().__init__()
        ends = [min(width << level, max(WIDTHS)) for level in range(num_halvings + 1)]
        self.halving = torch.nn.ModuleList(
            SpectralConv2d(start, end, kernel_size=4, stride=2) for start, end in zip(ends[:-1], ends[1:], strict=True)
        )
        self.last = SpectralConv2d(ends[-1], ends[-1], kernel_size=3)
        self.out = SpectralConv2d(ends[-1], 1, kernel_size=1)
        self.embed = torch.nn.Linear(c_dim, ends[-1], bias=False) if c_dim > 0 else None
        for module in self.modules():
            if isinstance(module, SpectralConv2d):
                torch.nn.init.orthogonal_(module.weight)

    def forward(self, x: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """`[n, width, h, w]`, `[n, c_dim]` -> `[n, 1, h', w']`."""
        for layer in (*self.halving, self.last):
            x = leaky_relu(layer(x), SLOPE)
        logits = self.out(x)
        if self.embed is None:
            return logits
        assert c is not None
        return logits + (self.embed(c.to(torch.float32))[:, :, None, None] * x).sum(dim=1, keepdim=True)


def kaiming(shape: Sequence[int]) -> torch.Tensor:
    """Random weights `[out, in, k, k]` that keep the size of what they are given (He 2015, linear)."""
    return torch.nn.init.kaiming_normal_(torch.empty(shape), nonlinearity="linear")


def num_halvings(side: int) -> int:
    """From a side to that of the grid, or below twice that."""
    return max((side // GRID).bit_length() - 1, 0)


def feature_sides(img_resolution: int | Sequence[int], feature_size: int) -> list[int]:
    """`[height, width]` at which images are looked at: the longer side is `feature_size`, the other in proportion."""
    sides = image_size(img_resolution)
    return [max(round(feature_size * side / max(sides) / STRIDE), 1) * STRIDE for side in sides]


@functools.cache
def frozen_detector(device: torch.device) -> Detector:
    """What all projected discriminators on a device look through. Raises `UserError`."""
    if efficientnet.packaged_weights() is None:
        raise UserError(
            "a projected discriminator looks through EfficientNet-Lite0, whose weights are in a package that is not installed: "
            f"{efficientnet.EXTRA}"
        )
    try:
        return open_detector(NETWORK, device=device)
    except UserError as error:
        raise UserError(
            f"a projected discriminator looks through EfficientNet-Lite0, whose package is damaged; mend it: {efficientnet.EXTRA}"
        ) from error


def frozen_network(weights_hash: str, device: torch.device) -> EfficientNetLite0:
    """Its network, which must have these weights. Raises `UserError`."""
    detector = frozen_detector(device)
    if not detector.weights_hash.startswith(weights_hash):
        raise UserError(
            f"this discriminator looks through {NETWORK} with weights {weights_hash}, and those here are {detector.weights_hash}"
        )
    assert isinstance(detector.network, EfficientNetLite0)
    return detector.network
