"""The state of a training run: networks, optimizers, augmentation, the source, counters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError, naming
from torch_utils import distributed, misc, persistence, seeding
from torch_utils.misc import Network
from training.augment import AugmentPipe, build_augmentation
from training.checkpoints.snapshot import load_snapshot
from training.checkpoints.state_file import fitting, read_state, state_beside
from training.config.run_config import TrainingConfig
from training.layers.precision import FLOAT32, PrecisionPlan, plan_from_data, plan_precision, set_tf32, settle_precision
from training.sources.cascade import last_generator
from training.sources.feed import LatentFeed
from training.sources.label_distribution import LabelDistribution
from training.sources.prior_features import FeatureConditions, NoConditions


@dataclass
class TrainingState:
    """Everything that changes while a run goes on, and the source that it draws from."""

    G: Network
    D: Network
    G_ema: Network
    G_opt: torch.optim.Optimizer
    D_opt: torch.optim.Optimizer
    augment_pipe: Network | None
    feed: LatentFeed
    pl_mean: torch.Tensor
    """Running mean of the path lengths."""
    precision: PrecisionPlan
    """What the networks compute in."""
    conditions: FeatureConditions | NoConditions = field(default_factory=NoConditions)
    """What stands in for labels with `--prior`, and the prior."""
    labels: LabelDistribution | None = None
    """Of the training data, where there are any."""
    cur_nimg: int = 0
    """Images that D has seen."""
    batch_idx: int = 0
    """Steps done."""
    phases_done: int = 0
    """Phases done of the step that comes next; 0 unless a run was stopped in the middle of a step."""
    cur_tick: int = 0
    """Ticks done."""

    @property
    def device(self) -> torch.device:
        return self.pl_mean.device

    @property
    def networks(self) -> dict[str, Network]:
        return {"G": self.G, "D": self.D, "G_ema": self.G_ema}

    @property
    def optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, torch.nn.Module]]:
        """The optimizers, each with the network that it trains."""
        return {"G": (self.G_opt, self.G), "D": (self.D_opt, self.D)}

    def state_dict(self) -> dict[str, Any]:
        """All of it but the source, which is data and stands for itself; tensors are not copied."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": {name: moments_by_name(*pair) for name, pair in self.optimizers.items()},
            "augment_pipe": None if self.augment_pipe is None else self.augment_pipe.state_dict(),
            "pl_mean": self.pl_mean,
            "precision": {**self.precision.as_data(), "device": self.pl_mean.device.type},
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "source": self.feed.source.describe(),
            **self.conditions.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of the same configuration, on any device. Raises `UserError` for another source."""
        check_source(saved["source"], self.feed.source.describe())
        for name, network in self.networks.items():
            network.load_state_dict(saved["networks"][name])
        for name, (optimizer, network) in self.optimizers.items():
            load_moments(optimizer, network, saved["optimizers"][name])
        if self.augment_pipe is not None and saved["augment_pipe"] is not None:
            self.augment_pipe.load_state_dict(saved["augment_pipe"])
        self.pl_mean = saved["pl_mean"].to(self.pl_mean.device)
        for name in COUNTERS:
            setattr(self, name, saved["counters"][name])


COUNTERS = ("cur_nimg", "batch_idx", "phases_done", "cur_tick")


def build_state(
    config: TrainingConfig, device: torch.device, verbose: bool, saved: Mapping[str, Any] | None = None
) -> TrainingState:
    """The state at the start of a run, all ranks alike: weights from the seed, or those of `--resume` where they fit, and
    encoder statistics of the source. `saved`: the `state_dict` to continue from instead."""
    torch.manual_seed(seeding.derive(config.seed, "initial weights"))
    G = persistence.construct(**config.G_kwargs)
    D = persistence.construct(**config.D_kwargs)
    G_ema = persistence.construct(**config.G_kwargs)
    misc.copy_params_and_buffers(G, G_ema, require_all=True)
    source = config.source.open(config.seed, verbose)
    G.train().requires_grad_(False).to(device)
    D.train().requires_grad_(False).to(device)
    G_ema.eval().requires_grad_(False).to(device)
    state = TrainingState(
        G=G,
        D=D,
        G_ema=G_ema,
        G_opt=build_optimizer(G, config.G_opt_kwargs, config.G_reg_interval),
        D_opt=build_optimizer(D, config.D_opt_kwargs, config.D_reg_interval),
        augment_pipe=build_augment_pipe(config, device),
        feed=LatentFeed(source, G.mapping.encoder).to(device),
        pl_mean=torch.zeros([], device=device),
        precision=plan_precision(device, config.fp32, config.allow_tf32),
    )
    if saved is not None:
        with fitting():
            state.load_state_dict(saved)
            plan_from_data(saved["precision"])
    else:
        if config.resume is not None:
            transfer_weights(config, state, verbose)
        state.feed.fit()
        G_ema.mapping.encoder.load_state_dict(G.mapping.encoder.state_dict())
    for module in state.networks.values():
        distributed.broadcast_module(module)
    settle(state, config, device, None if saved is None else saved["precision"])
    if verbose and state.precision.halved == FLOAT32 and not config.fp32:
        print(f"Precision: {state.precision.reason}")
    return state


def settle(state: TrainingState, config: TrainingConfig, device: torch.device, saved: Mapping[str, Any] | None) -> None:
    """Decide the precision by trying, or take the one that a run began with: a decision made anew could be another."""
    if saved is not None and saved["device"] == device.type:
        state.precision = plan_from_data(saved)
        state.precision.apply(state.G, state.D)
        set_tf32(state.precision.tf32)
    else:
        state.precision = settle_precision(state.precision, state.G, state.D, device, config.mbstd_group)
    state.precision.apply(state.G_ema)


def check_source(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `UserError` unless both descriptions are of the same contents, wherever they lie."""
    if without_paths(before) != without_paths(now):
        raise UserError(
            f"--source: {now.get('path', now['kind'])} does not hold what the run was started with; bring that back, or "
            "start a new run from its snapshot with --resume=network-snapshot-….pkl"
        )


def without_paths(description: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: without_paths(value) if isinstance(value, Mapping) else value
        for key, value in description.items()
        if key not in ("path", "why")
    }


def transfer_weights(config: TrainingConfig, state: TrainingState, verbose: bool) -> None:
    """Take from the snapshot of `--resume` the weights that fit by name and shape, and what else was asked for."""
    with naming("--resume"):
        contents = load_snapshot(config.resume)
    transfer_networks(contents, state.networks, verbose)
    if config.resume_augment:
        transfer_augmentation(contents, state, verbose)
    if config.resume_optimizer:
        transfer_optimizers(state_beside(Path(config.resume), contents["meta"].get("cur_nimg", 0)), state, verbose)


def transfer_networks(contents: Mapping[str, Any], networks: dict[str, torch.nn.Module], verbose: bool) -> None:
    """Copy what fits by name and shape into G, D and G_ema, and list what does not, on either side."""
    for name, network in networks.items():
        saved = contents.get(name) or (contents["G_ema"] if name == "G" else None)  # files of generators have no other
        if saved is None:
            if verbose:
                print(f"Resume: the snapshot has no {name}; it starts afresh")
            continue
        if getattr(saved, "weights_hash", None) != getattr(network, "weights_hash", None):
            if verbose:
                print(
                    f"Resume: {name} of the snapshot looks at pixels, or at features of other weights; it starts afresh"
                )
            continue
        report = misc.transfer_params_and_buffers(last_generator(saved), network)
        if verbose and name != "G_ema":  # it has the same tensors as G
            print(f"Resume: {name}: {report.summary()}")
            for line in report.left_out():
                print(f"  {name}.{line}")


def transfer_augmentation(contents: Mapping[str, Any], state: TrainingState, verbose: bool) -> None:
    pipe = contents.get("augment_pipe")
    if not isinstance(pipe, AugmentPipe) or state.augment_pipe is None:
        where = (
            "the snapshot was trained without ADA"
            if not isinstance(pipe, AugmentPipe)
            else "this run has none (--aug=noaug)"
        )
        raise UserError(f"--resume-augment=1: {where}; leave it out")
    state.augment_pipe.p.copy_(pipe.p)
    if verbose:
        print(f"Resume: augmentation probability {float(pipe.p):.3f}")


def transfer_optimizers(path: Path, state: TrainingState, verbose: bool) -> None:
    """Moments of the parameters that fit, from a training state."""
    with naming("--resume-optimizer=1"):
        saved = read_state(path)["training"]
    for name, (optimizer, network) in state.optimizers.items():
        shapes = {key: parameter.shape for key, parameter in network.named_parameters()}
        fitting = {
            key: moments
            for key, moments in saved["optimizers"][name].items()
            if key in shapes and moments["exp_avg"].shape == shapes[key]
        }
        load_moments(optimizer, network, fitting)
        if verbose:
            print(f"Resume: {name}: the optimizer's moments of {len(fitting)} of {len(shapes)} parameters taken over")


def moments_by_name(optimizer: torch.optim.Optimizer, network: torch.nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """What Adam remembers of every parameter that it has moved."""
    names: dict[Any, str] = {parameter: name for name, parameter in network.named_parameters()}
    return {names[parameter]: dict(moments) for parameter, moments in optimizer.state.items()}


def load_moments(
    optimizer: torch.optim.Optimizer, network: torch.nn.Module, moments: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """The inverse of `moments_by_name`; parameters that it does not name start afresh."""
    names = [name for name, _ in network.named_parameters()]
    by_index = {index: dict(moments[name]) for index, name in enumerate(names) if name in moments}
    optimizer.load_state_dict({"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]})


def build_optimizer(module: torch.nn.Module, kwargs: dict, reg_interval: int | None) -> torch.optim.Optimizer:
    """Adam whose pace makes up for the extra regularisation steps (Karras 2020, app. B): k + 1 steps do the work of k."""
    ratio = 1.0 if reg_interval is None else reg_interval / (reg_interval + 1)
    betas = tuple(beta**ratio for beta in kwargs["betas"])
    return torch.optim.Adam(module.parameters(), lr=kwargs["lr"] * ratio, betas=betas, eps=kwargs["eps"], fused=True)


def build_augment_pipe(config: TrainingConfig, device: torch.device) -> Network | None:
    pipe = build_augmentation(config.augpipe_kwargs)
    if pipe is None:
        return None
    pipe.train().requires_grad_(False).to(device)
    pipe.p.copy_(torch.as_tensor(config.augment_p))
    return pipe


def snapshot_generator(state: TrainingState) -> torch.nn.Module:
    """`G_ema`, behind the generators that feed it where the source is a network: it runs from plain noise."""
    return state.feed.source.chained(state.G_ema)
