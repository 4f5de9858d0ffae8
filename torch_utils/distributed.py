"""One process or many, with the same calls. Nothing happens at import; unlaunched, this is rank 0 of 1."""

import contextlib
import hashlib
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dnnlib.errors import UserError

LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
MEETING_TIMEOUT = timedelta(minutes=10)  # machines of a cluster do not start at the same time
TIMEOUT = timedelta(minutes=30)  # the others wait while rank 0 draws pictures, downloads a detector, writes
# What gloo and NCCL say, as plain RuntimeError, of a process that has ended or hangs.
LOST_PEER = re.compile(r"gloo/transport|Application timeout caused pair closure|NCCL (communicator|error)|Wait timeout")

_is_alone = False

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
    if rank is None or world_size is None:
        _check_environment()
    rank = _env_int("RANK", 0) if rank is None else rank
    world_size = _env_int("WORLD_SIZE", 1) if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise UserError(f"RANK={rank} is not a rank of WORLD_SIZE={world_size} processes")
    device = _own_device(torch.device(device), _env_int("LOCAL_RANK", rank))
    if world_size > 1:
        with _naming_absent_peers(rank, world_size):
            store, _, _ = next(
                dist.rendezvous(_init_method(init_file_or_method), rank, world_size, timeout=MEETING_TIMEOUT)
            )
            store.set_timeout(MEETING_TIMEOUT)
            dist.init_process_group(
                backend=backend or ("nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"),
                store=dist.PrefixStore(_agree_on_name(store, rank, world_size), store),
                rank=rank,
                world_size=world_size,
                timeout=TIMEOUT,
                device_id=device if device.type == "cuda" else None,
            )
    return device


def shutdown() -> None:
    """Leave the group, if there is one."""
    if is_joined():
        dist.destroy_process_group()


def is_joined() -> bool:
    """Whether this process exchanges with others: `init` met them."""
    return dist.is_available() and dist.is_initialized()


def is_launched() -> bool:
    """Whether torchrun, or a job script that speaks its language, started this process."""
    return all(name in os.environ for name in LAUNCH_VARIABLES)


def get_rank() -> int:
    return dist.get_rank() if is_joined() else _env_int("RANK", 0)


def get_world_size() -> int:
    return dist.get_world_size() if is_joined() else _env_int("WORLD_SIZE", 1)


def get_local_rank() -> int:
    """The rank within this machine."""
    return _env_int("LOCAL_RANK", get_rank())


def get_local_world_size() -> int:
    """Processes on this machine, which share its memory and its processors."""
    return _env_int("LOCAL_WORLD_SIZE", get_world_size())


def share_threads() -> None:
    """Divide the processors of this machine among its processes, unless OMP_NUM_THREADS has been set for each."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // get_local_world_size(), 1))


def print0(*args: Any, **kwargs: Any) -> None:
    """`print` on rank 0 only."""
    if get_rank() == 0:
        print(*args, **kwargs)


def barrier() -> None:
    """Wait until every rank is here."""
    if is_joined():
        dist.barrier()


def say_once(message: str, key: str | None = None) -> None:
    """Print to stderr, unless another of torchrun's processes has said the same: an error that all of them meet.

    key: what makes messages the same, where they are not equal to the letter.
    """
    if not is_launched() or _is_first_to_say(key or message):
        print(message, file=sys.stderr, flush=True)


class PeerLost(UserError):
    """Another process of the run has ended or hangs. The command is right, and can be run again."""


@contextlib.contextmanager
def naming_lost_peers() -> Iterator[None]:
    """Raise `PeerLost`, which says the way out, for what the backends say when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or LOST_PEER.search(str(error))):
            raise
        raise PeerLost(
            f"process {get_rank()} of {get_world_size()} has lost another one ({_gist(error)}): what that one printed "
            "says why; training continues from its last state with --resume=latest"
        ) from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Have torchrun's processes, before `init`, each do the whole of a work that they would share afterwards."""
    global _is_alone
    assert not is_joined()
    _is_alone = True
    try:
        yield
    finally:
        _is_alone = False


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
    if not is_joined():
        return tensor
    total = tensor.detach().to(_meeting_device(tensor.device), copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total.to(tensor.device)


def all_mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over ranks of a floating point tensor, without gradient; for one process the tensor itself."""
    assert tensor.is_floating_point()
    return all_sum(tensor) / get_world_size() if is_joined() else tensor


def is_true_anywhere(flag: bool) -> bool:
    """Whether the flag is set on any rank. Call on all ranks."""
    return bool(all_sum(torch.tensor(float(flag))) > 0)


def broadcast_object(obj: T) -> T:
    """Rank 0's `obj`, on every rank. It travels as a pickle."""
    if not is_joined():
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src=0, device=_meeting_device(torch.device("cpu")))
    return box[0]


def gather_objects(obj: T) -> list[T]:
    """Every rank's `obj`, in the order of the ranks, on every rank."""
    if not is_joined():
        return [obj]
    objects: list[Any] = [None] * get_world_size()
    dist.all_gather_object(objects, obj)
    return objects


def gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Rows that the ranks took in turn (`[rank::world_size]` of `[N, ...]`), together again on every rank."""
    if not is_joined():
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
    if not is_joined():
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
    if is_joined():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.copy_(broadcast_tensor(tensor))


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


def _check_environment() -> None:
    """Half of torchrun's variables would let every process train on its own; contradictions are named."""
    if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        needed = (*LAUNCH_VARIABLES, "MASTER_PORT")
        missing = [name for name in needed if name not in os.environ]
        if missing:
            raise UserError(
                f"RANK and WORLD_SIZE={os.environ['WORLD_SIZE']} are set, {' and '.join(missing)} missing: set them as "
                "well, or start the processes by torchrun"
            )
    local_rank, local_world_size = get_local_rank(), get_local_world_size()
    if "LOCAL_WORLD_SIZE" in os.environ and not 0 <= local_rank < local_world_size <= get_world_size():
        raise UserError(
            f"LOCAL_RANK={local_rank} is not a rank of LOCAL_WORLD_SIZE={local_world_size} of "
            f"WORLD_SIZE={get_world_size()} processes"
        )


@contextlib.contextmanager
def _naming_absent_peers(rank: int, world_size: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        address = "{MASTER_ADDR}:{MASTER_PORT}".format(**os.environ) if is_launched() else "this machine"
        raise PeerLost(
            f"process {rank} did not meet the other {world_size - 1} at {address} ({_gist(error)}): check that all were "
            "started, with the same MASTER_ADDR and MASTER_PORT, and that these can be reached (firewall, "
            "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME where a machine has several networks)"
        ) from error


def _agree_on_name(store: dist.Store, rank: int, world_size: int) -> str:
    """A name for what these processes tell each other in the store, that no earlier ones have used.

    torchrun keeps its store when it starts the processes again, with the addresses of those that are gone, and its count of
    restarts may differ between machines. So each rank asks under a name of its own, and only a living rank 0 answers.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"asks/{rank}", own)
        name = store.get(f"answer/{own}").decode()
        store.set(f"knows/{name}/{rank}", "")
        return name
    deadline = time.monotonic() + MEETING_TIMEOUT.total_seconds()
    waiting = list(range(1, world_size))
    while waiting:
        for other in waiting:
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", own)
        waiting = [other for other in waiting if not store.check([f"knows/{own}/{other}"])]
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing heard of {len(waiting)} of them, such as {waiting[0]}")
        time.sleep(0.02)
    return own


def _gist(error: Exception) -> str:
    """What a backend says, without source positions, stack frames and advice."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\]\s*", "", lines[0])
    return re.split(r"\.\s", line, maxsplit=1)[0].rstrip(". ")


def _is_first_to_say(message: str) -> bool:
    """Asks the store of torchrun, which outlives its processes. Where there is none, everybody speaks."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    text_hash = hashlib.sha256(message.encode()).hexdigest()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10), wait_for_workers=False)
        return store.add(f"said/{attempt}/{text_hash}", 1) == 1
    except (RuntimeError, KeyError, ValueError):
        return True


def _env_int(name: str, default: int) -> int:
    if _is_alone or not is_launched() or name not in os.environ:
        return default
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f"{name}={os.environ[name]!r} in the environment is not a number") from None
