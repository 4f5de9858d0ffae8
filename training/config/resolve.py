"""From what the user asks for to the configuration of a run: every default is decided here, and says why.

Files are looked at, nothing is written; whatever the user can mend raises `UserError`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dnnlib.errors import UserError, naming
from metrics import metric_main
from metrics.detectors import Detectors, open_detector
from metrics.feature_stats import Images
from torch_utils import distributed, misc, persistence
from torch_utils.ops import dispatch
from training.augment import AUGPIPES
from training.checkpoints.snapshot import check_stage, is_snapshot, load_snapshot
from training.checkpoints.state_file import state_beside
from training.config.ada import adapted, auto_batch
from training.config.options import TrainingOptions
from training.config.presets import PRESETS, Preset
from training.config.resume import ResumePoint, is_finished
from training.config.run_config import CORESET_FACTOR, TrainingConfig
from training.config.source_choice import choice_line, choose_source
from training.config.source_match import match_classes, match_line
from training.data.image_files import counted, open_files, other_images
from training.data.shards import set_name
from training.dataset import CHANNEL_NAMES, ImageFolderDataset
from training.layers.equalized import image_size, nominal_resolution, resolution_pyramid
from training.layers.precision import plan_precision
from training.losses import LOSSES
from training.sampling.metric_inputs import ImageSet, NoiseImages
from training.sources.cascade import last_generator
from training.sources.coreset import coreset_detector
from training.sources.encoders import ENCODERS, build_encoder
from training.sources.prior import describe as describe_prior
from training.sources.prior_features import plan_prior
from training.sources.source import MAX_SIDE, common_shape
from training.sources.stage_cache import block_size

MAGNITUDE_HALF_LIFE = 20_000  # images
TOPICS = (
    "Stage", "Data", "Chosen", "Source", "Cache", "Classes", "Prior", "Network", "Batch", "Core-set", "Loss", "Gamma",
    "Augment", "Device", "Precision", "Kernels", "Launches", "Start", "Pretrain", "Length", "Metrics",
)  # fmt: skip


@dataclass
class Resolved:
    """The configuration, and for people what was decided and why: (topic, line)."""

    config: TrainingConfig
    summary: list[tuple[str, str]]
    num_images: int
    """Of --data, before mirrored copies."""

    def print_summary(self) -> None:
        print()
        for topic, line in self.summary:
            print(f"  {topic + ':':<10} {line}")
        print()


@dataclass
class Decided:
    """What is decided with a look at the files and at the device."""

    options: TrainingOptions
    """With nothing left open that the user may leave open."""
    device: str
    num_gpus: int
    batch_size: int
    dataset: ImageFolderDataset
    data_info: dict[str, Any]
    source: dict[str, Any]
    encoder_kwargs: dict[str, Any] | None
    stage_cache: int | None
    gamma: float
    augment: dict[str, Any]
    coreset: dict[str, Any] | None
    prior: dict[str, Any] | None
    lines: dict[str, str | None]
    """Of the summary, by topic; None for none."""


def resolve(options: TrainingOptions, point: ResumePoint | None = None, judged_by: Sequence[str] = ()) -> Resolved:
    """Decide what is open and check everything against the files, and against the run that is continued, if any.

    judged_by: metrics that are computed at the end of the run, beside its own.
    """
    if point is None:  # a run that began keeps its options, whatever they mean beside each other
        dataclasses.replace(options, metrics=(*options.metrics, *judged_by)).check_together()
    asked = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(options).items()}
    decided = decide(options, point)
    config = configuration(decided, asked, point)
    if point is not None:
        point.check(config)
    lines = decided.lines | lines_about(decided.options, config)
    lines["Start"] = describe_resume(decided.options, config) if point is None else describe_continuation(point)
    num_images = decided.data_info["num_images"]
    notes = [] if point is None else list(point.notes)
    if point is None:
        check_metrics(config.metrics, config, num_images)
    elif not is_finished(point):  # one that began must not be lost to its metrics
        notes += check_metrics(config.metrics, config, num_images, may_lack_images=True)
    summary = [(topic, line) for topic in TOPICS if (line := lines[topic]) is not None]
    return Resolved(config, [*summary, *(("Note", note) for note in notes)], num_images)


def decide(options: TrainingOptions, point: ResumePoint | None) -> Decided:
    """One after the other. A run that is continued keeps what was measured at its beginning."""
    lines: dict[str, str | None] = {}
    device, lines["Device"] = choose_device(options)
    options = adapt(options, device, point)
    options, why_source = choose_source(options.settled(), device)
    why_source = why_source if point is None else point.config["source"].get("why")
    lines["Chosen"] = None if why_source is None else choice_line(why_source)
    options, lines["Stage"] = settle_stage(options)
    num_gpus = choose_processes(options, device)
    batch_size = options.batch or options.preset.batch or 32
    dataset, data_info, lines["Data"] = open_data(options)
    source, encoder_kwargs, lines["Source"] = describe_source(options)
    source |= {} if why_source is None else {"why": why_source}
    stage_cache, lines["Cache"] = choose_stage_cache(options, source["kind"], batch_size)
    match = match_classes(options, device) if point is None else point.config["source"].get("match")
    source |= {} if match is None else {"match": match}
    lines["Classes"] = match_line(match) if options.cond and source["kind"] == "images" else None
    gamma, lines["Gamma"] = choose_gamma(options, dataset.image_shape, batch_size)
    augment, lines["Augment"] = choose_augmentation(options)
    coreset, lines["Core-set"] = choose_coreset(options, len(dataset), source, batch_size)
    prior = plan_prior(options, data_info["num_images"], batch_size) if point is None else point.config.get("prior")
    lines["Prior"] = None if prior is None else describe_prior(prior)
    return Decided(
        options=options, device=device, num_gpus=num_gpus, batch_size=batch_size, dataset=dataset, data_info=data_info,
        source=source, encoder_kwargs=encoder_kwargs, stage_cache=stage_cache, gamma=gamma, augment=augment,
        coreset=coreset, prior=prior, lines=lines,
    )  # fmt: skip


def adapt(options: TrainingOptions, device: str, point: ResumePoint | None) -> TrainingOptions:
    """With what the configuration makes of the resolution, and its micro-batch beside its own batch."""
    preset = options.preset
    if preset.adapts and (options.data or options.source):
        with naming("--data"):
            dataset = ImageFolderDataset(options.data or options.source)
        side, gpus = max(dataset.image_shape[1:]), choose_processes(options, device)
        dataset.close()
        batch = auto_batch(side, gpus) if point is None else point.config["batch_size"]
        options = dataclasses.replace(options, batch=options.batch or batch)
        return adapted(options, side, gpus, options.batch)
    if options.batch is None and preset.batch_gpu is not None:
        return dataclasses.replace(options, batch_gpu=options.batch_gpu or preset.batch_gpu)
    return options


def configuration(decided: Decided, asked: dict[str, Any], point: ResumePoint | None) -> TrainingConfig:
    """asked: the options as the user gave them."""
    options = decided.options
    desc = describe_run(decided) if point is None else point.config["desc"]
    return TrainingConfig(
        cfg=options.cfg,
        desc=desc,
        outdir=options.outdir,
        options=asked,
        training_set_kwargs=dataset_kwargs(options),
        data_fingerprint=decided.data_info["fingerprint"],
        source=decided.source,
        stage_cache=decided.stage_cache,
        coreset=decided.coreset,
        prior=decided.prior,
        resume=options.resume,
        resume_augment=options.resume_augment,
        resume_optimizer=options.resume_optimizer,
        seed=options.seed,
        **network_fields(decided),
        **objective_fields(decided),
        **schedule_fields(options, decided.batch_size),
        **machine_fields(decided),
        keep=options.keep,
        nan_patience=options.nan_patience,
        metrics=list(options.metrics),
        metrics_data=options.metrics_data,
        detector=options.detector,
        detector_weights=options.detector_weights,
    )


def network_fields(decided: Decided) -> dict[str, Any]:
    """The networks, and what moves them."""
    options, prior = decided.options, decided.prior
    shape = network_shape(decided.dataset) | ({} if prior is None else {"c_dim": prior["dim"]})
    return {
        "G_kwargs": generator_kwargs(options, decided.encoder_kwargs, decided.batch_size) | shape,
        "D_kwargs": discriminator_kwargs(options) | shape,
        "G_opt_kwargs": adam(options.glr, options.preset),
        "D_opt_kwargs": adam(options.dlr, options.preset),
    }


def objective_fields(decided: Decided) -> dict[str, Any]:
    """What is minimised, and on which images."""
    options, preset = decided.options, decided.options.preset
    return {
        "loss": options.loss,
        "r1_gamma": decided.gamma,
        "pl_weight": preset.pl_weight,
        "G_reg_interval": preset.G_reg_interval,
        "D_reg_interval": preset.D_reg_interval if LOSSES[options.loss].may_be_lazy else None,
        "D_steps": preset.D_steps,
        "style_mixing_prob": preset.style_mixing_prob,
        "mbstd_group": options.mbstd_group or 1,
        **decided.augment,
    }


def schedule_fields(options: TrainingOptions, batch_size: int) -> dict[str, Any]:
    """When what happens. Networks that are trained already need no cautious start."""
    is_fresh = options.resume is None
    return {
        "pretrain_kimg": options.pretrain or None,
        "total_kimg": options.kimg,
        "kimg_per_tick": options.tick,
        "snapshot_ticks": options.snap,
        "blur_init_sigma": options.preset.blur_init_sigma if is_fresh else 0.0,
        "blur_fade_kimg": batch_size * 200 / 32,
        "ada_kimg": 500 if is_fresh else 100,
        "ema_kimg": options.preset.ema_kimg or batch_size * 10 / 32,
        "ema_rampup": options.preset.ema_rampup if is_fresh else None,
    }


def machine_fields(decided: Decided) -> dict[str, Any]:
    """Where and how it is computed."""
    options = decided.options
    return {
        "device": decided.device,
        "num_gpus": decided.num_gpus,
        "batch_size": decided.batch_size,
        "batch_gpu": options.batch_gpu,
        "fp32": options.fp32,
        "allow_tf32": options.allow_tf32,
        "cudnn_benchmark": not options.nobench and not options.deterministic,
        "cuda_graphs": options.cuda_graphs,
        "deterministic": options.deterministic,
        "num_workers": options.workers,
    }


def lines_about(options: TrainingOptions, config: TrainingConfig) -> dict[str, str | None]:
    """What the summary says of the configuration as a whole."""
    return {
        "Network": network_line(options),
        "Batch": batch_line(config),
        "Loss": loss_line(config),
        "Precision": precision_line(options, config.device),
        "Kernels": dispatch.describe(config.device),
        "Launches": launches_line(options, config.device),
        "Pretrain": pretrain_line(config),
        "Length": length_line(config),
        "Metrics": metrics_line(options),
    }


def check_metrics(
    names: Sequence[str], config: TrainingConfig, num_images: int, may_lack_images: bool = False
) -> list[str]:
    """Refuse what the evaluation would refuse when it opens its detectors; it downloads no others than these.

    num_images: of --data. may_lack_images: metrics with too few images are returned, a line each.
    """
    if not names:
        return []
    with torch.device("meta"):
        G = persistence.construct(**config.G_kwargs)
    is_first = distributed.get_rank() == 0
    opts = metric_main.MetricOptions(
        detector=Detectors(config.detector, config.detector_weights, verbose=is_first),
        real=compared_with(config, num_images),
        sampler=SimpleNamespace(G=G),
    )
    metric_main.prepare(names, opts, may_lack_images)
    return metric_main.shortages(names, opts)


def compared_with(config: TrainingConfig, num_images: int) -> Images:
    """The data set of `--metrics-data`; noise stands for that of --data, which has been looked at."""
    if config.metrics_data is None:
        stand_in = NoiseImages(num_images)
        stand_in.name = set_name(config.training_set_kwargs["path"])
        return stand_in
    with naming("--metrics-data"):
        return ImageSet(config.metrics_data)


def settle_stage(options: TrainingOptions) -> tuple[TrainingOptions, str]:
    """What the combination of --data and --source means. --source alone trains stage one on the source itself."""
    if options.source is None and options.data is None:
        raise UserError(
            "nothing to train on: give --data=IMAGES.zip (plain StyleGAN), --source=IMAGES.zip --data=IMAGES.zip "
            "(Spider), or --source=IMAGES.zip (stage one of a cascade)"
        )
    if options.source is None:
        return options, "plain StyleGAN: Gaussian noise in, images of --data out"
    if options.data is not None:
        kind = "images of a trained network" if is_snapshot(options.source) else "images of --source"
        return options, f"Spider: {kind} in, images of --data out"
    if is_snapshot(options.source):
        raise UserError(
            f"--source={options.source} is a snapshot: add --data=IMAGES.zip, what the next stage shall make"
        )
    line = (
        "stage one of a cascade: --source without --data trains a plain generator of the source itself; "
        "stage two is --source=ITS-SNAPSHOT.pkl --data=TARGET.zip"
    )
    return dataclasses.replace(options, data=options.source, source=None), line


def choose_device(options: TrainingOptions) -> tuple[str, str]:
    has_gpu = torch.cuda.is_available()
    if options.device == "cuda" and not has_gpu:
        raise UserError("--device=cuda: PyTorch sees no CUDA device; use --device=cpu")
    device = ("cuda" if has_gpu else "cpu") if options.device == "auto" else options.device
    why = "--device" if options.device != "auto" else "the fastest at hand"
    if device == "cpu":
        return device, f"cpu, {torch.get_num_threads()} threads ({why})"
    return device, f"{torch.cuda.get_device_name(0)} ({why})"


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


def choose_processes(options: TrainingOptions, device: str) -> int:
    """torchrun's number of processes, the user's, or one for each GPU at hand; one on a CPU."""
    if distributed.is_launched():
        world_size = distributed.get_world_size()
        if options.gpus not in (None, world_size):
            raise UserError(f"--gpus={options.gpus}, but torchrun started {world_size} processes; leave --gpus out")
        return world_size
    available = torch.cuda.device_count() if device == "cuda" else 1
    if device == "cuda" and options.gpus is not None and options.gpus > available:
        raise UserError(f"--gpus={options.gpus}, but there are only {available} GPUs here")
    return available if options.gpus is None else options.gpus


def dataset_kwargs(options: TrainingOptions) -> dict[str, Any]:
    assert options.data is not None
    kwargs = {"path": options.data, "use_labels": options.cond, "xflip": options.mirror, "random_seed": options.seed}
    return kwargs if options.subset is None else kwargs | {"max_size": options.subset}


def open_data(options: TrainingOptions) -> tuple[ImageFolderDataset, dict[str, Any], str]:
    """The dataset, checked against the networks, its description and its line."""
    with naming("--data"):
        dataset = ImageFolderDataset(**dataset_kwargs(options))
        if options.cond:
            dataset.require_labels()
        if options.subset is not None and options.subset * (1 + options.mirror) > len(dataset):
            raise UserError(
                f"--subset={options.subset}: there are only {len(dataset) // (1 + options.mirror):,} images; leave it out"
            )
        info = dataset.describe()
        height, width = info["height"], info["width"]
        options.preset.check_size(height, width)
        sizes = resolution_pyramid([height, width])
    if options.cbase < nominal_resolution(len(sizes) - 1):
        raise UserError(
            f"--cbase={options.cbase} leaves no feature maps at {width}x{height}; use at least {16 * max(height, width)}"
        )
    parts = [f"{info['num_images']:,} images {width}x{height}", f"{CHANNEL_NAMES[info['channels']]} {info['bits']} bit"]
    if options.cond:
        classes = (
            f"{dataset.label_dim} classes" if dataset.has_onehot_labels else f"label vectors of {dataset.label_dim}"
        )
        parts.append(f"{classes} from {dataset.label_source}")
    elif dataset.label_source is not None:
        parts.append(f"labels in {dataset.label_source} ignored (--cond=1 uses them)")
    else:
        parts.append("no labels")
    if options.mirror:
        parts.append("mirrored copies added")
    if info["animated"]:
        parts.append(f"{info['animated']:,} animations, of which the first picture is taken")
    others = other_images(dataset.files.left_out())
    if others:
        parts.append(f"{counted(others)} left out, which are not read")
    parts += dataset.files.remarks()
    return dataset, info, f"{', '.join(parts)} [{options.data}]"


def network_shape(dataset: ImageFolderDataset) -> dict[str, Any]:
    """Constructor arguments that both networks take from the data."""
    channels, height, width = dataset.image_shape
    resolution = height if height == width else [height, width]
    return {"c_dim": dataset.label_dim, "img_resolution": resolution, "img_channels": channels}


def describe_source(options: TrainingOptions) -> tuple[dict[str, Any], dict[str, Any] | None, str]:
    """`(source, constructor arguments of the encoder, line)`; checks the files, and that images and z_dim can meet."""
    if options.source is None:
        if options.source_encoder not in (None, "identity"):
            raise UserError(f"--source-encoder={options.source_encoder} needs --source=IMAGES.zip or SNAPSHOT.pkl")
        return {"kind": "gaussian", "z_dim": options.z_dim}, None, f"Gaussian noise, z_dim {options.z_dim}"
    encoder = options.source_encoder or "flatten"
    if encoder == "identity":
        raise UserError(
            "--source-encoder=identity is for Gaussian noise; with --source use flatten, flatten-crop or conv"
        )
    with naming("--source"):
        kind, channels, line = probe_source(options.source)
    kwargs = {"kind": encoder, "norm": options.source_norm, "noise_std": options.source_noise}
    if encoder in ENCODERS and ENCODERS[encoder].is_trainable:
        kwargs["img_channels"] = channels
    build_encoder(z_dim=options.z_dim, **kwargs)  # raises where the choice is unknown, or source and z_dim cannot meet
    noise = f", noise {options.source_noise:g}" if options.source_noise > 0 else ""
    line = f"{line}, encoder {encoder} to z_dim {options.z_dim}, {options.source_norm}{noise} [{options.source}]"
    return {"kind": kind, "path": options.source}, kwargs, line


def probe_source(path: str) -> tuple[str, int, str]:
    """`(kind, channels, line)` of a source."""
    if is_snapshot(path):
        contents = load_snapshot(path, verbose=True)
        check_stage(contents, path)
        network = contents["G_ema"]
        height, width = image_size(network.img_resolution)
        colors = CHANNEL_NAMES.get(network.img_channels, f"{network.img_channels} channels")
        return "network", network.img_channels, f"generator of {colors} images {width}x{height}"
    files = open_files(path)
    if len(files) < 2:
        raise UserError(f"{path}: holds a single image; a source is many images")
    try:
        channels, height, width = common_shape(files, MAX_SIDE)
    finally:
        files.close()
    return "images", channels, f"{len(files):,} {CHANNEL_NAMES[channels]} images, seen at {width}x{height}"


def choose_stage_cache(options: TrainingOptions, kind: str, batch_size: int) -> tuple[int | None, str | None]:
    """`(outputs in the pool, line)`. Off unless asked for: it is the cheaper step, but not the same distribution."""
    if not options.stage_cache:
        hint = "off: every step runs the stages before; --stage-cache=4096 draws from a pool of their outputs instead"
        return None, hint if kind == "network" else None
    if kind != "network":
        raise UserError(
            f"--stage-cache={options.stage_cache} needs --source=SNAPSHOT.pkl: it keeps images of a network"
        )
    if options.stage_cache < batch_size:
        raise UserError(f"--stage-cache={options.stage_cache} is less than the batch of {batch_size}; use 4096 or so")
    new = block_size(batch_size)
    line = f"steps draw from {options.stage_cache:,} outputs of the stages before, {new} of them new at each step"
    return options.stage_cache, line


def choose_gamma(options: TrainingOptions, image_shape: list[int], batch_size: int) -> tuple[float, str]:
    """Weight of the gradient penalty from the number of pixels (and the batch), unless given."""
    if options.gamma is not None:
        return options.gamma, f"{options.gamma:g} (--gamma)"
    loss = LOSSES[options.loss]
    if options.preset.gamma is not None and options.loss == options.preset.loss:
        return options.preset.gamma, f"{options.preset.gamma:g}, that of --cfg={options.cfg}"
    if loss.gamma is not None:
        return loss.gamma, f"{loss.gamma:g}, the usual weight with --loss={options.loss}"
    if options.preset.gamma_at_256 == 0 and not loss.needs_penalty:
        return 0.0, f"0: --cfg={options.cfg} has no gradient penalty (--gamma adds one)"
    pixels = image_shape[1] * image_shape[2]
    if not options.preset.gamma_at_256:
        gamma = 0.0002 * pixels / batch_size
        return (
            gamma,
            f"{gamma:.4g} = 0.0002 * {pixels} pixels / batch {batch_size} (StyleGAN2's rule; try half and twice)",
        )
    gamma = options.preset.gamma_at_256 * pixels / 256**2
    rule = f"{options.preset.gamma_at_256:g} at 256x256, scaled with the pixels"
    return gamma, f"{gamma:.4g} ({rule}; try half and twice)"


def choose_augmentation(options: TrainingOptions) -> tuple[dict[str, Any], str]:
    """Configuration fields of the augmentation, and its line."""
    if options.aug == "noaug":
        return {"augpipe_kwargs": None, "augment_p": 0.0, "ada_target": None}, "none (--aug=noaug)"
    pipe = dict(AUGPIPES[options.augpipe])
    if options.aug == "fixed":
        fields = {"augpipe_kwargs": pipe, "augment_p": options.p, "ada_target": None}
        return fields, f"{options.augpipe} with probability {options.p:g}, fixed"
    fields = {"augpipe_kwargs": pipe, "augment_p": 0.0, "ada_target": options.target}
    return fields, f"{options.augpipe}, adaptive (ADA), target {options.target:g}"


def choose_coreset(
    options: TrainingOptions, num_images: int, source: dict[str, Any], batch_size: int
) -> tuple[dict[str, Any] | None, str | None]:
    """The configuration of core-sets and its line, none without `--coreset`; checks that there are enough candidates."""
    if not options.coreset:
        return None, None
    factor = options.coreset_factor or CORESET_FACTOR
    coreset: dict[str, Any] = {"of": list(options.coreset), "factor": factor}
    where = []
    if "prior" in options.coreset:
        if source["kind"] == "images":
            check_candidates("prior", factor, batch_size, count_images(source["path"]), f"--source={source['path']}")
        if options.stage_cache:
            check_candidates("prior", factor, batch_size, options.stage_cache, f"--stage-cache={options.stage_cache}")
        where.append(f"latents by {key_of_prior(options, source)}")
    if "target" in options.coreset:
        check_candidates("target", factor, batch_size, num_images, f"--data={options.data}")
        name, weights = coreset_detector(options.detector, options.detector_weights)
        coreset["detector"] = open_detector(name, weights, verbose=True).key
        where.append(f"real images by features of {name}")
    line = f"{batch_size} of {factor * batch_size} candidates by greedy k-center: {', '.join(where)} (--coreset)"
    return coreset, line


def key_of_prior(options: TrainingOptions, source: dict[str, Any]) -> str:
    """What distances between latents are measured in."""
    if source["kind"] == "network" and not options.stage_cache:
        return "the z of stage one (images of all candidates would cost too much; --stage-cache has them)"
    is_trained = source["kind"] != "gaussian" and ENCODERS[options.source_encoder or "flatten"].is_trainable
    return "their source images (the encoder is trained)" if is_trained else "z"


def check_candidates(name: str, factor: int, batch_size: int, num_images: int, where: str) -> None:
    if factor * batch_size > num_images:
        raise UserError(
            f"--coreset={name}: a batch is chosen from {factor} x {batch_size} = {factor * batch_size} candidates "
            f"(--coreset-factor, --batch), but {where} holds {num_images:,} images; make one of them smaller"
        )


def count_images(path: str) -> int:
    files = open_files(path)
    try:
        return len(files)
    finally:
        files.close()


def generator_kwargs(
    options: TrainingOptions, encoder_kwargs: dict[str, Any] | None, batch_size: int
) -> dict[str, Any]:
    preset = options.preset
    mapping_kwargs: dict[str, Any] = {"num_layers": options.map_depth} if preset.is_style_based else {}
    if encoder_kwargs is not None:
        mapping_kwargs["encoder"] = encoder_kwargs
    kwargs = {
        "class_name": preset.generator,
        "z_dim": options.z_dim,
        "mapping_kwargs": mapping_kwargs,
        "channel_base": options.cbase * preset.width_multiplier,
        "channel_max": options.cmax * preset.width_multiplier,
        **preset.synthesis,
        **growth_kwargs(options),
    }
    if preset.magnitude_ema:
        kwargs["magnitude_ema_beta"] = 0.5 ** (batch_size / MAGNITUDE_HALF_LIFE)
    if preset.is_style_based:
        kwargs |= {"w_dim": options.w_dim} | precision_kwargs(options)
    if options.nhwc:
        kwargs["fp16_channels_last"] = True
    return kwargs


def discriminator_kwargs(options: TrainingOptions) -> dict[str, Any]:
    preset = options.preset
    kwargs = {
        "class_name": preset.discriminator,
        "channel_base": options.cbase,
        "channel_max": options.cmax,
        **preset.judging,
        **growth_kwargs(options),
    }
    if preset.is_style_based:
        layout = {"fp16_channels_last": True} if options.nhwc else {}
        kwargs |= {"block_kwargs": {"freeze_layers": options.freezed, **layout}, "mapping_kwargs": {}}
        kwargs |= precision_kwargs(options)
    if preset.has_minibatch_std:
        kwargs["epilogue_kwargs"] = {"mbstd_group_size": options.mbstd_group}
    return kwargs


def growth_kwargs(options: TrainingOptions) -> dict[str, Any]:
    return {} if options.grow_kimg is None else {"grow_kimg": options.grow_kimg}


def precision_kwargs(options: TrainingOptions) -> dict[str, Any]:
    return {"num_fp16_res": 0, "conv_clamp": None} if options.fp32 else {}


def adam(learning_rate: float | None, preset: Preset) -> dict[str, Any]:
    return {"lr": learning_rate, "betas": list(preset.betas), "eps": 1e-8}


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


def describe_run(decided: Decided) -> str:
    options = decided.options
    parts = [options.cfg]
    if options.source is not None:
        parts += [set_name(options.source.split("?")[0]), "to"]
    parts += [decided.dataset.name, f"gpus{decided.num_gpus}", f"batch{decided.batch_size}"]
    parts.append(f"gamma{decided.gamma:.4g}")
    if options.subset is not None:
        parts.append(f"subset{options.subset}")
    if options.desc is not None:
        parts.append(options.desc)
    return "-".join(parts)


def describe_resume(options: TrainingOptions, config: TrainingConfig) -> str:
    if options.resume is None:
        return "from scratch"
    with naming("--resume"):
        contents = load_snapshot(options.resume, verbose=True)
    anew = [] if check_fits(contents, config) else ["D (none of its weights are there, or fit)"]
    kimg = (contents.get("meta") or {}).get("cur_nimg", 0) / 1000
    if options.resume_optimizer:
        with naming("--resume-optimizer=1"):
            state_beside(Path(options.resume), contents["meta"].get("cur_nimg", 0))
    else:
        anew.append("optimizers (--resume-optimizer=1 takes them over)")
    if options.resume_augment and contents.get("augment_pipe") is None:
        raise UserError(f"--resume-augment=1: {options.resume} was trained without augmentation; leave it out")
    if not options.resume_augment:
        anew.append("ADA (--resume-augment=1)")
    rest = f"; {', '.join(anew)} anew" if anew else ""
    return f"weights that fit by name and shape from [{options.resume}] ({kimg:.1f} kimg){rest}"


def check_fits(contents: dict[str, Any], config: TrainingConfig) -> bool:
    """Whether D takes something over. Raises `UserError` where G does not: the schedule is that of one that has learned."""
    with torch.device("meta"):
        G, D = persistence.construct(**config.G_kwargs), persistence.construct(**config.D_kwargs)
    start = last_generator(contents.get("G") or contents["G_ema"])
    if not misc.weights_in_common(start, G):
        raise UserError(
            f"--resume={config.resume}: nothing that its generator has learned fits into that of --cfg={config.cfg}; give the "
            "--cfg, --cbase, --cmax and sizes that it was trained with, or leave --resume out"
        )
    return contents["D"] is not None and bool(misc.weights_in_common(contents["D"], D))


def pretrain_line(config: TrainingConfig) -> str | None:
    if config.pretrain_kimg is None:
        return None
    what = "noise" if config.source["kind"] == "gaussian" else "source images"
    return f"{config.pretrain_kimg:g} kimg in which G alone learns to draw the training images paired with {what} (--pretrain)"


def describe_continuation(point: ResumePoint) -> str:
    if point.state is None:
        return f"{point.run_dir} from its beginning: it had saved no training state yet"
    return (
        f"{point.run_dir} goes on from {point.state.name}: networks, optimizers, ADA, statistics, position in the data"
    )


def network_line(options: TrainingOptions) -> str:
    preset: Preset = PRESETS[options.cfg]
    width = (
        f"at most {options.cmax * preset.width_multiplier} feature maps (--cbase={options.cbase} --cmax={options.cmax})"
    )
    frozen = f", {options.freezed} layers of D frozen" if options.freezed else ""
    latent = f"w_dim {options.w_dim}" if preset.is_style_based else f"z_dim {options.z_dim}"
    growth = "" if options.grow_kimg is None else f", grows every {options.grow_kimg:g} kimg (--grow-kimg)"
    return f"{options.cfg}, {width}, {latent}{frozen}{growth}"


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
