"""A source seen through an encoder: the one place that draws latents."""

import dataclasses

import torch

from training.sources.encoders import Encoder
from training.sources.source import Draw, Source


class LatentFeed:
    """A source seen through an encoder: z `[n, z_dim]` for the generator, and the images behind it for people.

    With a parameter-free encoder and an image source, z of every image is computed once and kept on the device, so
    that a Spider iteration costs what a Gaussian one does. The noise of `--source-noise` is added here, and only here.
    """

    def __init__(self, source: Source, encoder: Encoder):
        self.source = source
        self.encoder = encoder
        self._table: torch.Tensor | None = None

    @property
    def has_images(self) -> bool:
        return self.source.has_images

    def to(self, device: torch.device | str) -> "LatentFeed":
        self.source.to(device)
        self._table = None
        return self

    def fit(self) -> None:
        """Set the encoder's statistics from the source."""
        if self.has_images:
            self.encoder.fit(self.source.all_batches())

    def draw(self, n: int, generator: torch.Generator | None) -> Draw:
        """The random choices for n samples: the source's, and the noise on z."""
        return self.with_noise(self.source.draw(n, generator), n, generator)

    def draw_of_seed(self, seed: int, generator: torch.Generator) -> Draw:
        """The choices for the one sample that a seed stands for; generator: of the seed."""
        return self.with_noise(self.source.draw_of_seed(seed, generator), 1, generator)

    def with_noise(self, draw: Draw, n: int, generator: torch.Generator | None) -> Draw:
        """Beside the choices that on z, if there is any."""
        if self.encoder.noise_std == 0:
            return draw
        return dataclasses.replace(draw, noise=torch.randn([n, self.encoder.z_dim], generator=generator))

    def match(self, draw: Draw, c: torch.Tensor | None) -> Draw:
        """The choices for samples with labels c `[n, c_dim]`; nothing changes unless the source's classes are paired."""
        return self.source.match(draw, c)

    def latents(self, draw: Draw, encoder: Encoder | None = None) -> torch.Tensor:
        """z `[n, z_dim]`; through `encoder` where it is trained and has copies (G's and G_ema's)."""
        encoder = self.encoder if encoder is None else encoder
        if draw.index is not None and self.source.is_list and not encoder.is_trainable:
            z = self.table[draw.index.to(self.source.device)]
        else:
            z = encoder(self.source.materialize(draw))
        return self.add_noise(z, draw)

    def add_noise(self, z: torch.Tensor, draw: Draw) -> torch.Tensor:
        return z if draw.noise is None else z + self.encoder.noise_std * draw.noise.to(z.device)

    @torch.no_grad()
    def points(self, draw: Draw) -> torch.Tensor:
        """What core-sets measure distances between, `[n, d]` on the device."""
        return self.source.points(draw, self.latents, self.encoder.is_trainable)

    def images(self, draw: Draw) -> torch.Tensor | None:
        """The source images behind a draw, `[n, C, h, w]` in [-1, 1]; None for noise."""
        return self.source.materialize(draw) if self.has_images else None

    @property
    @torch.no_grad()
    def table(self) -> torch.Tensor:
        if self._table is None:
            self._table = torch.cat([self.encoder(images) for images in self.source.all_batches()])  # [N, z_dim]
        return self._table
