"""Closed loops between latents, for videos and rows of pictures."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from dnnlib.errors import UserError
from training.data.grids import rgb_pixels
from training.data.image_tensors import resize
from training.sampling.directions import Move
from training.sampling.sampler import Latents, Look, Sampler


class Loop:
    """Cubic splines through key points, closed and smooth all the way round: time K is time 0 again."""

    def __init__(self, keys: np.ndarray):
        """keys `[cells, K, d]`: the points at times 0 … K - 1."""
        closed = np.concatenate([keys, keys[:, :1]], axis=1).astype(np.float64)
        self.times = np.arange(closed.shape[1])
        self.spline = CubicSpline(self.times, closed, axis=1, bc_type="periodic")
        self.magnitudes = root_mean_square(closed)  # [cells, K + 1]

    def at(self, times: np.ndarray) -> np.ndarray:
        """`[F]` -> points `[F, cells, d]`."""
        return self.spline(times % self.times[-1]).transpose(1, 0, 2)

    def rescaled_at(self, times: np.ndarray) -> np.ndarray:
        """The points as `at` has them, as long as the key points: between two noise vectors the straight way is too short."""
        points = self.at(times)
        wanted = [np.interp(times % self.times[-1], self.times, row) for row in self.magnitudes]  # [cells][F]
        scale = np.stack(wanted, axis=1) / np.maximum(root_mean_square(points), 1e-12)  # [F, cells]
        return points * scale[:, :, None]


def root_mean_square(points: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(points).mean(axis=-1))


class Walk:
    """Closed loops through the latents of seeds, one loop per cell of a grid, in w of the last generator.

    seeds: `[cells, K]`; loop i passes through row i. batch: images at a time. sweeps: directions of w that the pictures
    move along, to and fro once in a loop.
    """

    def __init__(self, sampler: Sampler, seeds: np.ndarray, look: Look, batch: int, sweeps: Sequence[Move] = ()):
        self.sampler = sampler
        self.look = look
        self.batch = batch
        self.sweeps = sweeps
        self.num_cells, self.num_keys = seeds.shape
        keys = self.keys(sampler.latents(seeds.flatten().tolist(), look))
        self.loops = [Loop(key.reshape(*seeds.shape, -1).cpu().numpy()) for key in keys]

    def keys(self, latents: Latents) -> list[torch.Tensor]:
        """What the loops pass through, each `[n, d]`."""
        # All rows of ws are the same w.
        return [torch.cat([self.sampler.ws(part, self.look)[:, 0] for part in latents.split(self.batch)])]

    def points(self, times: np.ndarray) -> torch.Tensor:
        """`[F]` times -> `[F * cells, d]`."""
        return self.as_rows(self.loops[0].at(times))

    @torch.no_grad()
    def render(self, points: torch.Tensor, shares: torch.Tensor) -> list[torch.Tensor]:
        """`[n, d]` -> images `[n, C, h, w]`, one tensor per stage that is shown. shares: of the sweeps' strengths, `[n]`."""
        ws = points.unsqueeze(1).expand(-1, self.sampler.generator.num_ws, -1)
        return [self.synthesize(ws, shares)]

    def synthesize(self, ws: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        for sweep in self.sweeps:
            ws = sweep(ws, shares)
        return self.sampler.synthesize(ws, self.look)

    def pictures(self, times: np.ndarray) -> Iterator[np.ndarray]:
        """Yield for each time uint8 `[cells, stages, h, w, 3]`, all stages at the size of the last."""
        step = max(self.batch // self.num_cells, 1)
        for first in range(0, len(times), step):
            some = times[first : first + step]
            shares = (
                torch.from_numpy(np.sin(2 * np.pi * some / self.num_keys)).float().repeat_interleave(self.num_cells)
            )
            rows = zip(self.points(some).split(self.batch), shares.split(self.batch), strict=True)
            parts = [same_size(self.render(points, share)) for points, share in rows]
            pictures = np.concatenate(parts)  # [F * cells, stages, h, w, 3]
            yield from pictures.reshape(-1, self.num_cells, *pictures.shape[1:])

    def as_rows(self, values: np.ndarray) -> torch.Tensor:
        """`[F, cells, d]` -> float32 `[F * cells, d]` on the device."""
        return torch.from_numpy(values.reshape(-1, values.shape[-1])).to(self.sampler.device, torch.float32)


class StageWalk(Walk):
    """Loops in z of a cascade's first stage, shown in every stage: only there one point stands for all their images."""

    def keys(self, latents: Latents) -> list[torch.Tensor]:
        self.sizes = {name: part.shape[1] for name, part in latents.parts().items()}
        return list(latents.parts().values())

    def points(self, times: np.ndarray) -> torch.Tensor:
        return torch.cat([self.as_rows(loop.rescaled_at(times)) for loop in self.loops], dim=1)

    @torch.no_grad()
    def render(self, points: torch.Tensor, shares: torch.Tensor) -> list[torch.Tensor]:
        latents = Latents(**dict(zip(self.sizes, points.split(list(self.sizes.values()), dim=1), strict=True)))
        ws = self.sampler.ws(latents, self.look)
        return [*self.sampler.network.stages(latents.z), self.synthesize(ws, shares)]


def same_size(stages: list[torch.Tensor]) -> np.ndarray:
    """Images `[n, C, h, w]` of each stage -> uint8 `[n, stages, h, w, 3]` at the size of the last."""
    size = (stages[-1].shape[2], stages[-1].shape[3])
    return np.stack([rgb_pixels(resize(images, size)) for images in stages], axis=1)


def arrange_seeds(
    seeds: Sequence[int], num_cells: int, num_keyframes: int | None = None, shuffle_seed: int | None = None
) -> np.ndarray:
    """`[cells, K]`: the first K seeds are the key frames of the first cell, and so on.

    With `num_keyframes` the seeds repeat as often as they must. Raises `UserError` that names `--seeds`.
    """
    if num_keyframes is None:
        if len(seeds) < num_cells or len(seeds) % num_cells != 0:
            raise UserError(
                f"--seeds: {len(seeds)} cannot be shared out evenly among the {num_cells} cells of --grid; give "
                f"{num_cells}, {2 * num_cells}, {3 * num_cells}, … seeds, or --num-keyframes"
            )
        num_keyframes = len(seeds) // num_cells
    chosen = np.resize(np.asarray(seeds, dtype=np.int64), num_cells * num_keyframes)
    if shuffle_seed is not None:
        np.random.RandomState(shuffle_seed).shuffle(chosen)
    return chosen.reshape(num_cells, num_keyframes)
