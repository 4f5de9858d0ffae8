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

\b
# Cells of a run's picture, each seed in each class, one's own picture moved along a direction (docs/editing.md)
python gen_images.py --network=latest --from-grid=fakes000200.png --cells=0,5
python gen_images.py --network=latest --seeds=0-7 --class=all --grid=8x10
python gen_images.py --network=latest --projected-w=out/projected_w.npz --direction=out/directions.npz:0=3
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dnnlib
import dnnlib.cli
import shared_options
from dnnlib.errors import UserError
from dnnlib.interrupts import importing
from training.data.pixels import CHANNEL_NAMES

if TYPE_CHECKING:
    from training.sampling.picture_files import Output
    from training.sampling.sampler import Look, Sampler

MAX_PIXELS = 1 << 27  # of an enlarged image
PRIOR_SEEDS = range(4)  # for each of --prior-images without --seeds


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
@shared_options.NETWORK
@click.option(
    "--seeds",
    help="Seeds, one image each, such as 0,3,5-10; with --source-images numbers of images  [default there: all]",
    metavar="LIST",
    type=shared_options.parse_range,
)
@shared_options.TRUNCATION
@shared_options.CLASSES
@shared_options.LABEL
@shared_options.NOISE_MODE
@shared_options.NOISE_SEED
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
@shared_options.DIRECTION
@click.option("--from-grid", help="Cells of this picture of a run, instead of seeds", metavar="fakesNNNNNN.png")
@click.option(
    "--cells", help="Which, row by row from 0  [default: all]", metavar="LIST", type=shared_options.parse_range
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
    classes: list[int | str] | None,
    label: tuple[float, ...] | None,
    noise_mode: str,
    noise_seed: int | None,
    translate: tuple[float, float],
    rotate: float,
    outdir: str,
    source_images: str | None,
    projected_w: str | None,
    direction: tuple[str, ...],
    from_grid: str | None,
    cells: list[int] | None,
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
        from training.data.grids import Finish
        from training.sampling.conditions import check_look, chosen_classes, noise_mode_for
        from training.sampling.directions import add_directions
        from training.sampling.picture_files import Output, Sheets
        from training.sampling.prior_pictures import check_flags
        from training.sampling.sampler import Look, default_batch, move_image, open_sampler
    start_time = time.time()
    check_flags(prior_images, prior_interpolate, prior_detector, has_pictures=grid is not None or pairs)
    check_modes({
        "--projected-w": projected_w, "--from-grid": from_grid, "--prior-images": prior_images, "--cells": cells,
        "--seeds": seeds, "--source-images": source_images, "--pairs": pairs, "--class": classes, "--label": label,
    })  # fmt: skip
    sampler = open_sampler(network, source_images, device, verbose=True)
    mode = noise_mode_for(noise_mode, noise_seed)
    looks = [Look(class_idx, trunc, mode, label, noise_seed) for class_idx in chosen_classes(sampler, classes)]
    for look in looks:
        check_look(sampler, look, has_condition=projected_w is not None or from_grid is not None)
    if translate != (0, 0) or rotate != 0:
        move_image(sampler, translate, rotate)
    add_directions(sampler, direction)
    out = Output(
        Path(outdir),
        batch or default_batch(sampler.generator.img_resolution, sampler.device),
        Finish(alpha_threshold, scale),
        Sheets(grid, pairs),
    )
    plan = Plan(sampler, looks, out)
    if projected_w is not None:
        saved = save_projected(plan, projected_w)
    elif from_grid is not None:
        saved = save_from_grid(plan, from_grid, cells)
    elif prior_images is not None:
        saved = save_of_prior(plan, seeds, prior_images, prior_detector, prior_interpolate)
    else:
        saved = save_of_seeds(plan, seeds)
    print(f"Saved {saved} in {dnnlib.util.format_time(time.time() - start_time)} on {sampler.device}")


@dataclass(frozen=True)
class Plan:
    """Of what, how, and where."""

    sampler: Sampler
    looks: list[Look]
    out: Output

    def check(self, num_images: int) -> None:
        """Refuse sheets that cannot be; make the folder. Raises `UserError`."""
        from dnnlib.files import prepare_folder

        finish, grid = self.out.finish, self.out.sheets.grid
        check_pictures(self.sampler, num_images, grid, self.out.sheets.pairs)
        cells = grid[0] * grid[1] if grid is not None else num_images if self.out.sheets.pairs else 1
        check_finish(self.sampler, finish.alpha_threshold, finish.scale, cells)
        prepare_folder(self.out.folder, "--outdir")

    def said(self, num_images: int, names: list[str]) -> str:
        number = f"{num_images} image{'s'[: num_images > 1]} of {describe_images(self.sampler, self.out.finish.scale)}"
        return f"{', '.join([number, *names])} to {self.out.folder}"


def check_modes(flags: dict[str, Any]) -> None:
    """Refuse flags that say in two ways what goes in. Raises `UserError`."""
    given = [flag for flag, value in flags.items() if value not in (None, False)]
    if "--cells" in given and "--from-grid" not in given:
        raise UserError("--cells needs --from-grid=fakesNNNNNN.png")
    modes = [flag for flag in ("--projected-w", "--from-grid", "--prior-images") if flag in given]
    if len(modes) > 1:
        raise UserError(f"{modes[0]} and {modes[1]} both say what the pictures are of; leave one out")
    if modes in (["--projected-w"], ["--from-grid"]):
        also = [flag for flag in given if flag not in (*modes, "--cells")]
        if also:
            raise UserError(f"{modes[0]} goes without {also[0]}: the file says what the pictures are made from")


def save_of_seeds(plan: Plan, seeds: list[int] | None) -> str:
    """The images of seeds under all looks; what was saved, for people."""
    from training.sampling.picture_files import save_shots, shots_of
    from training.sampling.sampler import choose_seeds

    shots = shots_of(plan.sampler, choose_seeds(plan.sampler, seeds), plan.looks)
    plan.check(len(shots))
    return plan.said(len(shots), save_shots(plan.sampler, shots, plan.out))


def save_from_grid(plan: Plan, path: str, numbers: list[int] | None) -> str:
    """Cells of a picture of a run."""
    from dnnlib.errors import naming
    from training.data.grid_cells import read_cells
    from training.sampling.picture_files import check_cells, save_cells

    with naming("--from-grid"):
        cells = read_cells(path)
    numbers = list(range(len(cells.z))) if numbers is None else list(dict.fromkeys(numbers))
    check_cells(plan.sampler, cells, numbers, path)
    plan.check(len(numbers))
    names = save_cells(plan.sampler, cells, numbers, plan.looks[0], plan.out)
    return plan.said(len(numbers), names)


def save_of_prior(plan: Plan, seeds: list[int] | None, images: str, weights: str | None, steps: int | None) -> str:
    """Images for the features of given ones."""
    from dnnlib.files import writing
    from training.sampling.prior_pictures import open_given, save_for_images
    from training.sampling.sampler import choose_seeds

    sampler = plan.sampler
    seeds = choose_seeds(sampler, list(PRIOR_SEEDS) if seeds is None and not sampler.picks_images else seeds)
    given = open_given(sampler, images, weights, steps)
    plan.check(len(seeds))
    with writing("--outdir"):
        return save_for_images(
            sampler, seeds, given, steps, plan.looks[0], plan.out.batch, plan.out.folder, plan.out.finish
        )


def save_projected(plan: Plan, path: str) -> str:
    """The pictures of latents in a file, `proj00.png` and on."""
    from dnnlib.errors import naming
    from training.sampling.picture_files import save_each, save_sheets
    from training.sampling.projection import load_latents

    sampler, batch = plan.sampler, plan.out.batch
    with naming("--projected-w"):
        ws, maps = load_latents(path, sampler.generator)
    ws, maps = ws.to(sampler.device), {name: value.to(sampler.device) for name, value in maps.items()}
    if plan.looks[0].truncation_psi != 1:
        ws = sampler.generator.mapping.truncate(ws, plan.looks[0].truncation_psi, None)
    plan.check(len(ws))
    images = (
        sampler.synthesize(sampler.move(ws[rows]), plan.looks[0], range(len(ws))[rows], maps)
        for rows in (slice(first, first + batch) for first in range(0, len(ws), batch))
    )
    names = [f"proj{index:02d}" for index in range(len(ws))]
    kept = save_each(names, images, plan.out)
    return plan.said(len(ws), [] if kept is None else save_sheets(kept, plan.out))


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


def describe_images(sampler: Sampler, scale: int) -> str:
    from training.layers.pyramid import image_size

    height, width = image_size(sampler.generator.img_resolution)
    channels = sampler.generator.img_channels
    return f"{scale * width}x{scale * height} pixels, {CHANNEL_NAMES.get(channels, f'{channels} channels')}"


if __name__ == "__main__":
    dnnlib.cli.run(main)
