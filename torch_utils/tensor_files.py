"""Persistent objects as a safetensors file: their tensors, and in the header a JSON of classes and arguments.

The header's metadata holds `format`, `objects` (name -> class_name, init_kwargs) and `values` (name -> plain data). The
tensors of the object `G_ema` are called `G_ema.mapping.w_avg` and so on, so that other programs find them, too.
"""

import json
from typing import Any

import safetensors.torch
import torch

from dnnlib.errors import UserError
from torch_utils import persistence
from torch_utils.data_pickles import SnapshotError, shown

FORMAT = "spider-stylegan 1"
MAX_HEADER_BYTES = 16 << 20


def pack(contents: dict[str, Any]) -> bytes:
    """The file for a dict of persistent objects and plain data. Raises `UserError` for what JSON does not hold."""
    objects, values, tensors = {}, {}, {}
    for key, value in contents.items():
        if not persistence.is_persistent(value):
            values[key] = value
            continue
        objects[key] = {"class_name": persistence.class_path(type(value)), "init_kwargs": value.init_kwargs}
        for name, tensor in value.state_dict().items():
            tensors[f"{key}.{name}"] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    try:
        metadata = {"format": FORMAT, "objects": json.dumps(objects), "values": json.dumps(values)}
    except (TypeError, ValueError) as error:
        raise UserError(f"what the snapshot says about itself is no JSON ({error})") from error
    return safetensors.torch.save(tensors, metadata)


def is_tensor_file(data: bytes) -> bool:
    """Whether the file begins as safetensors do: the length of a JSON, then the JSON."""
    return len(data) > 9 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def unpack(data: bytes) -> dict[str, Any]:
    """What `pack` was given, networks in eval mode on the CPU. Raises `SnapshotError`; nothing of the file is run."""
    try:
        header, tensors = read_header(data), safetensors.torch.load(data)
        objects, values = json.loads(header["objects"]), json.loads(header["values"])
    except SnapshotError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise SnapshotError(f"no readable safetensors file ({shown(f'{type(error).__name__}: {error}')})") from error
    if not isinstance(objects, dict) or not isinstance(values, dict) or objects.keys() & values.keys():
        raise SnapshotError("a safetensors file whose header names no objects, or the same thing twice")
    contents = {**values, **{key: saved_object(key, objects[key], tensors) for key in objects}}
    if tensors:
        raise SnapshotError(
            f"a safetensors file with the tensor {shown(next(iter(tensors)))}, which belongs to no object"
        )
    return persistence.build_all(contents, len(data))


def read_header(data: bytes) -> dict[str, str]:
    """The metadata that `pack` wrote. Raises `SnapshotError` for safetensors files of other origin."""
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise SnapshotError(f"a safetensors file with a header of {length:,} bytes")
    header = json.loads(data[8 : 8 + length])
    metadata = header.get("__metadata__") or {}
    if metadata.get("format") != FORMAT:
        raise SnapshotError(
            "a safetensors file of other origin, without classes and arguments: tensors alone do not say of which network; those "
            "that legacy.py --dest writes have them, or give a network-snapshot-*.pkl"
        )
    return metadata


def saved_object(key: str, recipe: Any, tensors: dict[str, torch.Tensor]) -> persistence.SavedObject:
    """Takes the tensors of the object `key` out of `tensors`."""
    if not isinstance(recipe, dict) or not isinstance(recipe.get("class_name"), str):
        raise SnapshotError(f"a safetensors file whose header names no class for {shown(key)}")
    names = [name for name in tensors if name.startswith(f"{key}.")]
    state = {name.removeprefix(f"{key}."): tensors.pop(name) for name in names}
    return persistence.SavedObject(recipe["class_name"], recipe.get("init_kwargs"), state)
