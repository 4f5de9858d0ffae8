"""The complete description of a run."""

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from dnnlib.errors import UserError
from training.config.flags import OnResume
from training.config.options import FLAGS
from training.config.source_specs import SourceSpec
from training.sources.coreset import CoresetSpec
from training.sources.prior_features import NoPrior, PriorSpec
from training.sources.stage_cache import StageCacheSpec

CORESET_FACTOR = 4  # Sinha et al. 2020 used 4 to 8


def of_option(name: str) -> dict[str, str]:
    """Metadata of a field that follows from one option, and may differ in a run that is continued if that may."""
    return {"option": name}


@dataclass
class TrainingConfig:
    """Everything that a run depends on; saved as training_options.json (`as_dict`)."""

    cfg: str
    """Row of the configuration table."""
    desc: str
    """Name of the run, behind its number."""
    training_set_kwargs: dict[str, Any]
    """Constructor arguments of the dataset."""
    source: SourceSpec
    """What feeds G."""
    G_kwargs: dict[str, Any]
    """Class and constructor arguments of the generator, its encoder's in `mapping_kwargs`."""
    D_kwargs: dict[str, Any]
    """Class and constructor arguments of the discriminator."""
    G_opt_kwargs: dict[str, Any] = field(metadata=of_option("glr"))
    D_opt_kwargs: dict[str, Any] = field(metadata=of_option("dlr"))
    outdir: str = field(metadata=of_option("outdir"))
    """Folder of the run folders."""
    device: str = field(metadata=of_option("device"))
    """cpu or cuda."""
    num_gpus: int = field(metadata=of_option("gpus"))
    """Processes."""
    batch_size: int
    """Images per step, over all processes and accumulation rounds."""
    batch_gpu: int | None = field(metadata=of_option("batch_gpu"))
    """Images that one process works on at a time; None: the most that fits."""
    mbstd_group: int
    """Samples per group of the minibatch standard deviation; 1 where D has none."""
    r1_gamma: float = field(metadata=of_option("gamma"))
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
    augpipe_kwargs: dict[str, Any] | None
    """Class (`AugmentPipe` if none is named) and arguments of the augmentation; None for none."""
    augment_p: float = field(metadata=of_option("p"))
    """Augmentation probability at the start."""
    ada_target: float | None = field(metadata=of_option("target"))
    """Target for the mean sign of D on real images; None keeps p fixed."""
    ada_kimg: int
    """Over which p can rise from 0 to 1."""
    ema_kimg: float
    """Half-life of the average of G's weights."""
    ema_rampup: float | None
    """Half-life as a share of the images seen, early on; None for none."""
    resume: str | None = field(metadata=of_option("resume"))
    """Snapshot whose weights the run started from."""
    total_kimg: float = field(metadata=of_option("kimg"))
    kimg_per_tick: float = field(metadata=of_option("tick"))
    snapshot_ticks: int | None = field(metadata=of_option("snap"))
    """Ticks from one snapshot to the next; None: after ticks 1, 2, 4, …, then every 50."""
    seed: int
    fp32: bool
    cudnn_benchmark: bool = field(metadata=of_option("nobench"))
    cuda_graphs: bool = field(metadata=of_option("cuda_graphs"))
    """Whether the main phases replay recorded kernels instead of launching each."""
    deterministic: bool = field(metadata=of_option("deterministic"))
    """Whether a GPU adds in the same order every time."""
    num_workers: int = field(metadata=of_option("workers"))
    """Threads that decode images."""
    data_fingerprint: str = ""
    """sha256 of what the dataset holds, wherever it lies."""
    resume_augment: bool = False
    """Whether the augmentation probability came from the snapshot of `resume`."""
    resume_optimizer: bool = False
    """Whether the optimizers' moments came from the training state beside it."""
    prior: PriorSpec | NoPrior = field(default_factory=NoPrior)
    """The data instance prior."""
    keep: int | None = field(default=None, metadata=of_option("keep"))
    """Snapshots and training states kept, beside the best; None: all snapshots, two states."""
    nan_patience: int = field(default=10, metadata=of_option("nan_patience"))
    """Steps in a row that may be left out because losses or gradients are not finite."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the user asked for, by the names of the flags: what `--resume=latest` starts from."""
    metrics: list[str] = field(default_factory=list, metadata=of_option("metrics"))
    """Computed at every snapshot; by the first of them the best snapshot is chosen."""
    metrics_data: str | None = field(default=None, metadata=of_option("metrics_data"))
    """Data set that they compare with; None: the training data."""
    detector: str = field(default="auto", metadata=of_option("detector"))
    """What sees the images for the metrics; auto: each metric's usual one if at hand, else efficientnet, else tiny."""
    detector_weights: str | None = field(default=None, metadata=of_option("detector_weights"))
    """File or address of its weights."""
    coreset: CoresetSpec = field(default_factory=CoresetSpec)
    """Batches chosen from many candidates."""
    stage_cache: StageCacheSpec = field(default_factory=StageCacheSpec)
    """The pool of outputs of a network source that steps draw from."""
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
        """Plain data, as training_options.json has it."""
        return {one.name: as_data(getattr(self, one.name)) for one in dataclasses.fields(self)}


def as_data(value: Any) -> Any:
    """A value of a field: specs say themselves what they are."""
    return value.as_data() if hasattr(value, "as_data") else copy.deepcopy(value)


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


# Fields that may differ in a run that is continued: those of options that may, its name, and what was typed.
FREE_FIELDS = {"desc", "options"} | {
    one.name
    for one in dataclasses.fields(TrainingConfig)
    if "option" in one.metadata and FLAGS[one.metadata["option"]].on_resume is not OnResume.FIXED
}
