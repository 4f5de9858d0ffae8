"""Find directions along which a network's pictures change in one way, and show them.

\b
# The five most telling ones by the network's weights (SeFa), or by how w spreads (GANSpace)
python directions.py --network=network-snapshot-000200.pkl --count=5 --seeds=0-3
python directions.py --network=network-snapshot-000200.pkl --method=pca --count=5 --seeds=0-3

\b
# From pictures without something to pictures with it, by their seeds
python directions.py --network=network-snapshot-000200.pkl --method=seeds --seeds-a=1,4,7 --seeds-b=2,3,9 --seeds=0-3

\b
# Pictures moved along the first one
python gen_images.py --network=network-snapshot-000200.pkl --seeds=0-7 --direction=out/directions.npz:0=3
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
from pathlib import Path
from typing import TYPE_CHECKING

import click

import dnnlib.cli
import shared_options
from dnnlib.errors import UserError
from dnnlib.interrupts import importing
from training.settings import DIRECTION_METHODS

if TYPE_CHECKING:
    from training.sampling.directions import Directions
    from training.sampling.sampler import Look, Sampler

COLUMNS = 7  # strengths of a sheet, from -most to +most
MAX_SEEDS = 64


@click.command(help=__doc__, context_settings=shared_options.HELP)
@click.option("--network", help="Snapshot", metavar="[PATH|URL]", required=True, type=dnnlib.cli.IMAGE_SETS)
@click.option("--method", help="Where directions come from", type=click.Choice(DIRECTION_METHODS), default="sefa")
@click.option("--count", help="How many", metavar="INT", type=click.IntRange(1, 512), default=5)
@click.option(
    "--seeds-a", help="With --method=seeds: pictures without something", metavar="LIST", type=shared_options.parse_range
)
@click.option("--seeds-b", help="And pictures with it", metavar="LIST", type=shared_options.parse_range)
@click.option(
    "--seeds", help="Pictures that the sheets show", metavar="LIST", type=shared_options.parse_range, default="0-3"
)
@click.option("--most", help="Strength at the ends of the sheets, in standard deviations of w", type=float, default=3.0)
@shared_options.TRUNCATION
@shared_options.CLASS
@shared_options.LABEL
@click.option("--outdir", help="Where to save directions.npz and a sheet of each", metavar="DIR", default="out")
@shared_options.DEVICE
@shared_options.BATCH_BY_SIZE
def main(
    network: str,
    method: str,
    count: int,
    seeds_a: list[int] | None,
    seeds_b: list[int] | None,
    seeds: list[int],
    most: float,
    trunc: float,
    class_idx: int | str | None,
    label: tuple[float, ...] | None,
    outdir: str,
    device: str,
    batch: int | None,
) -> None:
    with importing():
        from dnnlib.files import prepare_folder
        from training.sampling.conditions import check_look
        from training.sampling.directions import find_directions
        from training.sampling.sampler import Look, default_batch, open_sampler
    groups = check_groups(method, seeds_a, seeds_b)
    if len(seeds) > MAX_SEEDS:
        raise UserError(f"--seeds: {len(seeds)} rows; a sheet has {MAX_SEEDS} at most")
    sampler = open_sampler(network, None, device, verbose=True)
    look = Look(class_idx, trunc, label=label)
    check_look(sampler, look)
    found = find_directions(sampler, method, count, look, groups)
    folder = Path(outdir)
    prepare_folder(folder, "--outdir")
    found.save(folder / "directions.npz")
    batch = batch or default_batch(sampler.generator.img_resolution, sampler.device)
    for number in range(len(found.vectors)):
        save_sheet(folder / f"direction{number:02d}.png", sampler, found, number, seeds, most, look, batch)
    print(
        f"Saved {len(found.vectors)} directions by {method}, and a sheet of each from -{most:g} to {most:g}, to {outdir}"
    )


def check_groups(
    method: str, without: list[int] | None, having: list[int] | None
) -> tuple[list[int], list[int]] | None:
    """The two sets of seeds, where they are asked for. Raises `UserError`."""
    if method == "seeds":
        if without is None or having is None:
            raise UserError("--method=seeds needs --seeds-a and --seeds-b: pictures without something, and with it")
        return without, having
    if without is not None or having is not None:
        raise UserError(f"--seeds-a and --seeds-b are for --method=seeds, not for --method={method}")
    return None


def save_sheet(
    path: Path, sampler: Sampler, found: Directions, number: int, seeds: list[int], most: float, look: Look, batch: int
) -> None:
    """A row for each seed: w as it is in the middle, moved one way to the left and the other way to the right."""
    import torch

    from dnnlib.files import writing
    from training.data.grids import save_grid

    ws = sampler.ws(sampler.latents(seeds, look), look)
    strengths = torch.linspace(-most, most, COLUMNS).tolist()
    moved = torch.stack([found.moved(ws, number, strength) for strength in strengths], dim=1).flatten(0, 1)
    with torch.no_grad():
        images = torch.cat([sampler.synthesize(part, look).cpu() for part in moved.split(batch)])
    with writing("--outdir"):
        save_grid(path, images, COLUMNS)


if __name__ == "__main__":
    dnnlib.cli.run(main)
