"""A pool of the outputs of a network source, so that the steps of a later stage need not run the earlier ones each time.

The outputs form an endless sequence of blocks: block s is a function of the seed and s alone. At step t of a run (t =
images seen / batch) the pool holds the blocks t to t + K - 1, so that each step makes one new block and drops the oldest.
What the pool holds is a function of the position: a run that is resumed computes it anew, to the bit, and processes and
accumulation rounds agree on it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from torch_utils import distributed, seeding
from training.data.image_tensors import small
from training.sources.encoders import Encoder
from training.sources.feed import LatentFeed
from training.sources.source import Draw

NEW_PER_IMAGE = 0.25  # outputs that are made for each image that D sees; a step without the pool makes 2 to 4


def block_size(batch_size: int) -> int:
    return max(round(batch_size * NEW_PER_IMAGE), 1)


@dataclass(frozen=True)
class StageCacheSpec:
    """What `--stage-cache` asks for; by default nothing, so that every step runs the stages before."""

    size: int | None = None
    """Outputs in the pool."""

    def as_data(self) -> int | None:
        return self.size

    def open(
        self, feed: LatentFeed, batch_size: int, seed: int, cur_nimg: Callable[[], int]
    ) -> "LatentFeed | StageCache":
        """What the steps of a run draw latents from."""
        return feed if self.size is None else StageCache(feed, self.size, batch_size, seed, cur_nimg)


class StageCache:
    """A `LatentFeed` for the steps of a run, drawing from the pool: `draw` and `latents` as there.

    feed: of a network source. size: outputs in the pool, rounded up to whole blocks. cur_nimg: tells how many images D has
    seen. The pool holds z `[size, z_dim]`, or the images `[size, C, h, w]` where the encoder is trained.
    """

    def __init__(self, feed: LatentFeed, size: int, batch_size: int, seed: int, cur_nimg: Callable[[], int]):
        self.feed, self.batch_size, self.seed, self.cur_nimg = feed, batch_size, seed, cur_nimg
        self.block = block_size(batch_size)
        self.num_blocks = -(-size // self.block)
        self.pool: torch.Tensor | None = None
        self.step = 0  # that the pool stands at

    def draw(self, n: int, generator: torch.Generator | None) -> Draw:
        """The random choices for n samples: places in the pool, and the noise on z."""
        places = torch.randint(self.num_blocks * self.block, [n], generator=generator)
        return self.feed.with_noise(Draw(pool=places), n, generator)

    def latents(self, draw: Draw, encoder: Encoder | None = None) -> torch.Tensor:
        """z `[n, z_dim]`, through `encoder` where it is trained. Draws of the feed itself are taken, too."""
        if draw.pool is None:
            return self.feed.latents(draw, encoder)
        encoder = self.feed.encoder if encoder is None else encoder
        z = encoder(self.values(draw))  # which leaves z as it is
        return self.feed.add_noise(z, draw)

    def values(self, draw: Draw) -> torch.Tensor:
        """What the pool holds at the places of a draw: z `[n, z_dim]`, or images `[n, C, h, w]`."""
        pool = self.at_position()
        assert draw.pool is not None
        return pool[draw.pool.to(pool.device)]

    @torch.no_grad()
    def points(self, draw: Draw) -> torch.Tensor:
        """What core-sets measure distances between, `[n, d]`: z, or under a trained encoder small images."""
        values = self.values(draw)
        return self.latents(draw) if values.ndim == 2 else small(values)

    @torch.no_grad()
    def at_position(self) -> torch.Tensor:
        """The pool as it is after so many images; on all ranks, since they share the work."""
        step = self.cur_nimg() // self.batch_size
        if self.pool is None:
            blocks = [self.make_block(serial) for serial in range(step, step + self.num_blocks)]
            self.pool = torch.cat(blocks).roll(step % self.num_blocks * self.block, dims=0)
        else:
            for serial in range(self.step + self.num_blocks, step + self.num_blocks):
                first = serial % self.num_blocks * self.block
                self.pool[first : first + self.block] = self.make_block(serial)
        self.step = step
        return self.pool

    def make_block(self, serial: int) -> torch.Tensor:
        """One block of the sequence, each rank computing its rows where they can be shared out evenly."""
        generator = seeding.generator(self.seed, "stage cache", serial)
        draw = self.feed.source.draw(self.block, generator)
        world_size = distributed.get_world_size()
        if world_size == 1 or self.block % world_size != 0:
            return self.materialize(draw)
        rows = seeding.Rows(self.block, distributed.get_rank(), world_size)
        return distributed.gather_rows(self.materialize(draw.each(rows.take)))

    def materialize(self, draw: Draw) -> torch.Tensor:
        images = self.feed.source.materialize(draw)
        return images if self.feed.encoder.is_trainable else self.feed.encoder(images)
