"""The state of a training run: networks, optimizers, augmentation, the source, counters."""

from dataclasses import dataclass

import torch

from dnnlib.errors import naming
from torch_utils import distributed, misc, persistence, seeding
from training.augment import AugmentPipe
from training.cascade import Cascade, last_generator
from training.config import TrainingConfig
from training.precision import FLOAT32, plan_precision, settle_precision
from training.snapshot import load_snapshot, open_network_source
from training.source import GaussianSource, ImageSource, LatentFeed, NetworkSource, Source


@dataclass
class TrainingState:
    """Everything that changes while a run goes on, and the source that it draws from."""

    G: torch.nn.Module
    D: torch.nn.Module
    G_ema: torch.nn.Module
    G_opt: torch.optim.Optimizer
    D_opt: torch.optim.Optimizer
    augment_pipe: AugmentPipe | None
    feed: LatentFeed
    pl_mean: torch.Tensor
    """Running mean of the path lengths."""
    cur_nimg: int = 0
    """Images that D has seen."""
    batch_idx: int = 0
    """Steps done."""
    cur_tick: int = 0
    """Ticks done."""


def build_state(config: TrainingConfig, device: torch.device, verbose: bool) -> TrainingState:
    """Networks from the seed, weights of `--resume` where they fit, encoder statistics of the source; all ranks alike."""
    torch.manual_seed(seeding.derive(config.seed, "initial weights"))
    G = persistence.construct(**config.G_kwargs)
    D = persistence.construct(**config.D_kwargs)
    G_ema = persistence.construct(**config.G_kwargs)
    misc.copy_params_and_buffers(G, G_ema, require_all=True)
    source = open_source(config, verbose)
    if config.resume is not None:
        resume_networks(config.resume, {"G": G, "D": D, "G_ema": G_ema}, verbose)
    G.train().requires_grad_(False).to(device)
    D.train().requires_grad_(False).to(device)
    G_ema.eval().requires_grad_(False).to(device)
    feed = LatentFeed(source, G.mapping.encoder).to(device)
    feed.fit()
    G_ema.mapping.encoder.load_state_dict(G.mapping.encoder.state_dict())
    for module in (G, D, G_ema):
        distributed.broadcast_module(module)
    precision = settle_precision(plan_precision(device, config.fp32), G, D, device, config.mbstd_group)
    precision.apply(G_ema)
    if verbose and precision.halved == FLOAT32 and not config.fp32:
        print(f"Precision: {precision.reason}")
    return TrainingState(
        G=G,
        D=D,
        G_ema=G_ema,
        G_opt=build_optimizer(G, config.G_opt_kwargs, config.G_reg_interval),
        D_opt=build_optimizer(D, config.D_opt_kwargs, config.D_reg_interval),
        augment_pipe=build_augment_pipe(config, device),
        feed=feed,
        pl_mean=torch.zeros([], device=device),
    )


def open_source(config: TrainingConfig, verbose: bool) -> Source:
    """The source that the configuration names, with its images or its network in memory."""
    kind = config.source["kind"]
    if kind == "gaussian":
        return GaussianSource(config.source["z_dim"])
    with naming("--source"):
        if kind == "images":
            return ImageSource.open(config.source["path"], seed=config.seed, verbose=verbose)
        return open_network_source(config.source["path"])


def resume_networks(snapshot: str, networks: dict[str, torch.nn.Module], verbose: bool) -> None:
    """Copy what fits by name and shape into G, D and G_ema, and list what does not."""
    with naming("--resume"):
        contents = load_snapshot(snapshot)
    for name, network in networks.items():
        saved = contents.get(name)
        if saved is None:
            if verbose:
                print(f"Resume: the snapshot has no {name}; it starts afresh")
            continue
        report = misc.transfer_params_and_buffers(last_generator(saved), network)
        if verbose and name != "G_ema":  # it has the same tensors as G
            print(f"Resume: {name}: {report.summary()}")
            for tensor, reason in report.skipped:
                print(f"  {name}.{tensor}: {reason}")


def build_optimizer(module: torch.nn.Module, kwargs: dict, reg_interval: int | None) -> torch.optim.Optimizer:
    """Adam whose pace makes up for the extra regularisation steps (Karras 2020, app. B): k + 1 steps do the work of k."""
    ratio = 1.0 if reg_interval is None else reg_interval / (reg_interval + 1)
    betas = tuple(beta**ratio for beta in kwargs["betas"])
    return torch.optim.Adam(module.parameters(), lr=kwargs["lr"] * ratio, betas=betas, eps=kwargs["eps"], fused=True)


def build_augment_pipe(config: TrainingConfig, device: torch.device) -> AugmentPipe | None:
    if config.augpipe_kwargs is None:
        return None
    pipe = AugmentPipe(**config.augpipe_kwargs).train().requires_grad_(False).to(device)
    pipe.p.copy_(torch.as_tensor(config.augment_p))
    return pipe


def snapshot_generator(state: TrainingState) -> torch.nn.Module:
    """`G_ema`, behind the generators that feed it where the source is a network: it runs from plain noise."""
    if isinstance(state.feed.source, NetworkSource):
        return Cascade.chain(state.feed.source.network, state.G_ema)
    return state.G_ema
