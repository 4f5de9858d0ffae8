"""Options that several scripts have, as click decorators."""

import math
import re
from typing import Any

import click

from dnnlib.cli import IMAGE_SETS, Finite
from training.settings import ALL_CLASSES, ANY_CLASS, MAX_SEED

HELP = {"max_content_width": 110, "show_default": True}  # context settings of a command
MAX_SEEDS = 1_000_000


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
            numbers = (math.nan,)
        if not all(map(math.isfinite, numbers)):
            self.fail(f"{value!r} is no list of numbers such as 0.2,0.5,0.3", param, context)
        return numbers


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
