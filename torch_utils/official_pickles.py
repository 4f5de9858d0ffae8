"""The pickles of the official StyleGAN code as data: classes by name, constructor arguments, tensors. Nothing is run.

Their objects are calls of one function with a dict: the text of a Python module, a class name in it, and the object's
attributes. The text is ignored. A pickle may ask for a dozen names that stand for data; any other name ends the reading.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import torch

from torch_utils.persistence import SnapshotError

META_KEYS = {"type", "version", "module_src", "class_name", "state"}
FORMAT_VERSION = 6


@dataclass
class OfficialModule:
    """A module of an official pickle."""

    class_name: str
    init_args: tuple
    init_kwargs: dict[str, Any]
    attributes: dict[str, Any]
    """The object's own plain attributes."""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """Parameters and persistent buffers of this module alone."""
    children: dict[str, "OfficialModule"] = field(default_factory=dict)

    def state_dict(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """As `torch.nn.Module.state_dict` would give it."""
        state = {f"{prefix}{name}": tensor for name, tensor in self.tensors.items()}
        for name, child in self.children.items():
            state |= child.state_dict(f"{prefix}{name}.")
        return state


def read(file: BinaryIO) -> Any:
    """What the pickle holds, with `OfficialModule`s in place of its objects. Raises `SnapshotError` (a `UserError`)."""
    try:
        return _DataUnpickler(file).load()
    except SnapshotError:
        raise
    except Exception as error:  # a damaged stream can raise nearly anything inside the unpickler
        raise SnapshotError(f"is no pickle of the official code ({type(error).__name__})") from error


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise SnapshotError(
                f"the file asks for {module}.{name}, which a network has no business with; nothing of it was run"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise SnapshotError("the file refers to storage outside itself")


def _module(meta: Any) -> OfficialModule:
    if not isinstance(meta, dict) or set(meta) != META_KEYS or meta["type"] != "class":
        raise SnapshotError("the file holds an object that is not in the format of the official code")
    if meta["version"] != FORMAT_VERSION:
        raise SnapshotError(
            f"the file is of version {meta['version']} of the official format; {FORMAT_VERSION} is read"
        )
    state = dict(meta["state"])
    unsaved = state.get("_non_persistent_buffers_set") or ()
    own = {**(state.pop("_parameters", None) or {}), **(state.pop("_buffers", None) or {})}
    children = state.pop("_modules", None) or {}
    return OfficialModule(
        class_name=str(meta["class_name"]),
        init_args=tuple(state.pop("_init_args", ())),
        init_kwargs=dict(state.pop("_init_kwargs", {})),
        attributes={name: _plain(value) for name, value in state.items() if not name.startswith("_")},
        tensors={name: tensor for name, tensor in own.items() if tensor is not None and name not in unsaved},
        children={name: child for name, child in children.items() if isinstance(child, OfficialModule)},
    )


def _storage(data: bytes) -> Any:
    """PyTorch's older format of a storage, by PyTorch's own reader of tensors and nothing else."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, requires_grad: bool, hooks: Any) -> torch.Tensor:
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict()).clone()


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype=dtype, count=1)[0].item()


class _Array:
    """A NumPy array while it is put together, from what NumPy's own `__setstate__` would take."""

    def __init__(self, *args: Any):
        self.values: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        if dtype.hasobject or not isinstance(data, bytes):
            raise SnapshotError("the file holds an array of objects")
        self.values = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if is_fortran else "C")


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, _Array) else value


def _dtype(name: str, *flags: Any) -> np.dtype:
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise SnapshotError("the file holds an array of objects")
    return dtype


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _module,
    ("dnnlib.util", "EasyDict"): dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, requires_grad, hooks: tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}
