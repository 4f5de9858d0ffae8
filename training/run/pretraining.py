"""Pre-training: before G meets D, it learns by least squares to draw a training image for each latent.

Latents and training images are paired by optimal assignment, block by block (minibatch transport, Fatras et al. 2020):
source images with the training images that they resemble, noise with the training images along their principal axes. The
result is blurred, but it is spread over the data, and close to where a friendly source lies. `--pretrain` says how
long; docs/results.md what it brings.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from dnnlib.errors import UserError, naming
from metrics.progress_bar import progress_bar
from torch_utils import distributed, misc, seeding, training_stats
from training.config.run_config import TrainingConfig
from training.data.grids import rgb_pixels
from training.data.image_tensors import small, to_float
from training.dataset import ImageFolderDataset, sample_order
from training.run.adversarial import Term
from training.run.batches import Batch
from training.run.loader import BatchLoader
from training.run.state import TrainingState
from training.run.step import NotFinite, Phase, TrainingStep
from training.sources.feed import LatentFeed
from training.sources.source import Draw

PHASE = "Pretrain"
STATISTIC = "Loss/G/pretraining"
ADAM = {"lr": 0.002, "betas": (0.9, 0.99), "eps": 1e-8}
BLOCK = 1024  # latents and images that are assigned to each other, at least
AT_A_TIME = 64  # images of a block that are decoded at full size
FORBIDDEN = 1e6  # cost of a pair whose classes do not belong together, above all others


class Pairs:
    """Which latent stands for which training image, as a function of the position: the images come in `sample_order`.

    On all ranks; rank 0 looks at the images and assigns.
    """

    def __init__(self, dataset: ImageFolderDataset, feed: LatentFeed, seed: int, batch_size: int):
        self.dataset, self.feed, self.seed = dataset, feed, seed
        self.block_size = math.ceil(BLOCK / batch_size) * batch_size
        self.block = functools.lru_cache(1)(self._block)
        # The same axes in all blocks: their signs are arbitrary, and G would be taught one thing here, its opposite there.
        has_axes = not feed.has_images and distributed.get_rank() == 0
        self.axes = all_principal_axes(self.images(0)) if has_axes else None

    def draw(self, start: int, count: int) -> Draw:
        """The choices of the latents for `count` positions from `start`, which lie in one block."""
        number, first = divmod(start, self.block_size)
        return self.block(number).rows(slice(first, first + count))

    @torch.no_grad()
    def _block(self, number: int) -> Draw:
        labels = torch.from_numpy(self.dataset.get_labels(self.indices(number)))
        generator = seeding.generator(self.seed, PHASE, number)
        draw = self.feed.match(self.feed.draw(self.block_size, generator), labels)
        rows = None
        if distributed.get_rank() == 0:
            rows = assign(*keys(self.feed, draw, self.images(number), self.axes), classes=self.classes(labels))
        rows = distributed.broadcast_object(rows)
        return draw.rows(rows)

    def indices(self, number: int) -> np.ndarray:
        return sample_order(len(self.dataset), self.seed, number * self.block_size, self.block_size)

    def images(self, number: int) -> torch.Tensor:
        """The training images of a block, small: `[N, 3 * 8 * 8]`."""
        parts = np.array_split(self.indices(number), math.ceil(self.block_size / AT_A_TIME))
        return torch.cat([small_images(self.dataset, part) for part in parts])

    def classes(self, labels: torch.Tensor) -> torch.Tensor | None:
        """The classes of the training images, where a latent belongs to the class that it was matched with."""
        return None if self.feed.source.pairs is None else labels.argmax(dim=1)


def small_images(dataset: ImageFolderDataset, indices: np.ndarray) -> torch.Tensor:
    """`[n, 3 * 8 * 8]`."""
    pixels = np.empty([len(indices), *dataset.image_shape], dtype=dataset.dtype)
    dataset.read_images(indices, pixels)
    return small_rgb(to_float(torch.from_numpy(pixels)))


def small_rgb(images: torch.Tensor) -> torch.Tensor:
    """`[n, 1 | 3 | 4, h, w]` -> `[n, 3 * 8 * 8]`: grey repeated, what is transparent white."""
    return small(torch.from_numpy(rgb_pixels(images)).permute(0, 3, 1, 2) / 127.5 - 1)


def all_principal_axes(images: torch.Tensor) -> torch.Tensor:
    """The principal axes of images `[N, d]` as columns `[d, min(N, d)]`, that of the largest spread first."""
    return torch.linalg.svd(images - images.mean(dim=0), full_matrices=False).Vh.t()


class Keys(NamedTuple):
    """What latents and images are compared by, `[N, d]` both, centred."""

    latents: torch.Tensor
    images: torch.Tensor


def keys(feed: LatentFeed, draw: Draw, images: torch.Tensor, axes: torch.Tensor | None) -> Keys:
    """The keys for training images `[N, 3 * 8 * 8]`: small source images; or where the feed is noise, its first dimensions,
    and the images along as many `axes`."""
    images = images - images.mean(dim=0)
    if axes is not None:
        assert draw.z is not None
        z = draw.z[:, : axes.shape[1]]
        return Keys(z, images @ axes[:, : z.shape[1]])
    sources = torch.cat([small_rgb(feed.source.materialize(part)) for part in split(draw, AT_A_TIME)])
    return Keys(sources - sources.mean(dim=0), images)


def split(draw: Draw, size: int) -> Iterator[Draw]:
    for first in range(0, len(draw), size):
        yield draw.rows(slice(first, first + size))


def assign(latents: torch.Tensor, images: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
    """The row of `latents` `[N, d]` for each row of `images` `[N, d]`, int64 `[N]`: the permutation with the smallest sum of
    squared distances.

    classes: `[N]` of both, row by row; only rows of one class are paired.
    """
    # The squares are the same in every permutation: only the products decide.
    cost = -(images.double() @ latents.double().t())
    cost /= cost.abs().max().clamp(min=1e-30)
    if classes is not None:
        cost += FORBIDDEN * (classes.unsqueeze(1) != classes)
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


def pretrain(step: TrainingStep, dataset: ImageFolderDataset, config: TrainingConfig) -> None:
    """Train G on pairs for `config.pretrain_kimg`, with an optimizer of its own, and let G_ema begin there. On all ranks.

    Counts as the start of a run: it leaves no training state, and what is stopped in here begins anew. Raises `UserError`.
    """
    assert config.pretrain_kimg is not None
    state, began = step.state, time.monotonic()
    num_images = math.ceil(config.pretrain_kimg * 1000 / config.batch_size) * config.batch_size
    try:
        first, last = learn_pairs(step, dataset, config, num_images)
    except NotFinite as error:
        raise UserError(f"{error.what}; leave it out, or try another --seed", "--pretrain") from error
    except (KeyboardInterrupt, SystemExit):
        distributed.print0("Stopped in the pre-training: nothing is saved, the same command begins anew.")
        raise
    finally:
        step.num_skipped.pop(PHASE, None)
    misc.copy_params_and_buffers(state.G, state.G_ema, require_all=True)
    distributed.print0(
        f"Pre-training: {num_images / 1000:g} kimg in {time.monotonic() - began:.0f} s; mean squared difference of pairs "
        f"{first:.3f} in the first step, {last:.3f} in the last"
    )


def learn_pairs(
    step: TrainingStep, dataset: ImageFolderDataset, config: TrainingConfig, num_images: int
) -> tuple[float, float]:
    """Steps of G on so many pairs; the loss of the first step and of the last."""
    state, batch_size = step.state, config.batch_size
    pairs = Pairs(dataset, state.feed, config.seed, batch_size)
    optimizer = torch.optim.Adam(state.G.parameters(), **ADAM)
    phase = Phase(PHASE, state.G, optimizer, 1, paired_loss(state), moves_means=True)
    step.num_skipped[PHASE] = 0
    step.set_progress()
    errors, found = training_stats.Collector(regex=STATISTIC), []
    loader = BatchLoader(
        dataset,
        batch_size,
        rows_start=distributed.get_rank(),
        rows_step=distributed.get_world_size(),
        seed=config.seed,
        num_workers=config.num_workers,
    )
    with loader, progress_bar(num_images, "Pre-training", " images", distributed.get_rank() == 0) as bar:
        for start in range(0, num_images, batch_size):
            if start in (0, num_images - batch_size):
                errors.update()  # forgets those before
            with naming("--data"):
                images, labels = next(loader)
                draw = pairs.draw(start, batch_size)
            c = torch.from_numpy(dataset.get_labels(sample_order(len(dataset), config.seed, start, batch_size)))
            step.run_phase(phase, step.batches.divide({PHASE: draw}, {}, {PHASE: c}, images, labels))
            if start in (0, num_images - batch_size):
                errors.update()
                found.append(errors[STATISTIC])
            bar.update(batch_size)
    return found[0], found[-1]


def paired_loss(state: TrainingState) -> Callable[[Batch], Iterator[Term]]:
    """Squared differences of generated images, without noise inputs, from those that they are paired with."""

    def losses(batch: Batch) -> Iterator[Term]:
        G = state.G
        z = state.feed.latents(batch.draws[PHASE], G.mapping.encoder)
        ws = G.mapping(z, batch.labels[PHASE], update_emas=batch.is_first)
        images = G.synthesis(ws, update_emas=batch.is_first, noise_mode="none")
        loss = (images - batch.real_images).square()
        yield Term(loss, {STATISTIC: loss})

    return losses
