"""What a training run is: the configuration table, what the user may ask for, and the complete description of a run."""

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dnnlib.errors import UserError
from metrics import metric_main
from training.augment import AUGPIPES
from training.layers import resolution_pyramid
from training.losses import LOSSES
from training.networks_stylegan3 import check_resolution

W_DIM = 512
MBSTD_GROUP = 4


def check_pyramid(height: int, width: int) -> None:
    """What StyleGAN2 makes."""
    resolution_pyramid([height, width])


def check_stylegan3(height: int, width: int) -> None:
    """What StyleGAN3 makes, and StyleGAN2's discriminator sees."""
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


CORESETS = ("prior", "target")
CORESET_FACTOR = 4  # Sinha et al. 2020 used 4 to 8
MAX_CORESET_FACTOR = 64
MAX_PRETRAIN_KIMG = 10_000


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
    """Whether what is open follows from the resolution (`training.ada.adapted`)."""
    synthesis: dict[str, Any] = field(default_factory=dict)
    """Further constructor arguments of G."""
    judging: dict[str, Any] = field(default_factory=dict)
    """Further constructor arguments of D."""


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
    "synthesis": {"fused_modconv_default": "inference_only"},
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
        synthesis={"conv_kernel": 1, "use_radial_filters": True},
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
        synthesis={
            "is_spectral": True,
            "is_hierarchical": True,
            "has_attention": True,
            "init": "orthogonal",
            "embed_dim": 128,
        },
        judging={"is_wide": True, "has_attention": True, "init": "orthogonal"},
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
        synthesis={"embed_dim": 128},
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
        judging={"architecture": "orig"},
    ),
}


SOURCE_MATCHES = ("random", "label", "csid")


@dataclass
class TrainingOptions:
    """What the user asks for, named as the flags of train.py. None means: decide for me."""

    cfg: str | None
    data: str | None = None
    source: str | None = None
    source_pool: tuple[str, ...] = ()
    source_encoder: str | None = None
    source_norm: str = "standardize"
    source_noise: float = 0.0
    coreset: tuple[str, ...] = ()
    coreset_factor: int | None = None
    stage_cache: int | None = None
    source_match: str = "random"
    pretrain: float = 0
    outdir: str = "training-runs"
    gpus: int | None = None
    batch: int | None = None
    gamma: float | None = None
    cond: bool = False
    prior: str | None = None
    prior_detector: str = "auto"
    prior_dim: int | None = None
    prior_norm: str = "unit"
    prior_sampling: str = "memory"
    mirror: bool = False
    subset: int | None = None
    aug: str = "ada"
    augpipe: str = "bgc"
    resume: str | None = None
    resume_augment: bool = False
    resume_optimizer: bool = False
    freezed: int = 0
    p: float = 0.2
    target: float = 0.6
    batch_gpu: int | None = None
    cbase: int | None = None
    cmax: int | None = None
    z_dim: int | None = None
    w_dim: int | None = None
    glr: float | None = None
    dlr: float | None = None
    loss: str | None = None
    map_depth: int | None = None
    mbstd_group: int | None = None
    grow_kimg: float | None = None
    desc: str | None = None
    metrics: tuple[str, ...] = ()
    metrics_data: str | None = None
    detector: str = "auto"
    detector_weights: str | None = None
    kimg: float = None  # type: ignore[assignment]  # that of the configuration
    tick: float = 4
    snap: int | None = None
    keep: int | None = None
    nan_patience: int = 10
    seed: int = 0
    fp32: bool = False
    nhwc: bool = False
    allow_tf32: bool | None = None
    nobench: bool = False
    cuda_graphs: bool = False
    deterministic: bool = False
    workers: int = 3
    device: str = "auto"

    def __post_init__(self) -> None:
        """Ranges; raises `UserError` that names the flag."""
        if self.cfg not in PRESETS:
            missing = "--cfg is missing (only --resume=latest goes without, once there is a run)"
            raise UserError(f"{missing if self.cfg is None else f'--cfg={self.cfg}'}: choose from {', '.join(PRESETS)}")
        self.kimg = self.preset.kimg if self.kimg is None else self.kimg
        if self.resume is None and (self.resume_augment or self.resume_optimizer):
            raise UserError("--resume-augment and --resume-optimizer need --resume=network-snapshot-….pkl")
        if self.pretrain > 0 and self.resume is not None:
            raise UserError(
                "--pretrain: would train the weights of --resume=network-snapshot-….pkl anew; leave one of them out"
            )
        if self.source_match not in SOURCE_MATCHES:
            raise UserError(f"--source-match={self.source_match}: choose from {', '.join(SOURCE_MATCHES)}")
        if self.prior not in (None, "features"):
            raise UserError(f"--prior={self.prior}: choose features, or leave it out")
        if self.prior is not None and self.cond:
            raise UserError("--prior=features: conditions on features, and --cond=1 on labels; leave one of them out")
        defaults = {"prior_detector": "auto", "prior_dim": None, "prior_norm": "unit", "prior_sampling": "memory"}
        for name, usual in defaults.items() if self.prior is None else []:
            self._require(name, lambda value, usual=usual: value == usual, "needs --prior=features")
        if self.loss is not None and self.loss not in LOSSES:
            raise UserError(f"--loss={self.loss}: choose from {', '.join(LOSSES)}")
        if self.augpipe not in AUGPIPES:
            raise UserError(f"--augpipe={self.augpipe}: choose from {', '.join(AUGPIPES)}")
        for name in (
            "batch",
            "gpus",
            "subset",
            "batch_gpu",
            "cbase",
            "cmax",
            "z_dim",
            "w_dim",
            "snap",
            "keep",
            "mbstd_group",
            "map_depth",
            "prior_dim",
        ):
            self._require(name, lambda value: value >= 1, "must be at least 1")
        for name in ("kimg", "tick", "gamma", "source_noise", "glr", "dlr", "grow_kimg", "pretrain"):
            self._require(name, math.isfinite, "must be a finite number")
        for name in ("kimg", "tick", "glr", "dlr", "grow_kimg"):
            self._require(name, lambda value: value > 0, "must be positive")
        for name in ("gamma", "source_noise", "freezed", "workers", "seed", "nan_patience", "stage_cache", "pretrain"):
            self._require(name, lambda value: value >= 0, "must not be negative")
        for name in ("p", "target"):
            self._require(name, lambda value: 0 <= value <= 1, "must lie in [0, 1]")
        for name in ("data", "source", "outdir", "resume", "metrics_data"):
            self._require(name, lambda value: value != "", "is empty; give a path")
        self._require(
            "desc", lambda value: re.fullmatch(r"[^/\\\0]{0,100}", value), "must be at most 100 characters, no slashes"
        )
        self._require("pretrain", lambda value: value <= MAX_PRETRAIN_KIMG, f"must be at most {MAX_PRETRAIN_KIMG:,}")
        self._check_fit()
        for name in self.metrics:
            metric_main.find_metric(name)
        self._check_coreset()

    def _check_coreset(self) -> None:
        for name in self.coreset:
            if name not in CORESETS:
                raise UserError(f"--coreset={name}: choose from {', '.join(CORESETS)}, or both with a comma")
        factor = self.coreset_factor
        if factor == 1:
            raise UserError("--coreset-factor=1: chooses all candidates, which does nothing; use 4 to 8")
        self._require(
            "coreset_factor",
            lambda value: 1 < value <= MAX_CORESET_FACTOR,
            f"must be from 2 to {MAX_CORESET_FACTOR}; 4 to 8 are usual",
        )
        if factor is not None and not self.coreset:
            raise UserError(f"--coreset-factor={factor}: needs --coreset=prior,target, or one of the two")
        if "prior" in self.coreset and self.source_match != "random":
            raise UserError(
                "--coreset=prior chooses among source images, and so does --source-match: use --coreset=target, or "
                "--source-match=random"
            )

    def _check_fit(self) -> None:
        """Flags that the configuration has nothing for."""
        missing = {"w_dim": None, "map_depth": None, "freezed": 0} if not self.preset.is_style_based else {}
        missing |= {"mbstd_group": None} if not self.preset.has_minibatch_std else {}
        missing |= {"nhwc": False} if "fused_modconv_default" not in self.preset.synthesis else {}
        missing |= {"grow_kimg": None} if self.preset.grow_kimg is None else {}
        for name, unset in missing.items():
            if getattr(self, name) != unset:
                raise UserError(
                    f"--{name.replace('_', '-')}={getattr(self, name)}: --cfg={self.cfg} has no such thing; leave it out"
                )

    def _require(self, name: str, holds: Any, rule: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise UserError(f"--{name.replace('_', '-')}={value} {rule}")

    @property
    def preset(self) -> Preset:
        return PRESETS[self.cfg]

    def settled(self) -> "TrainingOptions":
        """With the configuration's values for what was left open."""
        preset = self.preset
        defaults = {
            "cbase": preset.cbase,
            "cmax": preset.cmax,
            "z_dim": preset.z_dim,
            "w_dim": W_DIM if preset.is_style_based else None,
            "glr": preset.glr,
            "dlr": preset.dlr,
            "loss": preset.loss,
            "map_depth": preset.map_depth,
            "grow_kimg": preset.grow_kimg,
            "mbstd_group": preset.mbstd_group if preset.has_minibatch_std else None,
        }
        return dataclasses.replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})


@dataclass
class TrainingConfig:
    """Everything that a run depends on, as plain data; saved as training_options.json."""

    cfg: str
    """Row of the configuration table."""
    desc: str
    """Name of the run, behind its number."""
    training_set_kwargs: dict[str, Any]
    """Constructor arguments of the dataset."""
    source: dict[str, Any]
    """`kind` (gaussian, images, network), `path` or `z_dim`; after `--source=auto` `why` it was chosen; with
    `--source-match` the pairs of classes as `match`."""
    G_kwargs: dict[str, Any]
    """Class and constructor arguments of the generator, its encoder's in `mapping_kwargs`."""
    D_kwargs: dict[str, Any]
    """Class and constructor arguments of the discriminator."""
    G_opt_kwargs: dict[str, Any]
    D_opt_kwargs: dict[str, Any]
    outdir: str
    """Folder of the run folders."""
    device: str
    """cpu or cuda."""
    num_gpus: int
    """Processes."""
    batch_size: int
    """Images per step, over all processes and accumulation rounds."""
    batch_gpu: int | None
    """Images that one process works on at a time; None: the most that fits."""
    mbstd_group: int
    """Samples per group of the minibatch standard deviation; 1 where D has none."""
    r1_gamma: float
    """Weight of the gradient penalty of the loss, R1 for most."""
    pl_weight: float
    """Weight of the path-length regulariser."""
    G_reg_interval: int | None
    """Steps from one path-length regularisation to the next; None for none."""
    style_mixing_prob: float
    """Share of samples whose later layers take another latent."""
    blur_init_sigma: float
    """Blur of the images that D sees at the start, in pixels."""
    blur_fade_kimg: float
    """Over which it fades to none."""
    augpipe_kwargs: dict[str, float] | None
    """Arguments of the augmentation pipe; None for no augmentation."""
    augment_p: float
    """Augmentation probability at the start."""
    ada_target: float | None
    """Target for the mean sign of D on real images; None keeps p fixed."""
    ada_kimg: int
    """Over which p can rise from 0 to 1."""
    ema_kimg: float
    """Half-life of the average of G's weights."""
    ema_rampup: float | None
    """Half-life as a share of the images seen, early on; None for none."""
    resume: str | None
    """Snapshot whose weights the run started from."""
    total_kimg: float
    kimg_per_tick: float
    snapshot_ticks: int | None
    """Ticks from one snapshot to the next; None: after ticks 1, 2, 4, …, then every 50."""
    seed: int
    fp32: bool
    cudnn_benchmark: bool
    cuda_graphs: bool
    """Whether the main phases replay recorded kernels instead of launching each."""
    deterministic: bool
    """Whether a GPU adds in the same order every time."""
    num_workers: int
    """Threads that decode images."""
    data_fingerprint: str = ""
    """sha256 of what the dataset holds, wherever it lies."""
    resume_augment: bool = False
    """Whether the augmentation probability came from the snapshot of `resume`."""
    resume_optimizer: bool = False
    """Whether the optimizers' moments came from the training state beside it."""
    prior: dict[str, Any] | None = None
    """Constructor arguments of the data instance prior; None for none."""
    keep: int | None = None
    """Snapshots and training states kept, beside the best; None: all snapshots, two states."""
    nan_patience: int = 10
    """Steps in a row that may be left out because losses or gradients are not finite."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the user asked for, by the names of the flags: what `--resume=latest` starts from."""
    metrics: list[str] = field(default_factory=list)
    """Computed at every snapshot; by the first of them the best snapshot is chosen."""
    metrics_data: str | None = None
    """Data set that they compare with; None: the training data."""
    detector: str = "auto"
    """What sees the images for the metrics; auto: each metric's usual one where its weights are at hand, else tiny."""
    detector_weights: str | None = None
    """File or address of its weights."""
    coreset: dict[str, Any] | None = None
    """Core-sets: `of` (prior, target), `factor` candidates a sample, `detector` (its key) for targets; None for none."""
    stage_cache: int | None = None
    """Outputs of a network source that steps draw from; None: each step makes its own."""
    D_reg_interval: int | None = 16
    """Steps from one gradient penalty to the next; None: part of every step."""
    loss: str = "logistic"
    """Row of `training.losses.LOSSES`."""
    D_steps: int = 1
    """Steps of D for each of G."""
    allow_tf32: bool | None = None
    """Whether float32 products on a GPU may round their inputs; None: where it has the units and fp32 is not asked for."""
    pretrain_kimg: float | None = None
    """For which G learns to draw the training images that its latents are paired with, before the first step; None for none."""

    def __post_init__(self) -> None:
        if self.batch_size % self.num_gpus != 0:
            raise UserError(
                f"--batch={self.batch_size} is not a multiple of --gpus={self.num_gpus}; "
                f"use --batch={self.batch_size // self.num_gpus * self.num_gpus or self.num_gpus}"
            )
        if self.batch_gpu is not None and self.per_process % self.batch_gpu != 0:
            raise UserError(
                f"--batch-gpu={self.batch_gpu} does not divide the {self.per_process} images of a process (--batch/--gpus); "
                f"choose from {', '.join(map(str, divisors(self.per_process)))}"
            )
        smallest = self.per_process if self.batch_gpu is None else self.batch_gpu
        if smallest % self.mbstd_group != 0:
            choices = ", ".join(map(str, divisors(smallest)))
            raise UserError(
                f"--mbstd-group={self.mbstd_group} does not divide the {smallest} images that a process works on at a "
                f"time; choose --mbstd-group from {choices}, or a larger --batch"
            )

    @property
    def per_process(self) -> int:
        return self.batch_size // self.num_gpus

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
