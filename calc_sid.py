"""Find the friendly neighbour of a target: rank sources by the signed inception distance, beside FID and KID.

\b
# Which of three sources should a generator of emoji start from?
python calc_sid.py --target=emoji.zip --source=tinyimagenet.zip,cifar10.zip,noise

\b
# Train from the best of them
python train.py --data=emoji.zip --cfg=stylegan2 --source=$(python calc_sid.py --target=emoji.zip --source=a.zip,b.zip --best)

\b
# All pairs, as a heat map
python calc_sid.py --source=a.zip,b.zip,stage-one.pkl --matrix --outdir=out
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

import dnnlib.cli
import shared_options
from dnnlib.errors import UserError, naming
from dnnlib.interrupts import importing
from metrics.settings import DEFAULT_PROBES, DETECTOR_NAMES, ORDERS, PUBLISHED_PROBES, RESIZE_MODES
from training.data.shards import split_list

if TYPE_CHECKING:
    from metrics.detectors import Detector
    from metrics.feature_stats import Images
    from metrics.friendly_neighbours import Ranking, Request


def split_paths(context: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(path for value in values for path in split_list(value)))


@click.command(help=__doc__, context_settings=shared_options.HELP)
@click.option("--target", help="The images that shall be made", metavar="ZIP|DIR|PKL", type=dnnlib.cli.IMAGE_SETS)
@click.option(
    "--source",
    "sources",
    help="Candidates, with commas between them or repeated; braces ('a-{0..7}.zip') make one; `noise` is Gaussian noise",
    metavar="ZIP|DIR|PKL|noise,…",
    multiple=True,
    required=True,
    callback=split_paths,
)
@click.option("--matrix", help="All pairs of the sources (and the target), as a heat map", is_flag=True)
@click.option("--best", help="Print the path of the friendliest source and nothing else", is_flag=True)
@click.option(
    "--outdir", help="Where sid.json, sid.csv and sid.png go  [default: nowhere with --best, else .]", metavar="DIR"
)
@click.option(
    "--detector",
    help="Network that sees the images; auto: inception if at hand, else efficientnet, else tiny; or an .onnx file",
    metavar=DETECTOR_NAMES,
    default="auto",
)
@shared_options.DETECTOR_WEIGHTS
@click.option(
    "--resize",
    help="How images get to its size  [default: tf; clean with --published]",
    type=click.Choice(RESIZE_MODES),
)
@click.option(
    "--order",
    help="Order of the kernel; 0 is the logarithm, 2 has one (paper, equation 1); with --published plain powers",
    type=click.Choice([str(k) for k in ORDERS]),
    default="1",
)
@click.option(
    "--probes",
    help=f"Points that distances are taken from  [default: {DEFAULT_PROBES}; {PUBLISHED_PROBES} with --published]",
    type=click.IntRange(min=2),
)
@click.option(
    "--published",
    help="The slow estimator of the paper's code, to compare with old numbers: 20 rounds of 500 probes and features, "
    "clean resizing, its kernel; a mean over probes where that code has a sum (500 times as large)",
    is_flag=True,
)
@click.option("--max-images", help="Images of a set that are looked at", type=click.IntRange(min=2), default=50_000)
@click.option("--num-gen", help="Images that a snapshot makes", type=click.IntRange(min=2), default=10_000)
@click.option("--batch", help="Images at a time", type=click.IntRange(min=1), default=64)
@click.option("--strict", help="Stop at images that cannot be read", is_flag=True)
@click.option("--seed", type=int, default=0)
@shared_options.DEVICE
def main(target: str | None, sources: list[str], matrix: bool, best: bool, outdir: str | None, **options: Any) -> None:
    check(target, sources, matrix, best)
    with importing():
        from dnnlib.files import prepare_folder, writing
        from metrics import friendly_neighbours
        from metrics.detectors import describe, open_detector
        from metrics.friendly_neighbours import Request
        from torch_utils.misc import choose_device
    device = choose_device(options["device"])
    images = open_all(target, sources, options["num_gen"], device, options["seed"])
    resize = options["resize"] or ("clean" if options["published"] else "tf")
    detector = open_detector(options["detector"], options["detector_weights"], resize, device, verbose=True)
    folder = Path(outdir or ".") if outdir is not None or not best else None
    if folder is not None:
        prepare_folder(folder, "--outdir")
    print(describe(detector), file=sys.stderr)
    request = Request(
        order=int(options["order"]),
        probes=options["probes"],
        seed=options["seed"],
        mode="published" if options["published"] else "shared",
        max_images=options["max_images"],
        batch_size=options["batch"],
        is_strict=options["strict"],
    )
    rankings = [rank_one(path, images, detector, request) for path in (images if matrix else [target])]
    print(rankings[0].best.path if best else "\n\n".join(friendly_neighbours.table(ranking) for ranking in rankings))
    if folder is not None:
        with writing("--outdir"):
            report(folder, rankings, list(images) if matrix else [])


def check(target: str | None, sources: list[str], matrix: bool, best: bool) -> None:
    if matrix and best:
        raise UserError("--best names one source, and --matrix compares all pairs: leave one out")
    if not matrix and target is None:
        raise UserError("--target is needed: the images that shall be made (or --matrix, for all pairs of --source)")
    if not sources:
        raise UserError("--source: names nothing; give zips, folders or snapshots with commas between them")
    if matrix and len(dict.fromkeys([*sources, *([target] if target else [])])) < 2:
        raise UserError("--matrix: needs two sets at least; give more with --source=A,B,C")


def open_all(target: str | None, sources: list[str], num_gen: int, device: Any, seed: int) -> dict[str, Images]:
    """The opened images by path, the target first."""
    from training.data.image_sets import name_apart
    from training.sampling.generated_images import open_images

    images = {}
    for flag, paths in (("--target", [target] if target is not None else []), ("--source", sources)):
        with naming(flag):
            images |= {path: open_images(path, num_gen, device, seed) for path in paths if path not in images}
    name_apart(images)
    for path, one in images.items():
        if getattr(one, "note", None) is not None:
            print(f"Warning: {path}: {one.note}", file=sys.stderr)
    return images


def rank_one(target: str, images: dict[str, Images], detector: Detector, request: Request) -> Ranking:
    """The other sets as sources of this one; the target itself only where it is the only one."""
    from metrics.friendly_neighbours import rank_sources

    sources = {path: one for path, one in images.items() if path != target} or images
    return rank_sources(images[target], sources, detector, request)


def report(folder: Path, rankings: list[Ranking], matrix_paths: list[str]) -> None:
    """All files. matrix_paths: the sets that were compared pair by pair, in the order of the rankings."""
    from metrics import friendly_neighbours, sid_plots

    friendly_neighbours.write_reports(folder, rankings, shlex.join(["python", *sys.argv]))
    written = ["sid.json", "sid.csv", "sid.png"]
    sid_plots.draw_curves(folder / "sid.png", rankings[0])
    if matrix_paths:
        values = np.zeros([len(matrix_paths), len(matrix_paths)])
        for column, ranking in enumerate(rankings):
            for neighbour in ranking.neighbours:
                values[matrix_paths.index(neighbour.path), column] = neighbour.sid.csid
        names = [ranking.target for ranking in rankings]
        sid_plots.draw_matrix(folder / "sid-matrix.png", names, values, rankings[0].detector)
        written.append("sid-matrix.png")
    print(f"Wrote {', '.join(str(folder / name) for name in written)}", file=sys.stderr)


if __name__ == "__main__":
    dnnlib.cli.run(main)
