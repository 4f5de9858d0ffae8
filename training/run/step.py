"""One training step: who learns from which losses, and when (Karras 2020; Karras 2021).

A step learns the same from the same batch however it is divided over processes and accumulation rounds (for even
micro-batches; the running means inside G come from the first round of every process). Networks with batch norm are the
exception: it normalises by the micro-batch.
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
from training.config.run_config import TrainingConfig
from training.run.adversarial import SIGN_OF_REALS, Adversaries, Term
from training.run.batches import Batch, Batches
from training.run.state import TrainingState

ADA_INTERVAL = 4  # steps


class NotFinite(UserError):
    """Losses or gradients of a phase stayed NaN or infinite; `what` says so without a way out."""

    def __init__(self, phase: str, num: int, cur_nimg: int):
        self.about = (phase, num, cur_nimg)
        self.what = (
            f"losses or gradients of {phase} were not finite in {num} steps in a row, up to {cur_nimg / 1000:.1f} kimg"
        )
        super().__init__(
            f"{self.what} (--nan-patience): continue with --resume=latest and lower --glr and --dlr, or another --gamma where "
            "there is one"
        )

    def __reduce__(self):
        return NotFinite, self.about


@dataclass
class Phase:
    """An optimizer step: who learns, from which loss, how often."""

    name: str
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    interval: int
    losses: Callable[[Batch], Iterator[Term]]  # of one micro-batch; each is differentiated before the next is made
    moves_means: bool = False  # whether the running means of networks follow what passes through them
    gain: float = 1.0  # a phase that regularises every n-th step does the work of n
    reducer: GradientReducer = field(init=False)

    def __post_init__(self) -> None:
        self.reducer = GradientReducer(in_order_of_use(self.module))

    def is_due(self, batch_idx: int) -> bool:
        return batch_idx % self.interval == 0


class TrainingStep:
    """Runs the phases of one batch after another on a `TrainingState`."""

    def __init__(self, state: TrainingState, config: TrainingConfig, batches: Batches):
        self.state, self.config, self.batches = state, config, batches
        self.adversaries = Adversaries(state, config, batches.feed)
        self.phases = list(self._phases())
        self.ada_stats = training_stats.Collector(regex=SIGN_OF_REALS)
        self.num_skipped = {phase.name: 0 for phase in self.phases}  # in a row
        self.losses: list[torch.Tensor] = []  # of the phase at work, one scalar for each backward pass
        # Told True before the first step that is left out, False once steps are taken again.
        self.before_trouble: Callable[[bool], None] = lambda is_in_trouble: None

    def _phases(self) -> Iterator[Phase]:
        s, config, losses = self.state, self.config, self.adversaries
        yield Phase("Gmain", s.G, s.G_opt, config.D_steps, losses.generator_main)
        if config.G_reg_interval is not None and config.pl_weight > 0:
            interval = config.G_reg_interval
            yield Phase("Greg", s.G, s.G_opt, interval, losses.generator_path_length, gain=interval)
        yield Phase("Dmain", s.D, s.D_opt, 1, losses.discriminator_main, moves_means=True)
        if config.r1_gamma > 0 and config.D_reg_interval is not None:
            interval = config.D_reg_interval
            yield Phase("Dreg", s.D, s.D_opt, interval, losses.discriminator_r1, gain=interval)

    def set_progress(self) -> None:
        """Networks that change on the way are told how far it is."""
        for network in self.state.networks.values():
            network.set_progress(self.state.cur_nimg)

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
        batches = self.batches.rounds([phase.name for phase in phases], images, labels)
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
            self.batches.report_coverage(phase.name)
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
        self.adversaries.pl_lengths.clear()
        self.losses.clear()

    def add_gradients(self, phase: Phase, batch: Batch, gain: float, is_last: bool) -> None:
        """Accumulate those of one micro-batch, times the gain; with the last one's, the sum begins to travel."""
        with seeding.batch_rows(batch.rows, self.config.seed, self.state.cur_nimg, phase.name):
            for term in phase.losses(batch):
                for name, values in term.reports.items():
                    training_stats.report(name, values)
                loss = term.loss.mean().mul(gain)
                self.losses.append(loss.detach())
                with phase.reducer.overlapping() if is_last and term.is_last else contextlib.nullcontext():
                    loss.backward()

    # What follows the losses.

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
            raise NotFinite(phase.name, num, self.state.cur_nimg)
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
        """Have path lengths, and what moves inside the networks, follow the whole batch."""
        if self.adversaries.pl_lengths:
            self.adversaries.update_pl_mean()
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


def in_order_of_use(network: torch.nn.Module) -> Iterable[torch.nn.Parameter]:
    """Parameters as a forward pass meets them: the mapping network, which is registered last, comes first."""
    named = sorted(network.named_parameters(), key=lambda item: not item[0].startswith("mapping."))
    return [param for _, param in named]
