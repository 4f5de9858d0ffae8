"""Small tools for networks: copying by name, summaries, cached constants, the endless sampler."""

import contextlib
import ctypes
import functools
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from dnnlib.errors import UserError
from torch_utils import distributed, seeding

F = TypeVar("F", bound=Callable[..., Any])

nan_to_num = torch.nan_to_num

# A generator, a cascade or a discriminator: type checkers take a module's attributes for tensors.
Network: TypeAlias = Any

# Tensors by name


def params_and_buffers(module: torch.nn.Module) -> list[torch.Tensor]:
    """All parameters, then all buffers."""
    return [tensor for _, tensor in named_params_and_buffers(module)]


def named_params_and_buffers(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """(name, tensor) of all parameters, then of all buffers."""
    return [*module.named_parameters(), *module.named_buffers()]


def copy_params_and_buffers(
    src_module: torch.nn.Module, dst_module: torch.nn.Module, require_all: bool = False
) -> None:
    """Copy the values of the tensors that both modules name, across devices and dtypes.

    Raises ValueError, before anything is copied, if shapes differ or (with `require_all`) a name is missing in the
    source. See `transfer_params_and_buffers` for modules that fit only in part.
    """
    pairs, skipped = _match(src_module, dst_module)
    for name, reason in skipped:
        if require_all or reason != NOT_IN_SOURCE:
            raise ValueError(f"copy_params_and_buffers: {name}: {reason}")
    _copy(pairs)


NOT_IN_SOURCE = "not in the snapshot"

# Of the same shape at every resolution, but not of the same values: StyleGAN3's cutoffs follow the resolution.
FILTERS = r"(.*\.)?(up|down|resample)_filter"


@dataclass
class TransferReport:
    """What `transfer_params_and_buffers` did."""

    copied: list[str] = field(default_factory=list)
    """Names that now hold the source's values."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of the destination's tensors that kept their own values."""
    unused: list[str] = field(default_factory=list)
    """Names of the source that the destination does not have."""

    def summary(self) -> str:
        """One line: how much was taken over."""
        total = len(self.copied) + len(self.skipped)
        line = f"{len(self.copied)} of {total} tensors taken over"
        line += f", {len(self.skipped)} start afresh" if self.skipped else ""
        return line + (f"; {len(self.unused)} of the snapshot's have no place here" if self.unused else "")

    def left_out(self) -> list[str]:
        """A line for each tensor, of either side, that was not taken over."""
        unused = [f"{name}: in the snapshot, and not in this network" for name in self.unused]
        return [*(f"{name}: {reason}" for name, reason in self.skipped), *unused]


def transfer_params_and_buffers(
    src: torch.nn.Module, dst: torch.nn.Module, exclude: str | None = None
) -> TransferReport:
    """Copy what fits by name and shape from `src` to `dst`, across devices and dtypes, and report the rest.

    Left as they are: the filters, which are not learned but computed for the resolution, and tensors of `dst` whose
    whole name matches the regular expression `exclude`.
    """
    pairs, skipped = _match(src, dst, {"belongs to the resolution": FILTERS, "kept on purpose": exclude})
    _copy(pairs)
    dst_names = {name for name, _ in named_params_and_buffers(dst)}
    unused = [name for name, _ in named_params_and_buffers(src) if name not in dst_names]
    return TransferReport([name for name, _, _ in pairs], skipped, unused)


def weights_in_common(src: torch.nn.Module, dst: torch.nn.Module) -> list[str]:
    """Names of the weights that `transfer_params_and_buffers` copies, for networks on the meta device, too.

    Weights have two dimensions and more: biases and strengths of noise have the same shape in networks of any width, and
    without the weights before them they are nothing.
    """
    learned = {name for name, parameter in dst.named_parameters() if parameter.ndim >= 2}
    return [name for name, _, _ in _match(src, dst)[0] if name in learned]


def _match(
    src: torch.nn.Module, dst: torch.nn.Module, kept: Mapping[str, str | None] = {}
) -> tuple[list[tuple[str, torch.Tensor, torch.Tensor]], list[tuple[str, str]]]:
    """(name, source, destination) of the tensors that fit, and (name, reason) of those in `dst` that do not.

    `kept` holds reasons to leave tensors alone, each with a regular expression for their whole names.
    """
    available = dict(named_params_and_buffers(src))
    pairs, skipped = [], []
    for name, tensor in named_params_and_buffers(dst):
        source = available.get(name)
        reasons = [reason for reason, names in kept.items() if names is not None and re.fullmatch(names, name)]
        if source is None:
            skipped.append((name, NOT_IN_SOURCE))
        elif source.shape != tensor.shape:
            skipped.append((name, f"shape {list(source.shape)} is not {list(tensor.shape)}"))
        elif reasons and not torch.equal(source.to(tensor), tensor):
            skipped.append((name, reasons[0]))
        else:
            pairs.append((name, source, tensor))
    return pairs, skipped


@torch.no_grad()
def _copy(pairs: Iterable[tuple[str, torch.Tensor, torch.Tensor]]) -> None:
    for _, source, destination in pairs:
        destination.copy_(source.detach())


def check_ddp_consistency(module: torch.nn.Module, ignore_regex: str | None = None) -> None:
    """Raise RuntimeError, on every rank, if a tensor differs from rank 0's. NaNs in the same places are equal.

    Tensors whose whole name, with the module's class before it ('Generator.mapping.w_avg'), matches are not looked at.
    """
    if distributed.get_world_size() == 1:
        return
    names, tensors = [], []
    for name, tensor in named_params_and_buffers(module):
        full_name = f"{type(module).__name__}.{name}"
        if ignore_regex is None or not re.fullmatch(ignore_regex, full_name):
            names.append(full_name)
            tensors.append(tensor.detach())
    differs = [not _equals_rank0(tensor) for tensor in tensors]
    # Together: a rank that raised alone would leave the others waiting.
    num_ranks = distributed.all_sum(torch.tensor(differs, dtype=torch.int64)).tolist()
    culprits = [name for name, num in zip(names, num_ranks, strict=True) if num]
    if culprits:
        raise RuntimeError(f"differs between processes: {', '.join(culprits[:10])} ({len(culprits)} tensors)")


@contextlib.contextmanager
def ddp_sync(module: Any, sync: bool) -> Iterator[None]:
    """Official name: within the block, a DistributedDataParallel module exchanges gradients only with `sync`."""
    is_quiet = isinstance(module, torch.nn.parallel.DistributedDataParallel) and not sync
    with module.no_sync() if is_quiet else contextlib.nullcontext():
        yield


def _equals_rank0(tensor: torch.Tensor) -> bool:
    reference = distributed.broadcast_tensor(tensor)
    are_nan = (tensor != tensor) & (reference != reference)
    return bool(((tensor == reference) | are_nan).all())


# Constants and checks


def constant(
    value: Any,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """A tensor of `value`, broadcast to `shape`; the same object for the same arguments, so never write to it."""
    array = np.ascontiguousarray(value)
    key = (array.tobytes(), array.dtype.str, np.shape(value), None if shape is None else tuple(shape))
    # A tensor born in a trace belongs to its graph, so that a trace neither fills the cache nor reads it.
    make = _constant.__wrapped__ if torch.jit.is_tracing() else _constant
    return make(key, dtype or torch.get_default_dtype(), torch.device(device or "cpu"), memory_format)


@functools.lru_cache(maxsize=4096)
def _constant(
    key: tuple, dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format | None
) -> torch.Tensor:
    data, numpy_dtype, value_shape, shape = key
    array = np.frombuffer(data, dtype=numpy_dtype).reshape(value_shape)
    # The tensor outlives the block that asks first, which may be one of inference mode.
    with torch.inference_mode(False), suppress_tracer_warnings():
        tensor = torch.tensor(array, dtype=dtype, device=device)
        if shape is not None:
            tensor = tensor.expand(shape).clone()
        return tensor.contiguous(memory_format=memory_format or torch.contiguous_format)


def assert_shape(tensor: torch.Tensor, ref_shape: Sequence[int | None]) -> None:
    """AssertionError unless the tensor has this shape; None stands for any size."""
    shape = list(tensor.shape)
    assert len(shape) == len(ref_shape), f"{len(ref_shape)} dimensions {list(ref_shape)} expected, not {shape}"
    with suppress_tracer_warnings():
        for index, (size, expected) in enumerate(zip(shape, ref_shape, strict=True)):
            assert expected is None or int(size) == int(expected), (
                f"size {expected} expected in dimension {index}, not {size}, of shape {shape}"
            )


@contextlib.contextmanager
def suppress_tracer_warnings() -> Iterator[None]:
    """Silence `torch.jit.trace` about values that are constant on purpose."""
    # Changing the filters makes Python forget which warnings were shown, so leave them alone outside of tracing.
    if not torch.jit.is_tracing():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def profiled_function(fn: F) -> F:
    """Decorator: the function appears under its own name in the profiler's traces."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.profiler.record_function(fn.__name__):
            return fn(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


# Sampling


class InfiniteSampler(torch.utils.data.Sampler[int]):
    """Dataset indices without end, pass after pass, each pass in its own random order.

    Position `i` of the stream is a function of `seed` and `i` alone. Rank `r` of `n` gets the positions r, r + n,
    r + 2n, ...: together the ranks see the same stream whatever their number. `start_idx` is the first position, over
    all ranks, of a run that continues. `shuffle=False` keeps the dataset's order, `window_size=0` repeats the first
    pass's order; other window sizes (0 to 1) are accepted from older code and all reshuffle every pass completely.
    """

    def __init__(
        self,
        dataset: Sized,
        rank: int = 0,
        num_replicas: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        window_size: float = 0.5,
        start_idx: int = 0,
    ):
        assert len(dataset) > 0
        assert 0 <= rank < num_replicas
        assert 0 <= window_size <= 1
        assert start_idx >= 0
        self.dataset_size = len(dataset)
        self.rank, self.num_replicas = rank, num_replicas
        self.shuffle, self.seed, self.window_size = shuffle, seed, window_size
        self.start_idx = start_idx

    def __iter__(self) -> Iterator[int]:
        current_pass, order = -1, np.empty(0, dtype=np.int64)
        position = self.start_idx + self.rank
        while True:
            pass_index, offset = divmod(position, self.dataset_size)
            if pass_index != current_pass:
                current_pass, order = pass_index, self._order(pass_index)
            yield int(order[offset])
            position += self.num_replicas

    def _order(self, pass_index: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.dataset_size)
        generator = seeding.generator(self.seed, "pass", pass_index if self.window_size > 0 else 0)
        return torch.randperm(self.dataset_size, generator=generator).numpy()


# Summary


def print_module_summary(
    module: torch.nn.Module, inputs: Sequence[Any], max_nesting: int = 3, skip_redundant: bool = True
) -> Any:
    """Run `module(*inputs)` without gradients, print a table of its submodules, and return the outputs.

    The table has a row per submodule down to `max_nesting` levels, in the order in which they finish: parameters and
    buffers that no earlier row counted, and shape and dtype of what came out. `skip_redundant` leaves out rows that
    would say nothing new. The random state stays as it was.
    """
    rows: list[_Row] = []
    with contextlib.ExitStack() as stack:
        for name, submodule in module.named_modules():
            if name.count(".") < max_nesting:
                hook = functools.partial(_record, rows, name)
                stack.callback(submodule.register_forward_hook(hook).remove)
        devices = {x.device for x in [*inputs, *module.parameters()] if isinstance(x, torch.Tensor) and x.is_cuda}
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        stack.enter_context(torch.no_grad())
        outputs = module(*inputs)
    _print_rows(type(module).__name__, rows, skip_redundant)
    return outputs


@dataclass
class _Row:
    name: str
    module: torch.nn.Module
    outputs: list[torch.Tensor]


def _record(rows: list[_Row], name: str, module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    rows.append(_Row(name, module, [x for x in outputs if isinstance(x, torch.Tensor)]))


def _print_rows(title: str, rows: list[_Row], skip_redundant: bool) -> None:
    table = [[title, "Parameters", "Buffers", "Output shape", "Datatype"], ["---"] * 5]
    seen: set[int] = set()  # ids of counted tensors; the rows keep all of them alive
    totals = [0, 0]
    for row in rows:
        params = _unseen(row.module.parameters(), seen)
        buffers = _unseen(row.module.buffers(), seen)
        outputs = _unseen(row.outputs, seen)
        if skip_redundant and not (params or buffers or outputs):
            continue
        counts = [sum(t.numel() for t in tensors) for tensors in (params, buffers)]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        table += _cells(row, counts)
    table += [["---"] * 5, ["Total", str(totals[0]), str(totals[1]), "-", "-"]]
    _print_table(table)


def _unseen(tensors: Iterable[torch.Tensor], seen: set[int]) -> list[torch.Tensor]:
    new = [tensor for tensor in tensors if id(tensor) not in seen]
    seen.update(id(tensor) for tensor in new)
    return new


def _cells(row: _Row, counts: list[int]) -> list[list[str]]:
    """One line, and one more for each further output."""
    names = [row.name or "<top-level>"] + [f"{row.name}:{index}" for index in range(1, len(row.outputs))]
    numbers = [[str(count) if count else "-" for count in counts]] + [["-", "-"]] * (len(names) - 1)
    shapes = [[str(list(x.shape)), str(x.dtype).removeprefix("torch.")] for x in row.outputs] or [["-", "-"]]
    return [[name, *number, *shape] for name, number, shape in zip(names, numbers, shapes, strict=True)]


def _print_table(table: list[list[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    print()
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that tensors free, instead of handing each back to the system and clearing it anew.

    For CPU training on Linux (bench/allocator.py measures what it brings); does nothing elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, -1)  # never


def choose_device(device: str) -> torch.device:
    """What `auto`, `cpu` or `cuda` stands for on this machine. Raises `UserError`."""
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("--device=cuda: PyTorch sees no CUDA device; use --device=cpu")
    return torch.device("cuda" if has_gpu and device != "cpu" else "cpu")
