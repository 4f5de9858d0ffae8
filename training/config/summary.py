"""What a run says of itself before it starts: a line for each decision, and its reason."""

import torch

from dnnlib.errors import UserError
from torch_utils.ops import dispatch
from training.config.options import TrainingOptions
from training.config.resume import ResumePoint
from training.config.run_config import TrainingConfig
from training.layers.precision import plan_precision
from training.losses import LOSSES

TOPICS = (
    "Stage", "Data", "Chosen", "Source", "Cache", "Classes", "Prior", "Network", "Batch", "Core-set", "Loss", "Gamma",
    "Augment", "Device", "Precision", "Kernels", "Launches", "Start", "Pretrain", "Length", "Metrics",
)  # fmt: skip


def lines_about(options: TrainingOptions, config: TrainingConfig) -> dict[str, str | None]:
    """What the summary says of the configuration as a whole."""
    return {
        "Network": network_line(options, config),
        "Batch": batch_line(config),
        "Loss": loss_line(config),
        "Precision": precision_line(options, config.device),
        "Kernels": dispatch.describe(config.device),
        "Launches": launches_line(options, config.device),
        "Pretrain": pretrain_line(config),
        "Length": length_line(config),
        "Metrics": metrics_line(options),
    }


def launches_line(options: TrainingOptions, device: str) -> str:
    """How work reaches the device, and whether it is repeatable."""
    if device == "cpu":
        if options.cuda_graphs:
            raise UserError("--cuda-graphs=1 needs a GPU, and this run is on the cpu: leave it out")
        return "repeatable: the same seed gives the same numbers on this machine"
    order = (
        "repeatable (--deterministic=1)"
        if options.deterministic
        else "not repeatable to the bit (--deterministic=1 is)"
    )
    graphs = (
        "main phases as CUDA graphs (--cuda-graphs=1)"
        if options.cuda_graphs
        else "kernel by kernel (see --cuda-graphs)"
    )
    return f"{graphs}, {order}"


def precision_line(options: TrainingOptions, device: str) -> str:
    if device == "cpu" and not options.preset.is_style_based:
        return f"float32: the layers of {options.cfg} know no other"
    return plan_precision(torch.device(device), options.fp32, options.allow_tf32).reason


def loss_line(config: TrainingConfig) -> str:
    """What is minimised, and when."""
    row = LOSSES[config.loss]
    often = "in every step" if config.D_reg_interval is None else f"every {config.D_reg_interval} steps"
    penalty = f"gradient penalty at {' and '.join(row.penalty_at)} images {often}"
    if row.penalty_at == ("between",):
        penalty = f"gradient penalty between real and fake images {often}"
    steps = f", {config.D_steps} steps of D for each of G" if config.D_steps > 1 else ""
    return f"{config.loss}, {penalty if config.r1_gamma > 0 else 'no gradient penalty'}{steps}"


def pretrain_line(config: TrainingConfig) -> str | None:
    if config.pretrain_kimg is None:
        return None
    what = "source images" if config.source.has_images else "noise"
    return f"{config.pretrain_kimg:g} kimg in which G alone learns to draw the training images paired with {what} (--pretrain)"


def describe_continuation(point: ResumePoint) -> str:
    if point.state is None:
        return f"{point.run_dir} from its beginning: it had saved no training state yet"
    return (
        f"{point.run_dir} goes on from {point.state.name}: networks, optimizers, ADA, statistics, position in the data"
    )


def network_line(options: TrainingOptions, config: TrainingConfig) -> str:
    preset = options.preset
    assert options.cmax is not None
    width = (
        f"at most {options.cmax * preset.width_multiplier} feature maps (--cbase={options.cbase} --cmax={options.cmax})"
    )
    frozen = f", {options.freezed} layers of D frozen" if options.freezed else ""
    latent = f"w_dim {options.w_dim}" if preset.is_style_based else f"z_dim {options.z_dim}"
    growth = "" if options.grow_kimg is None else f", grows every {options.grow_kimg:g} kimg (--grow-kimg)"
    judge = ""
    if preset.discriminator_kind == "projected":
        size = config.D_kwargs["feature_size"]
        judge = f"; D sees features of a frozen EfficientNet at {size} pixels (--discriminator=projected --feature-size={size})"
    return f"{options.cfg}, {width}, {latent}{frozen}{growth}{judge}"


def batch_line(config: TrainingConfig) -> str:
    processes = f"{config.num_gpus} processes" if config.num_gpus > 1 else "one process"
    micro = "as many at a time as fit" if config.batch_gpu is None else f"{config.batch_gpu} at a time (--batch-gpu)"
    return f"{config.batch_size} images a step, {processes}, {micro}"


def length_line(config: TrainingConfig) -> str:
    often = "snapshots after ticks 1, 2, 4, … and every 50"
    if config.snapshot_ticks is not None:
        often = f"a snapshot every {config.snapshot_ticks} ticks"
    return f"{config.total_kimg:g} kimg, a tick is {config.kimg_per_tick:g} kimg, {often}, seed {config.seed}"


def metrics_line(options: TrainingOptions) -> str:
    if not options.metrics:
        unused = "" if options.metrics_data is None else "; without them --metrics-data is not used"
        return f"none (--metrics=fid50k_full, …){unused}; diversity is watched and neighbors.png drawn all the same"
    against = "" if options.metrics_data is None else f" against [{options.metrics_data}]"
    return f"{', '.join(options.metrics)}{against} at every snapshot, {options.metrics[0]} chooses network-best.pkl"
