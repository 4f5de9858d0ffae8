"""The official name of StyleGAN2-ADA-PyTorch for the networks of StyleGAN2, with its arguments and defaults."""

from collections.abc import Sequence
from typing import Any

from torch_utils.persistence import persistent_class
from training import networks_stylegan2
from training.discriminator import MinibatchStdLayer
from training.generator import normalize_2nd_moment
from training.networks_stylegan2 import (
    Conv2dLayer,
    DiscriminatorBlock,
    DiscriminatorEpilogue,
    FullyConnectedLayer,
    MappingNetwork,
    SynthesisBlock,
    SynthesisLayer,
    SynthesisNetwork,
    ToRGBLayer,
    modulated_conv2d,
)

__all__ = [
    "Conv2dLayer",
    "Discriminator",
    "DiscriminatorBlock",
    "DiscriminatorEpilogue",
    "FullyConnectedLayer",
    "Generator",
    "MappingNetwork",
    "MinibatchStdLayer",
    "SynthesisBlock",
    "SynthesisLayer",
    "SynthesisNetwork",
    "ToRGBLayer",
    "modulated_conv2d",
    "normalize_2nd_moment",
]

FLOAT32 = {"num_fp16_res": 0, "conv_clamp": None}  # the defaults there


@persistent_class
class Generator(networks_stylegan2.Generator):
    """The generator of `networks_stylegan2`, whose synthesis arguments come as one dict."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int | Sequence[int],
        img_channels: int,
        mapping_kwargs: dict[str, Any] = {},
        synthesis_kwargs: dict[str, Any] = {},
    ):
        mapping_kwargs = {"w_avg_beta": 0.995, **mapping_kwargs}
        super().__init__(
            z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs, **FLOAT32 | dict(synthesis_kwargs)
        )


@persistent_class
class Discriminator(networks_stylegan2.Discriminator):
    """The discriminator of `networks_stylegan2`, in float32 unless asked otherwise."""

    def __init__(self, c_dim: int, img_resolution: int | Sequence[int], img_channels: int, **kwargs: Any):
        super().__init__(c_dim, img_resolution, img_channels, **FLOAT32 | kwargs)
