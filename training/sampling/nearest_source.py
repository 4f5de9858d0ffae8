"""Which picture in front of a network's encoder it turns into something nearest to a given one."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from metrics.detectors import Detector
from training.sampling.projection import perceived
from training.sampling.sampler import Look, Sampler
from training.sources.cascade import Cascade
from training.sources.source import Draw, ImageSource

SEEDS = 1000  # pictures of an earlier stage that are tried


@dataclass(frozen=True)
class Nearest:
    """For each of n targets."""

    numbers: list[int]
    """Of the source's images, or seeds of an earlier stage."""
    pictures: torch.Tensor
    """`[n, C, h, w]` in [-1, 1], what goes into the encoder."""
    images: torch.Tensor
    """`[n, C, h, w]`, what the network makes of them."""
    tried: int
    """How many there are."""


@torch.no_grad()
def nearest_sources(
    sampler: Sampler, eye: Detector, pixel_weight: float, targets: torch.Tensor, look: Look, batch: int
) -> Iterator[Nearest]:
    """Yield the nearest so far after every batch of pictures; targets `[n, C, h, w]` in [-1, 1].

    Compared as `Projector` does: by a perceptual eye, and by `pixel_weight` times the mean squared difference of pixels.
    """
    targets = targets.to(sampler.device)
    goal = perceived(eye, targets)
    least = torch.full([len(targets)], torch.inf, device=sampler.device)
    numbers = torch.zeros([len(targets)], dtype=torch.int64)
    pictures, made = None, torch.zeros_like(targets)
    for some, tried in candidates(sampler, look, batch):
        first = tried - len(some)
        c = sampler.labels(len(some), look)
        images = sampler.synthesize(sampler.last_ws(sampler.generator.mapping.encoder(some), c, look), look)
        differences = torch.cdist(targets.flatten(1), images.flatten(1)).square() / targets[0].numel()
        distances = torch.cdist(goal, perceived(eye, images)).square() + pixel_weight * differences
        values, rows = distances.min(dim=1)
        is_nearer = values < least
        pictures = some[rows] if pictures is None else torch.where(is_nearer[:, None, None, None], some[rows], pictures)
        made = torch.where(is_nearer[:, None, None, None], images[rows], made)
        numbers = torch.where(is_nearer.cpu(), first + rows.cpu(), numbers)
        least = torch.minimum(values, least)
        yield Nearest(numbers.tolist(), pictures, made, tried)


def num_candidates(sampler: Sampler) -> int:
    source = sampler.feed.source
    return len(source.images) if isinstance(source, ImageSource) else SEEDS


def candidates(sampler: Sampler, look: Look, batch: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Pictures in front of the last encoder `[n, C, h, w]`, and how many they are by then: all images of the source, through the
    stages before the last; or those of the first seeds, where stage one is fed with noise."""
    source, num = sampler.feed.source, num_candidates(sampler)
    for first in range(0, num, batch):
        rows = range(first, min(first + batch, num))
        draw = Draw(index=torch.tensor(rows)) if isinstance(source, ImageSource) else sampler.draws(rows, look)
        if isinstance(sampler.network, Cascade):
            pictures = sampler.network.first_images(sampler.feed.latents(draw))
        else:
            pictures = source.materialize(draw)
        yield pictures, rows.stop
