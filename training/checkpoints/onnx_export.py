"""Generators as ONNX, for programs without PyTorch: from z (and labels) to images and ws, and from ws to images.

The batch is dynamic, pixel noise is the constant one, all numbers are float32. Every model is run by onnxruntime against
PyTorch before it is handed out.
"""

import contextlib
import copy
import importlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from torch_utils.misc import Network
from torch_utils.ops import dispatch

REQUIRED = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
CHECKED_BATCHES = (1, 3)
MAX_DIFFERENCE = 1e-3  # of images, relative to their largest value where that is above 1


@dataclass(frozen=True)
class OnnxModel:
    data: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float
    """The largest one from PyTorch, over all outputs and checked batches."""


class WholeGenerator(torch.nn.Module):
    """z `[n, z_dim]`, labels `[n, c_dim]` where there are any -> images `[n, C, h, w]`, ws `[n, num_ws, w_dim]`."""

    def __init__(self, network: Network):
        super().__init__()
        self.network: Network = network

    def forward(self, z: torch.Tensor, c: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        ws = self.network.mapping(z, c)
        return self.network.synthesis(ws, noise_mode="const", force_fp32=True), ws


class Synthesis(torch.nn.Module):
    """ws `[n, num_ws, w_dim]` -> images `[n, C, h, w]`."""

    def __init__(self, network: Network):
        super().__init__()
        self.synthesis = network.synthesis

    def forward(self, ws: torch.Tensor) -> torch.Tensor:
        return self.synthesis(ws, noise_mode="const", force_fp32=True)


def export_generator(network: Any) -> OnnxModel:
    """A generator or cascade as a whole. Raises `UserError` where a package is missing or the numbers disagree."""
    names = ("z", "c") if network.c_dim > 0 else ("z",)
    return export(WholeGenerator(prepared(network)), names, ("images", "ws"), lambda n: random_inputs(network, n))


def export_synthesis(network: Any) -> OnnxModel:
    """What follows the mapping network; of a cascade, in its last stage."""
    twin = prepared(network)

    def random_ws(n: int) -> list[torch.Tensor]:
        inputs = random_inputs(network, n)
        return [twin.mapping(inputs[0], inputs[1] if len(inputs) > 1 else None)]

    return export(Synthesis(twin), ("ws",), ("images",), random_ws)


def prepared(network: Network) -> Network:
    """A copy whose convolutions have a number of groups that does not depend on the batch."""
    twin = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    for module in twin.modules():
        if hasattr(module, "fused_modconv_default"):
            setattr(module, "fused_modconv_default", False)  # noqa: B010 (to type checkers it is a submodule)
    return twin


def random_inputs(network: Any, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    z = torch.randn([n, network.z_dim], generator=generator)
    return [z] if network.c_dim == 0 else [z, torch.eye(network.c_dim)[torch.arange(n) % network.c_dim]]


@torch.no_grad()
def export(model: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...], examples: Any) -> OnnxModel:
    """examples: batch -> tensors for the inputs."""
    require_packages()
    batch = torch.export.Dim("batch", min=1)
    with dispatch.forced(dispatch.REFERENCE), quiet():
        try:
            program = torch.onnx.export(
                model.eval(),
                tuple(examples(2)),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: batch} for _ in inputs),
            )
            assert program is not None
            data = without_notes(program.model_proto).SerializeToString()
        except Exception as error:  # the exporter's own kinds are many and change with its versions
            raise UserError(
                f"PyTorch cannot export this network to ONNX ({type(error).__name__}: {first_line(error)})"
            ) from error
        difference = check(data, model, inputs, examples)
    return OnnxModel(data, inputs, outputs, difference)


def without_notes(model: Any) -> Any:
    """Less what the exporter writes beside the nodes: lines of Python with the paths of the machine's files."""
    for graph in (model.graph, *model.functions):
        for part in (*graph.node, *graph.value_info):
            part.ClearField("metadata_props")
            if hasattr(part, "doc_string"):
                part.ClearField("doc_string")
        graph.ClearField("metadata_props")
    return model


def check(data: bytes, model: torch.nn.Module, inputs: tuple[str, ...], examples: Any) -> float:
    """The largest difference between onnxruntime and PyTorch. Raises `UserError` if it is too large."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    largest = 0.0
    for n in CHECKED_BATCHES:
        tensors = examples(n)
        expected = model(*tensors)
        results = session.run(None, {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)})
        for result, tensor in zip(results, [expected] if isinstance(expected, torch.Tensor) else expected, strict=True):
            difference = float(np.abs(result - tensor.numpy()).max())
            if not difference <= MAX_DIFFERENCE * max(1.0, float(tensor.abs().max())):
                raise UserError(
                    f"the ONNX model differs from PyTorch by {difference:.2g} at batch {n} (allowed: {MAX_DIFFERENCE:g} of "
                    "the largest value); nothing was written; another version of torch or onnxruntime may mend it"
                )
            largest = max(largest, difference)
    return largest


def require_packages() -> None:
    """Raises `UserError` that says what to install."""
    for name in REQUIRED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f'ONNX needs the package {name}: pip install -e ".[onnx]"') from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter reports every step and every package that it would have liked to find."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else ""
