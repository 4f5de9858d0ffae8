"""The pickles of the official PyTorch code as data: classes by name, constructor arguments, tensors. Nothing is run.

Their objects are calls of one function with a dict: the text of a Python module, a class name in it, and the object's
attributes. The text is ignored, so that only names and attributes tell the generations of the code apart.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import torch

from torch_utils import data_pickles
from torch_utils.data_pickles import Blob, Name, SnapshotError, Stateful, shown, tensor_from_bytes

META_KEYS = {"type", "version", "module_src", "class_name", "state"}
FORMAT_VERSION = 6
MISSING = (
    "Missing"  # the class of what stands for a network that there is none of (`training.checkpoints.official_export`)
)
MAX_MODULES = 20_000  # in one object, counted as often as they are referred to

# What StyleGAN2-ADA-PyTorch assumed where StyleGAN3 assumes something else, for arguments that a file does not give.
ADA_SYNTHESIS_DEFAULTS = {"num_fp16_res": 0, "conv_clamp": None, "fused_modconv_default": "inference_only"}
ADA_MAPPING_DEFAULTS = {"w_avg_beta": 0.995}
ADA_DISCRIMINATOR_DEFAULTS = {"num_fp16_res": 0, "conv_clamp": None}

GENERATOR_ARGUMENTS = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs")
DISCRIMINATOR_ARGUMENTS = ("c_dim", "img_resolution", "img_channels")


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
    count: int = field(init=False)
    """Modules and tensors, as often as they are referred to."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise SnapshotError(
            f"a {shown(self.class_name)} of the official code: this project has no class for it, only its data"
        )

    def __post_init__(self) -> None:
        self.count = 1 + len(self.tensors) + sum(child.count for child in self.children.values())
        if self.count > MAX_MODULES:
            raise SnapshotError(f"the file holds an object of more than {MAX_MODULES:,} parts")

    def state_dict(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """The state as `torch.nn.Module.state_dict` would give it."""
        state = {f"{prefix}{name}": tensor for name, tensor in self.tensors.items()}
        for name, child in self.children.items():
            state |= child.state_dict(f"{prefix}{name}.")
        return state

    def descendants(self) -> Iterator["OfficialModule"]:
        yield self
        for child in self.children.values():
            yield from child.descendants()

    @property
    def is_network(self) -> bool:
        """Whether this project has a class of its own for it; other modules are parts of networks."""
        return self.class_name in BUILD_SPECS

    def build_spec(self, max_bytes: int | None = None) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
        """Our class, its constructor arguments and its state: views, so that `max_bytes` is for others to keep to.

        Raises `SnapshotError` for what is no such network.
        """
        if not self.is_network:
            raise SnapshotError(f"the file holds a {shown(self.class_name)}, which is no network of this project")
        class_name, kwargs = BUILD_SPECS[self.class_name](self)
        return class_name, kwargs, self.state_dict()


def read(file: BinaryIO) -> Any:
    """What the pickle holds, with `OfficialModule`s in place of its objects. Raises `SnapshotError` (a `UserError`)."""
    return data_pickles.read(file, NAMES)[0]


def describe(meta: Any) -> OfficialModule:
    """The module that the argument of the files' one function describes."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or set(meta) != META_KEYS:
        raise SnapshotError("the file holds an object that is not in the format of the official code")
    if meta["version"] != FORMAT_VERSION:
        version = shown(meta["version"])
        raise SnapshotError(f"the file is of version {version} of the official format; {FORMAT_VERSION} is read")
    state = meta["state"]
    if not isinstance(state, dict) or not isinstance(meta["class_name"], str):
        raise SnapshotError("the file holds an object without attributes or without a class")
    own = {**part(state, "_parameters"), **part(state, "_buffers")}
    unsaved = state.get("_non_persistent_buffers_set") or ()
    tensors = {name: tensor for name, tensor in own.items() if tensor is not None and name not in unsaved}
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise SnapshotError("the file holds a parameter that is no tensor")
    init_args = state.get("_init_args", ())
    return OfficialModule(
        class_name=meta["class_name"],
        init_args=tuple(init_args) if isinstance(init_args, tuple | list) else (),
        init_kwargs=dict(part(state, "_init_kwargs")),
        attributes={name: _plain(value) for name, value in state.items() if not str(name).startswith("_")},
        tensors={name: tensor.detach() for name, tensor in tensors.items()},
        children={name: child for name, child in part(state, "_modules").items() if isinstance(child, OfficialModule)},
    )


def part(state: dict[str, Any], name: str) -> dict[str, Any]:
    value = state.get(name)
    if value is not None and not isinstance(value, dict):
        raise SnapshotError(f"the file holds an object whose {name} is {shown(value)}")
    return value or {}


# Their classes as ours


def generator_spec(module: OfficialModule) -> tuple[str, dict[str, Any]]:
    kwargs = named_arguments(module, (*GENERATOR_ARGUMENTS, "synthesis_kwargs"))
    synthesis = module.children.get("synthesis")
    if synthesis is not None and "input" in synthesis.children:
        return "training.networks_stylegan3.Generator", kwargs
    own = {name: kwargs.pop(name) for name in list(kwargs) if name in GENERATOR_ARGUMENTS}
    flat = {**part(kwargs, "synthesis_kwargs"), **{k: v for k, v in kwargs.items() if k != "synthesis_kwargs"}}
    if is_ada(module):
        flat = {**ADA_SYNTHESIS_DEFAULTS, **flat}
        own["mapping_kwargs"] = {**ADA_MAPPING_DEFAULTS, **part(own, "mapping_kwargs")}
    return "training.networks_stylegan2.Generator", {**own, **flat}


def discriminator_spec(module: OfficialModule) -> tuple[str, dict[str, Any]]:
    kwargs = named_arguments(module, DISCRIMINATOR_ARGUMENTS)
    defaults = ADA_DISCRIMINATOR_DEFAULTS if is_ada(module) else {}
    return "training.networks_stylegan2.Discriminator", {**defaults, **kwargs}


def augment_spec(module: OfficialModule) -> tuple[str, dict[str, Any]]:
    return "training.augment.AugmentPipe", named_arguments(module, ())


BUILD_SPECS: dict[str, Callable[[OfficialModule], tuple[str, dict[str, Any]]]] = {
    "Generator": generator_spec,
    "Discriminator": discriminator_spec,
    "AugmentPipe": augment_spec,
}


def named_arguments(module: OfficialModule, names: tuple[str, ...]) -> dict[str, Any]:
    if len(module.init_args) > len(names):
        raise SnapshotError(f"the file builds a {shown(module.class_name)} from unnamed arguments")
    return {**dict(zip(names, module.init_args, strict=False)), **module.init_kwargs}


def is_ada(module: OfficialModule) -> bool:
    """Whether the StyleGAN2 network is of StyleGAN2-ADA-PyTorch: its linear layers do not note their sizes."""
    layers = (part for part in module.descendants() if part.class_name == "FullyConnectedLayer")
    return not any("in_features" in layer.attributes for layer in layers)


# The names in the files


STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class StorageReference:
    dtype: torch.dtype
    key: str
    numel: int


def _storage(blob: Any) -> torch.Tensor:
    """The flat tensor in a stream of PyTorch's older format: five pickles, a length and the numbers."""
    if not isinstance(blob, Blob):
        raise SnapshotError(f"a storage made of {shown(blob)}")
    if blob.made is None:
        machine = data_pickles.Machine(blob.view, STORAGE_NAMES, storage_reference, blob.offset)
        magic, protocol, _, reference, keys = (machine.load() for _ in range(5))
        if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not isinstance(reference, StorageReference):
            raise SnapshotError("a storage that is not in PyTorch's older format")
        if keys != [reference.key] or machine.number("<q") != reference.numel:
            raise SnapshotError("a storage that contradicts itself")
        numbers = bytearray(machine.take(len(machine.data) - machine.position))
        blob.made = tensor_from_bytes(reference.dtype, (reference.numel,), numbers)
    return blob.made


def storage_reference(reference: Any) -> StorageReference:
    if not isinstance(reference, tuple) or len(reference) != 6 or reference[0] != "storage":
        raise SnapshotError("a reference that is none to a storage")
    _, kind, key, _, numel, view = reference
    is_plain = (
        isinstance(kind, Name)
        and isinstance(kind.value, torch.dtype)
        and type(key) is str
        and type(numel) is int
        and view is None
    )
    if not is_plain:
        raise SnapshotError("a reference to a storage of an unknown kind")
    return StorageReference(kind.value, key, numel)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """A view of a storage. Every element must lie inside, and there can be no more of them than the storage has."""
    if not isinstance(storage, torch.Tensor) or storage.ndim != 1:
        raise SnapshotError(f"a tensor made of {shown(storage)}")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride) or len(size) > 8:
        raise SnapshotError("a tensor whose size and strides do not match")
    if not all(type(number) is int and 0 <= number < 2**48 for number in (offset, *size, *stride)):
        raise SnapshotError("a tensor with a negative or huge size, stride or offset")
    numel, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        numel, last = numel * length, last + (length - 1) * step
    if numel > len(storage) or (numel > 0 and last >= len(storage)):
        raise SnapshotError(f"a tensor of {'x'.join(map(str, size))} that does not fit into the numbers it is made of")
    return storage.as_strided(size, stride, offset) if numel else storage.new_empty(size)


def _parameter(tensor: Any, *_: Any) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise SnapshotError(f"a parameter made of {shown(tensor)}")
    return tensor


class NumpyType(Stateful):
    """The type of a NumPy array: plain numbers of up to eight bytes."""

    def __init__(self, name: Any, *_: Any):
        if not isinstance(name, str) or name[:1] not in "fiub" or len(name) > 3:
            raise SnapshotError(f"an array of {shown(name)} instead of numbers")
        self.dtype = np.dtype(name)

    def set_state(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise SnapshotError("an array whose type has an unknown byte order")
        self.dtype = self.dtype.newbyteorder(order) if order in ("<", ">") else self.dtype


class NumpyArray(Stateful):
    """A NumPy array while it is put together."""

    def __init__(self, *_: Any):
        self.values: Any = None

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise SnapshotError("an array in an unknown format")
        _, shape, kind, is_fortran, blob = state
        if not isinstance(kind, NumpyType) or not isinstance(blob, Blob) or not isinstance(shape, tuple):
            raise SnapshotError("an array of something else than numbers")
        if len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
            raise SnapshotError("an array whose shape is no list of up to eight sizes")
        numel = 1
        for side in shape:
            numel *= side
        if numel * kind.dtype.itemsize != len(blob.view):
            raise SnapshotError(f"an array of {numel:,} numbers, and the file has {len(blob.view):,} bytes for it")
        flat = np.frombuffer(blob.view, dtype=kind.dtype)
        self.values = flat.reshape(shape, order="F" if is_fortran else "C")


def _scalar(kind: Any, blob: Any) -> Any:
    if not isinstance(kind, NumpyType) or not isinstance(blob, Blob) or len(blob.view) != kind.dtype.itemsize:
        raise SnapshotError("a number in an unknown format")
    return np.frombuffer(blob.view, dtype=kind.dtype)[0].item()


def _empty_dict(*args: Any) -> dict:
    if args:
        raise SnapshotError("a dict made of something else than its items")
    return {}


def _set(items: Any) -> set:
    if not isinstance(items, list) or not all(type(item) in (str, int) for item in items):
        raise SnapshotError("a set of something else than text and integers")
    return set(items)


def _bytes(text: Any, encoding: Any) -> Blob:
    """How bytes look in a pickle of protocol 2 or older."""
    if not isinstance(text, str) or encoding != "latin1":
        raise SnapshotError("bytes in an unknown format")
    return Blob(memoryview(text.encode("latin1")), 0)


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, NumpyArray) else value


STORAGE_NAMES = {("torch", name): Name(value=dtype) for name, dtype in STORAGES.items()}
NUMPY_NAMES = {
    (module, name): Name(call)
    for module, (name, call) in itertools.product(
        ("numpy.core.multiarray", "numpy._core.multiarray"), {"scalar": _scalar, "_reconstruct": NumpyArray}.items()
    )
} | {("numpy", "dtype"): Name(NumpyType), ("numpy", "ndarray"): Name()}
CONTAINER_NAMES = {
    ("dnnlib.util", "EasyDict"): Name(_empty_dict),
    ("collections", "OrderedDict"): Name(_empty_dict),
    ("builtins", "set"): Name(_set),
    ("__builtin__", "set"): Name(_set),
    ("_codecs", "encode"): Name(_bytes),
}
TENSOR_NAMES = {
    ("torch._utils", "_rebuild_parameter"): Name(_parameter),
    ("torch._utils", "_rebuild_tensor_v2"): Name(_tensor),
    ("torch.storage", "_load_from_bytes"): Name(_storage),
}
NAMES = {
    **NUMPY_NAMES,
    **CONTAINER_NAMES,
    **TENSOR_NAMES,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Name(describe),
}
