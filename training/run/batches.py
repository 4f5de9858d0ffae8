"""What a step draws: real images with labels, and the choices that the generated images come from.

Every random number is a function of (seed, images seen, phase, sample): a step learns the same from the same batch however
it is divided over processes and accumulation rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from torch_utils import distributed, seeding, training_stats
from training.config.run_config import TrainingConfig
from training.data.image_tensors import to_float
from training.dataset import Labels
from training.run.state import TrainingState
from training.sources.coreset import Coverage, TargetOrder
from training.sources.source import Draw


@dataclass
class Batch:
    """What one process sees of a batch at a time."""

    rows: seeding.Rows
    is_first: bool  # of its accumulation rounds: the one that running means are updated from, once a step
    real_images: torch.Tensor  # [n, C, H, W] in [-1, 1]
    real_labels: torch.Tensor  # [n, c_dim]
    draws: dict[str, Draw]  # phase -> choices of the latents, of this micro-batch
    mixing_draws: dict[str, Draw]  # the second latents of style mixing
    labels: dict[str, torch.Tensor]  # phase -> labels of the generated images [n, c_dim]


class Batches:
    """Draws for whole batches, and gives this process its share in accumulation rounds."""

    def __init__(
        self, state: TrainingState, config: TrainingConfig, batch_gpu: int, labels: Labels, order: TargetOrder
    ):
        """labels: all labels of the dataset `[N, c_dim]`, from which those of generated images are drawn. order: which real
        images a batch has."""
        self.state, self.config, self.labels, self.order = state, config, labels, order
        self.feed = config.stage_cache.open(state.feed, config.batch_size, config.seed, lambda: state.cur_nimg)
        self.num_rounds = config.per_process // batch_gpu
        self.coreset = config.coreset.of_latents(self.feed)
        self.coverage: dict[str, Coverage] = {}  # phase -> how well its latents cover their candidates

    def rounds(self, phases: Sequence[str], images: torch.Tensor, labels: torch.Tensor) -> list[Batch]:
        """Accumulation rounds for phases by name, from this process's share of the real images and labels."""
        draws, mixing_draws, labels_of = {}, {}, {}
        num = self.config.batch_size * self.coreset.factor
        for name in phases:
            gen = seeding.generator(self.config.seed, self.state.cur_nimg, name, "latents")
            draw = self.feed.draw(num, gen)
            mixing_draw = self.feed.draw(num, gen) if self.config.style_mixing_prob > 0 else None
            c = self.labels[torch.randint(len(self.labels), [self.config.batch_size], generator=gen)]
            labels_of[name] = c
            draws[name] = self.state.feed.match(draw, c)  # source images of the classes that the labels are paired with
            if mixing_draw is not None:
                mixing_draws[name] = self.state.feed.match(mixing_draw, c)
        chosen, coverage = self.coreset.choose([*draws.values(), *mixing_draws.values()], self.config.batch_size)
        self.coverage = dict(zip(draws, coverage, strict=False))
        draws, mixing_draws = (
            dict(zip(group, part, strict=True))
            for group, part in ((draws, chosen[: len(draws)]), (mixing_draws, chosen[len(draws) :]))
        )
        return self.divide(draws, mixing_draws, labels_of, images, labels)

    def divide(
        self,
        draws: Mapping[str, Draw],
        mixing_draws: Mapping[str, Draw],
        labels_of: Mapping[str, torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
    ) -> list[Batch]:
        """Accumulation rounds from choices and labels for the whole batch, by phase, and this process's share of real
        images and labels."""
        world, rank = distributed.get_world_size(), distributed.get_rank()
        batches = []
        for index in range(self.num_rounds):
            rows = seeding.Rows(self.config.batch_size, start=index * world + rank, step=self.num_rounds * world)
            reals = to_float(images[index :: self.num_rounds].to(self.state.device))
            batches.append(
                Batch(
                    rows=rows,
                    is_first=index == 0,
                    real_images=self.state.D.preprocess_real(reals),
                    real_labels=labels[index :: self.num_rounds].to(self.state.device),
                    draws={name: draw.each(rows.take) for name, draw in draws.items()},
                    mixing_draws={name: draw.each(rows.take) for name, draw in mixing_draws.items()},
                    labels={name: rows.take(c).to(self.state.device) for name, c in labels_of.items()},
                )
            )
        return batches

    def report_coverage(self, phase: str) -> None:
        """Coverage radii of the latents of a phase, and once a step of the real images; the same on all ranks."""
        found = {"prior": self.coverage.get(phase)}
        if phase == "Dmain":
            found["target"] = self.order.coverage(self.state.cur_nimg, self.config.batch_size)
        for name, coverage in found.items():
            if coverage is not None:
                training_stats.report0(f"Coreset/{name}_radius", coverage.radius)
                training_stats.report0(f"Coreset/{name}_radius_random", coverage.random_radius)
