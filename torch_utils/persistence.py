"""Objects that travel in snapshots as data: a class name, constructor arguments and tensors, never code.

A class marked with `persistent_class` remembers the arguments it was built with. `pickle` writes it as a call of
`_reconstruct_persistent_obj` with one plain dict; reading builds the class anew and loads the tensors. `load` reads
such a file, and those of the official code, with a machine of its own (`data_pickles`) that knows a list of names and
nothing else: first everything is read as data, then checked, then built.
"""

import contextlib
import copy
import functools
import importlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from dnnlib.errors import UserError
from dnnlib.util import EasyDict
from torch_utils import data_pickles, official_pickles, tensorflow_pickles
from torch_utils.data_pickles import Blob, Name, SnapshotError, Stateful, shown, tensor_from_bytes
from torch_utils.official_pickles import OfficialModule

FORMAT_VERSION = 7  # 6 is the last format that carried source text
# The package that says, in `STORED_CLASSES`, which classes files may name, and where each lives. Imported when it is first
# asked: a program with a plain `pickle.load` has imported nothing of it.
HOME = "training"
MAX_DEPTH = 50  # of nested containers; a cascade's arguments take one level for each stage
MAX_ARGUMENTS = 10_000  # of a constructor, at all levels
MAX_ARGUMENT = 2**24  # of a number among them
MAX_OBJECTS = 100  # in a file
MAX_TENSORS = 20_000  # in all of them

_persistent_classes: dict[str, type] = {}


def remembers_arguments(cls: Any) -> Any:
    """Class decorator: `init_args` and `init_kwargs` say what an object was built with, as in the official code."""
    construct = cls.__init__
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def __init__(self, *args, **kwargs):
        # A subclass's constructor has the first word: its arguments are the ones that rebuild the object.
        self.__dict__.setdefault("_init_kwargs", _as_kwargs(signature, self, args, kwargs))
        construct(self, *args, **kwargs)

    cls.__init__ = __init__
    cls.init_kwargs = property(lambda self: _as_easy_dicts(self._init_kwargs))
    cls.init_args = property(lambda self: ())
    return cls


def persistent_class(cls: Any) -> Any:
    """Class decorator: remember constructor arguments (`init_kwargs`) and be picklable as data.

    The constructor's arguments must be plain data (numbers, strings, None, lists, tuples, dicts). What the constructor
    does not bring back comes from `state_dict()` and goes to `load_state_dict()`, as in `torch.nn.Module`; of a class
    without these the attributes travel, plain data and tensors. Classes of a user's program, so marked, are read in programs
    that have imported them.
    """
    remembers_arguments(cls)
    construct = cls.__init__

    @functools.wraps(construct)
    def __init__(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        if isinstance(self, torch.nn.Module):
            self.__dict__["_as_built"] = _parts(self)  # of the last constructor, which is the outermost one

    cls.__init__ = __init__
    cls.__reduce_ex__ = _reduce
    cls.__deepcopy__ = _deepcopy
    _persistent_classes[class_path(cls)] = cls
    return cls


@dataclass(frozen=True)
class Parts:
    """What a module consisted of when it was built: what a file need not say."""

    shapes: dict[str, torch.Size]
    attributes: frozenset[str]
    """With the paths of the modules that they belong to: `synthesis.b4.resolution`."""


def _parts(module: torch.nn.Module) -> Parts:
    return Parts({name: tensor.shape for name, tensor in module.state_dict().items()}, frozenset(_attributes(module)))


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Public attributes of all modules in it, by path, without those that classes have a default for (a run's own settings)."""
    return {
        f"{path}.{name}" if path else name: value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if not name.startswith("_") and not hasattr(type(part), name)
    }


def class_path(cls: type) -> str:
    """`package.module.Class` as files name it, wherever the class lives today."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    return next(
        (name for name, place in stored_classes().items() if f"{place}.{name.rpartition('.')[2]}" == path), path
    )


def stored_classes() -> Mapping[str, str]:
    """Classes that files may name -> the modules that they live in."""
    try:
        return getattr(importlib.import_module(HOME), "STORED_CLASSES", {})  # a program may have a package of that name
    except ModuleNotFoundError:
        return {}


def is_persistent(value: Any) -> bool:
    """Whether the class, or the object's class, is marked with `persistent_class`."""
    cls = value if isinstance(value, type) else type(value)
    return _persistent_classes.get(class_path(cls)) is cls


def import_hook(hook: Any) -> None:
    """Official name; raises `UserError`: the source text in a file is never run, so that there is nothing to hook into."""
    raise UserError(
        "persistence.import_hook: source text in files is never run here, and no hook would be called; networks of the "
        "official code come as this project's classes (legacy.load_network_pkl), change those"
    )


def with_arguments(obj: Any, **changed: Any) -> Any:
    """The same object (its parts are shared) that a file will say was built with other arguments."""
    twin = object.__new__(type(obj))
    twin.__dict__.update(obj.__dict__, _init_kwargs={**obj._init_kwargs, **changed})
    return twin


def find_class(name: str) -> type:
    """The persistent class called `package.module.Class`; `SnapshotError` if it is not one of this project's."""
    if name in stored_classes():
        importlib.import_module(stored_classes()[name])
    if name not in _persistent_classes:
        known = ", ".join(sorted({one.rpartition(".")[0] for one in stored_classes()}))
        raise SnapshotError(
            f"the snapshot names the class {shown(name)!r}, which is not on the allow-list (classes of {known})"
        )
    return _persistent_classes[name]


def construct(class_name: str, **kwargs: Any) -> Any:
    """Build a persistent class by name."""
    return find_class(class_name)(**kwargs)


@dataclass
class SavedObject:
    """A persistent object as a file describes it."""

    class_name: str
    init_kwargs: dict[str, Any]
    state: dict[str, torch.Tensor]
    manner: dict[str, Any] = field(default_factory=dict)
    """What a caller has changed since: `training`, `trainable` (names of parameters), `attributes` (path -> value)."""

    def build_spec(self, max_bytes: int | None = None) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
        return self.class_name, self.init_kwargs, self.state


def load(file: BinaryIO) -> Any:
    """Read a pickle of plain containers and persistent objects, ours, the official PyTorch code's or TensorFlow's.

    Networks are in eval mode, without gradients, on the CPU. Raises `SnapshotError`. Runs and imports nothing that the
    file names, and needs no more memory than a few times the size of the file, whatever the file declares.
    """
    contents, size = data_pickles.read(file, NAMES)
    return build_all(contents, size)


def build_all(contents: Any, size: int) -> Any:
    """Containers with their descriptions of objects replaced by the objects; `size` is that of the file in bytes."""
    try:
        return _Builder(size).build_all(contents)
    except UserError:
        raise
    except Exception as error:  # arguments that a constructor stumbles over
        reason = shown(f"{type(error).__name__}: {error}")
        raise SnapshotError(f"not a readable snapshot ({reason}); give a network-snapshot-*.pkl") from error


class _Builder:
    def __init__(self, size: int):
        self.bytes_left = size
        self.objects_left, self.tensors_left = MAX_OBJECTS, MAX_TENSORS
        self.built: dict[int, Any] = {}

    def build_all(self, value: Any, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise SnapshotError(f"not a readable snapshot: it is nested more than {MAX_DEPTH} levels deep")
        if id(value) not in self.built:
            self.built[id(value)] = self.build(value, depth)
        return self.built[id(value)]

    def build(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {name: self.build_all(item, depth + 1) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.build_all(item, depth + 1) for item in value)
        if isinstance(value, OfficialModule) and value.class_name == official_pickles.MISSING:
            return None
        if hasattr(value, "build_spec"):
            class_name, kwargs, state = value.build_spec(self.bytes_left)
            self.spend(state)
            obj = instantiate(class_name, kwargs, state)
            return with_manner(obj, value.manner) if isinstance(value, SavedObject) else obj
        if isinstance(value, Blob | Name | Stateful):
            raise SnapshotError("not a readable snapshot: it holds something else than networks and plain data")
        return value

    def spend(self, state: dict[str, torch.Tensor]) -> None:
        """What an object costs: a small file that refers to the same tensors again and again must not become large."""
        self.objects_left -= 1
        self.tensors_left -= len(state)
        self.bytes_left -= sum(tensor.nbytes for tensor in state.values())
        if self.objects_left < 0 or self.tensors_left < 0:
            raise SnapshotError(f"the file holds more than {MAX_OBJECTS} objects or {MAX_TENSORS:,} tensors")
        if self.bytes_left < 0:
            raise SnapshotError("the networks in the file are larger than the file")


def instantiate(class_name: str, kwargs: dict[str, Any], state: dict[str, torch.Tensor]) -> Any:
    """Build a persistent class and give it its state; modules in eval mode and without gradients, on the CPU.

    A module is first built without memory and compared with the state, so that no argument makes it larger than what
    the file has tensors for. Raises `SnapshotError`.
    """
    cls: Any = find_class(class_name)
    if not issubclass(cls, torch.nn.Module):
        check_data(kwargs, "the arguments in the snapshot", MAX_ARGUMENTS)
        with _naming(class_name):
            obj = cls(**_to_plain(kwargs))
            if hasattr(obj, "load_state_dict"):
                obj.load_state_dict(state)
        return obj
    check_arguments(kwargs, len(state))
    with torch.device("meta"), _at_most(len(state)), _naming(class_name):
        obj = cls(**_to_plain(kwargs))
    check_state(class_name, obj.state_dict(), state)
    with torch.no_grad():
        obj = obj._apply(lambda tensor: torch.empty_like(tensor, device="cpu"))
    obj.load_state_dict(state)
    return obj.eval().requires_grad_(False)


def with_manner(obj: Any, manner: dict[str, Any]) -> Any:
    """The object as its caller had left it; files that say nothing have networks in eval mode, without gradients.

    Attributes that the object's class or constructor knows are not touched: a file must not replace a method.
    Raises `SnapshotError`.
    """
    is_module = isinstance(obj, torch.nn.Module)
    trainable, attributes = manner.get("trainable", []), manner.get("attributes", {})
    if not isinstance(trainable, list) or not isinstance(attributes, dict):
        raise SnapshotError("the snapshot's network has gradients or attributes that are none")
    plain = {path: value for path, value in attributes.items() if not isinstance(value, torch.Tensor)}
    check_data(plain, "the attributes in the snapshot", MAX_ARGUMENTS)
    try:
        if is_module:
            obj.train(manner.get("training") is True)
            for name in trainable:
                obj.get_parameter(name).requires_grad_(True)
        for path, value in attributes.items():
            owner_path, _, name = path.rpartition(".")
            owner = obj.get_submodule(owner_path) if is_module else obj
            is_taken = hasattr(owner, name) if is_module else hasattr(type(owner), name)
            if (owner_path and not is_module) or is_taken or name.startswith("_") or not name.isidentifier():
                raise SnapshotError(f"the snapshot sets {shown(path)}, which belongs to {type(obj).__name__}")
            object.__setattr__(owner, name, value)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise SnapshotError(f"the snapshot's {type(obj).__name__} has no {shown(str(error))}") from error
    return obj


def check_arguments(kwargs: Any, num_tensors: int) -> None:
    """Plain data, not much of it, and no number that makes a constructor of a module work or allocate without end."""

    def check_number(name: Any, value: float) -> None:
        limit = num_tensors if name == "num_layers" else MAX_ARGUMENT
        is_size = str(name).endswith(("_dim", "_channels"))
        if is_size and not (isinstance(value, int | np.integer) and value >= 0):
            raise SnapshotError(f"the snapshot builds an object with {shown(name)}={shown(value)}, which is no size")
        if not abs(value) <= limit:
            raise SnapshotError(f"the snapshot builds an object with {shown(name)}={shown(value)}; {limit:,} at most")

    check_data(kwargs, "the arguments in the snapshot", MAX_ARGUMENTS, check_number)


def check_data(
    data: Any, what: str, max_items: int, check_number: Callable[[Any, float], None] = lambda name, value: None
) -> None:
    """A dict of plain data with at most `max_items` at all levels, counted as often as they are referred to."""
    left = max_items

    def check(value: Any, name: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise SnapshotError(f"{what} are more than {max_items:,} or nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            for key, item in value.items():
                check(item, key, depth + 1)
        elif isinstance(value, list | tuple):
            for item in value:
                check(item, name, depth + 1)
        elif isinstance(value, int | float | np.number) and not isinstance(value, bool):
            check_number(name, value)
        elif not isinstance(value, str | bool | type(None) | np.bool_):
            raise SnapshotError(f"{what}: {shown(name)} is {shown(value)}, which is no plain data")

    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise SnapshotError(f"{what} have no names")
    check(data, what, 0)


@contextlib.contextmanager
def _naming(class_name: str) -> Iterator[None]:
    """What a constructor objects to is the file's fault, not that of an option."""
    try:
        yield
    except SnapshotError:
        raise
    except Exception as error:
        reason = shown(f"{type(error).__name__}: {error}")
        raise SnapshotError(f"the snapshot holds no {class_name} that could be built ({reason})") from error


@contextlib.contextmanager
def _at_most(num_tensors: int) -> Iterator[None]:
    """A module that registers more parameters than the file has tensors cannot be the file's."""
    thread, count = threading.get_ident(), 0

    def count_one(module: torch.nn.Module, name: str, parameter: Any) -> None:
        nonlocal count
        if parameter is not None and threading.get_ident() == thread:
            count += 1
            if count > num_tensors:
                raise SnapshotError(f"the snapshot builds a network of more than the {num_tensors:,} tensors it has")

    handle = register_module_parameter_registration_hook(count_one)
    try:
        yield
    finally:
        handle.remove()


def check_state(class_name: str, expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    """Names, shapes and kinds of numbers agree. Raises `SnapshotError` naming the first that does not."""
    for name in [*expected, *state]:
        if name not in state or name not in expected:
            where = "is missing" if name in expected else "has no place"
            raise SnapshotError(f"the snapshot's {class_name}: the tensor {shown(name)} {where}")
        given, wanted = state[name], expected[name]
        if not isinstance(given, torch.Tensor) or given.shape != wanted.shape:
            shape = list(given.shape) if isinstance(given, torch.Tensor) else shown(given)
            raise SnapshotError(
                f"the snapshot's {class_name}: {name} has shape {shape}, by its arguments it is {list(wanted.shape)}"
            )
        if given.is_floating_point() != wanted.is_floating_point():
            raise SnapshotError(f"the snapshot's {class_name}: {name} holds {given.dtype}, not {wanted.dtype}")


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


def _as_easy_dicts(value: Any) -> Any:
    """A deep copy whose dicts have their keys as attributes."""
    if isinstance(value, dict):
        return EasyDict({key: _as_easy_dicts(item) for key, item in value.items()})
    return [_as_easy_dicts(item) for item in value] if type(value) is list else copy.deepcopy(value)


def _reduce(self, protocol):
    """Describe the object as data. Raises `UserError` for what could not be read again."""
    check_data(self._init_kwargs, f"the arguments of {type(self).__name__}", MAX_ARGUMENTS)
    state = self.state_dict() if hasattr(self, "state_dict") else {}
    if not is_persistent(self):
        raise UserError(
            f"{class_path(type(self))}: is not marked with persistence.persistent_class, so that no file can name it; mark it"
        )
    if isinstance(self, torch.nn.Module):
        check_as_built(self, state)
    meta = {
        "type": "class",
        "version": FORMAT_VERSION,
        "class_name": class_path(type(self)),
        "init_kwargs": self._init_kwargs,
        "state": {name: _PackedTensor(tensor) for name, tensor in state.items()},
        **manner_of(self),
    }
    return _reconstruct_persistent_obj, (meta,)


def check_as_built(module: Any, state: dict[str, torch.Tensor]) -> None:
    """Raise `UserError` where a file's arguments would build another network than this one has become."""
    shapes = module._as_built.shapes
    for name in sorted({*shapes, *state}):
        if name not in state or name not in shapes or state[name].shape != shapes[name]:
            is_there = f"was {list(shapes[name])}" if name in shapes else "was not there"
            is_now = f"is {list(state[name].shape)}" if name in state else "is gone"
            raise UserError(
                f"{type(module).__name__}: {name} {is_there} when it was built, and {is_now} now: its constructor's "
                "arguments would bring back another network; make a class of yours that builds the changed one, and mark it "
                "with persistent_class"
            )


def manner_of(obj: Any) -> dict[str, Any]:
    """What a file must say beside arguments and state; nothing of a network in eval mode and without gradients."""
    if not isinstance(obj, torch.nn.Module):
        own = {} if hasattr(obj, "state_dict") else {name: value for name, value in vars(obj).items() if name[0] != "_"}
        return {"attributes": storable(obj, own)} if own else {}
    trainable = [name for name, parameter in obj.named_parameters() if parameter.requires_grad]
    built: Any = obj._as_built
    added = {path: value for path, value in _attributes(obj).items() if path not in built.attributes}
    manner = {"training": obj.training, "trainable": trainable, "attributes": storable(obj, added)}
    return {name: value for name, value in manner.items() if value}


def storable(obj: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes as a file holds them. Raises `UserError` for what is neither plain data nor a tensor."""
    plain = {path: _to_plain(value) for path, value in attributes.items() if not isinstance(value, torch.Tensor)}
    check_data(plain, f"the attributes of {type(obj).__name__}", MAX_ARGUMENTS)
    return plain | {path: _PackedTensor(v) for path, v in attributes.items() if isinstance(v, torch.Tensor)}


def _deepcopy(self, memo):
    twin = type(self).__new__(type(self))
    memo[id(self)] = twin
    twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return twin


def _reconstruct_persistent_obj(meta: dict) -> Any:
    """What our files and the official ones call where somebody else's `pickle` reads them.

    Networks come back as this project's classes, in eval mode and without gradients, on the CPU. The layers of official
    networks are handed over before the networks they belong to, and stay descriptions. Source text is never looked at.
    """
    saved = _describe(meta)
    if isinstance(saved, SavedObject):
        return with_manner(instantiate(*saved.build_spec()), saved.manner)
    return instantiate(*saved.build_spec()) if saved.is_network else saved


def _describe(meta: Any) -> SavedObject | OfficialModule:
    """The object that the argument of `_reconstruct_persistent_obj` stands for, as data."""
    version = meta.get("version") if isinstance(meta, dict) else None
    if version == official_pickles.FORMAT_VERSION:
        return official_pickles.describe(meta)
    if version != FORMAT_VERSION:
        raise SnapshotError(
            f"the snapshot holds an object in format {shown(version)}; this version reads "
            f"{official_pickles.FORMAT_VERSION} (the official code's) and {FORMAT_VERSION}"
        )
    name, kwargs, state = (meta.get(key) for key in ("class_name", "init_kwargs", "state"))
    if meta.get("type") != "class" or not isinstance(name, str) or not isinstance(state, dict):
        raise SnapshotError("the snapshot holds an object without a class or without a state")
    if not all(isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in state.items()):
        raise SnapshotError(f"the snapshot's {shown(name)} has a state that is not made of tensors")
    return SavedObject(
        name, kwargs, state, {key: meta[key] for key in ("training", "trainable", "attributes") if key in meta}
    )


class _PackedTensor:
    """A tensor on its way into a pickle: dtype, shape and raw little-endian bytes."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor.detach().cpu().contiguous()

    def __reduce__(self):
        raw = self.tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if self.tensor.numel() else b""
        return _rebuild_tensor, (str(self.tensor.dtype).removeprefix("torch."), tuple(self.tensor.shape), raw)


_TENSOR_DTYPES = ("float32", "float64", "float16", "bfloat16", "uint8", "uint16", "int16", "int32", "int64", "bool")


def _rebuild_tensor(dtype: str, shape: tuple, raw: bytes | Blob) -> torch.Tensor:
    if dtype not in _TENSOR_DTYPES:
        raise SnapshotError(f"the snapshot holds a tensor of type {shown(dtype)!r}; known: {', '.join(_TENSOR_DTYPES)}")
    if not isinstance(shape, tuple) or not isinstance(raw, bytes | Blob):
        raise SnapshotError("the snapshot holds a tensor without a shape or without bytes")
    return tensor_from_bytes(getattr(torch, dtype), shape, raw.writable() if isinstance(raw, Blob) else bytearray(raw))


NAMES = {
    **official_pickles.NAMES,
    **tensorflow_pickles.NAMES,
    (__name__, "_reconstruct_persistent_obj"): Name(_describe),
    (__name__, "_rebuild_tensor"): Name(_rebuild_tensor),
}
