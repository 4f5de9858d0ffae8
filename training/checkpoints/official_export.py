"""Snapshots for programs that read the official code's pickles: its format, with a text of our own in it.

The loaders of those programs run the text that a pickle carries. Ours (`torch_utils.official_client`) makes objects of
the program's own classes, so that nothing but constructor arguments and tensors has to agree. What their classes cannot be
is refused.
"""

import functools
import inspect
import pickle
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.util import EasyDict
from torch_utils import official_client, persistence
from torch_utils.official_pickles import FORMAT_VERSION, META_KEYS, MISSING
from training import networks_stylegan2, networks_stylegan3
from training.augment import AugmentPipe
from training.checkpoints.snapshot import without_folders
from training.sources.cascade import Cascade
from training.sources.source import GaussianSource

PROTOCOL = 4  # of pickle: the last one that Python 3.7 reads
# What the official StyleGAN2-ADA code assumes otherwise than StyleGAN3's, so that the files say it.
GENERATOR_DEFAULTS = {"num_fp16_res": 4, "conv_clamp": 256}
DISCRIMINATOR_DEFAULTS = {"num_fp16_res": 4, "conv_clamp": 256}
MAPPING_DEFAULTS = {"w_avg_beta": 0.998}
DATASET_ARGUMENTS = ("class_name", "path", "use_labels", "max_size", "xflip", "resolution", "random_seed")
OUR_OWN = {"encoder"}  # children and arguments of a mapping network that the official one has not
WRITTEN = ("training_set_kwargs", "G", "D", "G_ema", "augment_pipe")


def write(file: BinaryIO, contents: dict[str, Any]) -> list[str]:
    """Write the contents of a snapshot as the official code would have; returns what is not as it was, a line each.

    Raises `UserError` for networks that no official class can be, before anything is written.
    """
    G_ema, notes = plain_generator(contents["G_ema"]), list(losses(contents))
    described = {
        "training_set_kwargs": dataset_arguments(without_folders(contents.get("training_set_kwargs") or {})),
        "G": describe_generator(plain_generator(contents.get("G") or G_ema)),
        "D": described_object(MISSING, torch.nn.Module(), {})
        if contents.get("D") is None
        else describe_discriminator(contents["D"]),
        "G_ema": describe_generator(G_ema),
        "augment_pipe": describe_augment(contents.get("augment_pipe")),
    }
    assert tuple(described) == WRITTEN
    pickle.dump(described, file, protocol=PROTOCOL)
    return notes


def losses(contents: dict[str, Any]) -> Iterator[str]:
    """What the official format has no place for, in words."""
    G_ema = contents["G_ema"]
    if isinstance(G_ema, Cascade):
        yield (
            "of the cascade only the last stage is written, a generator of z: its encoder and the stages that feed it are "
            "not, so that its images of noise are not those of the cascade"
        )
    elif not isinstance(contents.get("source") or GaussianSource(G_ema.z_dim), GaussianSource):
        yield "the generators take z: source and encoder, which make z of images, are not part of the official format"
    if contents.get("prior") is not None:
        yield "labels c are features of the instance prior, which is not part of the official format"
    if contents.get("G") is None:
        yield "there is no G in the snapshot: G_ema stands in its place"
    if contents.get("D") is None:
        yield "there is no D in the snapshot: what stands in its place raises an error when it is called"


def plain_generator(network: torch.nn.Module) -> torch.nn.Module:
    return network.generator if isinstance(network, Cascade) else network


def describe_generator(network: torch.nn.Module) -> "OfficialObject":
    if not isinstance(network, networks_stylegan2.Generator | networks_stylegan3.Generator):
        raise no_such_class(network)
    kwargs = {**GENERATOR_DEFAULTS, **arguments_of(network), "img_resolution": official_resolution(network)}
    mapping = {name: value for name, value in kwargs.get("mapping_kwargs", {}).items() if name not in OUR_OWN}
    kwargs["mapping_kwargs"] = {**MAPPING_DEFAULTS, **mapping}
    return described_object("Generator", network, kwargs)


def describe_discriminator(network: torch.nn.Module) -> "OfficialObject":
    if not isinstance(network, networks_stylegan2.Discriminator):
        raise no_such_class(network)
    kwargs = {**DISCRIMINATOR_DEFAULTS, **arguments_of(network), "img_resolution": official_resolution(network)}
    return described_object("Discriminator", network, kwargs)


def arguments_of(network: Any) -> dict[str, Any]:
    return dict(network.init_kwargs)


def describe_augment(pipe: torch.nn.Module | None) -> "OfficialObject | None":
    """None for differentiable augmentation, too, for which there is no class."""
    if not isinstance(pipe, AugmentPipe):
        return None
    return described_object("AugmentPipe", pipe, pipe.init_kwargs)


def no_such_class(network: torch.nn.Module) -> UserError:
    return UserError(
        f"the official format has no class for {persistence.class_path(type(network))}, only for StyleGAN2 and StyleGAN3; "
        "write .safetensors for its tensors or .onnx for its images"
    )


def official_resolution(network: Any) -> int:
    """The side of the images: the official networks make squares of a power of two, from 4."""
    sizes = network.img_resolution if isinstance(network.img_resolution, list | tuple) else [network.img_resolution] * 2
    height, width = (int(side) for side in sizes)
    if height != width or height < 4 or height & (height - 1):
        raise UserError(
            f"the official networks make squares whose side is a power of two, and this one {width}x{height}; write "
            ".safetensors for its tensors or .onnx for its images"
        )
    return height


def dataset_arguments(kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments of the official `ImageFolderDataset`, by the name of the set; None where the snapshot does not say it."""
    kept = {name: kwargs[name] for name in DATASET_ARGUMENTS if name in kwargs}
    return {"class_name": "training.dataset.ImageFolderDataset", **kept} if "path" in kept else None


# The format


class OfficialObject:
    """A call of the official code's one function, with an object's description."""

    def __init__(self, meta: dict[str, Any]):
        assert set(meta) == META_KEYS
        self.meta = meta

    def __reduce__(self) -> tuple:
        return persistence._reconstruct_persistent_obj, (self.meta,)


def described_object(
    class_name: str, module: torch.nn.Module, init_kwargs: dict[str, Any] | None = None
) -> OfficialObject:
    """The module with its children, under the class names of the official code; their own attributes are plain data."""
    shell = torch.nn.Module()
    state = {
        **shell.__dict__,
        "training": module.training,
        **plain_attributes(module),
        "_parameters": {name: copied(tensor) for name, tensor in module._parameters.items()},
        "_buffers": {name: copied(tensor) for name, tensor in module._buffers.items()},
        "_modules": {
            name: None if child is None else described_object(type(child).__name__, child)
            for name, child in module._modules.items()
            if name not in OUR_OWN
        },
        "_init_args": (),
        "_init_kwargs": {} if init_kwargs is None else with_easy_dicts(init_kwargs),
    }
    meta = {
        "type": "class",
        "version": FORMAT_VERSION,
        "module_src": client_text(),
        "class_name": class_name,
        "state": state,
    }
    return OfficialObject(meta)


@functools.cache
def client_text() -> str:
    """One string, so that a pickle holds it once."""
    return inspect.getsource(official_client)


def plain_attributes(module: torch.nn.Module) -> dict[str, Any]:
    """What a layer knows in numbers and text; arrays, which NumPy 1 and 2 pickle under different names, stay out."""
    own = {name: value for name, value in module.__dict__.items() if not name.startswith("_")}
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in own.items()}
    return {name: value for name, value in values.items() if is_plain(value)}


def is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def with_easy_dicts(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: EasyDict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}


def copied(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A tensor without the rest of the storage it lies in, a parameter as one, on the CPU."""
    if tensor is None:
        return None
    own = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return torch.nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else own
