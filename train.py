"""Train a generator: StyleGAN2-ADA and StyleGAN3, from noise or from images of a friendly neighbour.

\b
# Plain StyleGAN on a zip or folder of images
python train.py --data=emoji32.zip --cfg=stylegan2

\b
# Spider: images of one data set become images of the other
python train.py --source=tinyimagenet.zip --data=emoji32.zip --cfg=stylegan3-t

\b
# A cascade: stage one on the source itself, then stage two on top of it
python train.py --source=tinyimagenet.zip --cfg=stylegan3-t
python train.py --source=training-runs/00000-.../network-snapshot-000200.pkl --data=emoji32.zip --cfg=stylegan3-t

\b
# All stages of a cascade from one file; the same command goes on where it stopped
python train.py --cascade=examples/cascade.yaml

\b
# The friendly neighbour chosen by the signed inception distance, and judged by FID and SID at every snapshot
python train.py --source=auto --source-pool=tinyimagenet.zip,cifar10.zip --data=emoji32.zip --cfg=stylegan2 \\
    --metrics=fid5k_full,csid5k_full

\b
# Transfer learning, on two GPUs
python train.py --data=pets.zip --cfg=stylegan2 --resume=network-snapshot-000200.pkl --gpus=2

\b
# Go on with the newest run where it stopped, crashed or was killed
python train.py --resume=latest
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dnnlib
import dnnlib.cli
from dnnlib.errors import UserError
from dnnlib.files import only_one
from dnnlib.interrupts import STOPPED, importing, leaving_when_asked
from metrics.settings import DETECTORS
from torch_utils.one_voice import say_once
from training.ada import PUBLISHED_NETWORKS, resume_address
from training.presets import PRESETS, W_DIM
from training.settings import (
    ENCODERS,
    LATEST,
    LOSSES,
    NORMS,
    PRIOR_NORMS,
    PRIOR_SAMPLINGS,
    SOURCE_MATCHES,
)
from training.shards import split_list

if TYPE_CHECKING:
    import torch

    from training.config import TrainingConfig
    from training.resume import ResumePoint

RESUME = "the same command with --resume=latest continues"


def auto_int(context: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """An integer, or `auto` for None."""
    if value is None or value == "auto":
        return None
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor auto") from None


def comma_separated(context: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def coreset_names(context: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(sorted(metric_names(context, param, value)))  # so that prior,target is target,prior to a resumed run


def metric_names(context: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = comma_separated(context, param, value)
    return () if names == ("none",) else names


def defaults(name: str) -> str:
    """A field of the table of configurations, for the help text: `0.002 (stylegan2), 0.0025 (stylegan3-t, …)`."""
    by_value: dict[Any, list[str]] = {}
    for cfg, preset in PRESETS.items():
        by_value.setdefault(getattr(preset, name), []).append(cfg)
    return "; ".join(f"{value} ({', '.join(cfgs)})" for value, cfgs in by_value.items() if value is not None)


@click.command(help=__doc__, context_settings={"max_content_width": 110, "show_default": True})
# Required and main features.
@click.option("--outdir", help="Where to save the runs", metavar="DIR", default="training-runs")
@click.option("--cascade", help="Train the stages of a recipe in turn (see README)", metavar="YAML")
@click.option(
    "--cfg",
    help="Base configuration; auto, paper256, paper512, paper1024, cifar are those of StyleGAN2-ADA",
    type=click.Choice(list(PRESETS)),
)
@click.option(
    "--data", help="Training data: the images that the generator shall make", metavar="[ZIP|DIR|A,B|'{0..9}.zip']"
)
@click.option(
    "--source",
    help="What the generator is fed: images of another data set, or a snapshot (with --data); "
    "alone, it trains stage one, a plain generator of the source itself; auto chooses from --source-pool; noise is none",
    metavar="[ZIP|DIR|PKL|URL|auto|noise]",
)
@click.option(
    "--source-pool",
    help="What --source=auto chooses the friendly neighbour from",
    metavar="[A,B,C]",
    callback=lambda context, param, value: tuple(dict.fromkeys(split_list(value))),
    default="",
)
@click.option("--source-encoder", help="Image to z  [default: flatten]", type=click.Choice(ENCODERS))
@click.option("--source-norm", help="Normalisation of z", type=click.Choice(NORMS), default="standardize")
@click.option("--source-noise", help="Standard deviation of Gaussian noise added to z", type=float, default=0.0)
@click.option(
    "--coreset",
    help="Batches that cover more (Small-GAN): chosen from many candidates, the latents (prior), the real images (target)",
    metavar="[prior|target|prior,target|none]",
    callback=coreset_names,
    default="none",
)
@click.option("--coreset-factor", help="Candidates for each sample of a batch  [default: 4]", metavar="INT", type=int)
@click.option(
    "--stage-cache",
    help="With a snapshot as source: draw from a pool of N of its outputs that is refreshed gradually; 0 is off",
    metavar="N",
    type=int,
)
@click.option(
    "--source-match",
    help="With --cond=1, the source image of a class: any; of the class with the same number; of the nearest class by CSID",
    type=click.Choice(SOURCE_MATCHES),
    default="random",
)
@click.option(
    "--pretrain",
    help="Before training, let G learn for so long to draw the training images paired with its input; 0 is off",
    metavar="KIMG",
    type=float,
    default=0,
)
@click.option(
    "--gpus", help="Number of GPUs, of processes on a CPU  [default: all GPUs, one process on a CPU]", type=int
)
@click.option("--batch", help="Total batch size  [default: 32; that of --cfg]", type=int)
@click.option("--gamma", help="R1 regularization weight  [default: by resolution and batch]", type=float)
# Optional features.
@click.option("--cond", help="Train a conditional model", metavar="BOOL", type=bool, default=False)
@click.option(
    "--prior",
    help="Condition on features of the training images (data instance prior)",
    type=click.Choice(["features"]),
)
@click.option(
    "--prior-detector",
    help="Frozen network that they come from, or a file of weights; auto: inception if at hand, else tiny",
    metavar="[auto|inception|vgg16|tiny|PATH]",
    default="auto",
)
@click.option("--prior-dim", help="Reduce them to so many principal axes  [default: keep all]", metavar="INT", type=int)
@click.option("--prior-norm", help="Their length", type=click.Choice(PRIOR_NORMS), default="unit")
@click.option(
    "--prior-sampling",
    help="Where later images take theirs from: some of the data's, k-means centres with noise, a Gaussian mixture",
    type=click.Choice(PRIOR_SAMPLINGS),
    default="memory",
)
@click.option("--mirror", help="Enable dataset x-flips", metavar="BOOL", type=bool, default=False)
@click.option("--subset", help="Train with only N of the images, drawn by --seed", metavar="N", type=int)
@click.option("--aug", help="Augmentation mode", type=click.Choice(["noaug", "ada", "fixed"]), default="ada")
@click.option(
    "--augpipe", help="Augmentation pipeline: blit, geom, color, filter, noise, cutout, bg, bgc, …", default="bgc"
)
@click.option(
    "--resume",
    help="latest, or a run folder: continue that run exactly, by its own options; latest is the newest run in --outdir, and "
    "starts one if there is none. A network pickle: start a new run from the weights that fit; "
    f"{', '.join(PUBLISHED_NETWORKS)} are published ones, noresume is none",
    metavar="[latest|DIR|PATH|URL|NAME]",
    callback=lambda context, param, value: resume_address(value),
)
@click.option(
    "--resume-augment",
    help="Take over the augmentation probability from the network pickle",
    metavar="BOOL",
    type=bool,
    default=False,
)
@click.option(
    "--resume-optimizer",
    help="Take over the optimizers from the training state beside the network pickle",
    metavar="BOOL",
    type=bool,
    default=False,
)
@click.option("--freezed", help="Freeze first layers of D", metavar="INT", type=int, default=0)
# Misc hyperparameters.
@click.option("--p", help="Probability for --aug=fixed", type=float, default=0.2)
@click.option("--target", help="Target value for --aug=ada", type=float, default=0.6)
@click.option(
    "--batch-gpu", help="Limit batch size per GPU; auto: the most that fits", callback=auto_int, default="auto"
)
@click.option("--cbase", help=f"Capacity multiplier  [default: {defaults('cbase')}]", metavar="INT", type=int)
@click.option("--cmax", help=f"Max. feature maps  [default: {defaults('cmax')}]", metavar="INT", type=int)
@click.option("--z-dim", help=f"Dimensions of z  [default: {defaults('z_dim')}]", metavar="INT", type=int)
@click.option("--w-dim", help=f"Dimensions of w  [default: {W_DIM}]", metavar="INT", type=int)
@click.option("--glr", help=f"G learning rate  [default: {defaults('glr')}]", type=float)
@click.option("--dlr", help=f"D learning rate  [default: {defaults('dlr')}]", type=float)
@click.option("--loss", help=f"Adversarial loss  [default: {defaults('loss')}]", type=click.Choice(LOSSES))
@click.option("--map-depth", help=f"Mapping network depth  [default: {defaults('map_depth')}]", type=int)
@click.option(
    "--grow-kimg",
    help=f"Train each resolution for so long, then fade in the next for so long  [default: {defaults('grow_kimg')}]",
    metavar="KIMG",
    type=float,
)
@click.option("--mbstd-group", help=f"Minibatch std group size  [default: {defaults('mbstd_group')}]", type=int)
# Misc settings.
@click.option("--desc", help="String to include in result dir name", metavar="STR")
@click.option(
    "--metrics",
    help="Quality metrics (officially fid50k_full, which takes hours on a CPU)",
    metavar="[NAME|A,B,C|none]",
    callback=metric_names,
    default="none",
)
@click.option(
    "--metrics-data",
    help="Data set that they compare with, such as all images where --data is a few of them  [default: --data]",
    metavar="[ZIP|DIR|A,B]",
)
@click.option(
    "--detector",
    help="What sees the images for metrics and --source=auto; auto: the metric's own if at hand, else tiny",
    type=click.Choice(DETECTORS),
    default="auto",
)
@click.option("--detector-weights", help="File or address of its weights", metavar="PATH|URL")
@click.option("--kimg", help=f"Total training duration  [default: {defaults('kimg')}]", metavar="KIMG", type=float)
@click.option("--tick", help="How often to print progress", metavar="KIMG", type=float, default=4)
@click.option(
    "--snap",
    help="How often to save snapshots  [default: ticks 1, 2, 4, … 32, then 50; officially 50]",
    metavar="TICKS",
    type=int,
)
@click.option(
    "--keep",
    help="Keep only the last N snapshots and training states, and the best snapshot  [default: all snapshots, two states]",
    metavar="N",
    type=int,
)
@click.option(
    "--nan-patience",
    help="Steps in a row that may be left out because losses or gradients are NaN or infinite",
    metavar="STEPS",
    type=int,
    default=10,
)
@click.option("--seed", help="Random seed", metavar="INT", type=int, default=0)
@click.option("--fp32", help="Disable mixed-precision", metavar="BOOL", type=bool, default=False)
@click.option(
    "--nhwc",
    help="Keep feature maps channels-last in float16 (on a GPU, runs do so anyway)",
    metavar="BOOL",
    type=bool,
    default=False,
)
@click.option(
    "--allow-tf32",
    help="Let a GPU round the inputs of float32 products to TF32  [default: unless --fp32=1; officially: no]",
    metavar="BOOL",
    type=bool,
)
@click.option("--nobench", help="Disable cuDNN benchmarking", metavar="BOOL", type=bool, default=False)
@click.option(
    "--cuda-graphs", help="Replay the main phases on a GPU as CUDA graphs", metavar="BOOL", type=bool, default=False
)
@click.option("--deterministic", help="Same numbers twice on a GPU", metavar="BOOL", type=bool, default=False)
@click.option("--workers", help="Threads that decode images", metavar="INT", type=int, default=3)
@click.option("--device", help="Where to train", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("-n", "--dry-run", help="Print training options and exit", is_flag=True)
@click.pass_context
def main(context: click.Context, cascade: str | None, dry_run: bool, **options: Any) -> int:
    given = {name for name in options if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    if cascade is not None:
        return train_cascade(cascade, {name: options[name] for name in given}, options["outdir"], dry_run)
    with importing():
        from torch_utils import distributed
        from training.config import TrainingOptions
        from training.resolve import resolve
        from training.resume import find_resume_point, is_finished
    point = find_resume_point(options, given)
    if point is not None and is_finished(point):
        distributed.print0(
            f"{point.run_dir} is complete ({point.options.kimg:g} kimg); a larger --kimg makes it longer."
        )
        return 0
    if point is None and options["resume"] == LATEST:
        distributed.print0(f"--resume=latest: there is no run in {options['outdir']} yet; this is its first.")
        options["resume"] = None
    resolved = resolve(TrainingOptions(**options) if point is None else point.options, point)
    if distributed.get_rank() == 0:
        resolved.print_summary()
    if dry_run:
        distributed.print0(json.dumps(resolved.config.as_dict(), indent=2))
        return 0
    return start(resolved.config, point)


def start(config: TrainingConfig, point: ResumePoint | None, way_on: str = RESUME) -> int:
    """Train; the exit code. way_on: what continues a run that was stopped."""
    from torch_utils.launcher import launch

    return launch(train_process, config.num_gpus, config.device, config, *where(point), way_on)


def train_cascade(path: str, given: dict[str, Any], outdir: str, dry_run: bool) -> int:
    """The stages of a recipe in turn; the exit code. given: options that were typed."""
    with importing():
        from training.cascade_run import CascadeRun
        from training.recipe import read_recipe
    cascade = CascadeRun(read_recipe(path), outdir, given, parse, start)
    cascade.plan_all()
    if dry_run:
        cascade.print_plans()
        return 0
    return cascade.run()


def parse(arguments: list[str]) -> dict[str, Any]:
    """The options that `main` would be called with, by name. Raises `UserError`."""
    try:
        params = main.make_context("train.py", arguments).params
    except click.UsageError as error:
        raise UserError(error.format_message()) from error
    return {name: value for name, value in params.items() if name not in ("cascade", "dry_run")}


def where(point: ResumePoint | None) -> tuple[Path | None, Path | None]:
    """Run folder and training state of a run that is continued."""
    return (None, None) if point is None else (point.run_dir, point.state)


def train_process(
    config: TrainingConfig, run_dir: Path | None, state_file: Path | None, way_on: str, device: torch.device
) -> int:
    """One process of the run, from its folder (a new one for None) to its end; the exit code."""
    from torch_utils import distributed, misc
    from training.progress import make_run_dir, remove_unstarted
    from training.training_loop import training_loop

    if device.type == "cpu":
        misc.keep_freed_memory()
    is_writer = distributed.get_rank() == 0
    is_new = run_dir is None
    if run_dir is None and is_writer:
        run_dir = make_run_dir(config.outdir, config.desc)
    run_dir, state_file = distributed.broadcast_object((run_dir, state_file))
    mode = "w" if state_file is None else "a"
    try:
        with (
            leaving_when_asked(),
            nobody_else_in(run_dir),
            dnnlib.util.Logger(run_dir / "log.txt", mode) if is_writer else contextlib.nullcontext(),
        ):
            distributed.print0(f"Run folder: {run_dir}")
            with distributed.naming_lost_peers():  # here, so that log.txt has its line, too
                is_stopped = training_loop(config, run_dir, device, state_file)
            distributed.print0(f"Stopped; {way_on}." if is_stopped else "Done.")
    except (UserError, KeyboardInterrupt, SystemExit):
        if is_writer and is_new:
            remove_unstarted(run_dir)
        raise
    distributed.barrier()
    distributed.shutdown()
    return STOPPED if is_stopped else 0


@contextlib.contextmanager
def nobody_else_in(run_dir: Path) -> Iterator[None]:
    """Two runs in one folder would write over each other. On all ranks; rank 0 looks."""
    from torch_utils import distributed

    with only_one(run_dir) if distributed.get_rank() == 0 else contextlib.nullcontext(True) as is_alone:
        if distributed.is_true_anywhere(not is_alone):
            raise UserError(
                f"--resume: another run goes on in {run_dir}; end it first, or leave out --resume for a new one"
            )
        yield


if __name__ == "__main__":
    with leaving_when_asked():
        dnnlib.cli.run(main, say=say_once)
