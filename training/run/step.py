"""One training step: which losses run, on which images, with which random numbers (Karras 2020; Karras 2021).

Every random number is a function of (seed, images seen, phase, sample): a step learns the same from the same batch
however it is divided over processes and accumulation rounds (for even micro-batches; the running means inside G come from
the first round of every process). Networks with batch norm are the exception: it normalises by the micro-batch.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from torch_utils import distributed, seeding, training_stats
from torch_utils.gradient_reducer import GradientReducer
from torch_utils.ops import upfirdn2d
from training import losses
from training.config.run_config import TrainingConfig
from training.data.image_tensors import to_float
from training.dataset import Labels
from training.run.state import TrainingState
from training.sources.coreset import Coverage, PriorCoreset, TargetCoreset
from training.sources.feed import LatentFeed
from training.sources.source import Draw
from training.sources.stage_cache import StageCache

ADA_INTERVAL = 4  # steps
PL_DECAY = 0.01  # of the running mean of path lengths
PL_BATCH_SHRINK = 2  # path lengths are computed on this fraction of the batch
GRAPHS_PER_FUNCTION = 64  # recorded at most; a layer's code serves all resolutions and precisions

SIGN_OF_REALS = "Loss/signs/real"


class NotFinite(UserError):
    """Losses or gradients of a phase stayed NaN or infinite."""


@dataclass
class Batch:
    """What one process sees of a batch: real images with labels, and the choices that the generated ones come from."""

    rows: seeding.Rows
    is_first: bool  # of its accumulation rounds: the one that running means are updated from, once a step
    real_images: torch.Tensor  # [n, C, H, W] in [-1, 1]
    real_labels: torch.Tensor  # [n, c_dim]
    draws: dict[str, Draw]  # phase -> choices of the latents, of this micro-batch
    mixing_draws: dict[str, Draw]  # the second latents of style mixing
    labels: dict[str, torch.Tensor]  # phase -> labels of the generated images [n, c_dim]


@dataclass
class Phase:
    """An optimizer step: who learns, from which loss, how often."""

    name: str
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    interval: int
    # Runs the losses of one micro-batch, times a gain; the one returned is left to be differentiated, others have been.
    accumulate: Callable[[Batch, float], torch.Tensor]
    moves_means: bool = False  # whether the running means of networks follow what passes through them
    gain: float = 1.0  # a phase that regularises every n-th step does the work of n
    reducer: GradientReducer = field(init=False)

    def __post_init__(self) -> None:
        self.reducer = GradientReducer(in_order_of_use(self.module))

    def is_due(self, batch_idx: int) -> bool:
        return batch_idx % self.interval == 0


class TrainingStep:
    """Runs the phases of one batch after another on a `TrainingState`."""

    def __init__(self, state: TrainingState, config: TrainingConfig, batch_gpu: int, labels: Labels):
        """labels: all labels of the dataset `[N, c_dim]`, from which those of generated images are drawn."""
        self.state = state
        self.config = config
        self.labels = labels
        self.feed = feed_of_steps(state, config)
        self.loss = losses.LOSSES[config.loss]
        self.num_rounds = config.per_process // batch_gpu
        self.phases = list(self._phases())
        # Networks as the main phases see them. Second derivatives go through the plain ones.
        self.synthesis = graphed(state.G.synthesis) if config.cuda_graphs else state.G.synthesis
        self.D = graphed(state.D) if config.cuda_graphs else state.D
        self.prior_coreset = self._prior_coreset()
        self.target_coreset: TargetCoreset | None = None  # by which the loader chooses real images
        self.prior_coverage: dict[str, Coverage] = {}  # phase -> how well its latents cover their candidates
        self.ada_stats = training_stats.Collector(regex=SIGN_OF_REALS)
        self.pl_lengths: list[torch.Tensor] = []  # mean of each micro-batch, until the running mean takes them in
        self.num_skipped = {phase.name: 0 for phase in self.phases}  # in a row
        self.losses: list[torch.Tensor] = []  # of the phase at work, one scalar for each backward pass
        # Told True before the first step that is left out, False once steps are taken again.
        self.before_trouble: Callable[[bool], None] = lambda is_in_trouble: None

    def _phases(self) -> Iterator[Phase]:
        s, config = self.state, self.config
        yield Phase("Gmain", s.G, s.G_opt, config.D_steps, self.generator_main)
        if config.G_reg_interval is not None and config.pl_weight > 0:
            interval = config.G_reg_interval
            yield Phase("Greg", s.G, s.G_opt, interval, self.generator_path_length, gain=interval)
        yield Phase("Dmain", s.D, s.D_opt, 1, self.discriminator_main, moves_means=True)
        if config.r1_gamma > 0 and config.D_reg_interval is not None:
            interval = config.D_reg_interval
            yield Phase("Dreg", s.D, s.D_opt, interval, self.discriminator_r1, gain=interval)

    def set_progress(self) -> None:
        """Networks that change on the way are told how far it is."""
        for network in self.state.networks.values():
            network.set_progress(self.state.cur_nimg)

    def _prior_coreset(self) -> PriorCoreset | None:
        chosen = self.config.coreset
        is_on = chosen is not None and "prior" in chosen["of"]
        return PriorCoreset(self.feed, chosen["factor"]) if is_on else None

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs beside the `TrainingState`. On all ranks."""
        return {"ada_stats": self.ada_stats.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.ada_stats.load_state_dict(saved["ada_stats"])

    def run(self, images: torch.Tensor, labels: torch.Tensor, must_stop: Callable[[], bool] = lambda: False) -> None:
        """One step on this process's share of the real images (uint8 or uint16) and labels.

        must_stop is asked after every phase but the last, on all ranks: if it says yes, the step ends there, and the next
        call (with the same images) does the rest. The result is the same.
        """
        self.set_progress()
        phases = [phase for phase in self.phases if phase.is_due(self.state.batch_idx)]
        batches = self.micro_batches(phases, images, labels)
        for phase in phases[self.state.phases_done :]:
            self.run_phase(phase, batches)
            self.state.phases_done += 1
            if phase is not phases[-1] and must_stop():
                return
        self.state.phases_done = 0
        self.state.cur_nimg += self.config.batch_size
        self.state.batch_idx += 1
        self.update_average()
        self.update_augmentation()

    def run_phase(self, phase: Phase, batches: list[Batch]) -> None:
        means_before = [mean.clone() for mean in self.running_means()]
        phase.optimizer.zero_grad(set_to_none=True)
        phase.module.requires_grad_(True)
        with training_stats.held() as count_reports:
            self.report_coverage(phase)
            for batch in batches:
                self.add_gradients(phase, batch, phase.gain / len(batches), is_last=batch is batches[-1])
        phase.module.requires_grad_(False)
        phase.reducer.finish()
        is_finite = self.is_finite(phase)
        if is_finite:
            phase.optimizer.step()
            self.update_running_means(phase)
            count_reports()
        else:  # nothing of this phase is kept, in the state that is remembered neither
            for mean, before in zip(self.running_means(), means_before, strict=True):
                mean.copy_(before)
        self.count_skipped(phase, is_finite)
        self.pl_lengths.clear()
        self.losses.clear()

    def add_gradients(self, phase: Phase, batch: Batch, gain: float, is_last: bool) -> None:
        """Of one micro-batch; with the last one's, the gradients of all begin to travel."""
        with seeding.batch_rows(batch.rows, self.config.seed, self.state.cur_nimg, phase.name):
            loss = phase.accumulate(batch, gain)
            with phase.reducer.overlapping() if is_last else contextlib.nullcontext():
                loss.backward()

    def micro_batches(self, phases: list[Phase], images: torch.Tensor, labels: torch.Tensor) -> list[Batch]:
        """Draw for the whole batch, and divide this process's share into accumulation rounds."""
        draws, mixing_draws, labels_of = {}, {}, {}
        num = self.config.batch_size * (1 if self.prior_coreset is None else self.prior_coreset.factor)
        for phase in phases:
            gen = seeding.generator(self.config.seed, self.state.cur_nimg, phase.name, "latents")
            draws[phase.name] = self.feed.draw(num, gen)
            if self.config.style_mixing_prob > 0:
                mixing_draws[phase.name] = self.feed.draw(num, gen)
            labels_of[phase.name] = self.labels[
                torch.randint(len(self.labels), [self.config.batch_size], generator=gen)
            ]
            for of_phase in (draws, mixing_draws):
                if phase.name in of_phase:  # source images of the classes that the labels are paired with
                    of_phase[phase.name] = self.state.feed.match(of_phase[phase.name], labels_of[phase.name])
        if self.prior_coreset is not None:
            both, coverage = self.prior_coreset.choose(
                [*draws.values(), *mixing_draws.values()], self.config.batch_size
            )
            chosen = iter(both)
            draws, mixing_draws = ({name: next(chosen) for name in group} for group in (draws, mixing_draws))
            self.prior_coverage = dict(zip(draws, coverage, strict=False))
        return self.divide(draws, mixing_draws, labels_of, images, labels)

    def divide(
        self,
        draws: Mapping[str, Draw],
        mixing_draws: Mapping[str, Draw],
        labels_of: Mapping[str, torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
    ) -> list[Batch]:
        """Accumulation rounds from choices and labels for the whole batch, by phase, and this process's share of real images
        and labels."""
        world, rank = distributed.get_world_size(), distributed.get_rank()
        batches = []
        for index in range(self.num_rounds):
            rows = seeding.Rows(self.config.batch_size, start=index * world + rank, step=self.num_rounds * world)
            batches.append(
                Batch(
                    rows=rows,
                    is_first=index == 0,
                    real_images=self.state.D.as_trained_on(to_float(images[index :: self.num_rounds].to(self.device))),
                    real_labels=labels[index :: self.num_rounds].to(self.device),
                    draws={name: take_rows(draw, rows) for name, draw in draws.items()},
                    mixing_draws={name: take_rows(draw, rows) for name, draw in mixing_draws.items()},
                    labels={name: rows.take(c).to(self.device) for name, c in labels_of.items()},
                )
            )
        return batches

    def report_coverage(self, phase: Phase) -> None:
        """Coverage radii of the latents of a phase, and once a step of the real images; the same on all ranks."""
        found = {"prior": self.prior_coverage.get(phase.name)}
        if phase.name == "Dmain" and self.target_coreset is not None:
            found["target"] = self.target_coreset.coverage(self.state.cur_nimg, self.config.batch_size)
        for name, coverage in found.items():
            if coverage is not None:
                training_stats.report0(f"Coreset/{name}_radius", coverage.radius)
                training_stats.report0(f"Coreset/{name}_radius_random", coverage.random_radius)

    # Losses of one micro-batch, for the gradients of the phase's module.

    def generator_main(self, batch: Batch, gain: float) -> torch.Tensor:
        """G makes D believe in its images."""
        c = batch.labels["Gmain"]
        images = self.synthesis(self.ws(batch, "Gmain"), update_emas=False)
        logits = self.D(self.augmented(images), c)
        training_stats.report("Loss/scores/fake", logits)
        training_stats.report("Loss/signs/fake", logits.sign())
        if self.loss.is_paired:
            with torch.no_grad():
                real_logits = self.D(self.augmented(batch.real_images), batch.real_labels)
            loss = self.loss.generator(logits, real_logits)
        else:
            loss = self.loss.generator(logits)
        training_stats.report("Loss/G/loss", loss)
        return self.weighted(loss, gain)

    def generator_path_length(self, batch: Batch, gain: float) -> torch.Tensor:
        """Steps in w change the image by a constant amount (Karras 2020, eq. 4), on a part of the batch."""
        n = max(len(batch.rows) // PL_BATCH_SHRINK, 1)
        ws = self.ws(batch, "Greg", n)
        images = self.state.G.synthesis(ws, update_emas=False)
        noise = seeding.randn(images.shape, device=self.device)
        lengths = losses.path_lengths(images, ws, noise)
        self.pl_lengths.append(lengths.detach().mean())
        # The first step only measures: a mean that rises slowly from 0 would pull all path lengths down to it, and with
        # them whatever z does to the image (seen on 20 kimg runs).
        target = lengths.detach() if self.state.pl_mean == 0 else self.state.pl_mean
        penalty = (lengths - target).square()
        training_stats.report("Loss/pl_penalty", penalty)
        loss = penalty * self.config.pl_weight
        training_stats.report("Loss/G/reg", loss)
        return self.weighted(loss, gain)

    def discriminator_main(self, batch: Batch, gain: float) -> torch.Tensor:
        """D tells generated images from real ones. The running means of G are kept here."""
        with torch.no_grad():
            ws = self.ws(batch, "Dmain", update_emas=batch.is_first)
            images = self.synthesis(ws, update_emas=batch.is_first)
        fakes = self.augmented(images)
        fake_logits = self.D(fakes, batch.labels["Dmain"], update_emas=batch.is_first)
        training_stats.report("Loss/scores/fake", fake_logits)
        training_stats.report("Loss/signs/fake", fake_logits.sign())
        if self.loss.fake is not None:
            fake_loss = self.loss.fake(fake_logits)
            self.weighted(fake_loss, gain).backward()

        reals = self.augmented(batch.real_images)
        real_logits = self.D(reals, batch.real_labels)
        training_stats.report("Loss/scores/real", real_logits)
        confidence = real_logits if self.loss.has_zero else (real_logits - fake_logits).detach()
        training_stats.report(SIGN_OF_REALS, confidence.sign())
        if self.loss.pair is not None:
            loss = self.loss.pair(fake_logits, real_logits)
            training_stats.report("Loss/D/loss", loss.detach())
        else:
            assert self.loss.real is not None
            loss = self.loss.real(real_logits)
            training_stats.report("Loss/D/loss", (fake_loss + loss).detach())
        if self.config.r1_gamma == 0 or self.config.D_reg_interval is not None:
            return self.weighted(loss, gain)
        self.weighted(loss, gain).backward()
        return self.discriminator_penalty(batch, reals, fakes, gain)

    def discriminator_penalty(
        self, batch: Batch, reals: torch.Tensor, fakes: torch.Tensor, gain: float
    ) -> torch.Tensor:
        """D is smooth where its loss asks for it, in every step; images as D has seen them."""
        total = torch.zeros([len(batch.rows)], device=self.device)
        for place in self.loss.penalty_at:
            c = batch.labels["Dmain"] if place == "fake" else batch.real_labels
            images = self.images_at(place, reals, fakes).detach().requires_grad_(True)
            penalty = self.loss.penalty(self.state.D(images, c), images)
            training_stats.report(f"Loss/penalty/{place}", penalty)
            total = total + penalty * (self.config.r1_gamma * self.loss.penalty_share)
        training_stats.report("Loss/D/reg", total)
        return self.weighted(total, gain)

    def images_at(self, place: str, reals: torch.Tensor, fakes: torch.Tensor) -> torch.Tensor:
        """`[n, C, H, W]`; between the two: at a random point of the line from one to the other (Gulrajani 2017, alg. 1)."""
        if place == "between":
            return fakes.lerp(reals, seeding.rand([len(reals), 1, 1, 1], device=self.device))
        return {"real": reals, "fake": fakes}[place]

    def discriminator_r1(self, batch: Batch, gain: float) -> torch.Tensor:
        """D is flat around the real images (Mescheder 2018)."""
        images = batch.real_images.detach().requires_grad_(True)
        logits = self.state.D(self.augmented(images), batch.real_labels)
        penalty = self.loss.penalty(logits, images)
        training_stats.report("Loss/r1_penalty", penalty)
        loss = penalty * (self.config.r1_gamma * self.loss.penalty_share)
        training_stats.report("Loss/D/reg", loss)
        return self.weighted(loss, gain)

    def ws(self, batch: Batch, phase: str, n: int | None = None, update_emas: bool = False) -> torch.Tensor:
        """w of every layer for the (first n) latents of a phase, `[n, num_ws, w_dim]`, styles mixed."""
        G = self.state.G
        c = batch.labels[phase][:n]
        z = self.feed.latents(first_rows(batch.draws[phase], n), G.mapping.encoder)
        ws = G.mapping(z, c, update_emas=update_emas)
        if self.config.style_mixing_prob > 0:
            # Layers from a random one on take the w of another latent, of the same source (Karras 2019, sec. 3.1).
            other_z = self.feed.latents(first_rows(batch.mixing_draws[phase], n), G.mapping.encoder)
            first_mixed = 1 + seeding.randint(G.num_ws - 1, [len(z), 1], device=self.device)  # [n, 1]
            is_kept = seeding.rand([len(z), 1], device=self.device) >= self.config.style_mixing_prob
            layers = torch.arange(G.num_ws, device=self.device)  # [num_ws]
            keeps_own = (layers < first_mixed) | is_kept  # [n, num_ws]
            ws = torch.where(keeps_own.unsqueeze(2), ws, G.mapping(other_z, c))
        return ws

    def augmented(self, images: torch.Tensor) -> torch.Tensor:
        """What D sees of images."""
        sigma = self.blur_sigma()
        if sigma > 0:
            images = blur(images, sigma)
        if self.state.augment_pipe is not None:
            images = self.state.augment_pipe(images)
        return images

    def blur_sigma(self) -> float:
        """Standard deviation of the blur in pixels, fading linearly (Karras 2021, app. G)."""
        fade_nimg = self.config.blur_fade_kimg * 1000
        return max(1 - self.state.cur_nimg / fade_nimg, 0) * self.config.blur_init_sigma if fade_nimg > 0 else 0.0

    # What follows the losses.

    @property
    def device(self) -> torch.device:
        return self.state.pl_mean.device

    def weighted(self, loss: torch.Tensor, gain: float) -> torch.Tensor:
        """The mean loss, times the gain, noted for `is_finite`."""
        mean = loss.mean().mul(gain)
        self.losses.append(mean.detach())
        return mean

    def is_finite(self, phase: Phase) -> bool:
        """Whether the step may be taken: no loss and no gradient, on any rank, is NaN or infinite."""
        grads = [param.grad for param in phase.module.parameters() if param.grad is not None]
        total = torch.stack([norm.sum() for norm in torch._foreach_norm(grads)]).sum()
        # The gradients are the same on all ranks by now, the losses are not; a sum with a NaN in it is NaN.
        total = total + distributed.all_sum(torch.stack(self.losses).sum())
        return bool(torch.isfinite(total))

    def count_skipped(self, phase: Phase, is_finite: bool) -> None:
        """Steps with NaN or Inf have been left out; too many in a row end the run."""
        training_stats.report(f"Loss/{phase.name}/skipped", float(not is_finite))
        was_in_trouble = any(self.num_skipped.values())
        if not is_finite and not was_in_trouble:
            self.before_trouble(True)
        self.num_skipped[phase.name] = 0 if is_finite else self.num_skipped[phase.name] + 1
        if was_in_trouble and not any(self.num_skipped.values()):
            self.before_trouble(False)
        if not is_finite:
            self.complain(phase)

    def complain(self, phase: Phase) -> None:
        num, patience, kimg = self.num_skipped[phase.name], self.config.nan_patience, self.state.cur_nimg / 1000
        if num > patience:
            raise NotFinite(
                f"losses or gradients of {phase.name} were not finite in {num} steps in a row, up to {kimg:.1f} kimg "
                "(--nan-patience): continue with --resume=latest and another --gamma, or with lower --glr and --dlr"
            )
        distributed.print0(
            f"Warning: losses or gradients of {phase.name} are not finite at {kimg:.1f} kimg; the step is left out, "
            f"{patience - num} more in a row are allowed (--nan-patience)"
        )

    def running_means(self) -> list[torch.Tensor]:
        """Buffers of G and D that follow what passes through them: mean w, magnitudes, statistics of batches."""
        named = (item for network in (self.state.G, self.state.D) for item in network.named_buffers())
        return [buffer for name, buffer in named if name.endswith(("_avg", "_ema"))]

    @torch.no_grad()
    def update_running_means(self, phase: Phase) -> None:
        """Path lengths: the mean over the whole batch. Those inside G: over the processes, from their first round."""
        if phase.name == "Greg":
            mean = distributed.all_mean(torch.stack(self.pl_lengths).mean())
            self.state.pl_mean = mean if self.state.pl_mean == 0 else self.state.pl_mean.lerp(mean, PL_DECAY)
        if phase.moves_means and distributed.get_world_size() > 1:
            means = self.running_means()
            flat = distributed.all_mean(torch.cat([mean.flatten() for mean in means]))
            for mean, piece in zip(means, flat.split([mean.numel() for mean in means]), strict=True):
                mean.copy_(piece.view_as(mean))

    @torch.no_grad()
    def update_average(self) -> None:
        """G_ema moves towards G, with a half-life that grows with the images seen at first."""
        half_life = self.config.ema_kimg * 1000
        if self.config.ema_rampup is not None:
            half_life = min(half_life, self.state.cur_nimg * self.config.ema_rampup)
        beta = 0.5 ** (self.config.batch_size / max(half_life, 1e-8))
        torch._foreach_lerp_(list(self.state.G_ema.parameters()), list(self.state.G.parameters()), 1 - beta)
        for average, buffer in zip(self.state.G_ema.buffers(), self.state.G.buffers(), strict=True):
            average.copy_(buffer)

    def update_augmentation(self) -> None:
        """ADA (Karras 2020b, sec. 3.2): p rises while D is surer of the real images than the target, and stays in [0, 1]."""
        pipe, target = self.state.augment_pipe, self.config.ada_target
        if pipe is None or target is None or self.state.batch_idx % ADA_INTERVAL != 0:
            return
        self.ada_stats.update()
        if self.ada_stats.num(SIGN_OF_REALS) == 0:  # every step since the last time was left out
            return
        overconfidence = np.sign(self.ada_stats[SIGN_OF_REALS] - target)
        step = self.config.batch_size * ADA_INTERVAL / (self.config.ada_kimg * 1000)
        pipe.p.copy_((pipe.p + float(overconfidence) * step).clamp(0, 1))


def feed_of_steps(state: TrainingState, config: TrainingConfig) -> LatentFeed | StageCache:
    """What steps draw latents from: the run's feed, or with --stage-cache a pool of its outputs."""
    if config.stage_cache is None:
        return state.feed
    return StageCache(state.feed, config.stage_cache, config.batch_size, config.seed, lambda: state.cur_nimg)


def in_order_of_use(network: torch.nn.Module) -> Iterable[torch.nn.Parameter]:
    """Parameters as a forward pass meets them: the mapping network, which is registered last, comes first."""
    named = sorted(network.named_parameters(), key=lambda item: not item[0].startswith("mapping."))
    return [param for _, param in named]


def graphed(network: torch.nn.Module, backend: str = "cudagraphs") -> Callable[..., torch.Tensor]:
    """The network as recorded CUDA graphs, forward and backward, so that small layers do not wait for their launches.

    PyTorch records one for each combination of sizes and flags that it meets, at its first calls. Only first
    derivatives can be taken. Layers share their code, and each is a combination of its own: PyTorch's limit of 8 for
    the whole process is raised.
    """
    import torch._dynamo  # takes seconds, and only this needs it

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS_PER_FUNCTION)
    recorded = torch.compile(network, backend=backend, dynamic=False)

    def replay(*args: Any, **kwargs: Any) -> torch.Tensor:
        return recorded(*args, **kwargs).clone()  # a graph's memory is the next graph's

    return replay


def take_rows(draw: Draw, rows: seeding.Rows) -> Draw:
    return {name: rows.take(value) for name, value in draw.items()}


def first_rows(draw: Draw, n: int | None) -> Draw:
    return {name: value[:n] for name, value in draw.items()}


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian-like blur with taps 2^-(x / sigma)^2 out to 3 sigma."""
    radius = int(sigma * 3)
    if radius == 0:
        return images
    taps = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    taps = (-(taps / sigma).square()).exp2()
    return upfirdn2d.filter2d(images, taps / taps.sum(), impl="ref")  # more taps than kernels take
