"""What a cascade shows for itself: how good every stage is, one seed on its way through all of them, one snapshot."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, write_text
from metrics import metric_main
from metrics.detectors import Detectors, describe
from metrics.stopping import Stopped
from training.cascades.recipe import Recipe, Stage
from training.checkpoints.snapshot import fingerprint_file, load_snapshot
from training.config.run_config import TrainingConfig
from training.data.grids import rgb_pixels
from training.data.image_sets import ImageSet
from training.data.shards import set_name
from training.data.sheets import png_info
from training.sampling.generated_images import open_generated
from training.sampling.sampler import Look, Sampler, open_sampler
from training.sources.encoders import grid_for

SNAPSHOT, PICTURE, TABLE = "cascade.pkl", "cascade.png", "cascade"
SEEDS = range(8)  # rows of the picture
SMALLEST_CELL = 96  # pixels; smaller images are enlarged by whole factors
GAP, HEADER = 6, 22  # pixels
PAGE = (232, 232, 232)  # so that white images have an edge


class CascadeReport:
    """The files beside the stages' folders: cascade.json, cascade.md, cascade.png and cascade.pkl."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder, self.recipe = folder, recipe
        self.known = self.read()
        self.rows: list[dict[str, Any]] = []

    def read(self) -> dict[str, dict[str, Any]]:
        """The rows that an earlier process has written, by stage; none where that is not readable."""
        try:
            rows = json.loads((self.folder / f"{TABLE}.json").read_text(encoding="utf-8"))["stages"]
            return {row["name"]: row for row in rows if isinstance(row["results"], dict)}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def add(self, stage: Stage, config: TrainingConfig, snapshot: Path, keep_going: Callable[[], bool]) -> bool:
        """Judge a stage by its last snapshot, unless that is known, and write its row; False if a signal ended that."""
        row = self.row_of(stage, config, snapshot)
        known = self.known.get(stage.name, {})
        if all(known.get(key) == value for key, value in row.items()):
            row = known
        else:
            try:
                row["results"] = judge(snapshot, config, self.recipe.table, keep_going)
            except Stopped:
                return False
        self.rows.append(row)
        self.write(is_complete=False)
        return True

    def row_of(self, stage: Stage, config: TrainingConfig, snapshot: Path) -> dict[str, Any]:
        source = config.source.place
        return {
            "name": stage.name,
            "cfg": config.cfg,
            "source": stage.source or ("noise" if source is None else set_name(source)),
            "data": set_name(config.training_set_kwargs["path"]),
            "started_from": stage.resume or config.resume,
            "kimg": config.total_kimg,
            "snapshot": snapshot.relative_to(self.folder).as_posix(),
            "fingerprint": fingerprint_file(str(snapshot)),
            "metrics": list(self.recipe.table),
            "detector": [config.detector, config.detector_weights],
        }

    def write(self, is_complete: bool) -> None:
        end = {"snapshot": SNAPSHOT, "picture": PICTURE} if is_complete else {}
        contents = {"recipe": self.recipe.path.name, "is_complete": is_complete, "stages": self.rows, **end}
        write_text(self.folder / f"{TABLE}.json", json.dumps(contents, indent=2))
        write_text(self.folder / f"{TABLE}.md", "\n".join(markdown(table(self.rows))))

    def finish(self, snapshot: Path, device: str) -> None:
        """The whole chain in one file, its picture, and the table on the terminal."""
        with atomic_write(self.folder / SNAPSHOT) as file:
            file.write(snapshot.read_bytes())
        draw_journey(
            self.folder / PICTURE, open_sampler(str(self.folder / SNAPSHOT), device=device), self.recipe.lineage()
        )
        self.write(is_complete=True)
        print("\n".join(["", *aligned(table(self.rows)), ""]))
        print(
            f"The cascade is complete: {self.folder / SNAPSHOT} goes from noise or source images to {self.rows[-1]['data']},"
        )
        print(
            f"{self.folder / PICTURE} shows how; python gen_images.py --network={self.folder / SNAPSHOT} --seeds=0-31"
        )


def judge(
    snapshot: Path, config: TrainingConfig, names: Iterable[str], keep_going: Callable[[], bool]
) -> dict[str, dict[str, Any]]:
    """The metrics of a snapshot against the data of its stage: name -> value, standard error, detector. May raise `Stopped`."""
    names = list(names)
    if not names:
        return {}
    contents = load_snapshot(snapshot)
    device = torch.device(config.device)
    generated = open_generated(contents, str(snapshot), 0, device, config.seed)
    opts = metric_main.MetricOptions(
        detector=Detectors(config.detector, config.detector_weights, device=device, verbose=True),
        real=ImageSet(config.training_set_kwargs["path"]),
        generated=generated.first,
        sampler=generated,
        seed=config.seed,
        keep_going=keep_going,
    )
    for detector in metric_main.prepare(names, opts, may_lack_images=True):
        print(describe(detector))
    results = {}
    for name in names:
        result, failure = metric_main.try_metric(name, opts)
        if result is None:
            print(f"Warning: {failure}; the table goes without it")
            continue
        for full_name, value in result["results"].items():
            error = result["standard_errors"].get(full_name)
            results[full_name] = {"value": value, "standard_error": error, "detector": result["detector"]}
        for warning in result["warnings"]:
            print(f"Warning: {name}: {warning}")
    return results


# The table


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of text, the header first."""
    metrics = list(dict.fromkeys(name for row in rows for name in row["results"]))
    header = ["stage", "cfg", "source", "data", "kimg", *metrics]
    return [header] + [
        [row["name"], row["cfg"], row["source"], row["data"], f"{row['kimg']:g}"]
        + [number(row["results"].get(name)) for name in metrics]
        for row in rows
    ]


def number(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    error = result["standard_error"]
    return f"{result['value']:.4g}" + ("" if not error else f" ± {error:.2g}")


def aligned(cells: list[list[str]]) -> list[str]:
    """The lines for a terminal."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def markdown(cells: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{' --- |' * len(cells[0])}", *lines[1:], ""]


# The picture


def draw_journey(path: Path, sampler: Sampler, lineage: list[Stage]) -> None:
    """A row for each seed: what goes in, and what every stage makes of it."""
    seeds = list(SEEDS)
    columns = journey(sampler, seeds)
    names = ["source" if sampler.feed.has_images else "noise z", *(s.name for s in lineage)]
    picture = arrange(columns, names[-len(columns) :])
    with atomic_write(path) as file:
        picture.save(file, format="PNG", pnginfo=png_info())


def journey(sampler: Sampler, seeds: list[int]) -> list[np.ndarray]:
    """uint8 `[seeds, h, w, 3]` of the input (noise as grey pixels), of every stage before the last, and of the last."""
    labels = sampler.label_distribution
    classes: list[int | None] = list(range(sampler.network.c_dim)) or [None]
    if labels is not None:
        classes = [*labels.occurred()] if labels.is_classes else [None]
    looks = [Look(class_idx=classes[row % len(classes)]) for row in range(len(seeds))]
    each = [sampler.pictures_before([seed], look) for seed, look in zip(seeds, looks, strict=True)]
    before = [torch.cat(images) for images in zip(*each, strict=True)]
    if not sampler.feed.has_images:
        before.insert(0, noise_pictures(sampler.latents(seeds).z))
    last = torch.cat([sampler.images([seed], look) for seed, look in zip(seeds, looks, strict=True)])
    return [rgb_pixels(images) for images in (*before, last)]


def noise_pictures(z: torch.Tensor) -> torch.Tensor:
    """z `[n, z_dim]` as grey images `[n, 1, h, w]` in [-1, 1]: two standard deviations are black and white."""
    try:
        height, width = grid_for(z.shape[1])
    except UserError:  # no rectangle: the rest of a square stays white
        height = width = math.isqrt(z.shape[1] - 1) + 1
    pixels = torch.ones([len(z), height * width], device=z.device)
    pixels[:, : z.shape[1]] = (z / 2).clamp(-1, 1)
    return pixels.reshape(-1, 1, height, width)


def arrange(columns: list[np.ndarray], names: list[str]) -> Image.Image:
    """Columns of images under their names, all in cells of the size of the last ones, enlarged where they are small."""
    height, width = columns[-1].shape[1:3]
    factor = max(-(-SMALLEST_CELL // max(height, width)), 1)
    cell = (width * factor, height * factor)
    step_x, step_y = cell[0] + GAP, cell[1] + GAP
    size = (len(columns) * step_x + GAP, len(columns[0]) * step_y + GAP + HEADER)
    picture = Image.new("RGB", size, PAGE)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default()
    for x, (name, images) in enumerate(zip(names, columns, strict=True)):
        left = GAP + x * step_x
        pen.text((left, GAP), shortened(name, cell[0], pen, font), fill="black", font=font)
        for y, pixels in enumerate(images):
            picture.paste(fitted(pixels, cell), (left, HEADER + GAP + y * step_y))
    return picture


def fitted(pixels: np.ndarray, cell: tuple[int, int]) -> Image.Image:
    """An image in the middle of a cell, in its own proportions; pixels of small ones stay sharp."""
    is_small = pixels.shape[0] <= cell[1] and pixels.shape[1] <= cell[0]
    method = Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
    return ImageOps.pad(Image.fromarray(pixels), cell, method, color=PAGE)


def shortened(name: str, width: int, pen: ImageDraw.ImageDraw, font: Any) -> str:
    """The name, cut to so many pixels."""
    if pen.textlength(name, font=font) <= width:
        return name
    while name and pen.textlength(name + "...", font=font) > width:
        name = name[:-1]
    return name + "..."
