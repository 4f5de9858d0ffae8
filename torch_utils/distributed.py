"""One process or many, with the same calls. Nothing happens at import; unlaunched, this is rank 0 of 1."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dnnlib.errors import UserError

BUCKET_BYTES = 32 << 20
TIMEOUT = timedelta(hours=2)  # the other ranks wait while rank 0 reads a dataset or writes a snapshot

T = TypeVar("T")


def init(
    rank: int | None = None,
    world_size: int | None = None,
    init_file_or_method: str | os.PathLike | None = None,
    backend: str | None = None,
    device: str | torch.device = "cpu",
) -> torch.device:
    """Join the other processes, and return the device of this one (`cuda:<local rank>` for 'cuda').

    Without `rank` and `world_size` they come from torchrun's environment; a single process joins nothing.
    `init_file_or_method` is a path that all processes reach (it must not exist yet) or an address such as
    'tcp://host:port'; the default is the environment's MASTER_ADDR and MASTER_PORT. Raises `UserError` when the
    environment is contradictory or the devices do not suffice.
    """
    rank = _env_int("RANK", 0) if rank is None else rank
    world_size = _env_int("WORLD_SIZE", 1) if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise UserError(f"RANK={rank} is not a rank of WORLD_SIZE={world_size} processes")
    device = _own_device(torch.device(device), _env_int("LOCAL_RANK", rank))
    if world_size > 1:
        dist.init_process_group(
            backend=backend or ("nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"),
            init_method=_init_method(init_file_or_method),
            rank=rank,
            world_size=world_size,
            timeout=TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
    return device


def shutdown() -> None:
    """Leave the group, if there is one."""
    if _is_joined():
        dist.destroy_process_group()


def is_launched() -> bool:
    """Whether torchrun, or a job script that speaks its language, started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))


def get_rank() -> int:
    return dist.get_rank() if _is_joined() else _env_int("RANK", 0)


def get_world_size() -> int:
    return dist.get_world_size() if _is_joined() else _env_int("WORLD_SIZE", 1)


def get_local_rank() -> int:
    """The rank within this machine."""
    return _env_int("LOCAL_RANK", get_rank())


def print0(*args: Any, **kwargs: Any) -> None:
    """`print` on rank 0 only."""
    if get_rank() == 0:
        print(*args, **kwargs)


def barrier() -> None:
    """Wait until every rank is here."""
    if _is_joined():
        dist.barrier()


@contextlib.contextmanager
def rank0_first() -> Iterator[None]:
    """Rank 0 runs the block before the others do: for downloads, caches and compiled kernels."""
    if get_rank() != 0:
        barrier()
    try:
        yield
    finally:
        if get_rank() == 0:
            barrier()


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, without gradient, on the tensor's device; for one process the tensor itself."""
    if not _is_joined():
        return tensor
    total = tensor.detach().to(_meeting_device(tensor.device), copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total.to(tensor.device)


def all_mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over ranks of a floating point tensor, without gradient; for one process the tensor itself."""
    assert tensor.is_floating_point()
    return all_sum(tensor) / get_world_size() if _is_joined() else tensor


def is_true_anywhere(flag: bool) -> bool:
    """Whether the flag is set on any rank. Call on all ranks."""
    return bool(all_sum(torch.tensor(float(flag))) > 0)


def broadcast_object(obj: T) -> T:
    """Rank 0's `obj`, on every rank. It travels as a pickle."""
    if not _is_joined():
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src=0, device=_meeting_device(torch.device("cpu")))
    return box[0]


def gather_objects(obj: T) -> list[T]:
    """Every rank's `obj`, in the order of the ranks, on every rank."""
    if not _is_joined():
        return [obj]
    objects: list[Any] = [None] * get_world_size()
    dist.all_gather_object(objects, obj)
    return objects


def gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Rows that the ranks took in turn (`[rank::world_size]` of `[N, ...]`), together again on every rank."""
    if not _is_joined():
        return tensor
    counts = gather_objects(len(tensor))
    sent = torch.zeros([max(counts), *tensor.shape[1:]], dtype=tensor.dtype, device=_meeting_device(tensor.device))
    sent[: len(tensor)] = tensor
    received = [torch.empty_like(sent) for _ in counts]
    dist.all_gather(received, sent)
    rows = torch.stack(received, dim=1).flatten(0, 1)  # in turn; the shorter ranks end in a row too many
    return rows[: sum(counts)].to(tensor.device)


def broadcast_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Rank 0's values in a tensor of the same shape, dtype and device; for one process the tensor itself."""
    if not _is_joined():
        return tensor
    # Collectives need dense memory, and weights may be channels_last; not every backend knows booleans.
    dtype = torch.uint8 if tensor.dtype == torch.bool else tensor.dtype
    device = _meeting_device(tensor.device)
    sent = tensor.detach().to(device, dtype, copy=True, memory_format=torch.contiguous_format)
    dist.broadcast(sent, src=0)
    return sent.to(tensor.device, tensor.dtype)


@torch.no_grad()
def broadcast_module(module: torch.nn.Module) -> None:
    """Rank 0's parameters and buffers, in every rank's `module`."""
    if _is_joined():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.copy_(broadcast_tensor(tensor))


@torch.no_grad()
def all_reduce_grads(params: Iterable[torch.nn.Parameter]) -> None:
    """Average `.grad` over the ranks, in flat buckets.

    All ranks pass the same parameters in the same order. A gradient that is None on some ranks counts as zero there;
    one that is None on all stays None, so that the optimizer skips the parameter as it does in a single process.
    """
    if not _is_joined():
        return
    buckets = [(bucket, _flatten(bucket)) for bucket in _buckets(params)]
    waits = [dist.all_reduce(flat, async_op=True) for _, flat in buckets]
    for (bucket, flat), wait in zip(buckets, waits, strict=True):
        wait.wait()
        _unflatten(bucket, flat.div_(get_world_size()))


def _buckets(params: Iterable[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Groups of one dtype and device, each at most BUCKET_BYTES or a single parameter."""
    buckets: list[list[torch.nn.Parameter]] = []
    filling: dict[tuple[torch.dtype, torch.device], tuple[list[torch.nn.Parameter], int]] = {}
    for param in params:
        key, size = (param.dtype, param.device), param.numel() * param.element_size()
        bucket, used = filling.get(key, ([], 0))
        if not bucket or used + size > BUCKET_BYTES:
            bucket, used = [], 0
            buckets.append(bucket)
        bucket.append(param)
        filling[key] = (bucket, used + size)
    return buckets


def _flatten(params: list[torch.nn.Parameter]) -> torch.Tensor:
    """All gradients in one row, then one flag per parameter: whether this rank has a gradient for it."""
    pieces = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in params]
    flags = torch.ones(len(params), dtype=params[0].dtype, device=params[0].device)
    for index, param in enumerate(params):
        if param.grad is None:
            flags[index] = 0  # a fill: copying a list to the GPU would wait for it
    return torch.cat([*pieces, flags])  # [numel + number of parameters]


def _unflatten(params: list[torch.nn.Parameter], flat: torch.Tensor) -> None:
    *pieces, flags = flat.split([p.numel() for p in params] + [len(params)])
    # Reading the flags waits for the GPU: only where this rank has something to learn from them.
    is_known = all(p.grad is not None for p in params)
    is_used = [True] * len(params) if is_known else (flags > 0).tolist()
    for param, piece, used in zip(params, pieces, is_used, strict=True):
        if param.grad is not None:
            param.grad.copy_(piece.view_as(param))
        elif used:
            param.grad = piece.view_as(param).clone()


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _meeting_device(device: torch.device) -> torch.device:
    """Where a tensor of `device` can meet those of the other ranks: NCCL knows only CUDA."""
    if device.type == "cpu" and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _own_device(device: torch.device, local_rank: int) -> torch.device:
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise UserError("--device=cuda: PyTorch sees no CUDA device; use --device=cpu")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UserError(f"--gpus: process {local_rank} has no GPU, there are {torch.cuda.device_count()} here")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _init_method(file_or_method: str | os.PathLike | None) -> str:
    if file_or_method is None:
        return "env://"
    method = os.fspath(file_or_method)
    return method if "://" in method else Path(method).absolute().as_uri()


def _env_int(name: str, default: int) -> int:
    if not is_launched() or name not in os.environ:
        return default
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f"{name}={os.environ[name]!r} in the environment is not a number") from None
