"""Generate images from a snapshot: one PNG per seed, and pictures of all of them.

\b
# Eight images, and all of them in one picture
python gen_images.py --network=network-snapshot-000200.pkl --seeds=0-7 --grid=4x2

\b
# A Spider network: what goes in above what comes out, with the snapshot's own source images or with others
python gen_images.py --network=network-snapshot-000200.pkl --seeds=0-31 --pairs
python gen_images.py --network=network-snapshot-000200.pkl --source-images=photos/ --pairs

\b
# Truncation, a class, a moved and turned image (StyleGAN3)
python gen_images.py --network=network-snapshot-000200.pkl --seeds=0,3,5-10 --trunc=0.7 --class=2
python gen_images.py --network=network-snapshot-000200.pkl --seeds=0-7 --translate=0.25,0 --rotate=30

\b
# Sprites: no half-transparent pixels, eight times as large
python gen_images.py --network=network-snapshot-000200.pkl --seeds=0-7 --alpha-threshold=0.5 --scale=8

\b
# Trained with --prior=features: images for the features of given ones, and from one to the next in eight steps
python gen_images.py --network=network-snapshot-000200.pkl --prior-images=photos/ --seeds=0-3
python gen_images.py --network=network-snapshot-000200.pkl --prior-images=photos/ --prior-interpolate=8
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

import dnnlib
import dnnlib.cli
import shared_options
from dnnlib.bars import tqdm
from dnnlib.errors import UserError
from dnnlib.interrupts import importing
from training.data.pixels import CHANNEL_NAMES, encode_png
from training.settings import MAX_SEED

if TYPE_CHECKING:
    import torch

    from training.data.grids import Finish
    from training.sampling.sampler import Look, Sampler
    from training.sources.label_distribution import LabelDistribution

COLUMNS = 8  # of the picture of pairs without --grid
MAX_SEEDS = 1_000_000
MAX_PIXELS = 1 << 27  # of an enlarged image
PRIOR_SEEDS = range(4)  # for each of --prior-images without --seeds


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


def parse_vec2(text: str | tuple[float, float]) -> tuple[float, float]:
    """`X,Y` as two numbers."""
    if isinstance(text, tuple):
        return text
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not two numbers such as 0.25,-0.1") from None
    return x, y


def parse_size(text: str | tuple[int, int]) -> tuple[int, int]:
    """`WxH` as columns and rows."""
    if isinstance(text, tuple):
        return text
    match = re.fullmatch(r"\s*([1-9]\d{0,3})[xX,]([1-9]\d{0,3})\s*", text)
    if not match:
        raise click.BadParameter(f"{text!r} is not a grid such as 4x2, columns x rows")
    return int(match[1]), int(match[2])


@click.command(help=__doc__, context_settings=shared_options.HELP)
@click.option("--network", help="Snapshot", metavar="[PATH|URL]", required=True, type=dnnlib.cli.IMAGE_SETS)
@click.option(
    "--seeds",
    help="Seeds, one image each, such as 0,3,5-10; with --source-images numbers of images  [default there: all]",
    metavar="LIST",
    type=parse_range,
)
@shared_options.TRUNCATION
@shared_options.CLASS
@shared_options.NOISE_MODE
@click.option(
    "--translate",
    help="Move the image right and down, in image sizes (StyleGAN3)",
    metavar="X,Y",
    type=parse_vec2,
    default="0,0",
)
@click.option(
    "--rotate",
    help="Turn the image against the clock, in degrees (StyleGAN3)",
    metavar="ANGLE",
    type=float,
    default=0.0,
)
@click.option("--outdir", help="Where to save the images", metavar="DIR", default="out")
@shared_options.SOURCE_IMAGES
@click.option("--projected-w", help="Latents that project.py has found, instead of seeds", metavar="FILE.npz")
@click.option(
    "--direction", help="Move w along a direction that directions.py has found", metavar="FILE.npz:K=STRENGTH"
)
@click.option("--prior-images", help="Images whose features the network shall follow (--prior)", metavar="[DIR|ZIP]")
@click.option(
    "--prior-interpolate",
    help="Steps from the features of each of these images to the next one's",
    metavar="INT",
    type=click.IntRange(2, 100),
)
@click.option("--prior-detector", help="The weights that saw them in training, if moved", metavar="PATH")
@click.option("--grid", help="Save grid.png as well, columns x rows", metavar="WxH", type=parse_size)
@click.option("--pairs", help="Save pairs.png as well: what went in above what came out", is_flag=True)
@click.option(
    "--alpha-threshold",
    help="Of networks with transparency: alpha below becomes 0, and the rest 1",
    metavar="0..1",
    type=dnnlib.cli.Finite(0, 1),
)
@click.option(
    "--scale",
    help="Repeat every pixel so often in both directions",
    metavar="INT",
    type=click.IntRange(1, 64),
    default=1,
)
@shared_options.DEVICE
@shared_options.BATCH_BY_SIZE
def main(
    network: str,
    seeds: list[int] | None,
    trunc: float,
    class_idx: int | None,
    noise_mode: str,
    translate: tuple[float, float],
    rotate: float,
    outdir: str,
    source_images: str | None,
    projected_w: str | None,
    direction: str | None,
    prior_images: str | None,
    prior_interpolate: int | None,
    prior_detector: str | None,
    grid: tuple[int, int] | None,
    pairs: bool,
    alpha_threshold: float | None,
    scale: int,
    device: str,
    batch: int | None,
) -> None:
    with importing():
        from dnnlib.files import prepare_folder, writing
        from training.data.grids import Finish
        from training.sampling.prior_pictures import check_flags, open_given, save_for_images
        from training.sampling.sampler import Look, choose_seeds, default_batch, move_image, open_sampler
    start_time = time.time()
    check_flags(prior_images, prior_interpolate, prior_detector, has_pictures=grid is not None or pairs)
    sampler = open_sampler(network, source_images, device, verbose=True)
    if projected_w is not None:
        save_projected(sampler, projected_w, Path(outdir), Finish(alpha_threshold, scale))
        return
    if prior_images is not None and seeds is None and not sampler.picks_images:
        seeds = list(PRIOR_SEEDS)
    seeds = choose_seeds(sampler, seeds)
    check_class(sampler, class_idx)
    check_pictures(sampler, len(seeds), grid, pairs)
    cells = grid[0] * grid[1] if grid is not None else len(seeds) if pairs else 1
    check_finish(sampler, alpha_threshold, scale, cells)
    finish = Finish(alpha_threshold, scale)
    if translate != (0, 0) or rotate != 0:
        move_image(sampler, translate, rotate)
    batch = batch or default_batch(sampler.generator.img_resolution, sampler.device)
    look = Look(class_idx, trunc, noise_mode)
    if direction is not None:
        sampler.move = open_direction(sampler, direction)
    if prior_images is not None:
        given = open_given(sampler, prior_images, prior_detector, prior_interpolate)
        prepare_folder(Path(outdir), "--outdir")
        with writing("--outdir"):
            saved = save_for_images(sampler, seeds, given, prior_interpolate, look, batch, Path(outdir), finish)
        print(f"Saved {saved} in {dnnlib.util.format_time(time.time() - start_time)} on {sampler.device}")
        return

    prepare_folder(Path(outdir), "--outdir")
    images = generate(sampler, seeds, look, Path(outdir), batch, finish, is_kept=grid is not None or pairs)
    names = save_pictures(sampler, seeds, look, images, Path(outdir), batch, grid, pairs, finish)
    saved = ", ".join([f"{len(seeds)} image{'s'[: len(seeds) > 1]} of {describe_images(sampler, scale)}", *names])
    print(f"Saved {saved} to {outdir} in {dnnlib.util.format_time(time.time() - start_time)} on {sampler.device}")


def save_projected(sampler: Sampler, path: str, folder: Path, finish: Finish) -> None:
    """The pictures of latents in a file, `proj00.png` and on."""
    from torch.func import functional_call

    from dnnlib.errors import naming
    from dnnlib.files import prepare_folder, writing
    from training.data.image_tensors import to_uint8
    from training.sampling.projection import load_latents

    with naming("--projected-w"):
        ws, maps = load_latents(path, sampler.generator)
    maps = {name: value.to(sampler.device) for name, value in maps.items()}
    prepare_folder(folder, "--outdir")
    for index in range(len(ws)):
        one = ws[index : index + 1].to(sampler.device)
        images = functional_call(sampler.generator.synthesis, maps, (one,), {"noise_mode": "const"})
        pixels = finish.threshold(to_uint8(images).cpu())[0].permute(1, 2, 0).numpy()
        with writing("--outdir"):
            write_picture(folder / f"proj{index:02d}.png", encode_png(finish.enlarge(pixels)))
    print(f"Saved {len(ws)} image{'s'[: len(ws) > 1]} of {path} to {folder}")


def open_direction(sampler: Sampler, text: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `FILE:K=STRENGTH` does to ws. Raises `UserError`."""
    from dnnlib.errors import naming
    from training.sampling.directions import Directions

    match = re.fullmatch(r"(.+):(\d+)=([+-]?\d+(?:\.\d+)?)", text)
    if match is None:
        raise UserError(f"--direction={text}: give FILE.npz:K=STRENGTH, such as out/directions.npz:0=3")
    with naming("--direction"):
        found = Directions.load(match[1], sampler.generator)
    number, strength = int(match[2]), float(match[3])
    if number >= len(found.vectors):
        raise UserError(f"--direction={text}: {match[1]} holds {len(found.vectors)}, 0 to {len(found.vectors) - 1}")
    return lambda ws: found.moved(ws, number, strength)


def check_class(sampler: Sampler, class_idx: int | None) -> None:
    """Raises `UserError` for a class that the network does not have; says so where it has none, or has never seen it."""
    from training.sampling.sampler import label

    if sampler.prior is not None:
        if class_idx is not None:
            print(f"Warning: --class={class_idx} is ignored: the network knows features, no classes", file=sys.stderr)
        return
    labels = sampler.label_distribution
    if labels is not None and not labels.is_classes:
        if class_idx is not None:
            raise UserError(
                f"--class={class_idx}: the network was trained with vectors of {labels.c_dim} numbers, not with classes; leave "
                "--class out: each seed then draws one of the vectors that it was trained with"
            )
        return
    if labels is not None and class_idx is not None and 0 <= class_idx < labels.c_dim:
        warn_of_empty_class(class_idx, labels)
    if label(sampler.network.c_dim, class_idx) is None and class_idx is not None:
        print(f"Warning: --class={class_idx} is ignored, since the network is not conditional", file=sys.stderr)


def warn_of_empty_class(class_idx: int, labels: LabelDistribution) -> None:
    if labels.values[class_idx] > 0:
        return
    occurred = labels.occurred()
    known = ", ".join(map(str, occurred[:10])) + (f" and {len(occurred) - 10} more" if len(occurred) > 10 else "")
    print(
        f"Warning: --class={class_idx}: the network never saw an image of this class, and nothing says what it makes of it; it "
        f"was trained with images of {known}",
        file=sys.stderr,
    )


def check_pictures(sampler: Sampler, num_images: int, grid: tuple[int, int] | None, pairs: bool) -> None:
    if grid is not None and grid[0] * grid[1] < num_images:
        rows = -(-num_images // grid[0])
        raise UserError(f"--grid={grid[0]}x{grid[1]} is too small for {num_images} images; use --grid={grid[0]}x{rows}")
    if pairs and not sampler.has_pictures:
        raise UserError("--pairs: the network was trained on noise, and there is nothing to show above its images")


def check_finish(sampler: Sampler, alpha_threshold: float | None, scale: int, cells: int) -> None:
    """Raises `UserError` where there is no alpha, or the picture of so many cells would become too large."""
    from training.layers.pyramid import image_size

    channels = sampler.generator.img_channels
    if alpha_threshold is not None and channels != 4:
        kind = CHANNEL_NAMES.get(channels, f"{channels} channels")
        raise UserError(f"--alpha-threshold: the network makes {kind} images, which have no alpha; leave it out")
    height, width = image_size(sampler.generator.img_resolution)
    pixels = cells * height * width
    if scale > 1 and pixels * scale**2 > MAX_PIXELS:
        what = "an image" if cells == 1 else f"a picture of {cells} images"
        most = max(math.isqrt(MAX_PIXELS // pixels), 1)
        raise UserError(f"--scale={scale}: makes {what} of {pixels * scale**2:,} pixels; use {most} at most")


def generate(
    sampler: Sampler, seeds: list[int], look: Look, folder: Path, batch: int, finish: Finish, is_kept: bool
) -> torch.Tensor | None:
    """Write the image of every seed; all of them as uint8 `[N, C, h, w]` on the CPU, not enlarged, if they shall be kept."""
    import torch

    from dnnlib.files import writing
    from training.data.image_tensors import to_uint8

    kept = []
    with tqdm(total=len(seeds), desc="Images", unit="img", disable=None, leave=False) as bar:
        for first in range(0, len(seeds), batch):
            part = seeds[first : first + batch]
            images = finish.threshold(to_uint8(sampler.images(part, look)).cpu())
            with writing("--outdir"):
                for seed, pixels in zip(part, images.permute(0, 2, 3, 1).numpy(), strict=True):
                    write_picture(folder / f"seed{seed:04d}.png", encode_png(finish.enlarge(pixels)))
            if is_kept:
                kept.append(images)
            bar.update(len(part))
    return torch.cat(kept) if is_kept else None


def save_pictures(
    sampler: Sampler,
    seeds: list[int],
    look: Look,
    images: torch.Tensor | None,
    folder: Path,
    batch: int,
    grid: tuple[int, int] | None,
    pairs: bool,
    finish: Finish,
) -> list[str]:
    """Write grid.png and pairs.png where they are asked for; the names of what was written."""
    from dnnlib.files import writing
    from training.data.grids import save_grid, save_stacks
    from training.data.image_tensors import to_float

    names = []
    if images is not None and grid is not None:
        names.append("grid.png")
        with writing("--outdir"):
            save_grid(folder / names[-1], to_float(images), grid[0], finish)
    if images is not None and pairs:
        names.append("pairs.png")
        stages = [*pictures_before(sampler, seeds, look, batch), to_float(images)]
        with writing("--outdir"):
            save_stacks(folder / names[-1], stages, grid[0] if grid else min(len(seeds), COLUMNS), finish)
    return names


def pictures_before(sampler: Sampler, seeds: list[int], look: Look, batch: int) -> list[torch.Tensor]:
    """Source images and the images of earlier stages, each `[N, C, h, w]` in [-1, 1] on the CPU."""
    import torch

    parts = [sampler.pictures_before(seeds[first : first + batch], look) for first in range(0, len(seeds), batch)]
    return [torch.cat(images).cpu() for images in zip(*parts, strict=True)]


def describe_images(sampler: Sampler, scale: int) -> str:
    from training.layers.pyramid import image_size

    height, width = image_size(sampler.generator.img_resolution)
    channels = sampler.generator.img_channels
    return f"{scale * width}x{scale * height} pixels, {CHANNEL_NAMES.get(channels, f'{channels} channels')}"


def write_picture(path: Path, data: bytes) -> None:
    """Write the whole file, or nothing where the disk is full."""
    try:
        path.write_bytes(data)
    except OSError:
        path.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    dnnlib.cli.run(main)
