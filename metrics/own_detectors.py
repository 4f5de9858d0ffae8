"""Detectors of the user's own: an ONNX file, or a Python function.

An ONNX file is data that onnxruntime runs: one input `[N, 3, h, w]`, uint8 or float32 pixels in [0, 255] (what else the network
wants, such as a mean to subtract, is part of the file), one output `[N, d]`. Images are resized (bilinear, antialiased) to its
h and w where it names them. Numbers carry the file's name and hash: `fid5k_full[dinov2:1a2b3c4d]`.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError
from metrics.detectors import Detector, resize_bilinear, to_rgb

EXTRA = 'pip install -e ".[onnx]"'
SUFFIX = ".onnx"
TRIED_SIDES = (32, 48)  # of the images that a function without a size is tried on
MAX_SIDE = 4096

Features = Callable[[torch.Tensor], torch.Tensor]  # float32 pixels `[n, 3, h, w]` in [0, 255] to `[n, d]`


class FunctionNetwork(torch.nn.Module):
    """A function as a module, which knows where it computes."""

    place: torch.Tensor

    def __init__(self, function: Features):
        super().__init__()
        self.function = function
        self.register_buffer("place", torch.zeros([]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def detector_of_function(
    function: Features, name: str | None = None, size: int | None = None, device: torch.device | str = "cpu"
) -> Detector:
    """A detector from a function of float32 pixels `[n, 3, h, w]` in [0, 255] that gives `[n, d]`.

    name: what numbers call it, its own by default. size: side to which images are resized (bilinear, antialiased); None: it
    takes any size. Raises `UserError` where it gives something else.
    """
    name = name or getattr(function, "__name__", type(function).__name__)
    network = FunctionNetwork(function).to(device).eval()
    detector = assembled(name, network, (size, size) if size else None, "function")
    return dataclasses.replace(detector, is_cacheable=False)  # nothing tells one function from another of its name


def open_onnx(path: str, device: torch.device | str = "cpu") -> Detector:
    """A detector from an ONNX file; on a GPU where onnxruntime has one. Raises `UserError`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"--detector={path}: ONNX files are run by onnxruntime, which is not installed: {EXTRA}"
        ) from error
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--detector={path}: cannot be read ({error.strerror})") from error
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"] if "cuda" in str(device) else ["CPUExecutionProvider"]
    providers = [provider for provider in wanted if provider in onnxruntime.get_available_providers()]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4  # what is wrong comes as an exception, too
    try:
        with tempfile.TemporaryDirectory() as empty:  # weights beside the file would be no part of its hash
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
            session = onnxruntime.InferenceSession(data, settings, providers=providers)
    except Exception as error:  # its errors have no common class
        reason = " ".join(str(error).split())[:200]
        if "external" in reason.lower():
            raise UserError(f"--detector={path}: keeps its weights in other files; save it as one file") from error
        raise UserError(f"--detector={path}: onnxruntime cannot open it ({reason}); give an ONNX file") from error
    name, dtype, size = input_of(session, path)

    def features(x: torch.Tensor) -> torch.Tensor:
        array = x.round().to(torch.uint8).cpu().numpy() if dtype == "tensor(uint8)" else x.cpu().numpy()
        return torch.from_numpy(session.run(None, {name: array})[0])

    network = FunctionNetwork(features)
    detector = assembled(Path(path).stem, network, size, hashlib.sha256(data).hexdigest()[:16])
    return dataclasses.replace(detector, is_published=False)


def input_of(session: Any, path: str) -> tuple[str, str, tuple[int, int] | None]:
    """Name, type and `(height, width)` of what the file takes. Raises `UserError`."""
    inputs = session.get_inputs()
    shapes = "; ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] in (0, 1, 2, 4):
        raise UserError(f"--detector={path}: takes {shapes}, not one batch of colour images [N, 3, h, w]")
    if len(session.get_outputs()) != 1:
        names = ", ".join(one.name for one in session.get_outputs())
        raise UserError(f"--detector={path}: gives {names}; a detector gives one thing, its features [N, d]")
    if inputs[0].type not in ("tensor(uint8)", "tensor(float)"):
        raise UserError(f"--detector={path}: takes {inputs[0].type}; uint8 or float32 pixels in [0, 255] are given")
    height, width = inputs[0].shape[2:]
    known = [isinstance(side, int) for side in (height, width)]
    if any(known) and not (all(known) and 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise UserError(
            f"--detector={path}: takes images of {height}x{width}; both sides are known, 1 to {MAX_SIDE}, or neither"
        )
    size = (height, width) if all(known) else None
    return inputs[0].name, inputs[0].type, size


def assembled(name: str, network: FunctionNetwork, size: tuple[int, int] | None, weights_hash: str) -> Detector:
    """The detector, tried on one image for the number of its features. Raises `UserError`."""

    def normalise(x: torch.Tensor) -> torch.Tensor:
        return x.contiguous()

    def prepare(images: torch.Tensor) -> torch.Tensor:
        x = to_rgb(images)
        return normalise(x if size is None else resize_bilinear(x, size).clamp_(0, 255))

    tried = [
        num_features(name, network, prepare, sides)
        for sides in ([size] if size else [(side, side) for side in TRIED_SIDES])
    ]
    if len(set(tried)) > 1:
        raise UserError(f"--detector={name}: gives {tried} features for images of {TRIED_SIDES} pixels; give it a size")
    return Detector(
        name=name,
        network=network,
        weights_hash=weights_hash,
        resize="bilinear",
        prepare=prepare,
        num_features=tried[0],
        normalise=normalise,
    )


def num_features(
    name: str, network: FunctionNetwork, prepare: Callable[[torch.Tensor], torch.Tensor], size: tuple[int, int]
) -> int:
    """Of two grey images. Raises `UserError` for what gives none."""
    try:
        trial = torch.full([2, 3, *size], 127, dtype=torch.uint8, device=network.place.device)
        with torch.no_grad():
            features = network(prepare(trial))
    except Exception as error:  # whatever the user's function or file raises
        raise UserError(f"--detector={name}: failed on a grey image ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(trial):
        shape = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise UserError(f"--detector={name}: gives {shape} for 2 images, not features [2, d]")
    return features.shape[1]
