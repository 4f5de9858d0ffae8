"""What G and D minimise, phase by phase (Karras 2020; Karras 2021; the table of adversarial losses is `training/losses.py`).

Each phase is the losses of one micro-batch, for the gradients of one network. A loss that is the sum of two is made in two
terms: the first is differentiated before the second is computed, so that only one graph is in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from torch_utils import distributed, seeding
from torch_utils.cuda_graphs import graphed
from torch_utils.ops import upfirdn2d
from training import losses
from training.config.run_config import TrainingConfig
from training.run.batches import Batch
from training.run.state import TrainingState
from training.sources.feed import LatentFeed
from training.sources.stage_cache import StageCache

PL_DECAY = 0.01  # of the running mean of path lengths
PL_BATCH_SHRINK = 2  # path lengths are computed on this fraction of the batch
SIGN_OF_REALS = "Loss/signs/real"


@dataclass
class Term:
    """A part of a phase's loss, to be differentiated by itself."""

    loss: torch.Tensor
    """Of each sample."""
    reports: dict[str, torch.Tensor]
    """Statistics, by name."""
    is_last: bool = True


class Adversaries:
    """The losses of G and D."""

    def __init__(self, state: TrainingState, config: TrainingConfig, feed: LatentFeed | StageCache):
        self.state, self.config, self.feed = state, config, feed
        self.loss = losses.LOSSES[config.loss]
        # Networks as the main phases see them. Second derivatives go through the plain ones.
        self.synthesis = graphed(state.G.synthesis) if config.cuda_graphs else state.G.synthesis
        self.D = graphed(state.D) if config.cuda_graphs else state.D
        self.pl_lengths: list[torch.Tensor] = []  # mean of each micro-batch, until the running mean takes them in

    def generator_main(self, batch: Batch) -> Iterator[Term]:
        """G makes D believe in its images."""
        images = self.synthesis(self.ws(batch, "Gmain"), update_emas=False)
        logits = self.D(self.augmented(images), batch.labels["Gmain"])
        real_logits = None
        if self.loss.is_paired:
            with torch.no_grad():
                real_logits = self.D(self.augmented(batch.real_images), batch.real_labels)
        loss = self.loss.generator(logits, real_logits)
        yield Term(loss, {**scores_of_fakes(logits), "Loss/G/loss": loss})

    def generator_path_length(self, batch: Batch) -> Iterator[Term]:
        """Steps in w change the image by a constant amount (Karras 2020, eq. 4), on a part of the batch."""
        ws = self.ws(batch, "Greg", max(len(batch.rows) // PL_BATCH_SHRINK, 1))
        images = self.state.G.synthesis(ws, update_emas=False)
        lengths = losses.path_lengths(images, ws, seeding.randn(images.shape, device=self.state.device))
        self.pl_lengths.append(lengths.detach().mean())
        # The first step only measures: a mean that rises slowly from 0 would pull all path lengths down to it, and with
        # them whatever z does to the image (seen on 20 kimg runs).
        target = lengths.detach() if self.state.pl_mean == 0 else self.state.pl_mean
        penalty = (lengths - target).square()
        loss = penalty * self.config.pl_weight
        yield Term(loss, {"Loss/pl_penalty": penalty, "Loss/G/reg": loss})

    def discriminator_main(self, batch: Batch) -> Iterator[Term]:
        """D tells generated images from real ones. The running means of G are kept here."""
        with torch.no_grad():
            ws = self.ws(batch, "Dmain", update_emas=batch.is_first)
            images = self.synthesis(ws, update_emas=batch.is_first)
        fakes = self.augmented(images)
        fake_logits = self.D(fakes, batch.labels["Dmain"], update_emas=batch.is_first)
        fake_loss = torch.zeros([], device=self.state.device)
        if self.loss.on_fakes is not None:
            fake_loss = self.loss.on_fakes(fake_logits)
            yield Term(fake_loss, {}, is_last=False)

        reals = self.augmented(batch.real_images)
        real_logits = self.D(reals, batch.real_labels)
        loss = self.loss.discriminator(fake_logits, real_logits)
        confidence = real_logits if self.loss.has_zero else (real_logits - fake_logits).detach()
        reports = {
            **scores_of_fakes(fake_logits),
            "Loss/scores/real": real_logits,
            SIGN_OF_REALS: confidence.sign(),
            "Loss/D/loss": (fake_loss + loss).detach(),
        }
        has_penalty = self.config.r1_gamma > 0 and self.config.D_reg_interval is None
        yield Term(loss, reports, is_last=not has_penalty)
        if has_penalty:
            yield self.discriminator_penalty(batch, reals, fakes)

    def discriminator_penalty(self, batch: Batch, reals: torch.Tensor, fakes: torch.Tensor) -> Term:
        """D is smooth where its loss asks for it, in every step; images as D has seen them."""
        total, reports = torch.zeros([len(batch.rows)], device=self.state.device), {}
        for place in self.loss.penalty_at:
            c = batch.labels["Dmain"] if place == "fake" else batch.real_labels
            images = self.images_at(place, reals, fakes).detach().requires_grad_(True)
            penalty = self.loss.penalty(self.state.D(images, c), images)
            reports[f"Loss/penalty/{place}"] = penalty
            total = total + penalty * (self.config.r1_gamma * self.loss.penalty_share)
        return Term(total, {**reports, "Loss/D/reg": total})

    def images_at(self, place: str, reals: torch.Tensor, fakes: torch.Tensor) -> torch.Tensor:
        """`[n, C, H, W]`; between the two: at a random point of the line from one to the other (Gulrajani 2017, alg. 1)."""
        if place == "between":
            return fakes.lerp(reals, seeding.rand([len(reals), 1, 1, 1], device=self.state.device))
        return {"real": reals, "fake": fakes}[place]

    def discriminator_r1(self, batch: Batch) -> Iterator[Term]:
        """D is flat around the real images (Mescheder 2018)."""
        images = batch.real_images.detach().requires_grad_(True)
        logits = self.state.D(self.augmented(images), batch.real_labels)
        penalty = self.loss.penalty(logits, images)
        loss = penalty * (self.config.r1_gamma * self.loss.penalty_share)
        yield Term(loss, {"Loss/r1_penalty": penalty, "Loss/D/reg": loss})

    # What they see of each other

    def ws(self, batch: Batch, phase: str, n: int | None = None, update_emas: bool = False) -> torch.Tensor:
        """w of every layer for the (first n) latents of a phase, `[n, num_ws, w_dim]`, styles mixed."""
        G, device = self.state.G, self.state.device
        c = batch.labels[phase][:n]
        z = self.feed.latents(batch.draws[phase].rows(slice(n)), G.mapping.encoder)
        ws = G.mapping(z, c, update_emas=update_emas)
        if self.config.style_mixing_prob > 0:
            # Layers from a random one on take the w of another latent, of the same source (Karras 2019, sec. 3.1).
            other_z = self.feed.latents(batch.mixing_draws[phase].rows(slice(n)), G.mapping.encoder)
            first_mixed = 1 + seeding.randint(G.num_ws - 1, [len(z), 1], device=device)  # [n, 1]
            is_kept = seeding.rand([len(z), 1], device=device) >= self.config.style_mixing_prob
            layers = torch.arange(G.num_ws, device=device)  # [num_ws]
            keeps_own = (layers < first_mixed) | is_kept  # [n, num_ws]
            ws = torch.where(keeps_own.unsqueeze(2), ws, G.mapping(other_z, c))
        return ws

    def augmented(self, images: torch.Tensor) -> torch.Tensor:
        """What D sees of images."""
        images = blur(images, self.blur_sigma())
        return images if self.state.augment_pipe is None else self.state.augment_pipe(images)

    def blur_sigma(self) -> float:
        """Standard deviation of the blur in pixels, fading linearly (Karras 2021, app. G)."""
        fade_nimg = self.config.blur_fade_kimg * 1000
        return max(1 - self.state.cur_nimg / fade_nimg, 0) * self.config.blur_init_sigma if fade_nimg > 0 else 0.0

    @torch.no_grad()
    def update_pl_mean(self) -> None:
        """Take the path lengths of the whole batch into their running mean."""
        mean = distributed.all_mean(torch.stack(self.pl_lengths).mean())
        self.state.pl_mean = mean if self.state.pl_mean == 0 else self.state.pl_mean.lerp(mean, PL_DECAY)


def scores_of_fakes(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"Loss/scores/fake": logits, "Loss/signs/fake": logits.sign()}


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian-like blur with taps 2^-(x / sigma)^2 out to 3 sigma."""
    radius = int(sigma * 3)
    if radius == 0:
        return images
    taps = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    taps = (-(taps / sigma).square()).exp2()
    return upfirdn2d.filter2d(images, taps / taps.sum(), impl="ref")  # more taps than kernels take
