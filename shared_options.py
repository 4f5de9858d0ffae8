"""Options that several scripts have, as click decorators."""

import click

from dnnlib.cli import IMAGE_SETS, Finite

HELP = {"max_content_width": 110, "show_default": True}  # context settings of a command
TRUNCATION = click.option(
    "--trunc", "--truncation-psi", "trunc", help="Truncation psi", metavar="FLOAT", type=Finite(), default=1.0
)
CLASS = click.option("--class", "class_idx", help="Class of a conditional network", metavar="INT", type=int)
NOISE_MODE = click.option(
    "--noise-mode", help="Pixel noise of StyleGAN2", type=click.Choice(["const", "random", "none"]), default="const"
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
