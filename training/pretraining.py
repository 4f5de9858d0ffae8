"""Pre-training: before G meets D, it learns by least squares to draw a training image for each latent.

Latents and training images are paired by optimal assignment, block by block (minibatch transport, Fatras et al. 2020):
source images with the training images that they resemble, noise with the training images in the order of their principal
axes. The result is blurred, but it is spread over the data, and close to where a friendly source lies. `--pretrain` says how
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

from dnnlib.errors import naming
from metrics.progress_bar import progress_bar
from torch_utils import distributed, misc, seeding, training_stats
from training.config import TrainingConfig
from training.coreset import small
from training.dataset import BatchLoader, ImageFolderDataset, sample_order, to_float
from training.phases import Batch, Phase, TrainingStep
from training.source import Draw, LatentFeed

PHASE = "Pretrain"
STATISTIC = "Loss/G/pretraining"
ADAM = {"lr": 0.002, "betas": (0.9, 0.99), "eps": 1e-8}
BLOCK = 1024  # latents and images that are assigned to each other, at least
AT_A_TIME = 64  # images of a block that are decoded at full size
KEPT_BLOCKS = 2  # a loader may be ahead in the next one
FORBIDDEN = 1e6  # cost of a pair whose classes do not belong together, above all others


class Pairs:
    """Which latent stands for which training image, as a function of the position: the images come in `sample_order`."""

    def __init__(self, dataset: ImageFolderDataset, feed: LatentFeed, seed: int, batch_size: int):
        self.dataset, self.feed, self.seed = dataset, feed, seed
        self.block_size = math.ceil(BLOCK / batch_size) * batch_size
        self.block = functools.lru_cache(KEPT_BLOCKS)(self._block)

    def draw(self, start: int, count: int) -> Draw:
        """The choices of the latents for `count` positions from `start`, which lie in one block."""
        number, first = divmod(start, self.block_size)
        return {name: value[first : first + count] for name, value in self.block(number).items()}

    @torch.no_grad()
    def _block(self, number: int) -> Draw:
        indices = sample_order(len(self.dataset), self.seed, number * self.block_size, self.block_size)
        labels = torch.from_numpy(self.dataset.get_labels(indices))
        generator = seeding.generator(self.seed, PHASE, number)
        draw = self.feed.match(self.feed.draw(self.block_size, generator), labels)
        images = torch.cat([small_images(self.dataset, part) for part in np.array_split(indices, self.num_parts)])
        rows = assign(*keys(self.feed, draw, images), classes=self.classes(labels))
        return {name: value[rows] for name, value in draw.items()}

    @property
    def num_parts(self) -> int:
        return math.ceil(self.block_size / AT_A_TIME)

    def classes(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Of the training images, where a latent belongs to the class that it was matched with."""
        return labels.argmax(dim=1) if getattr(self.feed.source, "pairs", None) is not None else None


def small_images(dataset: ImageFolderDataset, indices: np.ndarray) -> torch.Tensor:
    """`[n, C * 8 * 8]`."""
    pixels = np.empty([len(indices), *dataset.image_shape], dtype=dataset.dtype)
    dataset.read_images(indices, pixels)
    return small(to_float(torch.from_numpy(pixels)))


class Keys(NamedTuple):
    """What latents and images are compared by, `[N, d]` both, centred."""

    latents: torch.Tensor
    images: torch.Tensor


def keys(feed: LatentFeed, draw: Draw, images: torch.Tensor) -> Keys:
    """Of source images and training images `[N, C * 8 * 8]` the small pixels, grey where one of them is; of noise its first
    dimensions, and the training images along their first principal axes."""
    images = images - images.mean(dim=0)
    if not feed.has_images:
        z = draw["z"][:, : min(draw["z"].shape[1], *images.shape)]
        axes = torch.linalg.svd(images, full_matrices=False).Vh[: z.shape[1]]  # [d, C * 8 * 8]
        return Keys(z, images @ axes.t())
    parts = [feed.source.realize(part).cpu() for part in split(draw, AT_A_TIME)]
    sources = torch.cat([small(part) for part in parts])
    sources = sources - sources.mean(dim=0)
    if sources.shape[1] != images.shape[1]:
        sources, images = (x.unflatten(1, (-1, 64)).mean(dim=1) for x in (sources, images))
    return Keys(sources, images)


def split(draw: Draw, size: int) -> Iterator[Draw]:
    for first in range(0, len(next(iter(draw.values()))), size):
        yield {name: value[first : first + size] for name, value in draw.items()}


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

    Counts as the start of a run: it leaves no training state, and what is stopped in here begins anew.
    """
    assert config.pretrain_kimg is not None
    state = step.state
    pairs = Pairs(dataset, state.feed, config.seed, config.batch_size)
    phase = Phase(PHASE, state.G, torch.optim.Adam(state.G.parameters(), **ADAM), 1, paired_loss(step))
    step.num_skipped[PHASE] = 0
    step.set_progress()
    num_steps = math.ceil(config.pretrain_kimg * 1000 / config.batch_size)
    loader = BatchLoader(
        dataset,
        config.batch_size,
        rows_start=distributed.get_rank(),
        rows_step=distributed.get_world_size(),
        seed=config.seed,
        num_workers=config.num_workers,
    )
    is_shown = distributed.get_rank() == 0
    began, errors = time.monotonic(), training_stats.Collector(regex=STATISTIC)
    first_error = math.nan
    with loader, progress_bar(num_steps * config.batch_size, "Pre-training", " images", is_shown) as bar:
        for start in range(0, num_steps * config.batch_size, config.batch_size):
            with naming("--data"):
                images, labels = next(loader)
                draw = pairs.draw(start, config.batch_size)
            indices = sample_order(len(dataset), config.seed, start, config.batch_size)
            c = torch.from_numpy(dataset.get_labels(indices))
            step.run_phase(phase, step.divide({PHASE: draw}, {}, {PHASE: c}, images, labels))
            if start == 0:
                errors.update()
                first_error = errors[STATISTIC]
            bar.update(config.batch_size)
    distributed.broadcast_module(state.G)  # running means follow the images of each rank
    misc.copy_params_and_buffers(state.G, state.G_ema, require_all=True)
    errors.update()
    distributed.print0(
        f"Pre-training: {config.pretrain_kimg:g} kimg in {time.monotonic() - began:.0f} s; mean squared difference of pairs "
        f"{first_error:.3f} in the first step, {errors[STATISTIC]:.3f} on average after it"
    )


def paired_loss(step: TrainingStep) -> Callable[[Batch, float], torch.Tensor]:
    """Squared differences of generated images, without noise inputs, from those that they are paired with."""

    def accumulate(batch: Batch, gain: float) -> torch.Tensor:
        G = step.state.G
        z = step.state.feed.latents(batch.draws[PHASE], G.mapping.encoder)
        ws = G.mapping(z, batch.labels[PHASE], update_emas=batch.is_first)
        images = G.synthesis(ws, update_emas=batch.is_first, noise_mode="none")
        loss = (images - batch.real_images).square()
        training_stats.report(STATISTIC, loss)
        return step.weighted(loss, gain)

    return accumulate
