"""Generate a video of images that turn into one another, along closed loops through latent space.

\b
# A loop through 16 seeds; four loops side by side; an animation that needs no extra package
python gen_video.py --network=network-snapshot-000200.pkl --seeds=0-15 --output=loop.mp4
python gen_video.py --network=network-snapshot-000200.pkl --seeds=0-31 --grid=4x2 --output=loops.mp4
python gen_video.py --network=network-snapshot-000200.pkl --seeds=0-3 --w-frames=30 --output=loop.gif

\b
# From one source image to the next; the stages of a cascade side by side
python gen_video.py --network=network-snapshot-000200.pkl --source-images=photos/ --output=photos.mp4
python gen_video.py --network=cascade.pkl --seeds=0-7 --stages --output=stages.mp4

\b
# A still picture of the same loop for papers: one row per loop, eight moments from left to right
python gen_video.py --network=network-snapshot-000200.pkl --seeds=0-7 --sheet=8

\b
# A single picture to and fro along a direction that directions.py has found
python gen_video.py --network=network-snapshot-000200.pkl --seeds=3 --direction=out/directions.npz:0=±3 --output=film.gif
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
import importlib.util
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image

import dnnlib
import dnnlib.cli
import shared_options
from dnnlib.bars import tqdm
from dnnlib.errors import UserError
from dnnlib.interrupts import importing
from gen_images import parse_size

KINDS = (".mp4", ".gif", ".png")


@click.command(help=__doc__, context_settings=shared_options.HELP)
@shared_options.NETWORK
@click.option(
    "--seeds",
    help="Seeds, such as 0,3,5-10; with --source-images numbers of images  [default there: all]",
    metavar="LIST",
    type=shared_options.parse_range,
)
@click.option("--shuffle-seed", help="Shuffle the seeds with this one", metavar="INT", type=click.IntRange(0))
@click.option("--grid", help="Loops side by side, columns x rows", metavar="WxH", type=parse_size, default="1x1")
@click.option(
    "--num-keyframes",
    help="Seeds in a loop, which repeat if there are too few  [default: the seeds shared out among the loops]",
    metavar="INT",
    type=click.IntRange(min=1),
)
@click.option(
    "--w-frames", help="Frames from one seed to the next", metavar="INT", type=click.IntRange(min=1), default=120
)
@shared_options.TRUNCATION
@shared_options.CLASS
@shared_options.LABEL
@click.option("--noise-mode", help="Pixel noise of StyleGAN2", type=click.Choice(["const", "none"]), default="const")
@click.option(
    "--direction",
    help="Move w along a direction that directions.py has found; with ±STRENGTH to and fro; may be given several times",
    metavar="FILE.npz:K=[±]STRENGTH",
    multiple=True,
)
@click.option("--output", help="Where to save the video; .gif needs no extra package", metavar="FILE.[mp4|gif]")
@shared_options.SOURCE_IMAGES
@click.option("--stages", help="Show the stages of a cascade side by side", is_flag=True)
@click.option(
    "--sheet",
    help="Save a still picture of so many moments too, beside the video, or as sheet.png or --output=FILE.png",
    metavar="INT",
    type=click.IntRange(1, 1000),
)
@click.option("--fps", help="Frames per second", type=click.IntRange(1, 240), default=60)
@shared_options.DEVICE
@shared_options.BATCH_BY_SIZE
def main(
    network: str,
    seeds: list[int] | None,
    shuffle_seed: int | None,
    grid: tuple[int, int],
    num_keyframes: int | None,
    w_frames: int,
    trunc: float,
    class_idx: int | str | None,
    label: tuple[float, ...] | None,
    noise_mode: str,
    direction: tuple[str, ...],
    output: str | None,
    source_images: str | None,
    stages: bool,
    sheet: int | None,
    fps: int,
    device: str,
    batch: int | None,
) -> None:
    video_path, sheet_path = choose_paths(output, sheet)
    with importing():
        from dnnlib.files import prepare_folder
        from training.data.videos import save_video
        from training.sampling.conditions import check_look
        from training.sampling.directions import add_directions
        from training.sampling.sampler import Look, choose_seeds, default_batch, open_sampler
        from training.sampling.walks import StageWalk, Walk, arrange_seeds
    start_time = time.time()
    sampler = open_sampler(network, source_images, device, verbose=True)
    look = Look(class_idx, trunc, noise_mode, label)
    check_look(sampler, look)
    if stages and len(sampler.stages) == 1:
        raise UserError("--stages: the network has a single stage; a cascade is trained with --source=snapshot.pkl")
    columns, rows = grid
    arranged = arrange_seeds(choose_seeds(sampler, seeds), columns * rows, num_keyframes, shuffle_seed)
    sweeps = add_directions(sampler, direction, may_sweep=True)
    if video_path is not None and not sweeps:
        check_moves(arranged)
    for path in filter(None, (video_path, sheet_path)):
        prepare_folder(path.parent, "--output")

    batch = batch or default_batch(sampler.generator.img_resolution, sampler.device)
    walk = (StageWalk if stages else Walk)(sampler, arranged, look, batch, sweeps)
    saved = []
    if video_path is not None:
        num_frames = walk.num_keys * w_frames
        pictures = walk.pictures(np.arange(num_frames) / w_frames)
        frames = (frame_of(picture, columns) for picture in pictures)
        save_video(video_path, tqdm(frames, total=num_frames, desc="Frames", disable=None, leave=False), fps)
        saved.append(f"{video_path} ({num_frames} frames, {length_line(video_path, num_frames, fps)})")
    if sheet_path is not None and sheet is not None:
        save_sheet(sheet_path, list(walk.pictures(np.arange(sheet) * walk.num_keys / sheet)))
        saved.append(f"{sheet_path} ({sheet} moments)")
    elapsed = dnnlib.util.format_time(time.time() - start_time)
    num = f"{arranged.size} latent{'s'[: arranged.size > 1]}"
    print(f"Saved {', '.join(saved)} through {num} in {elapsed} on {sampler.device}")


def choose_paths(output: str | None, sheet: int | None) -> tuple[Path | None, Path | None]:
    """Where the video and the sheet go, None for what is not made. Raises `UserError` that names `--output`."""
    if output is None:
        if sheet is None:
            raise UserError("--output=FILE.mp4 is needed, or --sheet=N for a still picture")
        return None, Path("sheet.png")
    path = Path(output)
    kind = path.suffix.lower()
    if kind not in KINDS or (kind == ".png" and sheet is None):
        raise UserError(f"--output={output}: give FILE.mp4 or FILE.gif, or FILE.png together with --sheet=N")
    if path.is_dir():
        raise UserError(f"--output={output}: is a folder; give FILE.mp4")
    if kind == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError(f"--output={output}: mp4 needs one more package: pip install imageio-ffmpeg (or write a .gif)")
    if kind == ".png":
        return None, path
    return path, None if sheet is None else path.with_name(f"{path.stem}-sheet.png")


def check_moves(arranged: np.ndarray) -> None:
    """Raise `UserError` that names `--seeds` where every loop `[cells, K]` has a single seed, and nothing to turn into."""
    if (arranged == arranged[:, :1]).all():
        num_cells, what = len(arranged), "one seed" if len(arranged) == 1 else "one seed in every cell"
        raise UserError(
            f"--seeds: a video of {what} stands still; give {2 * num_cells} or more, such as --seeds=0-{4 * num_cells - 1} "
            "(gen_images.py makes pictures that stand still)"
        )


def length_line(path: Path, num_frames: int, fps: int) -> str:
    """How long a video lasts, as the file says; and where that is not the speed asked for, the one that it has."""
    if path.suffix.lower() != ".gif":
        return f"{num_frames / fps:.1f} s"
    from training.data.videos import gif_delay

    delay = gif_delay(fps)
    note = "" if delay * fps == 100 else f", {100 / delay:.4g} frames per second where a GIF cannot have {fps}"
    return f"{num_frames * delay / 100:.1f} s{note}"


def frame_of(picture: np.ndarray, columns: int) -> np.ndarray:
    """uint8 `[cells, stages, h, w, 3]` -> a frame `[H, W, 3]`: the stages of a cell side by side."""
    from training.data.grids import tile

    return tile(np.concatenate(list(picture.swapaxes(0, 1)), axis=2), columns)


def save_sheet(path: Path, pictures: list[np.ndarray]) -> None:
    """Pictures uint8 `[cells, stages, h, w, 3]` of N moments: a row of N for each cell and stage, time to the right."""
    from dnnlib.files import writing
    from training.data.grids import save_png, tile

    cells = np.stack(pictures, axis=2)  # [cells, stages, N, h, w, 3]
    with writing("--output"):
        save_png(path, Image.fromarray(tile(cells.reshape(-1, *cells.shape[3:]), columns=len(pictures))))


if __name__ == "__main__":
    dnnlib.cli.run(main)
