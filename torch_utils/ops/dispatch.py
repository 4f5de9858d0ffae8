"""Which implementation of an op runs, decided in one place.

Every op has a reference in plain PyTorch, which is its definition. Kernels for a device register beside it under the
same call signature; `select` hands out the kernel of the tensor's device, or the reference where there is none.
"""

from collections.abc import Callable

import torch

REFERENCE = "ref"
IMPLS = ("cuda", REFERENCE)

_registry: dict[tuple[str, str], Callable[..., torch.Tensor]] = {}


def register(op_name: str, device_type: str, fn: Callable[..., torch.Tensor]) -> None:
    """Make `fn` the kernel of `op_name` on `device_type` ('cpu', 'cuda', ...), or its reference for `REFERENCE`."""
    _registry[op_name, device_type] = fn


def select(op_name: str, device: torch.device, impl: str) -> Callable[..., torch.Tensor]:
    """The implementation of `op_name` for tensors on `device`.

    `impl` 'cuda', the name that callers have always passed, asks for the fastest kernel registered for the device and
    takes the reference where there is none; 'ref' forces the reference. Anything else is a ValueError.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}, not one of: {', '.join(IMPLS)}")
    reference = _registry[op_name, REFERENCE]
    return reference if impl == REFERENCE else _registry.get((op_name, device.type), reference)


def describe(device: torch.device | str = "cpu") -> str:
    """One line for a start-up summary: which ops have kernels on `device`."""
    device_type = torch.device(device).type
    kernels = sorted(op for op, kind in _registry if kind == device_type)
    if not kernels:
        return f"reference PyTorch ops ({device_type})"
    return f"{device_type} kernels for {', '.join(kernels)}; reference PyTorch for the other ops"
