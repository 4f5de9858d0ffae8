"""Which implementation of an op runs, decided in one place.

Every op has a reference in plain PyTorch, which is its definition, and may have kernels for some kinds of devices, under
the same call signature. `select` hands out the kernel where the device of the tensor has a provider that is ready, and
the reference otherwise. A provider is asked once in a process; one that is not ready says why in one line.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

REFERENCE = "ref"
IMPLS = ("cuda", REFERENCE)
MAX_TAPS = 32  # of a filter, along an axis, that kernels take

Op = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Readiness:
    """Whether the kernels of a kind of device can run here, and why (not)."""

    ready: bool
    reason: str  # 'AVX-512, built in 17 s', 'no C++ compiler was found (c++): ...'
    advice: str | None = None  # what to install; None where nobody would expect kernels


@dataclass(frozen=True)
class Provider:
    """Kernels for a kind of device."""

    load: Callable[[], Readiness]
    dtypes: frozenset[torch.dtype]


_references: dict[str, Op] = {}
_kernels: dict[str, Op] = {}
_providers: dict[str, Provider] = {}
_readiness: dict[str, Readiness] = {}
_forced: list[str] = []


def register(op_name: str, reference: Op, kernel: Op | None = None) -> None:
    """Name the reference of an op, and the call that reaches its kernels on every device that has them."""
    _references[op_name] = reference
    if kernel is not None:
        _kernels[op_name] = kernel


def register_provider(device_type: str, provider: Provider) -> None:
    """Name what loads (and builds, if need be) the kernels of a device type, and the dtypes that they take."""
    _providers[device_type] = provider
    _readiness.pop(device_type, None)


def select(op_name: str, x: torch.Tensor, impl: str) -> Op:
    """The implementation of `op_name` for a tensor like `x`.

    `impl` 'cuda', the name that callers have always passed, asks for the fastest on the device of x, whichever that is;
    'ref' forces the reference. Anything else is a ValueError.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}, not one of: {', '.join(IMPLS)}")
    impl = _forced[-1] if _forced else impl
    return _kernels[op_name] if impl != REFERENCE and has_kernels(op_name, x) else _references[op_name]


def has_kernels(op_name: str, x: torch.Tensor) -> bool:
    provider = _providers.get(x.device.type)
    return (
        op_name in _kernels and provider is not None and x.dtype in provider.dtypes and readiness(x.device.type).ready
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
