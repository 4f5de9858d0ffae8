"""Finding the latents of given pictures in a trained network (Karras 2020, "Analyzing and Improving the Image Quality of
StyleGAN", appendix D; Abdal 2019 for w of every layer).

From the mean of w, Adam moves latents (and the noise maps of StyleGAN2) until the network's picture looks like the given one to a
perceptual distance. Noise on w, as wide as w itself at first, lets the search leave where it began and fades away.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, reading_arrays
from metrics.detectors import Detector
from torch_utils import seeding
from torch_utils.misc import Network
from training.layers.precision import FLOAT32, MixedPrecision
from training.sampling.latent_spaces import Space
from training.sampling.sampler import Sampler, noise_maps_of

LARGEST_SEEN = 256  # pixels a side; larger pictures are averaged down for the perceptual distance
PIXEL_RATE = 0.02  # learning rate of the pixels of source images
NOISE = "noise."  # before the names of maps in files
MIN_NOISE_SIDE = 8  # of the noise maps that are kept from carrying signal


@dataclass(frozen=True)
class Search:
    """How latents are looked for. Numbers without a comment are those of Karras 2020."""

    steps: int = 500
    has_noise_maps: bool = True
    """Whether they are looked for, too."""
    seed: int = 0
    learning_rate: float = 0.1
    rampup: float = 0.05  # share of the steps
    rampdown: float = 0.25
    initial_noise: float = 0.05  # times the spread of w
    noise_ramp: float = 0.75
    pixel_weight: float = 1.0  # of the mean squared difference of pixels, which pins down what the eye passes over
    noise_weight: float = 1e5  # of the correlation within noise maps

    @classmethod
    def of_pixels(cls, steps: int, seed: int) -> "Search":
        """Among source images, whose pixels reach from -1 to 1. Without noise maps: the image alone shall make the picture."""
        return cls(steps, has_noise_maps=False, seed=seed, learning_rate=PIXEL_RATE)


@dataclass
class Found:
    """What a search has come to."""

    points: torch.Tensor
    """Of the space that was searched, `[n, …]`."""
    ws: torch.Tensor
    """`[n, num_ws, w_dim]`, what these stand for."""
    noise_maps: dict[str, torch.Tensor]
    """By the names of the network's buffers, `[n, 1, h, w]` each; none where they were not looked for."""
    images: torch.Tensor
    """`[n, C, h, w]` in [-1, 1], of these."""
    distances: torch.Tensor
    """Perceptual, `[n]`."""
    steps: int
    frames: list[torch.Tensor] = field(default_factory=list)
    """Images on the way."""

    def psnr(self, targets: torch.Tensor) -> torch.Tensor:
        """Of the images, `[n]`."""
        return psnr(self.images, targets)


def psnr(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, `[n]`, of pixels in [-1, 1]."""
    error = (images.clamp(-1, 1) - targets.to(images.device)).square().mean(dim=[1, 2, 3])
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def joined(parts: Sequence[Found]) -> Found:
    """What several searches have found, one after the other."""
    maps = {name: torch.cat([part.noise_maps[name] for part in parts]) for name in parts[0].noise_maps}
    points, ws, images, distances = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("points", "ws", "images", "distances")
    )
    return Found(points, ws, maps, images, distances, parts[0].steps)


class Projector:
    """Looks for the latents of a batch of pictures in the last generator of a sampler."""

    def __init__(self, sampler: Sampler, eye: Detector, space: Space, search: Search):
        """eye: its network is a perceptual one, whose vectors' squared distances count."""
        self.sampler, self.eye, self.space, self.search = sampler, eye, space, search
        self.G: Network = sampler.generator
        computes_in_float32(self.G)

    def run(self, targets: torch.Tensor, keep_every: int | None = None, first: int = 0) -> Iterator[Found]:
        """What was found after every step, for targets `[n, C, h, w]` in [-1, 1].

        keep_every: steps between frames; first: number of the first target among all, each of which has noise of its own.
        """
        search, n = self.search, len(targets)
        targets = targets.to(self.sampler.device)
        goal = self.seen(targets).detach()
        points = self.space.start(n).requires_grad_(True)
        maps = self.start_of_maps(n)
        optimizer = torch.optim.Adam([points, *maps.values()], betas=(0.9, 0.999), lr=search.learning_rate)
        streams = [seeding.generator("projection noise", search.seed, first + row) for row in range(n)]
        frames: list[torch.Tensor] = []
        for step in range(search.steps):
            t = step / search.steps
            optimizer.param_groups[0]["lr"] = search.learning_rate * pace(t, search.rampup, search.rampdown)
            width = self.space.spread * search.initial_noise * max(0.0, 1 - t / search.noise_ramp) ** 2
            noise = torch.stack([torch.randn(points.shape[1:], generator=stream) for stream in streams])
            ws = self.space.ws(points + noise.to(points.device) * width)
            images = self.images(ws, maps)
            distances, loss = self.loss(images, targets, goal)
            loss = loss + search.noise_weight * sum(correlation(one) for one in maps.values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            keep_white(maps.values())
            if keep_every is not None and step % keep_every == 0:
                frames.append(images.detach().cpu())
            found_maps = {name: one.detach() for name, one in maps.items()}
            yield Found(points.detach(), ws.detach(), found_maps, images.detach(), distances, step + 1, frames)

    def loss(
        self, images: torch.Tensor, targets: torch.Tensor, goal: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Perceptual distances `[n]` without gradients, and what is minimised. goal: `seen(targets)`."""
        distances = (self.seen(images) - goal).square().sum(dim=1)
        pixels = (images - targets).square().mean(dim=[1, 2, 3])
        return distances.detach(), (distances + self.search.pixel_weight * pixels).sum()

    @torch.no_grad()
    def finished(self, found: Found, targets: torch.Tensor) -> Found:
        """The same with the images of the points themselves, without noise on them, as files hold them."""
        found.points = self.space.settled(found.points)
        found.ws = self.space.ws(found.points).contiguous()
        found.images = self.images(found.ws, found.noise_maps)
        found.distances = (self.seen(found.images) - self.seen(targets.to(found.images.device))).square().sum(dim=1)
        return found

    def start_of_maps(self, n: int) -> dict[str, torch.Tensor]:
        """Those of the network, one for each picture, with gradients."""
        if not self.search.has_noise_maps:
            return {}
        return {
            name: noise[None, None].repeat(n, 1, 1, 1).requires_grad_(True)
            for name, noise in self.sampler.noise_maps.items()
        }

    def images(self, ws: torch.Tensor, maps: dict[str, torch.Tensor]) -> torch.Tensor:
        """`[n, C, h, w]`."""
        return functional_call(self.G.synthesis, maps, (ws,), {"noise_mode": "const", "force_fp32": True})

    def seen(self, images: torch.Tensor) -> torch.Tensor:
        """Vectors of the perceptual distance."""
        return perceived(self.eye, images)


def perceived(eye: Detector, images: torch.Tensor) -> torch.Tensor:
    """Vectors `[n, d]` of images `[n, 1 | 3 | 4, h, w]` in [-1, 1], with gradients; transparency on mid-grey."""
    if images.shape[1] == 4:
        alpha = (images[:, 3:] + 1) / 2
        images = images[:, :3] * alpha
    images = images.expand(-1, 3, -1, -1)
    factor = math.ceil(max(images.shape[2:]) / LARGEST_SEEN)
    if factor > 1:
        images = torch.nn.functional.avg_pool2d(images, factor)
    return eye.network(eye.normalise((images + 1) * 127.5))


def computes_in_float32(network: torch.nn.Module) -> None:
    """Gradients of a search are small: no layer halves its numbers."""
    for module in network.modules():
        if isinstance(module, MixedPrecision):
            module.halved = module.others = FLOAT32


def pace(t: float, rampup: float, rampdown: float) -> float:
    """Share of the learning rate at a share t of the steps: up in a line, down in a cosine."""
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / rampdown))
    return down * min(1.0, t / rampup) if rampup > 0 else down


@torch.no_grad()
def keep_white(maps: Iterable[torch.Tensor]) -> None:
    """Noise maps `[n, 1, h, w]` to zero mean and unit mean square, in place."""
    for one in maps:
        one.sub_(one.mean(dim=[1, 2, 3], keepdim=True))
        one.mul_(one.square().mean(dim=[1, 2, 3], keepdim=True).add(1e-12).rsqrt())


def correlation(noise: torch.Tensor) -> torch.Tensor:
    """How much of `[n, 1, h, w]` can be told from the neighbour to the right and below, at all scales (Karras 2020, appendix D).

    Averages of four are doubled, so that white noise keeps its variance from scale to scale.
    """
    total = torch.zeros([], device=noise.device)
    while True:
        for dim in (2, 3):
            total = total + (noise * noise.roll(1, dim)).mean(dim=[1, 2, 3]).square().sum()
        if min(noise.shape[2:]) <= MIN_NOISE_SIDE:
            return total
        noise = 2 * torch.nn.functional.avg_pool2d(noise, 2)


# Files


def save_latents(path: Path, found: Found, index: int, space: str) -> None:
    """Write one picture's `w [1, num_ws, w_dim]`, as other people's programs have it, and its noise maps; of `z` its z, too."""
    arrays = {"w": found.ws[index : index + 1].cpu().numpy()}
    if space == "z":
        arrays["z"] = found.points[index : index + 1].cpu().numpy()
    arrays |= {f"{NOISE}{key}": maps[index, 0].cpu().numpy() for key, maps in found.noise_maps.items()}
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def load_latents(path: str, G: Network) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`(ws [n, num_ws, w_dim], noise maps by name)` of a file of `w` or `z`, ours or other people's. Raises `UserError`."""
    with reading_arrays(path, "a projected_w.npz"), np.load(path, allow_pickle=False) as file:
        wanted = [key for key in file.files if key in ("w", "z") or key.startswith(NOISE)]
        arrays = {key: torch.from_numpy(np.asarray(file[key].real, dtype=np.float32)) for key in wanted}
    damaged = [key for key, value in arrays.items() if not value.isfinite().all()]
    if damaged:
        raise UserError(f"{path}: its {damaged[0]} holds NaN or infinite numbers; look for the picture again")
    if "w" in arrays:
        ws = checked_w(arrays["w"], path, G)
    elif "z" in arrays:
        ws = w_of_z(arrays["z"], path, G)
    else:
        raise UserError(f"{path}: holds neither w nor z; give what project.py has found")
    maps = {key.removeprefix(NOISE): value for key, value in arrays.items() if key.startswith(NOISE)}
    buffers = noise_maps_of(G)
    for key, value in maps.items():
        if key not in buffers or buffers[key].shape != value.shape:
            raise UserError(f"{path}: its noise map {key} {list(value.shape)} is not one of this network's")
    return ws, maps


def checked_w(w: torch.Tensor, path: str, G: Network) -> torch.Tensor:
    """`[n, num_ws, w_dim]`; some programs save `[num_ws, w_dim]`."""
    w = w[None] if w.ndim == 2 else w
    if w.ndim != 3 or len(w) == 0 or w.shape[1:] != (G.num_ws, G.w_dim):
        raise UserError(f"{path}: w has shape {list(w.shape)}, and this network takes [n, {G.num_ws}, {G.w_dim}]")
    return w


def w_of_z(z: torch.Tensor, path: str, G: Network) -> torch.Tensor:
    if z.ndim != 2 or len(z) == 0 or z.shape[1] != G.z_dim:
        raise UserError(f"{path}: z has shape {list(z.shape)}, and this network takes [n, {G.z_dim}]")
    if G.c_dim > 0:
        raise UserError(f"{path}: holds z alone, and what a conditional network makes of it depends on the class")
    return G.mapping(z.to(next(G.parameters()).device), None).detach()
