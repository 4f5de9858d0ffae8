"""Options that several scripts have, as click decorators."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import click

from dnnlib.cli import IMAGE_SETS, Finite, ImageSets
from dnnlib.errors import UserError
from dnnlib.interrupts import importing
from training.settings import ALL_CLASSES, ANY_CLASS, LATEST, MAX_SEED, RUNS

HELP = {"max_content_width": 110, "show_default": True}  # context settings of a command
MAX_SEEDS = 1_000_000
FLOAT32_MAX = 3.4e38


def parse_range(text: str | list[int]) -> list[int]:
    """`0,3,5-10` as a list of numbers."""
    if isinstance(text, list):
        return text
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= MAX_SEED or len(seeds) + last - first >= MAX_SEEDS:
            raise click.BadParameter(f"{part.strip()!r} is no seed or range such as 5 or 5-10, in 0 to {MAX_SEED}")
        seeds += range(first, last + 1)
    return seeds


class Snapshot(ImageSets):
    """A snapshot by path or address; of a run's folder, and of `latest` in `training-runs`, the newest one."""

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> str:
        super().convert(value, param, context)
        flag = f"{param.opts[0]}={value}" if param is not None else value
        folder = Path(RUNS if value == LATEST else value)
        if not folder.is_dir():
            if value == LATEST and not Path(value).exists():
                raise UserError(f"{flag}: there is no folder {RUNS} here; give the folder of a run, or a snapshot")
            return value
        with importing():
            from training.checkpoints.state_file import newest_run, newest_snapshot
        if newest_run(folder) is None and value != LATEST:
            return value  # for whoever takes folders of images, too
        path = newest_snapshot(folder)
        if path is None:
            raise UserError(f"{flag}: no run in {folder} has saved a snapshot yet")
        print(f"{flag}: {path}", file=sys.stderr)
        return str(path)


class ClassName(click.ParamType):
    """The number of a class, or `any`."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int | str:
        if isinstance(value, int) or value == ANY_CLASS:
            return value
        if not re.fullmatch(r"-?\d{1,9}", value):
            self.fail(f"{value!r} is no class: give its number, or {ANY_CLASS}", param, context)
        return int(value)


class ClassNames(click.ParamType):
    """Numbers of classes, `any` or `all`."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> list[int | str]:
        if isinstance(value, list):
            return value
        if value in (ANY_CLASS, ALL_CLASSES):
            return [value]
        if not re.fullmatch(r"[\d\s,-]+", value):
            self.fail(
                f"{value!r}: give numbers of classes such as 3 or 0-9, {ANY_CLASS} or {ALL_CLASSES}", param, context
            )
        if re.fullmatch(r"-\d{1,9}", value):
            return [int(value)]
        return list(dict.fromkeys(parse_range(value)))


class Numbers(click.ParamType):
    """Numbers with commas between them."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = (math.inf,)
        if not all(abs(number) <= FLOAT32_MAX for number in numbers):
            self.fail(f"{value!r} is no list of numbers such as 0.2,0.5,0.3", param, context)
        return numbers


NETWORK = click.option(
    "--network",
    help=f"Snapshot, or the folder of a run ({LATEST}: of the newest in {RUNS}), whose newest one counts",
    metavar="PKL|URL|RUN",
    required=True,
    type=Snapshot(),
)
TRUNCATION = click.option(
    "--trunc", "--truncation-psi", "trunc", help="Truncation psi", metavar="FLOAT", type=Finite(), default=1.0
)
CLASS = click.option(
    "--class",
    "class_idx",
    help="Class of a conditional network; any: each seed draws one",
    metavar="INT|any",
    type=ClassName(),
)
LABEL = click.option(
    "--label", help="Label vector in place of a class, such as 0.2,0.5,0.3", metavar="LIST", type=Numbers()
)
CLASSES = click.option(
    "--class",
    "classes",
    help="Class of a conditional network; several such as 0-9, or all: each seed in each; any: each seed draws one",
    metavar="INT|LIST|any|all",
    type=ClassNames(),
)
NOISE_MODE = click.option(
    "--noise-mode", help="Pixel noise of StyleGAN2", type=click.Choice(["const", "random", "none"]), default="const"
)
NOISE_SEED = click.option(
    "--noise-seed",
    help="Other pixel noise for the same seeds (StyleGAN2)",
    metavar="INT",
    type=click.IntRange(0, MAX_SEED),
)
DIRECTION = click.option(
    "--direction",
    help="Move w along a direction that directions.py has found; may be given several times",
    metavar="FILE.npz:K=STRENGTH",
    multiple=True,
)
SOURCE_IMAGES = click.option(
    "--source-images",
    help="What goes in, instead of the source that the snapshot carries",
    metavar="[DIR|ZIP]",
    type=IMAGE_SETS,
)
BATCH_BY_SIZE = click.option(
    "--batch", help="Images at a time  [default: by their size]", metavar="INT", type=click.IntRange(min=1)
)
DEVICE = click.option("--device", help="Where to compute", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
DETECTOR_WEIGHTS = click.option("--detector-weights", help="File or address of its weights", metavar="PATH|URL")
