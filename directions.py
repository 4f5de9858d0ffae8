"""Find directions along which a network's pictures change in one way, and show them.

\b
# The five most telling ones by the network's weights (SeFa), or by how w spreads (GANSpace)
python directions.py --network=network-snapshot-000200.pkl --count=5 --seeds=0-3
python directions.py --network=network-snapshot-000200.pkl --method=pca --count=5 --seeds=0-3

\b
# From pictures without something to pictures with it: by their seeds, or by folders in which project.py has saved their latents
python directions.py --network=network-snapshot-000200.pkl --method=mean --seeds-a=1,4,7 --seeds-b=2,3,9 --seeds=0-3
python directions.py --network=network-snapshot-000200.pkl --method=svm --folder-a=out/plain --folder-b=out/smiling --save-video=1

\b
# Pictures moved along the first one
python gen_images.py --network=network-snapshot-000200.pkl --seeds=0-7 --direction=out/directions.npz:0=3
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dnnlib.cli
import shared_options
from dnnlib.errors import UserError
from dnnlib.interrupts import importing
from training.settings import DIRECTION_METHODS

if TYPE_CHECKING:
    import torch

    from training.sampling.directions import Directions
    from training.sampling.sampler import Look, Sampler

GROUPED, GROUP_FLAGS = ("mean", "svm"), ("--seeds-a", "--seeds-b", "--folder-a", "--folder-b")
FRAMES, FPS, FILM_COLUMNS = 48, 24, 8
COUNT = 5
COLUMNS = 7  # strengths of a sheet, from -most to +most
MAX_SEEDS = 64


@click.command(help=__doc__, context_settings=shared_options.HELP)
@shared_options.NETWORK
@click.option("--method", help="Where directions come from", type=click.Choice(DIRECTION_METHODS), default="sefa")
@click.option("--count", help="How many, by sefa and pca  [default: 5]", metavar="INT", type=click.IntRange(1, 512))
@click.option(
    "--seeds-a",
    help="With --method=mean or svm: pictures without something",
    metavar="LIST",
    type=shared_options.parse_range,
)
@click.option("--seeds-b", help="And pictures with it", metavar="LIST", type=shared_options.parse_range)
@click.option("--folder-a", help="Or the folder with their latents, as project.py writes them", metavar="DIR")
@click.option("--folder-b", help="And with those of pictures that have it", metavar="DIR")
@click.option(
    "--seeds", help="Pictures that the sheets show", metavar="LIST", type=shared_options.parse_range, default="0-3"
)
@click.option(
    "--most",
    help="Strength at the ends of the sheets, in standard deviations of w",
    type=dnnlib.cli.Finite(0.01, 100),
    default=3.0,
)
@shared_options.TRUNCATION
@shared_options.CLASS
@shared_options.LABEL
@click.option("--save-video", help="Save a film of each direction, too", metavar="BOOL", type=bool, default=False)
@click.option("--outdir", help="Where to save directions.npz and a sheet of each", metavar="DIR", default="out")
@shared_options.DEVICE
@shared_options.BATCH_BY_SIZE
def main(
    network: str,
    method: str,
    count: int | None,
    seeds_a: list[int] | None,
    seeds_b: list[int] | None,
    folder_a: str | None,
    folder_b: str | None,
    seeds: list[int],
    most: float,
    trunc: float,
    class_idx: int | str | None,
    label: tuple[float, ...] | None,
    save_video: bool,
    outdir: str,
    device: str,
    batch: int | None,
) -> None:
    with importing():
        from dnnlib.files import prepare_folder
        from training.sampling.conditions import check_look
        from training.sampling.directions import find_directions
        from training.sampling.sampler import Look, default_batch, open_sampler
    given = [seeds_a, seeds_b, folder_a, folder_b]
    check_groups(method, given)
    if method in GROUPED and count is not None:
        raise UserError(f"--count={count}: --method={method} gives one direction; leave it out")
    if len(seeds) > MAX_SEEDS:
        raise UserError(f"--seeds: {len(seeds)} rows; a sheet has {MAX_SEEDS} at most")
    sampler = open_sampler(network, None, device, verbose=True)
    look = Look(class_idx, trunc, label=label)
    check_look(sampler, look)
    groups = open_groups(sampler, look, given) if method in GROUPED else None
    found = find_directions(sampler, method, count or COUNT, look, groups)
    folder = Path(outdir)
    prepare_folder(folder, "--outdir")
    found.save(folder / "directions.npz")
    batch = batch or default_batch(sampler.generator.img_resolution, sampler.device)
    shown = Shown(sampler, found, seeds, most, look, batch)
    for number in range(len(found.vectors)):
        save_sheet(folder / f"direction{number:02d}.png", shown, number)
        if save_video:
            save_film(folder / f"direction{number:02d}.gif", shown, number)
    pictures = "a sheet and a film" if save_video else "a sheet"
    num = f"{len(found.vectors)} direction{'s'[: len(found.vectors) > 1]}"
    print(f"Saved {num} by {method}, and {pictures} of each from -{most:g} to {most:g}, to {outdir}")


def check_groups(method: str, given: list[Any]) -> None:
    """given: the four flags of groups. Raises `UserError` for groups without a method, and a method without groups."""
    names = [name for name, value in zip(GROUP_FLAGS, given, strict=True) if value is not None]
    if method not in GROUPED:
        if names:
            raise UserError(f"{names[0]} is for --method=mean or svm, not for --method={method}")
    elif names not in (list(GROUP_FLAGS[:2]), list(GROUP_FLAGS[2:])):
        raise UserError(
            f"--method={method} needs --seeds-a and --seeds-b, or --folder-a and --folder-b: pictures without something, and "
            "with it"
        )


def open_groups(sampler: Sampler, look: Look, given: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """w `[n, w_dim]` of pictures without something, and with it."""
    from dnnlib.errors import naming
    from training.sampling.directions import w_of_files, w_of_seeds

    seeds_a, seeds_b, folder_a, folder_b = given
    if seeds_a is not None:
        return w_of_seeds(sampler, seeds_a, look), w_of_seeds(sampler, seeds_b, look)
    with naming("--folder-a"):
        without = w_of_files(folder_a, sampler.generator)
    with naming("--folder-b"):
        return without, w_of_files(folder_b, sampler.generator)


@dataclass(frozen=True)
class Shown:
    """What sheets and films show: the pictures of some seeds, moved from `-most` to `most`."""

    sampler: Sampler
    found: Directions
    seeds: list[int]
    most: float
    look: Look
    batch: int

    def images(self, number: int, strengths: list[float]) -> torch.Tensor:
        """`[seeds * strengths, C, h, w]`, seed by seed."""
        import torch

        sampler = self.sampler
        ws = sampler.ws(sampler.latents(self.seeds, self.look), self.look)
        moved = torch.stack([self.found.moved(ws, number, strength) for strength in strengths], dim=1).flatten(0, 1)
        with torch.no_grad():
            return torch.cat([sampler.synthesize(part, self.look).cpu() for part in moved.split(self.batch)])


def save_sheet(path: Path, shown: Shown, number: int) -> None:
    """A row for each seed: w as it is in the middle, moved one way to the left and the other way to the right."""
    from dnnlib.files import writing
    from training.data.grids import rgb_pixels, save_labelled

    strengths = [shown.most * (2 * column / (COLUMNS - 1) - 1) for column in range(COLUMNS)]
    cells = rgb_pixels(shown.images(number, strengths))
    cells = cells.reshape(len(shown.seeds), COLUMNS, *cells.shape[1:])
    with writing("--outdir"):
        save_labelled(
            path,
            cells,
            [f"{strength:+.3g}" if strength else "0" for strength in strengths],
            [str(seed) for seed in shown.seeds],
        )


def save_film(path: Path, shown: Shown, number: int) -> None:
    """The seeds side by side, from one end to the other and back."""
    from training.data.grids import rgb_pixels, tile
    from training.data.videos import save_video

    strengths = [-shown.most * math.cos(2 * math.pi * frame / FRAMES) for frame in range(FRAMES)]
    images = shown.images(number, strengths).unflatten(0, (len(shown.seeds), FRAMES))
    frames = (tile(rgb_pixels(images[:, frame]), min(len(shown.seeds), FILM_COLUMNS)) for frame in range(FRAMES))
    save_video(path, frames, FPS, "--outdir")


if __name__ == "__main__":
    dnnlib.cli.run(main)
