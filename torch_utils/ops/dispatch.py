"""Which implementation of an op runs, decided in one place.

Every op has a reference in plain PyTorch, which is its definition, and may have kernels for some kinds of devices, under
the same call signature. `select` hands out the kernel where the device of the tensor has a provider that is ready and the
call is within its limits, and the reference otherwise. A provider is asked once in a process; one that is not ready says
why in one line. The reference has no limits of its own; where it steps in for a limit, a warning says so, once for each.
"""

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

REFERENCE = "ref"
IMPLS = ("cuda", REFERENCE)

Op = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Readiness:
    """Whether the kernels of a kind of device can run here, and why (not)."""

    ready: bool
    reason: str  # 'AVX-512, built in 17 s', 'no C++ compiler was found (c++): ...'
    advice: str | None = None  # what to install; None where nobody would expect kernels


class Extent(NamedTuple):
    """How much of everything a call has, or kernels take at most."""

    taps: float = 1  # of a filter, along an axis
    factor: float = 1  # up or down
    plane: float = 0  # pixels of a channel, upsampled and padded
    blocks: float = 0  # that a GPU may have to start

    def beyond(self, limits: "Extent") -> list[str]:
        """The names of what is more than in `limits`."""
        return [name for name, value, limit in zip(self._fields, self, limits, strict=True) if value > limit]


NO_LIMITS = Extent(*[math.inf] * len(Extent._fields))
LIMITS_IN_WORDS = {
    "taps": "filters of up to {} taps along an axis, not of {}",
    "factor": "an up or down of up to {}, not of {}",
    "plane": "channels of up to {} pixels, upsampled and padded, not of {}",
    "blocks": "calls of up to {} blocks, not of {}",
}


ASSUMED_READY = Readiness(True, "nobody has asked yet")


@dataclass(frozen=True)
class Provider:
    """Kernels for a kind of device."""

    load: Callable[[], Readiness]
    dtypes: frozenset[torch.dtype]
    limits: Extent = NO_LIMITS


_references: dict[str, Op] = {}
_kernels: dict[str, Op] = {}
_providers: dict[str, Provider] = {}
_readiness: dict[str, Readiness] = {}
_forced: list[str] = []
_warned: set[tuple[str, str]] = set()  # device type, cause


def register(op_name: str, reference: Op, kernel: Op | None = None) -> None:
    """Name the reference of an op, and the call that reaches its kernels on every device that has them."""
    _references[op_name] = reference
    if kernel is not None:
        _kernels[op_name] = kernel


def register_provider(device_type: str, provider: Provider) -> None:
    """Name what loads (and builds, if need be) the kernels of a device type, and the dtypes that they take."""
    _providers[device_type] = provider
    _readiness.pop(device_type, None)


def select(op_name: str, x: torch.Tensor, impl: str, extent: Extent = Extent()) -> Op:
    """The implementation of `op_name` for a tensor like `x`, of which the call asks as much as `extent` says.

    `impl` 'cuda', the name that callers have always passed, asks for the fastest on the device of x, whichever that is;
    'ref' forces the reference. Anything else is a ValueError.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}, not one of: {', '.join(IMPLS)}")
    impl = _forced[-1] if _forced else impl
    # A traced module is to run where this package is not.
    is_plain = impl == REFERENCE or torch.jit.is_tracing() or not has_kernels(op_name, x, extent)
    return _references[op_name] if is_plain else _kernels[op_name]


def has_kernels(op_name: str, x: torch.Tensor, extent: Extent = Extent()) -> bool:
    """Whether kernels take this call. Warns where they are at hand and a limit of theirs is in the way."""
    provider = _providers.get(x.device.type)
    if op_name not in _kernels or provider is None:
        return False
    device_type = x.device.type
    if x.dtype not in provider.dtypes:
        if _readiness.get(device_type, ASSUMED_READY).ready:
            dtype = str(x.dtype).removeprefix("torch.")
            warn_once(device_type, dtype, f"do not take {dtype}")
        return False
    if not readiness(device_type).ready:
        return False
    excess = extent.beyond(provider.limits)
    for name in excess:
        fact = LIMITS_IN_WORDS[name].format(getattr(provider.limits, name), getattr(extent, name))
        warn_once(device_type, name, f"take {fact}")
    return not excess


def warn_once(device_type: str, cause: str, fact: str) -> None:
    """Say, once in a process for each cause, that plain PyTorch runs because of a fact about the kernels."""
    if (device_type, cause) in _warned or torch.compiler.is_compiling():
        return
    _warned.add((device_type, cause))
    warnings.warn(
        f"the {device_type} kernels {fact}: plain PyTorch runs instead, which is slower",
        RuntimeWarning,
        stacklevel=5,  # the caller of the op
    )


def readiness(device_type: str) -> Readiness:
    """Whether the kernels of a device type run here. The first call may build them, and warns if that fails."""
    if device_type not in _providers:
        return Readiness(False, "there are none for this kind of device")
    if device_type not in _readiness:
        _readiness[device_type] = status = _providers[device_type].load()
        if not status.ready and status.advice is not None:
            print(
                f"Warning: no {device_type} kernels: {status.reason}; plain PyTorch runs instead. {status.advice}",
                file=sys.stderr,
            )
    return _readiness[device_type]


def describe(device: torch.device | str = "cpu") -> str:
    """One line for a start-up summary: what runs the ops on `device`, and why."""
    device_type = torch.device(device).type
    status = readiness(device_type)
    if status.ready:
        return f"{device_type} kernels for {', '.join(sorted(_kernels))} ({status.reason})"
    return f"plain PyTorch ops; no {device_type} kernels: {status.reason}"


@contextlib.contextmanager
def forced(impl: str) -> Iterator[None]:
    """Within the block every op runs as if called with this `impl`: for comparing two of them."""
    _forced.append(impl)
    try:
        yield
    finally:
        _forced.pop()
