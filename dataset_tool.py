"""Turn a collection of images into a data set for training: one size, PNGs in a zip or folder, labels beside them.

Examples:

    # a zip or a folder of images of one size, as it is
    python dataset_tool.py --source=emoji-rgba.zip --dest=datasets/emoji64.zip

    # images of any size: the largest centred square of each, resized
    python dataset_tool.py --source=photos/ --dest=datasets/photos256.zip --transform=center-crop --resolution=256x256

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

import click

import dnnlib.cli
from dnnlib.bars import tqdm
from dnnlib.errors import UserError, naming
from training.dataset_convert import CHANNELS, TRANSFORMS, Result, convert
from training.image_files import CHANNEL_NAMES
from training.shards import part_paths

MAX_SIDE = 16_384

EPILOG = """\b
Sources, recognised by their names:
  FOLDER, *.zip                 PNG, JPEG, WebP, BMP and TIFF files, with subfolders
  A.zip,B.zip 'A-{00..63}.zip'  several of these as one (the quotes keep the braces from the shell)
  cifar-10-python.tar.gz        CIFAR-10, the training images
  train-images-idx3-ubyte.gz    MNIST and its kin, padded to 32x32; labels from the file beside it
  *_lmdb                        LSUN (needs: pip install lmdb)

Labels come from the source's dataset.json, {"labels": [["name.png", class or vector], ...]}, else from its
subfolders (one per class). They are written into the dataset.json of the result; --cond of train.py uses them.

Gray, RGB and RGBA, 8 and 16 bit are kept. Where a source mixes them, all images get the widest of its kinds.
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
@click.option("--source", required=True, metavar="PATH", help="Folder, zip or published archive to read.")
@click.option("--dest", required=True, metavar="PATH", help="Folder or .zip to write; never overwritten.")
@click.option("--max-images", type=click.IntRange(min=1), metavar="INT", help="Take only the first so many images.")
@click.option(
    "--transform",
    type=click.Choice(TRANSFORMS),
    help="center-crop: the largest centred square. center-crop-wide: a centred part as wide as --resolution, on a "
    "black square. center-crop-dhariwal: the crop of the ADM papers. Without it, images are stretched.",
)
@click.option("--resolution", callback=parse_resolution, metavar="WxH", help="Resize to this width and height.")
@click.option(
    "--channels",
    type=click.Choice(list(CHANNELS)),
    default="keep",
    show_default=True,
    help="What to write; dropping alpha puts the image onto white.",
)
@click.option("--strict", is_flag=True, help="Stop at an image that cannot be read, instead of skipping it.")
def main(
    source: str,
    dest: str,
    max_images: int | None,
    transform: str | None,
    resolution: tuple[int, int] | None,
    channels: str,
    strict: bool,
) -> None:
    """Turn a collection of images into a data set for training."""
    check_options(source, transform, resolution)
    with naming("--source"):
        result = convert(
            source,
            dest,
            max_images=max_images,
            transform=transform,
            size=resolution,
            channels=channels,
            strict=strict,
            report=lambda line: tqdm.write(line, file=sys.stderr),
        )
    warn_about_size(result)
    print(summary(result, dest))


def check_options(source: str, transform: str | None, resolution: tuple[int, int] | None) -> None:
    """Refuse combinations that no source can satisfy."""
    with naming("--source"):
        missing = [part for part in part_paths(source) if not part.exists()]
    if missing:
        raise UserError(f"--source: {missing[0]}: no such file or folder; check the path")
    if transform is None:
        return
    if resolution is None:
        raise click.UsageError(f"--transform={transform} needs --resolution=WxH, the size of the result")
    width, height = resolution
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
    from training.layers import resolution_pyramid  # imports torch, which takes longer than many a conversion

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
    )


if __name__ == "__main__":
    dnnlib.cli.run(main)
