"""What a training run is: what the user may ask for, and the complete description of a run."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

from dnnlib.errors import UserError
from metrics import metric_main
from training.augment import AUGPIPES
from training.losses import LOSSES
from training.presets import PRESETS, W_DIM, Preset
from training.settings import SOURCE_MATCHES

CORESETS = ("prior", "target")
CORESET_FACTOR = 4  # Sinha et al. 2020 used 4 to 8
MAX_CORESET_FACTOR = 64
MAX_PRETRAIN_KIMG = 10_000


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
