"""How many images fit: the largest micro-batch, found by trying on a GPU and by measuring on a CPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from dnnlib.memory import available_memory
from torch_utils import distributed
from torch_utils.misc import Network
from training import losses
from training.config.run_config import TrainingConfig, divisors
from training.layers.pyramid import image_size
from training.run.state import TrainingState

SHARE_OF_MEMORY = 0.5  # of what is free now; the rest is for the system, copies and fragments
FOREVER = 1e15  # images
SECOND_DERIVATIVES = 2.0  # memory of a step with second derivatives, over the activations that it saves


def choose_micro_batch(config: TrainingConfig, state: TrainingState) -> int:
    """Images that one process works on at a time: `--batch-gpu`, or the largest divisor of its share that fits."""
    if config.batch_gpu is not None:
        return config.batch_gpu
    choices = [d for d in divisors(config.per_process) if d % config.mbstd_group == 0]
    if state.device.type == "cuda":
        best = next((n for n in reversed(choices) if fits_on_gpu(state, n)), choices[0])
    else:
        limit = SHARE_OF_MEMORY * available_memory() / distributed.get_local_world_size()
        per_image = saved_bytes(state, choices[0]) * SECOND_DERIVATIVES / choices[0]
        best = max((n for n in choices if n * per_image <= limit), default=choices[0])
    return min(distributed.gather_objects(best))


def fits_on_gpu(state: TrainingState, n: int) -> bool:
    """Whether the costliest step runs with n images."""
    try:
        costliest_step(state, n)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        state.G.zero_grad(set_to_none=True)
        state.D.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def saved_bytes(state: TrainingState, n: int) -> int:
    """Bytes of activations that the costliest step keeps for its backward pass."""
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        costliest_step(state, n)
    state.G.zero_grad(set_to_none=True)
    state.D.zero_grad(set_to_none=True)
    return sum(storage.nbytes() for storage in storages.values())


def costliest_step(state: TrainingState, n: int) -> None:
    """G through D with gradients for G, then R1 with gradients for D. Changes nothing but gradients."""
    G, D, device = state.G, state.D, state.device
    z = torch.zeros([n, G.z_dim], device=device)
    c = torch.zeros([n, G.c_dim], device=device)
    images = torch.zeros([n, G.img_channels, *image_size(G.img_resolution)], device=device)
    with grown(G), grown(D):
        cost(G, D, z, c, images)


def cost(G: Network, D: Network, z: torch.Tensor, c: torch.Tensor, images: torch.Tensor) -> None:
    with gradients_for(G):
        losses.generator_loss(D(G(z, c, noise_mode="const"), c)).mean().backward()
    with gradients_for(D):
        images.requires_grad_(True)
        losses.r1_penalty(D(images, c), images).mean().backward()


@contextlib.contextmanager
def grown(network: Any) -> Iterator[None]:
    """The network as it will be at the end of any training, and then as it was."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.set_progress(FOREVER)
    try:
        yield
    finally:
        for name, buffer in network.named_buffers():
            buffer.copy_(before[name])


@contextlib.contextmanager
def gradients_for(module: torch.nn.Module) -> Iterator[None]:
    module.requires_grad_(True)
    try:
        yield
    finally:
        module.requires_grad_(False)
