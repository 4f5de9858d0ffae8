"""Videos as files: MP4 by ffmpeg, GIF by Pillow."""

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image

from dnnlib.files import writing
from training.data.grids import BACKGROUND


def save_video(path: Path, frames: Iterable[np.ndarray], fps: int, flag: str = "--output") -> None:
    """Write frames uint8 `[H, W, 3]` under a temporary name, then rename: a reader never sees half a video.

    flag: what says where it goes, for messages.
    """
    temporary = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        with writing(flag):
            save = save_gif if path.suffix.lower() == ".gif" else save_mp4
            save(temporary, frames, fps)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_mp4(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    writer = imageio.get_writer(
        path, format="FFMPEG", mode="I", fps=fps, codec="libx264", pixelformat="yuv420p", quality=8, macro_block_size=1
    )
    with contextlib.closing(writer):
        for frame in frames:
            writer.append_data(even_sides(frame))
    try:  # ffmpeg says nothing to us of a disk that was full when it wrote the last bytes
        imageio.get_reader(path, format="FFMPEG").close()
    except Exception as error:
        raise OSError(errno.EIO, "ffmpeg left no readable video; is the disk full?", str(path)) from error


def save_gif(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    images = (Image.fromarray(frame) for frame in frames)
    first = next(images)
    first.save(path, save_all=True, append_images=images, duration=10 * gif_delay(fps), loop=0)


def even_sides(frame: np.ndarray) -> np.ndarray:
    """`[H, W, 3]` with a white line more where a side is odd, since the video's colours have half the resolution."""
    height, width, _ = frame.shape
    return np.pad(frame, [(0, height % 2), (0, width % 2), (0, 0)], constant_values=BACKGROUND)


def gif_delay(fps: int) -> int:
    """Hundredths of a second for a frame: the format counts them, and viewers slow down what lasts less than two."""
    return max(round(100 / fps), 2)
