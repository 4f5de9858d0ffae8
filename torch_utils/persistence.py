"""Objects that travel in snapshots as data: a class name, constructor arguments and tensors, never code.

A class marked with `persistent_class` remembers the arguments it was built with. `pickle` writes it as a call of
`_reconstruct_persistent_obj` with one plain dict; reading builds the class anew and loads the tensors. `load` reads
such a file with an unpickler that knows the two functions below, a few containers and nothing else.
"""

import contextlib
import copy
import functools
import importlib
import inspect
import pickle
from typing import Any, BinaryIO

import numpy as np
import torch

from dnnlib.errors import UserError

FORMAT_VERSION = 7  # 6 is the last format that carried source text
PROJECT_PACKAGES = ("training", "torch_utils", "metrics")

_persistent_classes: dict[str, type] = {}


class SnapshotError(UserError):
    """A snapshot that cannot be read, or names something that must not be built."""


def persistent_class(cls: Any) -> Any:
    """Class decorator: remember constructor arguments (`init_kwargs`) and be picklable as data.

    The class offers `state_dict()` and `load_state_dict()`, as `torch.nn.Module` does; its constructor arguments must
    be plain data (numbers, strings, None, lists, tuples, dicts).
    """
    construct = cls.__init__
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def __init__(self, *args, **kwargs):
        # A subclass's constructor has the first word: its arguments are the ones that rebuild the object.
        self.__dict__.setdefault("_init_kwargs", _as_kwargs(signature, self, args, kwargs))
        construct(self, *args, **kwargs)

    cls.__init__ = __init__
    cls.__reduce_ex__ = _reduce
    cls.__deepcopy__ = _deepcopy
    cls.init_kwargs = property(lambda self: copy.deepcopy(self._init_kwargs))
    cls.init_args = property(lambda self: ())
    _persistent_classes[class_path(cls)] = cls
    return cls


def class_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def find_class(name: str) -> type:
    """The persistent class called `package.module.Class`; `SnapshotError` if it is not one of this project's."""
    module_name, _, class_name = name.rpartition(".")
    is_ours = module_name.split(".")[0] in PROJECT_PACKAGES and all(part.isidentifier() for part in name.split("."))
    if is_ours:
        with contextlib.suppress(ImportError):
            importlib.import_module(module_name)
    if name not in _persistent_classes or not class_name:
        known = ", ".join(sorted(_persistent_classes))
        raise SnapshotError(f"the snapshot names the class {name!r}, which is not on the allow-list ({known})")
    return _persistent_classes[name]


def construct(class_name: str, **kwargs: Any) -> Any:
    """Build a persistent class by name."""
    return find_class(class_name)(**kwargs)


def load(file: BinaryIO) -> Any:
    """Read a pickle of plain containers and persistent objects. Never runs or imports anything else."""
    try:
        return SafeUnpickler(file).load()
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything, MemoryError included
        reason = f"{type(error).__name__}: {error}"
        raise SnapshotError(f"not a readable snapshot ({reason}); give a network-snapshot-*.pkl") from error


class SafeUnpickler(pickle.Unpickler):
    """Resolves an explicit list of globals and nothing else."""

    allowed: dict[tuple[str, str], Any] = {}  # filled below, once the functions exist

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise SnapshotError(
                f"the file asks for {module}.{name}, which a snapshot has no business with; nothing of it was run"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise SnapshotError("the file refers to storage outside itself")


def check_plain_data(value: Any, where: str) -> None:
    """Constructor arguments must survive a round trip through JSON-like data."""
    if isinstance(value, dict):
        for key, item in value.items():
            check_plain_data(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_plain_data(item, f"{where}[{index}]")
    elif not isinstance(value, str | int | float | bool | type(None)):
        raise TypeError(f"{where} is a {type(value).__name__}; constructor arguments of persistent classes are data")


def _as_kwargs(signature: inspect.Signature, self: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    bound = signature.bind(self, *args, **kwargs).arguments
    merged: dict[str, Any] = {}
    for name, value in list(bound.items())[1:]:
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            merged.update(value)
        else:
            merged[name] = value
    return _to_plain(merged)


def _to_plain(value: Any) -> Any:
    """Deep copy with NumPy scalars as Python's and dict subclasses as dicts."""
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_plain(item) for item in value) if type(value) in (list, tuple) else list(value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def _reduce(self, protocol):
    check_plain_data(self._init_kwargs, type(self).__name__)
    meta = {
        "type": "class",
        "version": FORMAT_VERSION,
        "class_name": class_path(type(self)),
        "init_kwargs": self._init_kwargs,
        "state": {name: _PackedTensor(tensor) for name, tensor in self.state_dict().items()},
    }
    return _reconstruct_persistent_obj, (meta,)


def _deepcopy(self, memo):
    twin = type(self).__new__(type(self))
    memo[id(self)] = twin
    twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return twin


def _reconstruct_persistent_obj(meta: dict) -> Any:
    """Build the object that `meta` describes, in eval mode and without gradients, on the CPU."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != FORMAT_VERSION:
        raise SnapshotError("the snapshot holds an object in a format that this version does not read")
    obj = construct(meta["class_name"], **meta["init_kwargs"])
    obj.load_state_dict(meta["state"])
    return obj.eval().requires_grad_(False) if isinstance(obj, torch.nn.Module) else obj


class _PackedTensor:
    """A tensor on its way into a pickle: dtype, shape and raw little-endian bytes."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor.detach().cpu().contiguous()

    def __reduce__(self):
        raw = self.tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if self.tensor.numel() else b""
        return _rebuild_tensor, (str(self.tensor.dtype).removeprefix("torch."), tuple(self.tensor.shape), raw)


_TENSOR_DTYPES = ("float32", "float64", "float16", "bfloat16", "uint8", "uint16", "int16", "int32", "int64", "bool")


def _rebuild_tensor(dtype: str, shape: tuple, raw: bytes) -> torch.Tensor:
    if dtype not in _TENSOR_DTYPES:
        raise SnapshotError(f"the snapshot holds a tensor of type {dtype!r}; known: {', '.join(_TENSOR_DTYPES)}")
    if not raw:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.frombuffer(bytearray(raw), dtype=getattr(torch, dtype)).reshape(shape)


SafeUnpickler.allowed = {
    (__name__, "_reconstruct_persistent_obj"): _reconstruct_persistent_obj,
    (__name__, "_rebuild_tensor"): _rebuild_tensor,
}
