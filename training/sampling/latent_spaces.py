"""Where project.py looks for a picture: z, w, w of every layer, or the pixels of a source image."""

from collections.abc import Iterable
from typing import Protocol

import torch

from dnnlib.errors import UserError
from training.conv_generator import ConvGenerator
from training.sampling.sampler import Look, Sampler
from training.sources.encoders import IdentityEncoder

MEAN_SAMPLES = 1000  # latents that the mean and the spread are taken from


class Space(Protocol):
    """What a search moves: points `[n, …]`, each of which stands for one picture of the last generator."""

    spread: float
    """Root of the mean squared distance from the mean: as wide is the noise on points at first, times a share."""

    def start(self, n: int) -> torch.Tensor:
        """Where the search begins, n times."""
        ...

    def ws(self, points: torch.Tensor) -> torch.Tensor:
        """`[n, num_ws, w_dim]`, with gradients."""
        ...

    def settled(self, points: torch.Tensor) -> torch.Tensor:
        """The points as files can hold them."""
        ...


class ZSpace:
    """z of the last generator, `[n, z_dim]`."""

    def __init__(self, sampler: Sampler, look: Look, seed: int):
        self.G, self.c = sampler.generator, sampler.labels(1, look)
        latents = sampler.some_latents(MEAN_SAMPLES, look, seed)
        self.mean, self.spread = mean_and_spread(sampler.last_z(part) for part in latents)

    def start(self, n: int) -> torch.Tensor:
        return self.mean.repeat(n, 1)

    def ws(self, points: torch.Tensor) -> torch.Tensor:
        return self.G.mapping(points, None if self.c is None else self.c.expand(len(points), -1))

    def settled(self, points: torch.Tensor) -> torch.Tensor:
        return points


class WSpace:
    """w, the same in all layers, `[n, 1, w_dim]`; or of every layer, `[n, num_ws, w_dim]`."""

    def __init__(self, sampler: Sampler, look: Look, seed: int, of_every_layer: bool):
        self.num_ws = sampler.generator.num_ws
        self.layers = self.num_ws if of_every_layer else 1
        latents = sampler.some_latents(MEAN_SAMPLES, look, seed)
        self.mean, self.spread = mean_and_spread(sampler.ws(part, look)[:, 0] for part in latents)

    def start(self, n: int) -> torch.Tensor:
        return self.mean[:, None].repeat(n, self.layers, 1)

    def ws(self, points: torch.Tensor) -> torch.Tensor:
        return points.expand(-1, self.num_ws, -1)

    def settled(self, points: torch.Tensor) -> torch.Tensor:
        return points


class SourceSpace:
    """The picture in front of the last generator's encoder, `[n, C, h, w]` in [-1, 1]: of the source, or of an earlier stage.

    starts: where the search begins, for each target.
    """

    spread = 0.0  # noise on pixels, which a whitening encoder would blow up

    def __init__(self, sampler: Sampler, look: Look, starts: torch.Tensor):
        self.G, self.c, self.starts = sampler.generator, sampler.labels(1, look), starts

    def start(self, n: int) -> torch.Tensor:
        assert n == len(self.starts)
        return self.starts.clone()

    def ws(self, points: torch.Tensor) -> torch.Tensor:
        z = self.G.mapping.encoder(points.clamp(-1, 1))
        return self.G.mapping(z, None if self.c is None else self.c.expand(len(points), -1))

    def settled(self, points: torch.Tensor) -> torch.Tensor:
        """Rounded to 256 steps, as PNGs have them."""
        return ((points.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def open_space(name: str, sampler: Sampler, look: Look, seed: int) -> Space:
    """z, w or w+."""
    return ZSpace(sampler, look, seed) if name == "z" else WSpace(sampler, look, seed, name == "w+")


def choose_space(sampler: Sampler, name: str | None, look: Look) -> str:
    """Where to look in this network: in w, unless its w is z. Raises `UserError` for a space that it does not have."""
    has_w = not isinstance(sampler.generator, ConvGenerator)
    if name in ("w", "w+") and not has_w:
        raise UserError(f"--space={name}: this network has no w; use --space=z, or leave it out")
    if name == "source" and isinstance(sampler.generator.mapping.encoder, IdentityEncoder):
        raise UserError("--space=source: the network was trained on noise and takes no images; use another space")
    name = name or ("w" if has_w else "z")
    if name in ("z", "source") and sampler.drawn_by(look) is not None:
        what = "one --class" if sampler.prior is None and not is_told_vectors(sampler) else "--label"
        raise UserError(f"--space={name}: what the network makes there depends on what it is told; give {what}")
    return name


def is_told_vectors(sampler: Sampler) -> bool:
    labels = sampler.label_distribution
    return labels is not None and not labels.is_classes


def mean_and_spread(points: Iterable[torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Mean `[1, d]` of `[n, d]`, and the root of the mean squared distance from it."""
    all_of_them = torch.cat(list(points))
    mean = all_of_them.mean(dim=0, keepdim=True)
    return mean, float((all_of_them - mean).square().sum(dim=1).mean().sqrt())
