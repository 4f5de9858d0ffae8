"""The table of configurations: what `--cfg` names. It imports no torch, so that `train.py --help` does not wait for it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dnnlib.errors import UserError

W_DIM = 512
MBSTD_GROUP = 4


def check_pyramid(height: int, width: int) -> None:
    """What StyleGAN2 makes."""
    from training.layers.pyramid import resolution_pyramid

    resolution_pyramid([height, width])


def check_stylegan3(height: int, width: int) -> None:
    """What StyleGAN3 makes, and StyleGAN2's discriminator sees."""
    from training.networks_stylegan3 import check_resolution

    check_pyramid(height, width)
    check_resolution(height if height == width else [height, width])


def powers_of_two(smallest: int, largest: int) -> Callable[[int, int], None]:
    """A check that images are squares with such a side."""
    sides = [1 << e for e in range(smallest.bit_length() - 1, largest.bit_length())]

    def check(height: int, width: int) -> None:
        if height != width or height not in sides:
            choices = ", ".join(f"{side}x{side}" for side in sides)
            raise UserError(
                f"images of {width}x{height} do not suit this --cfg, which makes {choices}: resize with "
                "dataset_tool.py --resolution=WxH, or use --cfg=stylegan2"
            )

    return check


@dataclass(frozen=True)
class Preset:
    """A row of the configuration table. What has a flag is the default of that flag."""

    generator: str
    """Class of G."""
    discriminator: str
    """Class of D."""
    check_size: Callable[[int, int], None]
    """Raises `UserError` for a (height, width) that the networks cannot do."""
    glr: float
    """Learning rate of G."""
    dlr: float = 0.002
    """Learning rate of D."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Of Adam, for both."""
    loss: str = "logistic"
    """Row of `training.losses.LOSSES`."""
    gamma_at_256: float | None = None
    """Weight of the penalty at 256x256, scaling with the number of pixels; None: StyleGAN2's rule, 0.0002 pixels / batch."""
    D_reg_interval: int | None = None
    """Steps from one penalty to the next, if the loss allows that; None: part of every step."""
    D_steps: int = 1
    """Steps of D for each of G."""
    has_batch_norm: bool = False
    """Whether results depend on the micro-batch."""
    is_style_based: bool = False
    """Whether G has a mapping network to w and style-modulated layers in mixed precision."""
    has_minibatch_std: bool = False
    """Whether D looks at groups of images."""
    discriminator_kind: str = "own"
    """Row of `DISCRIMINATORS` that D is of."""
    aug: str = "ada"
    """Augmentation mode."""
    cbase: int = 32768
    cmax: int = 512
    z_dim: int = 512
    map_depth: int | None = None
    """Layers of the mapping network."""
    grow_kimg: float | None = None
    """Images, in thousands, for which a resolution is trained, and for which the next is faded in; None: does not grow."""
    width_multiplier: int = 1
    """Factor on `--cbase` and `--cmax`, for generators whose convolutions are 1x1."""
    pl_weight: float = 0.0
    """Weight of the path-length regulariser."""
    G_reg_interval: int | None = None
    """Steps from one path-length regularisation to the next; None for none."""
    style_mixing_prob: float = 0.0
    """Share of samples whose later layers take another latent."""
    blur_init_sigma: float = 0.0
    """Blur of the images that D sees at the start, in pixels; it fades over the first images."""
    magnitude_ema: bool = False
    """Whether G tracks the magnitude of its activations (half-life 20 kimg)."""
    batch: int | None = None
    """Images of a step; None: 32."""
    batch_gpu: int | None = None
    """Of them that one process works on at a time, unless --batch says otherwise; None: the most that fits."""
    mbstd_group: int = MBSTD_GROUP
    gamma: float | None = None
    """Weight of the penalty whatever the resolution; None: by the rules."""
    kimg: float = 25000
    ema_kimg: float | None = None
    """Half-life of the average of G's weights; None: batch * 10 / 32."""
    ema_rampup: float | None = 0.05
    """Half-life as a share of the images seen, early on."""
    adapts: bool = False
    """Whether what is open follows from the resolution (`training.config.ada.adapted`)."""
    generator_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further constructor arguments of G."""
    discriminator_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further constructor arguments of D."""

    @property
    def has_stylegan_discriminator(self) -> bool:
        """Whether D has blocks in mixed precision, of which the first can be frozen."""
        return self.is_style_based and self.discriminator_kind == "own"

    def with_discriminator(self, name: str) -> "Preset":
        """The row with another discriminator, and what goes with that."""
        return self if name == self.discriminator_kind else dataclasses.replace(self, **DISCRIMINATORS[name])


# Sauer 2021; what the paper says of its configurations is beside the row of `fastgan`
PROJECTED = {
    "discriminator_kind": "projected",
    "discriminator": "training.networks_projected.Discriminator",
    "glr": 0.002,
    "dlr": 0.002,
    "betas": (0.0, 0.99),
    "loss": "hinge",
    "gamma": None,
    "gamma_at_256": 0.0,
    "D_reg_interval": None,
    "D_steps": 1,
    "has_minibatch_std": False,
    "aug": "diff",
    "pl_weight": 0.0,
    "G_reg_interval": None,
    "style_mixing_prob": 0.0,
    "blur_init_sigma": 0.0,
    "discriminator_kwargs": {},
}
# What `--discriminator` names beside `own`, that of the configuration's paper: what each changes in a row.
DISCRIMINATORS: dict[str, dict[str, Any]] = {"projected": PROJECTED}


STYLEGAN = {
    "discriminator": "training.networks_stylegan2.Discriminator",
    "D_reg_interval": 16,
    "is_style_based": True,
    "has_minibatch_std": True,
}

STYLEGAN2 = {
    **STYLEGAN,
    "generator": "training.networks_stylegan2.Generator",
    "check_size": check_pyramid,
    "pl_weight": 2.0,
    "G_reg_interval": 4,
    "style_mixing_prob": 0.9,
    "generator_kwargs": {"fused_modconv_default": "inference_only"},
}
ADA = {"glr": 0.0025, "dlr": 0.0025}

# Beside each row what its paper reports; published figures, not measured with this code.
PRESETS = {
    # Karras 2020: FID 2.84 on FFHQ at 1024x1024
    "stylegan2": Preset(**STYLEGAN2, map_depth=8, glr=0.002),
    # Karras 2021, translation equivariant: FID 2.79 on FFHQ at 1024x1024
    "stylegan3-t": Preset(
        **STYLEGAN,
        generator="training.networks_stylegan3.Generator",
        check_size=check_stylegan3,
        map_depth=2,
        glr=0.0025,
        gamma_at_256=2.0,
        magnitude_ema=True,
    ),
    # Karras 2021, translation and rotation equivariant: FID 3.07 on FFHQ at 1024x1024
    "stylegan3-r": Preset(
        **STYLEGAN,
        generator="training.networks_stylegan3.Generator",
        check_size=check_stylegan3,
        map_depth=2,
        glr=0.0025,
        gamma_at_256=2.0,
        width_multiplier=2,
        blur_init_sigma=10.0,
        magnitude_ema=True,
        generator_kwargs={"conv_kernel": 1, "use_radial_filters": True},
    ),
    # Radford 2016: features of D classify CIFAR-10 with 82.8 %; the paper gives no FID
    "dcgan": Preset(
        generator="training.networks_dcgan.Generator",
        discriminator="training.networks_dcgan.Discriminator",
        has_batch_norm=True,
        check_size=powers_of_two(16, 128),
        glr=0.0002,
        dlr=0.0002,
        betas=(0.5, 0.999),
        gamma_at_256=0.0,
        cbase=4096,
        cmax=1024,
        z_dim=100,
    ),
    # Miyato 2018: FID 21.7 on CIFAR-10, inception score 8.22; --cmax=1024 is the table for ImageNet
    "sngan": Preset(
        generator="training.networks_resnet.Generator",
        discriminator="training.networks_resnet.Discriminator",
        has_batch_norm=True,
        check_size=powers_of_two(16, 128),
        glr=0.0002,
        dlr=0.0002,
        betas=(0.0, 0.9),
        loss="hinge",
        gamma_at_256=0.0,
        D_steps=5,
        cbase=8192,
        cmax=256,
        z_dim=128,
    ),
    # Brock 2019, class-conditional: FID 8.7 on ImageNet at 128x128, inception score 98.8, with a batch of 2048
    "biggan": Preset(
        generator="training.networks_resnet.Generator",
        discriminator="training.networks_resnet.Discriminator",
        has_batch_norm=True,
        check_size=powers_of_two(16, 128),
        glr=0.00005,
        dlr=0.0002,
        betas=(0.0, 0.999),
        loss="hinge",
        gamma_at_256=0.0,
        D_steps=2,
        cbase=12288,
        cmax=1536,
        z_dim=120,
        generator_kwargs={
            "is_spectral": True,
            "is_hierarchical": True,
            "has_attention": True,
            "init": "orthogonal",
            "embed_dim": 128,
        },
        discriminator_kwargs={"is_wide": True, "has_attention": True, "init": "orthogonal"},
    ),
    # Huang 2024: FID 2.75 on FFHQ at 256x256, 1.96 on CIFAR-10; its schedules (gamma, learning rate) are not built
    "r3gan": Preset(
        generator="training.networks_r3gan.Generator",
        discriminator="training.networks_r3gan.Discriminator",
        check_size=powers_of_two(16, 256),
        glr=0.0002,
        dlr=0.0002,
        loss="relativistic",
        gamma_at_256=15.0,
        cbase=24576,
        cmax=768,
        z_dim=64,
        generator_kwargs={"embed_dim": 128},
    ),
    # Karras 2018: sliced Wasserstein distance; Karras 2019, table 1, gives its FID on CelebA-HQ at 1024x1024, 7.79
    "pggan": Preset(
        generator="training.networks_pggan.Generator",
        discriminator="training.networks_pggan.Discriminator",
        check_size=powers_of_two(16, 1024),
        glr=0.001,
        dlr=0.001,
        loss="wgan-gp",
        has_minibatch_std=True,
        cbase=16384,
        cmax=512,
        z_dim=512,
        grow_kimg=800.0,
    ),
    # Sauer 2021, which gives Liu 2021 the projected discriminator: FID 3.39 on FFHQ at 256x256
    "fastgan": Preset(
        **PROJECTED,
        generator="training.networks_fastgan.Generator",
        has_batch_norm=True,
        check_size=powers_of_two(16, 1024),
        cbase=16384,
        cmax=512,
        z_dim=256,
    ),
    # Karras 2020b, the configurations of StyleGAN2-ADA; class-conditional CIFAR-10: FID 2.42
    "auto": Preset(**STYLEGAN2, **ADA, map_depth=2, adapts=True),
    "paper256": Preset(
        **STYLEGAN2,
        **ADA,
        map_depth=8,
        gamma=1,
        batch=64,
        batch_gpu=8,
        mbstd_group=8,
        cbase=16384,
        ema_kimg=20,
        ema_rampup=None,
    ),
    "paper512": Preset(
        **STYLEGAN2, **ADA, map_depth=8, gamma=0.5, batch=64, batch_gpu=8, mbstd_group=8, ema_kimg=20, ema_rampup=None
    ),
    "paper1024": Preset(
        **STYLEGAN2, map_depth=8, glr=0.002, gamma=2, batch=32, batch_gpu=4, ema_kimg=10, ema_rampup=None
    ),
    "cifar": Preset(
        **STYLEGAN2 | {"pl_weight": 0.0, "G_reg_interval": 4, "style_mixing_prob": 0.0},
        **ADA,
        map_depth=2,
        gamma=0.01,
        batch=64,
        batch_gpu=32,
        mbstd_group=32,
        kimg=100_000,
        ema_kimg=500,
        discriminator_kwargs={"architecture": "orig"},
    ),
}
