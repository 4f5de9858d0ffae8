"""Mix styles: rows give the coarse layers of a picture, columns the layers that --styles names.

\b
# Colours and details of the columns on the shapes of the rows
python style_mixing.py --network=network-snapshot-000200.pkl --rows=85,100,75 --cols=55,821,1789 --styles=4-9

\b
# Between one's own source images, which go by number
python style_mixing.py --network=network-snapshot-000200.pkl --source-images=photos/ --rows=0-3 --cols=4-7
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

import dnnlib
import dnnlib.cli
import shared_options
from dnnlib.errors import UserError
from dnnlib.interrupts import importing
from training.data.pixels import encode_png

if TYPE_CHECKING:
    import torch

    from training.sampling.sampler import Look, Sampler

MAX_CELLS = 4096


@click.command(help=__doc__, context_settings=shared_options.HELP)
@shared_options.NETWORK
@click.option("--rows", help="Seeds of the rows", metavar="LIST", type=shared_options.parse_range, required=True)
@click.option("--cols", help="Seeds of the columns", metavar="LIST", type=shared_options.parse_range, required=True)
@click.option(
    "--styles",
    help="Layers that the columns give  [default: the finer half]",
    metavar="LIST",
    type=shared_options.parse_range,
)
@shared_options.TRUNCATION
@shared_options.CLASS
@shared_options.LABEL
@shared_options.NOISE_MODE
@shared_options.NOISE_SEED
@click.option("--outdir", help="Where to save the pictures", metavar="DIR", default="out")
@shared_options.SOURCE_IMAGES
@shared_options.DEVICE
@shared_options.BATCH_BY_SIZE
def main(
    network: str,
    rows: list[int],
    cols: list[int],
    styles: list[int] | None,
    trunc: float,
    class_idx: int | str | None,
    label: tuple[float, ...] | None,
    noise_mode: str,
    noise_seed: int | None,
    outdir: str,
    source_images: str | None,
    device: str,
    batch: int | None,
) -> None:
    with importing():
        from dnnlib.files import prepare_folder
        from training.sampling.conditions import check_look, noise_mode_for
        from training.sampling.sampler import Look, choose_seeds, default_batch, open_sampler
    start_time = time.time()
    if len(rows) * len(cols) > MAX_CELLS:
        raise UserError(f"--rows and --cols: {len(rows) * len(cols):,} pictures; use {MAX_CELLS:,} at most")
    sampler = open_sampler(network, source_images, device, verbose=True)
    mode = noise_mode_for(noise_mode, noise_seed)
    look = Look(class_idx, trunc, mode, label, noise_seed)
    check_look(sampler, look)
    for flag, seeds in {"--rows": rows, "--cols": cols}.items():
        choose_seeds(sampler, seeds, flag)  # refuses numbers of images that are not there
    layers = choose_layers(sampler, styles)
    prepare_folder(Path(outdir), "--outdir")
    save(
        sampler,
        rows,
        cols,
        layers,
        look,
        Path(outdir),
        batch or default_batch(sampler.generator.img_resolution, sampler.device),
    )
    elapsed = dnnlib.util.format_time(time.time() - start_time)
    print(f"Saved {len(rows)} x {len(cols)} mixed pictures, layers {layers} from the columns, to {outdir} in {elapsed}")


def choose_layers(sampler: Sampler, styles: list[int] | None) -> list[int]:
    """Which layers the columns give. Raises `UserError` for layers that are not there, and networks with one."""
    num = sampler.generator.num_ws
    if num < 2:
        raise UserError(
            "--network: every layer of this network sees the same latent, and there are no styles to mix; use StyleGAN2 or 3"
        )
    if styles is None:
        return list(range(num // 2, num))
    beyond = [layer for layer in styles if layer >= num]
    if beyond:
        raise UserError(f"--styles: there is no layer {beyond[0]}; the network has {num}, 0 to {num - 1}")
    return styles


def save(
    sampler: Sampler, rows: list[int], cols: list[int], layers: list[int], look: Look, folder: Path, batch: int
) -> None:
    """`ROW-COL.png` of every pair, and `grid.png` with the unmixed pictures above and at the left."""
    import torch

    from dnnlib.files import writing
    from training.data.grids import save_grid
    from training.data.image_tensors import to_float, to_uint8
    from training.sampling.picture_files import write_picture

    seeds = list(dict.fromkeys([*rows, *cols]))
    ws = dict(zip(seeds, sampler.ws(sampler.latents(seeds, look), look), strict=True))
    pairs = [(row, col) for row in rows for col in cols]
    mixed = torch.stack([mix(ws[row], ws[col], layers) for row, col in pairs])
    unmixed = torch.stack([ws[seed] for seed in [*rows, *cols]])
    pictures = []
    for part, owners in zip(
        torch.cat([mixed, unmixed]).split(batch),
        parts_of([row for row, _ in pairs] + [*rows, *cols], batch),
        strict=True,
    ):
        with torch.no_grad():
            pictures.append(to_uint8(sampler.synthesize(part, look, owners)).cpu())
    images = torch.cat(pictures)
    with writing("--outdir"):
        for (row, col), image in zip(pairs, images, strict=False):
            write_picture(folder / f"{row}-{col}.png", encode_png(image.permute(1, 2, 0).numpy()))
        save_grid(folder / "grid.png", to_float(arranged(images, len(rows), len(cols))), len(cols) + 1)


def mix(row: torch.Tensor, col: torch.Tensor, layers: list[int]) -> torch.Tensor:
    """`[num_ws, w_dim]` of the row, with these layers of the column."""
    mixed = row.clone()
    mixed[layers] = col[layers]
    return mixed


def parts_of(items: list[int], size: int) -> list[list[int]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def arranged(images: torch.Tensor, num_rows: int, num_cols: int) -> torch.Tensor:
    """Mixed pictures, then those of rows and of columns -> the cells of the grid, whose corner is white."""
    import torch

    num = num_rows * num_cols
    mixed, row_images, col_images = images[:num], images[num : num + num_rows], images[num + num_rows :]
    cells = [torch.full_like(images[:1], 255), col_images]
    for row in range(num_rows):
        cells += [row_images[row : row + 1], mixed[row * num_cols : (row + 1) * num_cols]]
    return torch.cat(cells)


if __name__ == "__main__":
    dnnlib.cli.run(main)
