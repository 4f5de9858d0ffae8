"""Turn a collection of images into a data set for training: one size, PNGs in a zip or folder, labels beside them.

Examples:

    # a zip or a folder of images of one size, as it is
    python dataset_tool.py --source=emoji-rgba.zip --dest=datasets/emoji64.zip

    # images of any size: the largest centred square of each, resized
    python dataset_tool.py --source=photos/ --dest=datasets/photos256.zip --transform=center-crop --resolution=256x256

    # sprites: no border, hard edges, their shape kept on a transparent square
    python dataset_tool.py --source=sprites/ --dest=datasets/sprites64.zip --trim --transform=pad --resample=nearest \\
        --resolution=64x64

    # data sets as they are published
    python dataset_tool.py --source=downloads/cifar-10-python.tar.gz --dest=datasets/cifar10.zip
    python dataset_tool.py --source=downloads/train-images-idx3-ubyte.gz --dest=datasets/mnist.zip
    python dataset_tool.py --source=downloads/church_outdoor_train_lmdb --dest=datasets/church.zip \\
        --transform=center-crop --resolution=256x256 --max-images=50000
"""

import dnnlib.interrupts  # before torch

# isort: split
import re
import sys
from pathlib import Path

import click

import dnnlib.cli
from dnnlib.bars import tqdm
from dnnlib.errors import UserError, naming
from training.data.convert import Result, convert
from training.data.pixels import CHANNEL_NAMES
from training.data.shards import part_paths
from training.data.transforms import BITS, CHANNELS, RESAMPLE, TRANSFORMS

MAX_SIDE = 16_384

EPILOG = """\b
Sources, recognised by their names:
  FOLDER, *.zip                 PNG, JPEG, WebP, BMP, TIFF, GIF, PPM and TGA files, with subfolders and what links lead to
  A.zip,B.zip 'A-{00..63}.zip'  several of these as one (the quotes keep the braces from the shell)
  FOLDER, *.parquet             Parquet as Hugging Face stores it (needs: pip install -e ".[parquet]"); the training split
  *.tar                         WebDataset: images, with a .cls or .json of the same name for the class
  cifar-10-python.tar.gz        CIFAR-10, the training images
  train-images-idx3-ubyte.gz    MNIST and its kin, padded to 32x32; labels from the file beside it
  *_lmdb                        LSUN (needs: pip install lmdb)

Labels come from the source's dataset.json, {"labels": [["name.png", class or vector], ...]}, else from its
subfolders (one per class). They are written into the dataset.json of the result; --cond of train.py uses them.

Gray, RGB and RGBA, 8 and 16 bit are kept. Where a source mixes them, all images get the widest of its kinds. Colours
under alpha 0 are written as black. Some of the images are shown in DEST.png, beside the set.
"""


def parse_resolution(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`WxH` as (width, height)."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value.strip().lower())
    width, height = (int(side) for side in match.groups()) if match else (0, 0)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise click.BadParameter(f"{value!r} is not a size such as 256x256, width x height, to {MAX_SIDE}", ctx, param)
    return width, height


@click.command(epilog=EPILOG, context_settings={"max_content_width": 120})
@click.option(
    "--source",
    required=True,
    metavar="PATH",
    type=dnnlib.cli.IMAGE_SETS,
    help="Folder, zip or published archive to read.",
)
@click.option("--dest", required=True, metavar="PATH", help="Folder or .zip to write; never overwritten.")
@click.option("--max-images", type=click.IntRange(min=1), metavar="INT", help="Take only the first so many images.")
@click.option(
    "--sample-seed", type=int, metavar="INT", help="Take a random sample of --max-images, drawn by this seed, instead."
)
@click.option(
    "--transform",
    type=click.Choice(TRANSFORMS),
    help="center-crop: the largest centred square. center-crop-wide: the middle rows, on a black square as wide as "
    "--resolution (the official one, for LSUN's cars). center-crop-dhariwal: the crop of the ADM papers. pad: the whole "
    "image, on a transparent or coloured rectangle. Without it, images are stretched.",
)
@click.option("--resolution", callback=parse_resolution, metavar="WxH", help="Resize to this width and height.")
@click.option("--width", type=click.IntRange(1, MAX_SIDE), metavar="INT", help="Resize to this width.")
@click.option("--height", type=click.IntRange(1, MAX_SIDE), metavar="INT", help="Resize to this height.")
@click.option(
    "--resample",
    "--resize-filter",
    "resample",
    type=click.Choice(list(RESAMPLE)),
    help="How to resize [default: lanczos]. nearest keeps the hard edges of sprites; with pad it enlarges them by whole "
    "factors only.",
)
@click.option(
    "--pad-color",
    metavar="COLOR",
    help="What --transform=pad puts around images: black, #rrggbb ... [default: transparent; white without alpha]",
)
@click.option("--trim", is_flag=True, help="First cut off a transparent border, or one of the colour of all corners.")
@click.option(
    "--channels",
    type=click.Choice(list(CHANNELS)),
    default="keep",
    show_default=True,
    help="What to write; dropping alpha puts the image onto white.",
)
@click.option(
    "--bits",
    type=click.Choice(list(BITS)),
    default="auto",
    show_default=True,
    help="Bits of a sample; auto: 16 as soon as one image has them.",
)
@click.option("--strict", is_flag=True, help="Stop at an image that cannot be read, instead of skipping it.")
def main(
    source: str,
    dest: str,
    max_images: int | None,
    sample_seed: int | None,
    transform: str | None,
    resolution: tuple[int, int] | None,
    width: int | None,
    height: int | None,
    resample: str | None,
    pad_color: str | None,
    trim: bool,
    channels: str,
    bits: str,
    strict: bool,
) -> None:
    """Turn a collection of images into a data set for training."""
    size = whole_size(resolution, width, height)
    check_options(source, dest, transform, size)
    check_companions(max_images, sample_seed, transform, size, resample, pad_color, trim)
    with naming("--source"):
        result = convert(
            source,
            dest,
            max_images=max_images,
            sample_seed=sample_seed,
            transform=transform,
            size=size,
            channels=channels,
            bits=bits,
            resample=resample or "lanczos",
            pad_color=pad_color,
            trim=trim,
            sheet=True,
            strict=strict,
            report=lambda line: tqdm.write(line, file=sys.stderr),
        )
    warn_about_size(result)
    print(summary(result, dest))


def whole_size(
    resolution: tuple[int, int] | None, width: int | None, height: int | None
) -> tuple[int | None, int | None] | None:
    """`--resolution`, or `--width` and `--height`, of which one may be missing."""
    if width is None and height is None:
        return resolution
    if resolution is not None:
        raise click.UsageError("--resolution=WxH and --width, --height say the same; give one of them")
    return width, height


def check_companions(
    max_images: int | None,
    sample_seed: int | None,
    transform: str | None,
    size: tuple[int | None, int | None] | None,
    resample: str | None,
    pad_color: str | None,
    trim: bool,
) -> None:
    """Refuse options that would do nothing."""
    if sample_seed is not None and max_images is None:
        raise click.UsageError("--sample-seed draws a sample of --max-images=INT, which is missing")
    if pad_color is not None and transform != "pad":
        raise click.UsageError("--pad-color is the colour of --transform=pad, which is missing")
    if trim and (size is None or None in size):
        raise click.UsageError("--trim leaves images of all sizes and needs --resolution=WxH, the size of the result")
    if resample is not None and transform == "center-crop-dhariwal":
        raise click.UsageError(f"--transform={transform} has filters of its own; leave --resample out")


def check_options(source: str, dest: str, transform: str | None, size: tuple[int | None, int | None] | None) -> None:
    """Refuse combinations that no source can satisfy."""
    with naming("--source"):
        missing = [part for part in part_paths(source) if not part.exists()]
    if missing:
        raise UserError(f"--source: {missing[0]}: no such file or folder; check the path")
    place = Path(dest).resolve()
    if place.suffix.lower() != ".zip" and any(place.is_relative_to(part.resolve()) for part in part_paths(source)):
        raise UserError(
            f"--dest={dest}: lies inside --source, and would be read with it the next time; choose a place outside"
        )
    if transform is None:
        return
    if size is None:
        raise click.UsageError(f"--transform={transform} needs --resolution=WxH, the size of the result")
    width, height = size
    if width is None or height is None:
        raise click.UsageError(f"--transform={transform} needs --width and --height, the size of the result")
    if transform == "center-crop-wide" and width < height:
        raise click.UsageError(
            f"--transform={transform} needs a wide --resolution such as 512x384, not {width}x{height}"
        )
    if transform == "center-crop-dhariwal" and width != height:
        raise click.UsageError(f"--transform={transform} needs a square --resolution, not {width}x{height}")


def warn_about_size(result: Result) -> None:
    """Say so now, rather than at the start of a training, where the networks cannot have this size."""
    width, height = result.size
    if width == height >= 16 and width & (width - 1) == 0:
        return
    from training.layers.pyramid import resolution_pyramid

    try:
        resolution_pyramid([height, width])
        warning = f"{width}x{height} suits stylegan2 only; stylegan3 needs 16x16, 32x32, 64x64 and so on"
    except UserError as error:
        warning = str(error)
    print(f"Warning: {warning}", file=sys.stderr)


def summary(result: Result, dest: str) -> str:
    """One line about what was written."""
    width, height = result.size
    kind = f"{CHANNEL_NAMES[result.channels]}, {result.bits}-bit"
    return (
        f"Wrote {result.num_images:,} images of {width}x{height} ({kind}, {result.labels}) to {dest}; "
        f"{len(result.skipped):,} skipped"
    ) + (f"\nSome of them: {result.sheet}" if result.sheet else "")


if __name__ == "__main__":
    dnnlib.cli.run(main)
