"""TorchScript archives as data: names and tensors. Nothing is run.

PyTorch's own reader builds the program that an archive holds and runs parts of it while it loads (`__setstate__`). The
weights need none of it: an archive is a zip with the objects in `data.pkl` and the bytes of their tensors in
`data/<key>`. Which tensors of an object are its parameters and buffers stands in the text of its class.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import torch

from torch_utils.persistence import SnapshotError

DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class ScriptObject:
    """An object of a class that the archive defines. Each class of the archive is a subclass."""

    module, name = "", ""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise SnapshotError("its objects pack their weights in a way that only their own code can undo")
        self.attributes: dict[str, Any] = state


def is_torchscript(file: BinaryIO) -> bool:
    """Whether the open file is such an archive; it is left at its beginning."""
    try:
        names = zipfile.ZipFile(file).namelist() if zipfile.is_zipfile(file) else []
    except zipfile.BadZipFile:
        names = []
    finally:
        file.seek(0)
    return any(re.search(r"(^|/)constants\.pkl$", entry) for entry in names)


def read_tensors(file: BinaryIO) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, as `state_dict` would give them. Raises `SnapshotError` (a `UserError`)."""
    try:
        with zipfile.ZipFile(file) as archive:
            return tensors_of(_DataUnpickler(archive).load(), archive, "")
    except SnapshotError:
        raise
    except Exception as error:  # a damaged stream can raise nearly anything inside the unpickler
        raise SnapshotError(f"is no readable TorchScript archive ({type(error).__name__})") from error


def tensors_of(module: Any, archive: zipfile.ZipFile, prefix: str) -> dict[str, torch.Tensor]:
    if not isinstance(module, ScriptObject):
        raise SnapshotError("the archive holds no module")
    own = names_of_tensors(module, archive)
    found: dict[str, torch.Tensor] = {}
    children: dict[str, torch.Tensor] = {}
    for name, value in module.attributes.items():
        if isinstance(value, torch.Tensor) and (own is None or name in own):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, ScriptObject):
            children |= tensors_of(value, archive, f"{prefix}{name}.")
    return found | children


def names_of_tensors(module: ScriptObject, archive: zipfile.ZipFile) -> set[str] | None:
    """What the text of the class calls parameters and buffers; None in archives that do not tell buffers apart."""
    path = f"{root_of(archive)}code/{module.module.replace('.', '/')}.py"
    text = archive.read(path).decode() if path in archive.namelist() else ""
    lists = rf"class {re.escape(module.name)}\(Module\):\s+__parameters__ = \[(.*?)\]\s+__buffers__ = \[(.*?)\]"
    match = re.search(lists, text)
    return None if match is None else set(re.findall(r'"([^"]+)"', match[1] + match[2]))


def root_of(archive: zipfile.ZipFile) -> str:
    """The folder that everything in the archive lies in, with its slash."""
    (path,) = (name for name in archive.namelist() if re.fullmatch(r"([^/]+/)?data\.pkl", name))
    return path.removesuffix("data.pkl")


class _DataUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile):
        self.archive, self.root = archive, root_of(archive)
        self.storages: dict[str, torch.Tensor] = {}
        self.classes: dict[tuple[str, str], type[ScriptObject]] = {}
        super().__init__(archive.open(f"{self.root}data.pkl"))

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            key = (module, name)
            if key not in self.classes:
                self.classes[key] = type("ScriptClass", (ScriptObject,), {"module": module, "name": name})
            return self.classes[key]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise SnapshotError(
                f"the file asks for {module}.{name}, which weights have no business with; nothing of it was run"
            ) from None

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """All elements of a storage, in one dimension."""
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise SnapshotError("the file refers to something that is no storage of a tensor")
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty([0], dtype=dtype)
        return self.storages[key]


def _tensor(storage: torch.Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> torch.Tensor:
    return torch.as_strided(storage, size, stride, offset).clone()


def _same(value: Any, *_: Any) -> Any:
    return value


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    **{
        ("torch.jit._pickle", name): _same
        for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
    },
}
