"""Inception-v3 as the FID knows it (Szegedy 2016; Heusel 2017): TensorFlow's network of 2015-12-05, 2048 features.

It differs from the Inception-v3 of torchvision in three places: average pooling does not count the padding, the last
block pools by maximum, and there are 1008 classes. Names of parameters are those of the public state dict
`pt_inception-2015-12-05-6726825d.pth` (Apache licence).
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import avg_pool2d, max_pool2d

SIZE = 299
NUM_FEATURES, NUM_CLASSES = 2048, 1008
BN_EPSILON = 1e-3
Size = int | tuple[int, int]


class ConvUnit(torch.nn.Module):
    """Convolution without bias, normalisation, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: Size, stride: int = 1, padding: Size = 0):
        super().__init__()
        self.conv = torch.nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = torch.nn.BatchNorm2d(c_out, eps=BN_EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu_()


def mean_pool(x: torch.Tensor) -> torch.Tensor:
    """3x3 at stride 1, the padding left out of the mean, as TensorFlow does."""
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def chain(x: torch.Tensor, layers: Sequence[torch.nn.Module]) -> torch.Tensor:
    for layer in layers:
        x = layer(x)
    return x


class BlockA(torch.nn.Module):
    """35x35: 1x1, 5x5, two 3x3 in a row, pooling."""

    def __init__(self, c_in: int, c_pool: int):
        super().__init__()
        self.branch1x1 = ConvUnit(c_in, 64, 1)
        self.branch5x5_1 = ConvUnit(c_in, 48, 1)
        self.branch5x5_2 = ConvUnit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvUnit(c_in, 64, 1)
        self.branch3x3dbl_2 = ConvUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvUnit(96, 96, 3, padding=1)
        self.branch_pool = ConvUnit(c_in, c_pool, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [
            self.branch1x1(x),
            chain(x, [self.branch5x5_1, self.branch5x5_2]),
            chain(x, [self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3]),
            self.branch_pool(mean_pool(x)),
        ]
        return torch.cat(branches, dim=1)


class BlockB(torch.nn.Module):
    """35x35 to 17x17."""

    def __init__(self, c_in: int):
        super().__init__()
        self.branch3x3 = ConvUnit(c_in, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvUnit(c_in, 64, 1)
        self.branch3x3dbl_2 = ConvUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvUnit(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [
            self.branch3x3(x),
            chain(x, [self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3]),
            max_pool2d(x, 3, stride=2),
        ]
        return torch.cat(branches, dim=1)


class BlockC(torch.nn.Module):
    """17x17: 7x7 convolutions as pairs of 1x7 and 7x1."""

    def __init__(self, c_in: int, c_7x7: int):
        super().__init__()
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = ConvUnit(c_in, 192, 1)
        self.branch7x7_1 = ConvUnit(c_in, c_7x7, 1)
        self.branch7x7_2 = ConvUnit(c_7x7, c_7x7, **row)
        self.branch7x7_3 = ConvUnit(c_7x7, 192, **column)
        self.branch7x7dbl_1 = ConvUnit(c_in, c_7x7, 1)
        self.branch7x7dbl_2 = ConvUnit(c_7x7, c_7x7, **column)
        self.branch7x7dbl_3 = ConvUnit(c_7x7, c_7x7, **row)
        self.branch7x7dbl_4 = ConvUnit(c_7x7, c_7x7, **column)
        self.branch7x7dbl_5 = ConvUnit(c_7x7, 192, **row)
        self.branch_pool = ConvUnit(c_in, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = [
            self.branch7x7dbl_1,
            self.branch7x7dbl_2,
            self.branch7x7dbl_3,
            self.branch7x7dbl_4,
            self.branch7x7dbl_5,
        ]
        branches = [
            self.branch1x1(x),
            chain(x, [self.branch7x7_1, self.branch7x7_2, self.branch7x7_3]),
            chain(x, double),
            self.branch_pool(mean_pool(x)),
        ]
        return torch.cat(branches, dim=1)


class BlockD(torch.nn.Module):
    """17x17 to 8x8."""

    def __init__(self, c_in: int):
        super().__init__()
        self.branch3x3_1 = ConvUnit(c_in, 192, 1)
        self.branch3x3_2 = ConvUnit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvUnit(c_in, 192, 1)
        self.branch7x7x3_2 = ConvUnit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvUnit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvUnit(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [
            chain(x, [self.branch3x3_1, self.branch3x3_2]),
            chain(x, [self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3, self.branch7x7x3_4]),
            max_pool2d(x, 3, stride=2),
        ]
        return torch.cat(branches, dim=1)


class BlockE(torch.nn.Module):
    """8x8: 3x3 convolutions fanned out into 1x3 and 3x1. The last block of the network pools by maximum."""

    def __init__(self, c_in: int, pools_by_maximum: bool):
        super().__init__()
        row, column = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        self.pools_by_maximum = pools_by_maximum
        self.branch1x1 = ConvUnit(c_in, 320, 1)
        self.branch3x3_1 = ConvUnit(c_in, 384, 1)
        self.branch3x3_2a = ConvUnit(384, 384, **row)
        self.branch3x3_2b = ConvUnit(384, 384, **column)
        self.branch3x3dbl_1 = ConvUnit(c_in, 448, 1)
        self.branch3x3dbl_2 = ConvUnit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvUnit(384, 384, **row)
        self.branch3x3dbl_3b = ConvUnit(384, 384, **column)
        self.branch_pool = ConvUnit(c_in, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch3x3_1(x)
        double = chain(x, [self.branch3x3dbl_1, self.branch3x3dbl_2])
        pooled = max_pool2d(x, 3, stride=1, padding=1) if self.pools_by_maximum else mean_pool(x)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, dim=1)


class InceptionV3(torch.nn.Module):
    """`[N, 3, 299, 299]`, pixels as (p - 128) / 128, to features `[N, 2048]`; `logits` takes these further."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, 3)
        self.Mixed_5b = BlockA(192, c_pool=32)
        self.Mixed_5c = BlockA(256, c_pool=64)
        self.Mixed_5d = BlockA(288, c_pool=64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, c_7x7=128)
        self.Mixed_6c = BlockC(768, c_7x7=160)
        self.Mixed_6d = BlockC(768, c_7x7=160)
        self.Mixed_6e = BlockC(768, c_7x7=192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, pools_by_maximum=False)
        self.Mixed_7c = BlockE(2048, pools_by_maximum=True)
        self.fc = torch.nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = chain(x, [self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3])
        x = chain(max_pool2d(x, 3, stride=2), [self.Conv2d_3b_1x1, self.Conv2d_4a_3x3])
        x = chain(max_pool2d(x, 3, stride=2), [self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a])
        x = chain(x, [self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e])
        x = chain(x, [self.Mixed_7a, self.Mixed_7b, self.Mixed_7c])
        return x.mean(dim=[2, 3])

    def logits(self, features: torch.Tensor, bias: bool = True) -> torch.Tensor:
        """`[N, 2048]` -> `[N, 1008]`. The inception score of StyleGAN leaves the bias out."""
        return torch.nn.functional.linear(features, self.fc.weight, self.fc.bias if bias else None)
