"""A trained generator as a source: stage one of a cascade."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from torch_utils.misc import Network
from training.sources.cascade import Cascade, stage_images
from training.sources.feed import LatentFeed
from training.sources.label_distribution import LabelDistribution
from training.sources.source import Draw, Source

FIT_SAMPLES = 4096  # network outputs that the statistics of an encoder are computed from


class NetworkSource(Source):
    """A trained generator with the source that feeds it: stage one of a cascade.

    network: `G_ema` of a snapshot (a `Cascade` counts as one network); root: the source that the snapshot came with; labels:
    what a conditional network's are drawn from, evenly without.
    """

    def __init__(
        self,
        network: Network,
        root: Source,
        path: str,
        fingerprint: str,
        labels: LabelDistribution | None = None,
    ):
        self.network: Network = network.eval().requires_grad_(False)
        self.feed = LatentFeed(root, network.mapping.encoder)
        self.labels = None if labels is None else labels.values
        self.path = path
        self.fingerprint = fingerprint

    @property
    def img_channels(self) -> int:
        return self.network.img_channels

    @property
    def root(self) -> Source:
        return self.feed.source

    def to(self, device: torch.device | str) -> "NetworkSource":
        super().to(device)
        self.network.to(device)
        self.labels = None if self.labels is None else self.labels.to(device)
        self.feed.to(device)
        return self

    def draw(self, n: int, generator: torch.Generator | None) -> Draw:
        return Draw(stage=self.feed.draw(n, generator))

    def draw_of_seed(self, seed: int, generator: torch.Generator) -> Draw:
        return Draw(stage=self.feed.draw_of_seed(seed, generator))

    def materialize(self, draw: Draw) -> torch.Tensor:
        assert draw.stage is not None
        return stage_images(self.network, self.feed.latents(draw.stage), self.labels)

    def points(self, draw: Draw, latents: Callable[[Draw], torch.Tensor], is_trainable: bool) -> torch.Tensor:
        """The points of its own feed: images of all candidates would cost `factor` times what the stage costs."""
        assert draw.stage is not None
        return self.feed.points(draw.stage)

    def chained(self, generator: torch.nn.Module) -> torch.nn.Module:
        return Cascade.chain(self.network, generator, self.labels)

    def all_batches(self, batch_size: int = 64) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(0, FIT_SAMPLES, batch_size):
            yield self.sample(batch_size, generator)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "network",
            "path": self.path,
            "fingerprint": self.fingerprint,
            "source": self.root.describe(),
        }
