"""Pictures of a trained network as files: one PNG for each seed or cell, and sheets of all of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dnnlib.bars import tqdm
from dnnlib.errors import UserError
from dnnlib.files import writing
from training.data.grid_cells import GridCells
from training.data.grids import PLAIN, Finish, save_grid, save_stacks
from training.data.image_tensors import to_float, to_uint8
from training.data.pixels import encode_png
from training.sampling.sampler import Look, Sampler

COLUMNS = 8  # of the picture of pairs without --grid


@dataclass(frozen=True)
class Sheets:
    """The pictures of all images that are asked for."""

    grid: tuple[int, int] | None = None
    """Columns, rows."""
    pairs: bool = False

    @property
    def wanted(self) -> bool:
        return self.grid is not None or self.pairs


NO_SHEETS = Sheets()


@dataclass(frozen=True)
class Output:
    """Where pictures go, and what is done to them on the way."""

    folder: Path
    batch: int
    """Images at a time."""
    finish: Finish = PLAIN
    sheets: Sheets = NO_SHEETS


@dataclass(frozen=True)
class Shot:
    """One image: its seed, how it is shown, and what its file is called."""

    seed: int
    look: Look
    name: str


def shots_of(sampler: Sampler, seeds: Sequence[int], looks: Sequence[Look]) -> list[Shot]:
    """Every seed under every look; given images keep their names.

    With several classes their numbers stand in the names, so that no file overwrites another.
    """
    shots = []
    for look in looks:
        for seed in seeds:
            class_idx = class_shown(sampler, seed, look) if len(looks) > 1 or look.draws_class else None
            start = f"seed{seed:04d}" if sampler.given_names is None else sampler.given_names[seed]
            shots.append(Shot(seed, look, start + ("" if class_idx is None else f"-class{class_idx:02d}")))
    return shots


def class_shown(sampler: Sampler, seed: int, look: Look) -> int | None:
    """The class that a network is asked for; None for one without classes."""
    if sampler.network.c_dim == 0 or sampler.prior is not None:
        return None
    c = sampler.conditions([seed], look)
    return None if c is None else int(c.argmax())


def save_shots(sampler: Sampler, shots: Sequence[Shot], out: Output) -> list[str]:
    """Write the image of every shot, and the sheets; the names of these. Batches are of one look."""
    made = (sampler.images([shot.seed for shot in part], part[0].look) for part in same_look(shots, out.batch))
    images = save_each([shot.name for shot in shots], made, out)
    return [] if images is None else save_sheets(images, out, lambda: pictures_before(sampler, shots, out.batch))


def save_cells(sampler: Sampler, cells: GridCells, numbers: Sequence[int], look: Look, out: Output) -> list[str]:
    """Write the images of some cells of a run's picture, and the sheet; its name."""
    parts = (list(numbers[first : first + out.batch]) for first in range(0, len(numbers), out.batch))
    made = (cell_images(sampler, cells, part, look) for part in parts)
    images = save_each([f"cell{number:04d}" for number in numbers], made, out)
    return [] if images is None else save_sheets(images, out)


@torch.no_grad()
def cell_images(sampler: Sampler, cells: GridCells, numbers: list[int], look: Look) -> torch.Tensor:
    """`[n, C, h, w]` of cells by number."""
    c = None if cells.c is None else cells.c[numbers].to(sampler.device)
    ws = sampler.last_ws(cells.z[numbers].to(sampler.device), c, look)
    return sampler.synthesize(ws, look, [cells.seeds[number] for number in numbers])


def check_cells(sampler: Sampler, cells: GridCells, numbers: Sequence[int], path: str) -> None:
    """Raises `UserError` for cells that are not there, or of another network."""
    beyond = [number for number in numbers if number >= len(cells.z)]
    if beyond:
        raise UserError(f"--cells: there is no cell {beyond[0]}; {path} has {len(cells.z)}, 0 to {len(cells.z) - 1}")
    G = sampler.generator
    theirs = (cells.z.shape[1], 0 if cells.c is None else cells.c.shape[1])
    if theirs != (G.z_dim, G.c_dim):
        raise UserError(
            f"--from-grid: {path} was made from z of {theirs[0]} and labels of {theirs[1]} numbers, and this network takes "
            f"{G.z_dim} and {G.c_dim}"
        )


def same_look(shots: Sequence[Shot], batch: int) -> Iterator[list[Shot]]:
    """The shots in order, at most `batch` of the same look at a time."""
    part: list[Shot] = []
    for shot in shots:
        if part and (len(part) == batch or shot.look != part[0].look):
            yield part
            part = []
        part.append(shot)
    if part:
        yield part


def save_each(names: Sequence[str], batches: Iterable[torch.Tensor], out: Output) -> torch.Tensor | None:
    """Write an image for every name; all of them as uint8 `[N, C, h, w]` on the CPU, not enlarged, if sheets need them."""
    kept, done = [], 0
    with tqdm(total=len(names), desc="Images", unit="img", disable=None, leave=False) as bar:
        for batch in batches:
            images = out.finish.threshold(to_uint8(batch).cpu())
            with writing("--outdir"):
                for name, pixels in zip(names[done:], images.permute(0, 2, 3, 1).numpy(), strict=False):
                    write_picture(out.folder / f"{name}.png", encode_png(out.finish.enlarge(pixels)))
            done += len(images)
            if out.sheets.wanted:
                kept.append(images)
            bar.update(len(images))
    return torch.cat(kept) if out.sheets.wanted else None


def save_sheets(images: torch.Tensor, out: Output, before: Callable[[], list[torch.Tensor]] | None = None) -> list[str]:
    """Write grid.png and pairs.png of images uint8 `[N, C, h, w]`; the names of what was written.

    before: what stands above them in pairs.
    """
    names, grid = [], out.sheets.grid
    if grid is not None:
        names.append("grid.png")
        with writing("--outdir"):
            save_grid(out.folder / names[-1], to_float(images), grid[0], out.finish)
    if out.sheets.pairs:
        assert before is not None
        names.append("pairs.png")
        columns = grid[0] if grid else min(len(images), COLUMNS)
        with writing("--outdir"):
            save_stacks(out.folder / names[-1], [*before(), to_float(images)], columns, out.finish)
    return names


def pictures_before(sampler: Sampler, shots: Sequence[Shot], batch: int) -> list[torch.Tensor]:
    """Source images and the images of earlier stages, each `[N, C, h, w]` in [-1, 1] on the CPU."""
    parts = [sampler.pictures_before([shot.seed for shot in part], part[0].look) for part in same_look(shots, batch)]
    return [torch.cat(images).cpu() for images in zip(*parts, strict=True)]


def write_picture(path: Path, data: bytes) -> None:
    """Write the whole file, or nothing where the disk is full."""
    try:
        path.write_bytes(data)
    except OSError:
        path.unlink(missing_ok=True)
        raise
