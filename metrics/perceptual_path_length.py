"""Perceptual path length (Karras 2019, section 4.1; Karras 2020): how far images jump for a tiny step of the latent.

    PPL = E[ LPIPS(G(z_t), G(z_{t + e})) / e^2 ],    e = 1e-4

on a path between two random latents: a straight line in w, a great circle in z. Smaller is smoother. Noise on pixels is
drawn anew for each path, and is the same at both ends of a step. Images of more than 256 pixels a side are averaged down
to that after they were cropped, as in the papers; the official PyTorch code goes by their size before, and so shows LPIPS
half of it where it crops.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from dnnlib.errors import UserError
from metrics.sample_loop import over_samples
from metrics.stopping import KeepGoing
from torch_utils import seeding

EPSILON = 1e-4
LARGEST_SIDE = 256  # what LPIPS looks at
KEPT_PERCENT = (1, 99)  # distances beyond are left out of the mean
Latents = Callable[[list[int]], tuple[torch.Tensor, torch.Tensor | None]]


class PathLength(NamedTuple):
    mean: float
    error: float  # standard error of the mean
    num_kept: int


def perceptual_path_length(
    G: Any,
    latents: Latents,
    distance_vectors: Callable[[torch.Tensor], torch.Tensor],
    num_samples: int,
    space: str = "w",
    sampling: str = "end",
    crop: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    progress: str | None = None,
    keep_going: KeepGoing = None,
) -> PathLength:
    """Measure on every process, each of which does its share.

    latents: numbers of samples -> `(z, c)`; sample i uses numbers 2i and 2i + 1. distance_vectors: float images
    `[n, 3, h, w]` in [0, 255] -> vectors whose squared distance is the perceptual one. space: `z` or `w`. sampling:
    `full` takes t from [0, 1], `end` takes 0. crop: only the middle of the face, as on FFHQ in the first paper.
    """
    assert space in ("z", "w")
    assert sampling in ("full", "end")

    def compute(samples: list[int]) -> torch.Tensor:
        return distances_of(G, latents, distance_vectors, samples, space, sampling, crop, seed)

    return summary(over_samples(compute, num_samples, batch_size, progress, keep_going).double().numpy())


def distances_of(
    G: Any,
    latents: Latents,
    distance_vectors: Callable[[torch.Tensor], torch.Tensor],
    samples: list[int],
    space: str,
    sampling: str,
    crop: bool,
    seed: int,
) -> torch.Tensor:
    """`[n]` on the CPU."""
    z0, c = latents([2 * sample for sample in samples])
    z1, _ = latents([2 * sample + 1 for sample in samples])
    t = torch.tensor([float(torch.rand([], generator=seeding.generator("ppl", seed, sample))) for sample in samples])
    t = (t if sampling == "full" else torch.zeros_like(t)).to(z0.device)
    if space == "w":
        # Every row of ws is the same w, up to here; the step is taken in float64, which w is not known to.
        w0, w1 = (G.mapping(z, c).double() for z in (z0, z1))
        ws = [w0.lerp(w1, (t + step)[:, None, None].double()).float() for step in (0, EPSILON)]
    else:
        ws = [G.mapping(slerp(z0, z1, t[:, None] + step), c) for step in (0, EPSILON)]
    keys = [("ppl-pixels", seed, sample) for sample in samples]
    with seeding.sample_rows([*keys, *keys]):  # both ends of a step meet the same noise
        images = G.synthesis(torch.cat(ws), noise_mode="random", force_fp32=True)
    near, far = distance_vectors(for_lpips(images, crop)).chunk(2)
    return (near - far).square().sum(dim=1).cpu() / EPSILON**2


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Along the great circle from `[n, d]` to `[n, d]`; unit vectors."""
    a, b = (torch.nn.functional.normalize(x.double(), dim=1) for x in (a, b))
    angle = t * (a * b).sum(dim=1, keepdim=True).clamp(-1, 1).acos()
    side = torch.nn.functional.normalize(b - (a * b).sum(dim=1, keepdim=True) * a, dim=1)
    return (a * angle.cos() + side * angle.sin()).float()


def for_lpips(images: torch.Tensor, crop: bool) -> torch.Tensor:
    """`[n, C, h, w]` in [-1, 1] -> `[n, 3, h, w]` in [0, 255], the middle of it, at most 256 pixels a side."""
    if crop:
        unit = images.shape[2] // 8
        images = images[:, :, 3 * unit : 7 * unit, 2 * unit : 6 * unit]
    factor = images.shape[2] // LARGEST_SIDE
    if factor > 1:
        images = torch.nn.functional.avg_pool2d(images, factor)
    images = images[:, :3] if images.shape[1] > 3 else images
    return (images.expand(-1, 3, -1, -1) + 1) * 127.5


def summary(distances: np.ndarray) -> PathLength:
    low = np.percentile(distances, KEPT_PERCENT[0], method="lower")
    high = np.percentile(distances, KEPT_PERCENT[1], method="higher")
    kept = distances[(distances >= low) & (distances <= high)]
    return PathLength(float(kept.mean()), float(kept.std(ddof=1) / math.sqrt(len(kept))), len(kept))


def compute_ppl(
    opts: Any, num_samples: int, epsilon: float, space: str, sampling: str, crop: bool, batch_size: int
) -> float:
    """The official name of the path length. opts: a `metric_utils.MetricOptions`."""
    _check_epsilon(epsilon)
    sampler, vectors = opts.own.sampler, opts.detectors("lpips").vectors
    args = (opts.G, sampler.latents, vectors, num_samples, space, sampling, crop, opts.seed, batch_size)
    return perceptual_path_length(*args).mean


class PPLSampler(torch.nn.Module):
    """The official name of a draw of path lengths: labels `[n, c_dim]` -> `[n]`.

    vgg16: as `metric_utils.get_feature_detector` returns it, or anything that is called in that way.
    """

    def __init__(
        self, G: Any, G_kwargs: dict[str, Any], epsilon: float, space: str, sampling: str, crop: bool, vgg16: Any
    ):
        super().__init__()
        _check_epsilon(epsilon)
        if G_kwargs and G_kwargs != {"noise_mode": "const", "force_fp32": True}:
            raise UserError(f"PPLSampler: G_kwargs={G_kwargs}: only force_fp32 and noise that is the same at both ends")
        self.G, self.space, self.sampling, self.crop, self.vgg16 = G, space, sampling, crop, vgg16
        self.number = 0

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        samples = list(range(self.number, self.number + len(c)))
        self.number += len(c)

        def latents(numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
            return torch.randn([len(numbers), self.G.z_dim], device=c.device), c

        def vectors(images: torch.Tensor) -> torch.Tensor:
            return self.vgg16(images, resize_images=False, return_lpips=True)

        return distances_of(self.G, latents, vectors, samples, self.space, self.sampling, self.crop, seed=0)


def _check_epsilon(epsilon: float) -> None:
    if epsilon != EPSILON:
        raise UserError(f"path lengths: epsilon={epsilon} is not taken here, it is {EPSILON}")
