"""What the cells of a run's `fakes…png` were made from: a text in the PNG, so that each can be made again."""

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from dnnlib.errors import UserError

KEY = "Spider-StyleGAN cells"
MAX_CELLS, MAX_NUMBERS = 10_000, 1 << 24


@dataclass(frozen=True)
class GridCells:
    """Row by row, from the left."""

    z: torch.Tensor
    """`[n, z_dim]` of the last generator, behind its encoder."""
    c: torch.Tensor | None
    """`[n, c_dim]`; None for unconditional networks."""
    seeds: tuple[int, ...]
    """What `gen_images.py --seeds` calls them; of a network on noise they give the same pictures."""

    def __post_init__(self) -> None:
        assert len(self.z) == len(self.seeds) and (self.c is None or len(self.c) == len(self.z))

    def text(self) -> dict[str, str]:
        """For the PNG."""
        data = {"seeds": list(self.seeds), "z": packed(self.z), "c": None if self.c is None else packed(self.c)}
        return {KEY: json.dumps(data)}


def read_cells(path: str | Path) -> GridCells:
    """Raises `UserError` for pictures of other programs, or of older runs."""
    try:
        with Image.open(path) as picture:
            picture.load()
            text = getattr(picture, "text", {}).get(KEY)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = "no image" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason})") from error
    if text is None:
        raise UserError(f"{path}: does not say what its cells are; give fakesNNNNNN.png of a run of this version")
    try:
        data = json.loads(text)
        c = None if data["c"] is None else unpacked(data["c"])
        return checked(unpacked(data["z"]), c, data["seeds"])
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise UserError(f"{path}: what it says of its cells is damaged") from error


def checked(z: torch.Tensor, c: torch.Tensor | None, seeds: Any) -> GridCells:
    """Raises `ValueError`."""
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds):
        raise ValueError("seeds")
    if not 0 < len(seeds) <= MAX_CELLS or len(z) != len(seeds) or (c is not None and len(c) != len(seeds)):
        raise ValueError("not one row for each cell")
    return GridCells(z, c, tuple(seeds))


def packed(rows: torch.Tensor) -> dict[str, Any]:
    """`[n, d]` float32 as JSON data."""
    values = rows.detach().to("cpu", torch.float32).numpy()
    return {"shape": list(values.shape), "float32": base64.b64encode(values.astype("<f4").tobytes()).decode()}


def unpacked(data: dict[str, Any]) -> torch.Tensor:
    """The inverse of `packed`. Raises `ValueError`, `KeyError` or `TypeError`."""
    n, d = data["shape"]
    if not (isinstance(n, int) and isinstance(d, int) and 0 < n * d <= MAX_NUMBERS):
        raise ValueError("shape")
    values = np.frombuffer(base64.b64decode(data["float32"], validate=True), dtype="<f4")
    rows = torch.from_numpy(values.astype(np.float32).reshape(n, d))
    if not rows.isfinite().all():
        raise ValueError("not finite")
    return rows
