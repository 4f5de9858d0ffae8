"""From what the user asks for to the configuration of a run: one choice after the other, then the checks.

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
from metrics.detectors import Detectors
from metrics.feature_stats import Images
from torch_utils import distributed, misc, persistence
from training.augment import AugmentPipe
from training.checkpoints.snapshot import ReadSnapshot, load_snapshot
from training.checkpoints.state_file import state_beside
from training.config.choices import (
    adapt,
    choose_augmentation,
    choose_coreset,
    choose_gamma,
    choose_processes,
    choose_stage_cache,
    dataset_kwargs,
    describe_source,
    device_of,
    open_data,
    plan_prior,
    settle_stage,
)
from training.config.network_kwargs import adam, discriminator_kwargs, generator_kwargs, network_shape
from training.config.options import TrainingOptions, check_together, settled
from training.config.resume import ResumePoint, is_finished
from training.config.run_config import TrainingConfig
from training.config.source_choice import choice_line, choose_source
from training.config.source_match import match_classes
from training.config.source_specs import SourceSpec
from training.config.summary import TOPICS, describe_continuation, lines_about
from training.data.image_sets import ImageSet, NoiseImages
from training.data.shards import set_name
from training.dataset import ImageFolderDataset
from training.sources.cascade import last_generator
from training.sources.coreset import CoresetSpec
from training.sources.prior_features import NoPrior, PriorSpec
from training.sources.stage_cache import StageCacheSpec


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
    source: SourceSpec
    encoder_kwargs: dict[str, Any] | None
    stage_cache: StageCacheSpec
    gamma: float
    augment: dict[str, Any]
    coreset: CoresetSpec
    prior: PriorSpec | NoPrior
    lines: dict[str, str | None]
    """Of the summary, by topic; None for none."""


def resolve(
    options: TrainingOptions,
    point: ResumePoint | None = None,
    judged_by: Sequence[str] = (),
    read: ReadSnapshot = load_snapshot,
) -> Resolved:
    """Decide what is open and check everything against the files, and against the run that is continued, if any.

    judged_by: metrics that are computed at the end of the run, beside its own. read: opens the snapshots that it builds on.
    """
    if point is None:  # a run that began keeps its options, whatever they mean beside each other
        check_together(dataclasses.replace(options, metrics=(*options.metrics, *judged_by)))
    asked = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(options).items()}
    decided = decide(options, point, read)
    config = configuration(decided, asked, point)
    if point is not None:
        point.check(config)
    lines = decided.lines | lines_about(decided.options, config)
    lines["Start"] = describe_resume(decided.options, config, read) if point is None else describe_continuation(point)
    num_images = decided.data_info["num_images"]
    notes = [] if point is None else list(point.notes)
    if point is None:
        check_metrics(config.metrics, config, num_images)
    elif not is_finished(point):  # one that began must not be lost to its metrics
        notes += check_metrics(config.metrics, config, num_images, may_lack_images=True)
    summary = [(topic, line) for topic in TOPICS if (line := lines[topic]) is not None]
    return Resolved(config, [*summary, *(("Note", note) for note in notes)], num_images)


def decide(options: TrainingOptions, point: ResumePoint | None, read: ReadSnapshot) -> Decided:
    """One after the other. A run that is continued keeps what was measured at its beginning."""
    lines: dict[str, str | None] = {}
    device, lines["Device"] = device_of(options)
    options = adapt(options, device, point)
    options, why_source = choose_source(settled(options), device)
    why_source = why_source if point is None else point.source.why
    lines["Chosen"] = None if why_source is None else choice_line(why_source)
    options, lines["Stage"] = settle_stage(options)
    num_gpus = choose_processes(options, device)
    batch_size = options.batch or options.preset.batch or 32
    dataset, data_info, lines["Data"] = open_data(options)
    source, encoder_kwargs, lines["Source"] = describe_source(options, read)
    stage_cache, lines["Cache"] = choose_stage_cache(options, source, batch_size)
    match = match_classes(options, device) if point is None else point.source.match
    source = source.chosen(why_source, match)
    lines["Classes"] = source.class_line() if options.cond else None
    gamma, lines["Gamma"] = choose_gamma(options, dataset.image_shape, batch_size)
    augment, lines["Augment"] = choose_augmentation(options)
    coreset, lines["Core-set"] = choose_coreset(options, len(dataset), source, batch_size)
    prior = plan_prior(options, data_info["num_images"], batch_size) if point is None else point.prior
    lines["Prior"] = prior.describe()
    return Decided(
        options=options, device=device, num_gpus=num_gpus, batch_size=batch_size, dataset=dataset, data_info=data_info,
        source=source, encoder_kwargs=encoder_kwargs, stage_cache=stage_cache, gamma=gamma, augment=augment,
        coreset=coreset, prior=prior, lines=lines,
    )  # fmt: skip


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
    options, shape = decided.options, network_shape(decided.dataset)
    shape["c_dim"] = decided.prior.c_dim(shape["c_dim"])
    return {
        "G_kwargs": generator_kwargs(options, decided.encoder_kwargs, decided.batch_size) | shape,
        "D_kwargs": discriminator_kwargs(options, decided.dataset.image_shape) | shape,
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
        "D_reg_interval": preset.D_reg_interval if options.objective.may_be_lazy else None,
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


def describe_resume(options: TrainingOptions, config: TrainingConfig, read: ReadSnapshot) -> str:
    if options.resume is None:
        return "from scratch"
    with naming("--resume"):
        contents = read(options.resume, verbose=True)
    anew = [] if check_fits(contents, config) else ["D (none of its weights are there, or fit)"]
    kimg = (contents.get("meta") or {}).get("cur_nimg", 0) / 1000
    if options.resume_optimizer:
        with naming("--resume-optimizer=1"):
            state_beside(Path(options.resume), contents["meta"].get("cur_nimg", 0))
    else:
        anew.append("optimizers (--resume-optimizer=1 takes them over)")
    if options.resume_augment and not isinstance(contents.get("augment_pipe"), AugmentPipe):
        raise UserError(f"--resume-augment=1: {options.resume} was trained without ADA's augmentation; leave it out")
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
