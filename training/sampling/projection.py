"""Finding the latents of given pictures in a trained network (Karras 2020, "Analyzing and Improving the Image Quality of
StyleGAN", appendix D; Abdal 2019 for w of every layer).

From the mean of w, Adam moves latents (and the noise maps of StyleGAN2) until the network's picture looks like the given one to a
perceptual distance. Noise on w, as wide as w itself at first, lets the search leave where it began and fades away.
"""

import math
from collections.abc import Iterator
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
from training.sampling.sampler import Latents, Look, Sampler

MEAN_SAMPLES, MEAN_BATCH = 1000, 100  # latents that the mean and the spread of w are taken from
LARGEST_SEEN = 256  # pixels a side; larger pictures are averaged down for the perceptual distance
MIN_NOISE_SIDE = 8  # of the noise maps that are kept from carrying signal


@dataclass(frozen=True)
class Search:
    """How latents are looked for. Numbers without a comment are those of Karras 2020."""

    space: str = "w"
    steps: int = 500
    learning_rate: float = 0.1
    rampup: float = 0.05  # share of the steps
    rampdown: float = 0.25
    initial_noise: float = 0.05  # times the spread of w
    noise_ramp: float = 0.75
    pixel_weight: float = 1.0  # of the mean squared difference of pixels, which pins down what the eye passes over
    noise_weight: float = 1e5  # of the correlation within noise maps
    has_noise_maps: bool = True  # whether they are looked for, too
    seed: int = 0


@dataclass
class Found:
    """What a search has come to."""

    latents: torch.Tensor
    """`[n, num_ws, w_dim]`; `[n, z_dim]` in z."""
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
        """Peak signal-to-noise ratio in dB, `[n]`, of pixels in [-1, 1]."""
        error = (self.images.clamp(-1, 1) - targets.to(self.images.device)).square().mean(dim=[1, 2, 3])
        return 10 * torch.log10(4 / error.clamp(min=1e-10))


class Projector:
    """Looks for the latents of a batch of pictures in the last generator of a sampler."""

    def __init__(self, sampler: Sampler, eye: Detector, search: Search, look: Look):
        """eye: its network is a perceptual one, whose vectors' squared distances count."""
        self.sampler, self.eye, self.search, self.look = sampler, eye, search, look
        self.G: Network = sampler.generator
        computes_in_float32(self.G)
        self.c = sampler.labels(1, look)
        self.mean, self.spread = self._statistics()

    @torch.no_grad()
    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean of latents `[..., d]`, and the root of the mean squared distance from it, by dimension."""
        gen = seeding.generator("projection", self.search.seed)
        parts = []
        for _ in range(MEAN_SAMPLES // MEAN_BATCH):
            z = self.sampler.feed.latents(self.sampler.feed.draw(MEAN_BATCH, gen))
            if self.search.space == "z":
                parts.append(self._last_z(z))
            else:
                parts.append(self.sampler.ws(Latents(z, c=self._conditions(gen)), self.look)[:, 0])
        all_of_them = torch.cat(parts)
        mean = all_of_them.mean(dim=0, keepdim=True)
        return mean, (all_of_them - mean).square().sum(dim=1).mean().sqrt()

    def _last_z(self, z: torch.Tensor) -> torch.Tensor:
        """z of the last generator, from latents of the first."""
        first_images = getattr(self.sampler.network, "first_images", None)
        return z if first_images is None else self.G.mapping.encoder(first_images(z))

    def _conditions(self, gen: torch.Generator) -> torch.Tensor | None:
        """What the network is told where a prior or label vectors are drawn for every image; None for classes."""
        if self.sampler.drawn_by(self.look) is None:
            return None
        return self.sampler.conditions(torch.randint(1 << 30, [MEAN_BATCH], generator=gen).tolist(), self.look)

    def run(self, targets: torch.Tensor, keep_every: int | None = None) -> Iterator[Found]:
        """What was found after every step, for targets `[n, C, h, w]` in [-1, 1]. keep_every: steps between frames."""
        search, n = self.search, len(targets)
        targets = targets.to(self.sampler.device)
        goal = self._seen(targets).detach()
        latents = self._start(n).requires_grad_(True)
        maps = self._noise_maps(n)
        optimizer = torch.optim.Adam([latents, *maps.values()], betas=(0.9, 0.999), lr=search.learning_rate)
        gen = seeding.generator("projection noise", search.seed, device=latents.device)
        frames: list[torch.Tensor] = []
        for step in range(search.steps):
            t = step / search.steps
            for group in optimizer.param_groups:
                group["lr"] = search.learning_rate * pace(t, search.rampup, search.rampdown)
            scale = self.spread * search.initial_noise * max(0.0, 1 - t / search.noise_ramp) ** 2
            images = self._images(
                latents + torch.randn(latents.shape, generator=gen, device=latents.device) * scale, maps
            )
            distances = (self._seen(images) - goal).square().sum(dim=1)
            loss = distances.sum() + search.pixel_weight * (images - targets).square().mean(dim=[1, 2, 3]).sum()
            loss = loss + search.noise_weight * sum(correlation(one) for one in maps.values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for one in maps.values():
                    one.sub_(one.mean(dim=[1, 2, 3], keepdim=True))
                    one.mul_(one.square().mean(dim=[1, 2, 3], keepdim=True).add(1e-12).rsqrt())
            if keep_every is not None and step % keep_every == 0:
                frames.append(images.detach().cpu())
            yield Found(
                latents.detach(), {name: one.detach() for name, one in maps.items()}, images.detach(), distances.detach(),
                step + 1, frames,
            )  # fmt: skip

    @torch.no_grad()
    def finished(self, found: Found, targets: torch.Tensor) -> Found:
        """The same with the images of the latents themselves, without noise on them."""
        found.images = self._images(found.latents, found.noise_maps)
        found.distances = (self._seen(found.images) - self._seen(targets.to(found.images.device))).square().sum(dim=1)
        if self.search.space == "w":
            found.latents = found.latents.expand(-1, self.G.num_ws, -1).contiguous()
        return found

    def _start(self, n: int) -> torch.Tensor:
        """The mean, `[n, z_dim]`, `[n, 1, w_dim]` or `[n, num_ws, w_dim]`."""
        if self.search.space == "z":
            return self.mean.repeat(n, 1)
        layers = self.G.num_ws if self.search.space == "w+" else 1
        return self.mean[:, None].repeat(n, layers, 1)

    def _noise_maps(self, n: int) -> dict[str, torch.Tensor]:
        """Those of the network, one for each picture, with gradients."""
        if not self.search.has_noise_maps:
            return {}
        return {
            name: noise[None, None].repeat(n, 1, 1, 1).requires_grad_(True)
            for name, noise in self.sampler.noise_maps.items()
        }

    def _images(self, latents: torch.Tensor, maps: dict[str, torch.Tensor]) -> torch.Tensor:
        """`[n, C, h, w]`."""
        if self.search.space == "z":
            c = None if self.c is None else self.c.expand(len(latents), -1)
            ws = self.G.mapping(latents, c)
        else:
            ws = latents.expand(-1, self.G.num_ws, -1)
        return functional_call(self.G.synthesis, maps, (ws,), {"noise_mode": "const", "force_fp32": True})

    def _seen(self, images: torch.Tensor) -> torch.Tensor:
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


def correlation(noise: torch.Tensor) -> torch.Tensor:
    """How much of `[n, 1, h, w]` can be told from the neighbour to the right and below, at all scales (Karras 2020, eq. 5 of
    appendix D)."""
    total = torch.zeros([], device=noise.device)
    while True:
        for dim in (2, 3):
            total = total + (noise * noise.roll(1, dim)).mean(dim=[1, 2, 3]).square().sum()
        if min(noise.shape[2:]) <= MIN_NOISE_SIDE:
            return total
        noise = torch.nn.functional.avg_pool2d(noise, 2)


# Files


def save_latents(path: Path, found: Found, index: int) -> None:
    """Write one picture's `w [1, num_ws, w_dim]`, as other people's programs have it, or `z [1, z_dim]`, and its noise maps."""
    name = "w" if found.latents.ndim == 3 else "z"
    arrays = {name: found.latents[index : index + 1].cpu().numpy()}
    arrays |= {f"noise.{key}": maps[index, 0].cpu().numpy() for key, maps in found.noise_maps.items()}
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def load_latents(path: str, G: Network) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`(ws [n, num_ws, w_dim], noise maps by name)` of a file of `w` or `z`, ours or other people's. Raises `UserError`."""
    with reading_arrays(path, "a projected_w.npz"), np.load(path, allow_pickle=False) as file:
        arrays = {key: np.asarray(file[key], dtype=np.float32) for key in file.files}
    maps = {
        key.removeprefix("noise."): torch.from_numpy(value) for key, value in arrays.items() if key.startswith("noise.")
    }
    buffers = dict(G.synthesis.named_buffers())
    for key, value in maps.items():
        if key not in buffers or buffers[key].shape != value.shape:
            raise UserError(f"{path}: its noise map {key} {list(value.shape)} is not one of this network's")
    if "w" in arrays:
        w = torch.from_numpy(arrays["w"])
        if w.ndim == 2:  # some programs save [num_ws, w_dim]
            w = w[None]
        if w.ndim != 3 or w.shape[1:] != (G.num_ws, G.w_dim):
            raise UserError(f"{path}: w has shape {list(w.shape)}, and this network takes [n, {G.num_ws}, {G.w_dim}]")
        return w, maps
    if "z" in arrays:
        z = torch.from_numpy(arrays["z"])
        if z.ndim != 2 or z.shape[1] != G.z_dim:
            raise UserError(f"{path}: z has shape {list(z.shape)}, and this network takes [n, {G.z_dim}]")
        if G.c_dim > 0:
            raise UserError(
                f"{path}: holds z, and what a conditional network makes of it depends on the class; look in w"
            )
        return G.mapping(z.to(next(G.parameters()).device), None).detach(), maps
    raise UserError(f"{path}: holds neither w nor z")
