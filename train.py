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
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dnnlib
import dnnlib.cli
import shared_options
from dnnlib.errors import UserError
from dnnlib.files import only_one
from dnnlib.interrupts import STOPPED, importing, leaving_when_asked
from torch_utils.one_voice import say_once
from training.config.flags import Flag, PathKind, flag_name
from training.config.named_presets import NAMED_PRESETS, choose_preset, flags_of
from training.config.options import DEFAULTS, FLAGS, TYPES, TrainingOptions
from training.settings import LATEST

if TYPE_CHECKING:
    import torch

    from training.config.resume import ResumePoint
    from training.config.run_config import TrainingConfig

RESUME = "the same command with --resume=latest continues"


def all_options(command: Callable[..., int]) -> Callable[..., int]:
    """The options that `TrainingOptions` declares, in its order."""
    for name, flag in reversed(FLAGS.items()):
        command = click.option(flag_name(name), **as_click(name, flag))(command)
    return command


def as_click(name: str, flag: Flag) -> dict[str, Any]:
    """What click wants to know of an option."""
    kinds = [kind for kind in typing.get_args(TYPES[name]) or [TYPES[name]] if kind is not type(None)]
    known: dict[str, Any] = {
        "help": flag.help if flag.unset is None else f"{flag.help}  [default: {flag.unset}]",
        "metavar": "BOOL" if kinds == [bool] else flag.metavar,
        "default": DEFAULTS[name] if flag.parse is None else flag.text,
    }
    if flag.path is PathKind.SET:
        return known | {"type": dnnlib.cli.IMAGE_SETS} | parsed(name, flag)
    if flag.parse is not None:
        return known | parsed(name, flag)
    return known | {"type": click.Choice(flag.choices) if flag.choices else kinds[0]}


def parsed(name: str, flag: Flag) -> dict[str, Any]:
    """The callback of an option whose text has a meaning of its own."""
    if flag.parse is None:
        return {}

    def callback(context: click.Context, param: click.Parameter, value: str | None) -> Any:
        try:
            return DEFAULTS[name] if value is None else flag.parse(value)
        except UserError as error:
            raise click.BadParameter(str(error)) from None

    return {"callback": callback}


@click.command(help=__doc__, context_settings=shared_options.HELP)
@click.option(
    "--preset",
    help=f"Flags for a kind of data, which typed ones change: {', '.join(NAMED_PRESETS)}  [default: by --data, without --cfg]",
    metavar="NAME",
)
@click.option("--cascade", help="Train the stages of a recipe in turn (see README)", metavar="YAML")
@all_options
@click.option("-n", "--dry-run", help="Print training options and exit", is_flag=True)
@click.pass_context
def main(context: click.Context, preset: str | None, cascade: str | None, dry_run: bool, **options: Any) -> int:
    given = {name for name in options if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    if cascade is not None:
        if preset is not None:
            raise UserError(f"--preset={preset}: the recipe of --cascade says what each stage is; leave it out")
        return train_cascade(cascade, {name: options[name] for name in given}, options["outdir"], dry_run)
    with importing():
        from torch_utils import distributed
        from training.config.resolve import resolve
        from training.config.resume import find_resume_point, is_finished
    typed_ones = given
    options, given = with_preset(preset, options, given)
    point = find_resume_point(options, given)
    if point is not None and is_finished(point):
        distributed.print0(
            f"{point.run_dir} is complete ({point.options.kimg:g} kimg); a larger --kimg makes it longer."
        )
        return 0
    if point is None and options["resume"] == LATEST:
        distributed.print0(f"--resume=latest: there is no run in {options['outdir']} yet; this is its first.")
        options["resume"] = None
    with explaining(preset is None and "cfg" in given - typed_ones):
        resolved = resolve(TrainingOptions(**options) if point is None else point.options, point)
    if dry_run:  # first: what people read stays on the screen
        distributed.print0(json.dumps(resolved.config.as_dict(), indent=2))
    if distributed.get_rank() == 0:
        resolved.print_summary()
    if dry_run:
        return 0
    return start(resolved.config, point)


@contextlib.contextmanager
def explaining(is_chosen: bool) -> Iterator[None]:
    """Say of an error that a preset which nobody named may be behind it."""
    try:
        yield
    except UserError as error:
        if not is_chosen:
            raise
        raise UserError(f"{error} (the preset above was chosen by --data; --cfg=NAME chooses otherwise)") from error


def with_preset(preset: str | None, options: dict[str, Any], given: set[str]) -> tuple[dict[str, Any], set[str]]:
    """The options with those of a preset, and which count as given; without --cfg and --preset, one that suits the data."""
    from torch_utils import distributed
    from torch_utils.misc import choose_device
    from training.checkpoints.state_file import newest_run

    resume, why = options["resume"], ""
    if preset is not None and preset not in NAMED_PRESETS:
        raise UserError(f"--preset={preset}: choose from {', '.join(NAMED_PRESETS)}")
    if resume is not None and newest_run(Path(options["outdir"] if resume == LATEST else resume)) is not None:
        if preset is not None:
            distributed.print0(f"--preset={preset} is not used: a run that goes on has the options that it began with")
        return options, given
    if preset is None and options["cfg"] is None and options["data"] is not None and resume in (None, LATEST):
        device = choose_device(options["device"]).type
        chosen = choose_preset(options["data"], device, options["subset"])
        preset, why = chosen if chosen is not None else (None, "")
    if preset is None:
        return options, given
    flags, line = flags_of(preset, given)
    distributed.print0(f"{line} (chosen for {why}; --cfg chooses otherwise)" if why else line)
    known = parse([*flags])  # click takes the list apart
    named = {flag.partition("=")[0].removeprefix("--").replace("-", "_") for flag in flags}
    return options | {name: known[name] for name in named}, given | named


def start(config: TrainingConfig, point: ResumePoint | None, way_on: str = RESUME) -> int:
    """Train; the exit code. way_on: what continues a run that was stopped."""
    from torch_utils.launcher import launch

    return launch(train_process, config.num_gpus, config.device, config, *where(point), way_on)


def train_cascade(path: str, given: dict[str, Any], outdir: str, dry_run: bool) -> int:
    """The stages of a recipe in turn; the exit code. given: options that were typed."""
    with importing():
        from training.cascades.cascade_run import CascadeRun
        from training.cascades.recipe import read_recipe
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
    return {name: value for name, value in params.items() if name not in ("preset", "cascade", "dry_run")}


def where(point: ResumePoint | None) -> tuple[Path | None, Path | None]:
    """Run folder and training state of a run that is continued."""
    return (None, None) if point is None else (point.run_dir, point.state)


def train_process(
    config: TrainingConfig, run_dir: Path | None, state_file: Path | None, way_on: str, device: torch.device
) -> int:
    """One process of the run, from its folder (a new one for None) to its end; the exit code."""
    from torch_utils import distributed, misc
    from training.run.progress import make_run_dir, remove_unstarted
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
