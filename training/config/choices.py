"""From the options, the files and the device: what is left open is decided, and says why."""

import dataclasses
from typing import Any

import torch

from dnnlib.errors import UserError, naming
from metrics.settings import DETECTORS
from torch_utils import distributed
from torch_utils.misc import choose_device
from training.augment import AUGPIPES
from training.checkpoints.snapshot import ReadSnapshot, is_snapshot
from training.config.ada import adapted, auto_batch
from training.config.options import TrainingOptions
from training.config.resume import ResumePoint
from training.config.run_config import CORESET_FACTOR
from training.config.source_specs import NoiseSpec, SourceSpec, spec_of
from training.data.image_names import counted, other_images
from training.dataset import CHANNEL_NAMES, ImageFolderDataset
from training.layers.pyramid import nominal_resolution, resolution_pyramid
from training.sources.coreset import CoresetSpec, DetectorChoice
from training.sources.encoders import ENCODERS, build_encoder
from training.sources.prior import check_sampling
from training.sources.prior_features import NoPrior, PriorSpec, open_prior_detector
from training.sources.stage_cache import StageCacheSpec, block_size


def adapt(options: TrainingOptions, device: str, point: ResumePoint | None) -> TrainingOptions:
    """Fill in what the configuration makes of the resolution, and its micro-batch beside its own batch."""
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


def device_of(options: TrainingOptions) -> tuple[str, str]:
    """`(device, line)`."""
    device = choose_device(options.device).type
    why = "--device" if options.device != "auto" else "the fastest at hand"
    if device == "cpu":
        return device, f"cpu, {torch.get_num_threads()} threads ({why})"
    return device, f"{torch.cuda.get_device_name(0)} ({why})"


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
    assert options.cbase is not None
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


def describe_source(options: TrainingOptions, read: ReadSnapshot) -> tuple[SourceSpec, dict[str, Any] | None, str]:
    """`(source, constructor arguments of the encoder, line)`; checks the files, and that images and z_dim can meet."""
    if options.source is None:
        if options.source_encoder not in (None, "identity"):
            raise UserError(f"--source-encoder={options.source_encoder} needs --source=IMAGES.zip or SNAPSHOT.pkl")
        assert options.z_dim is not None
        return NoiseSpec(options.z_dim), None, f"Gaussian noise, z_dim {options.z_dim}"
    encoder = options.source_encoder or "flatten"
    if encoder == "identity":
        raise UserError(
            "--source-encoder=identity is for Gaussian noise; with --source use flatten, flatten-crop or conv"
        )
    source = spec_of(options.source)
    with naming("--source"):
        channels, line = source.probe(read)
    kwargs = {"kind": encoder, "norm": options.source_norm, "noise_std": options.source_noise}
    if encoder in ENCODERS and ENCODERS[encoder].is_trainable:
        kwargs["img_channels"] = channels
    build_encoder(z_dim=options.z_dim, **kwargs)  # raises where the choice is unknown, or source and z_dim cannot meet
    noise = f", noise {options.source_noise:g}" if options.source_noise > 0 else ""
    line = f"{line}, encoder {encoder} to z_dim {options.z_dim}, {options.source_norm}{noise} [{options.source}]"
    return source, kwargs, line


def choose_stage_cache(
    options: TrainingOptions, source: SourceSpec, batch_size: int
) -> tuple[StageCacheSpec, str | None]:
    """`(the pool, line)`. Off unless asked for: it is the cheaper step, but not the same distribution."""
    if not options.stage_cache:
        hint = "off: every step runs the stages before; --stage-cache=4096 draws from a pool of their outputs instead"
        return StageCacheSpec(), hint if source.can_be_cached else None
    if not source.can_be_cached:
        raise UserError(
            f"--stage-cache={options.stage_cache} needs --source=SNAPSHOT.pkl: it keeps images of a network"
        )
    if options.stage_cache < batch_size:
        raise UserError(f"--stage-cache={options.stage_cache} is less than the batch of {batch_size}; use 4096 or so")
    new = block_size(batch_size)
    line = f"steps draw from {options.stage_cache:,} outputs of the stages before, {new} of them new at each step"
    return StageCacheSpec(options.stage_cache), line


def choose_gamma(options: TrainingOptions, image_shape: list[int], batch_size: int) -> tuple[float, str]:
    """Weight of the gradient penalty from the number of pixels (and the batch), unless given."""
    if options.gamma is not None:
        return options.gamma, f"{options.gamma:g} (--gamma)"
    loss = options.objective
    if options.preset.discriminator_kind == "projected":
        return 0.0, "0: the projected discriminator has no gradient penalty"
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


DIFF_AUGMENT = "training.diff_augment.DiffAugment"  # as snapshots name it


def choose_augmentation(options: TrainingOptions) -> tuple[dict[str, Any], str]:
    """Configuration fields of the augmentation, and its line."""
    if options.aug == "noaug":
        return {"augpipe_kwargs": None, "augment_p": 0.0, "ada_target": None}, "none (--aug=noaug)"
    if options.aug == "diff":
        fields = {"augpipe_kwargs": {"class_name": DIFF_AUGMENT}, "augment_p": 1.0, "ada_target": None}
        return fields, "differentiable augmentation of every image: colour, translation, cutout (--aug=diff)"
    pipe = dict(AUGPIPES[options.augpipe])
    if options.aug == "fixed":
        fields = {"augpipe_kwargs": pipe, "augment_p": options.p, "ada_target": None}
        return fields, f"{options.augpipe} with probability {options.p:g}, fixed"
    fields = {"augpipe_kwargs": pipe, "augment_p": 0.0, "ada_target": options.target}
    return fields, f"{options.augpipe}, adaptive (ADA), target {options.target:g}"


def choose_coreset(
    options: TrainingOptions, num_images: int, source: SourceSpec, batch_size: int
) -> tuple[CoresetSpec, str | None]:
    """The core-sets of `--coreset` and their line; checks that there are enough candidates."""
    if not options.coreset:
        return CoresetSpec(), None
    factor = options.coreset_factor or CORESET_FACTOR
    detector, where = None, []
    if "prior" in options.coreset:
        if (num_sources := source.num_images()) is not None:
            check_candidates("prior", factor, batch_size, num_sources, f"--source={options.source}")
        if options.stage_cache:
            check_candidates("prior", factor, batch_size, options.stage_cache, f"--stage-cache={options.stage_cache}")
        where.append(f"latents by {key_of_prior(options, source)}")
    if "target" in options.coreset:
        check_candidates("target", factor, batch_size, num_images, f"--data={options.data}")
        choice = DetectorChoice.of_coreset(options.detector, options.detector_weights, "cpu")
        detector = choice.open(verbose=True).key
        where.append(f"real images by features of {choice.name}")
    line = f"{batch_size} of {factor * batch_size} candidates by greedy k-center: {', '.join(where)} (--coreset)"
    return CoresetSpec(options.coreset, factor, detector), line


def key_of_prior(options: TrainingOptions, source: SourceSpec) -> str:
    """What distances between latents are measured in."""
    if source.candidates is not None and not options.stage_cache:
        return source.candidates
    is_trained = source.has_images and ENCODERS[options.source_encoder or "flatten"].is_trainable
    return "their source images (the encoder is trained)" if is_trained else "z"


def check_candidates(name: str, factor: int, batch_size: int, num_images: int, where: str) -> None:
    if factor * batch_size > num_images:
        raise UserError(
            f"--coreset={name}: a batch is chosen from {factor} x {batch_size} = {factor * batch_size} candidates "
            f"(--coreset-factor, --batch), but {where} holds {num_images:,} images; make one of them smaller"
        )


def plan_prior(options: TrainingOptions, num_images: int, batch_size: int) -> PriorSpec | NoPrior:
    """What `--prior` asks for, checked. Raises `UserError`."""
    if options.prior is None:
        return NoPrior()
    check_sampling(options.prior_sampling)
    if num_images < batch_size:
        raise UserError(
            f"--prior=features: --data={options.data} holds {num_images} images, fewer than --batch={batch_size}; use "
            f"--batch={num_images} or less"
        )
    detector = open_prior_detector(options.prior_detector, "cpu")
    most = min(detector.num_features, num_images - 1)
    if options.prior_dim is not None and options.prior_dim > most:
        raise UserError(
            f"--prior-dim={options.prior_dim}: {num_images} images and the {detector.num_features} features of "
            f"{detector.name} have {most} principal axes at most"
        )
    return PriorSpec(
        detector=detector.name,
        weights=None if options.prior_detector in DETECTORS else options.prior_detector,
        weights_hash=detector.weights_hash,
        num_features=detector.num_features,
        dim=options.prior_dim or detector.num_features,
        norm=options.prior_norm,
        sampling=options.prior_sampling,
        num_images=num_images,
    )
