"""Metrics in one call: of a folder, a zip, a tensor, a torch data set or a function that makes images.

import metrics

metrics.compute(images="fakes/", reference="cifar10.zip", metrics=["fid", "kid"])      # {"fid": 12.3, "kid": 0.004, …}
metrics.compute(images=sample, num=5000, reference="ref.npz", detector="dino.onnx")    # sample(n, generator) -> [n, 3, h, w]
"""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dnnlib.errors import UserError, naming
from dnnlib.util import get_obj_by_name
from metrics import metric_main
from metrics.detectors import Detector, Detectors
from metrics.feature_stats import BATCH, Images, Reading
from metrics.own_detectors import detector_of_function
from metrics.reference_stats import Reference, read_reference
from torch_utils import seeding

# What a short name stands for; k: thousands of images.
SHORT = {
    "fid": "fid{k}k_full",
    "fid_inf": "fid_inf{k}k_full",
    "kid": "kid{k}k_full",
    "pr": "pr{k}k3_full",
    "dc": "dc{k}k5_full",
    "is": "is{k}k",
    "sid": "sid{k}k_full",
    "csid": "csid{k}k_full",
}
Sample = Callable[[int, torch.Generator], torch.Tensor]


def compute(
    images: Any,
    reference: Any = None,
    metrics: str | Sequence[str] = ("fid",),
    detector: str | Detector | Callable[[torch.Tensor], torch.Tensor] = "auto",
    *,
    num: int | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
    reference_range: tuple[float, float] | None = None,
    detector_weights: str | None = None,
    resize: str = "tf",
    seed: int = 0,
    batch_size: int = BATCH,
    device: torch.device | str = "cpu",
    verbose: bool = False,
) -> dict[str, float]:
    """Numbers by name; a name says what saw the images where that is not the metric's usual network: `fid[tiny]`.

    images, reference: a folder or zip; a tensor or array `[N, C, H, W]`; a torch data set of images (tensors `[C, H, W]`,
    Pillow's, or the first of a tuple); a function of (n, generator) that gives `[n, C, H, W]`, with num, how many. uint8 pixels
    are taken as they are, floats lie in value_range, those
    of the reference in reference_range (None: the same). reference may also be a file of statistics (.npz, .pkl). metrics: `fid
    fid_inf kid pr dc is sid csid` of all images, or official names (`fid5k_full`). detector: a name, an .onnx file, a
    `Detector`, or a function of pixels in [0, 255]. Raises `UserError`.
    """
    check_arguments(metrics, num, value_range, reference_range, batch_size)
    with naming("images"):
        generated = images_of(images, num, value_range, seed, "images")
    opts = metric_main.MetricOptions(
        detector=chooser(detector, detector_weights, resize, device, verbose),
        generated=lambda count: generated,
        seed=seed,
        batch_size=batch_size,
        is_verbose=verbose,
    )
    with naming("reference"):
        if isinstance(reference, Reference) or is_statistics(reference):
            opts.reference = reference if isinstance(reference, Reference) else read_reference(reference)
        elif reference is not None:
            opts.real = images_of(reference, num, reference_range or value_range, seed + 1, "reference")
    for name, one in {"images": generated, "reference": opts.real}.items():
        if one is not None and len(one) == 0:
            raise UserError(f"{name}: there are none")
    thousands = -(-len(generated) // metric_main.KILO)
    metrics = [metrics] if isinstance(metrics, str) else metrics
    names = {name: SHORT[name].format(k=thousands) if name in SHORT else name for name in metrics}
    metric_main.prepare(list(names.values()), opts)
    numbers: dict[str, float] = {}
    for short, name in names.items():
        result = metric_main.calc_metric(name, opts)
        for line in result["warnings"]:
            if "were asked for" not in line:  # short names ask for whole thousands
                warnings.warn(line, stacklevel=2)
        numbers |= {short + key.removeprefix(name): value for key, value in result["results"].items()}
    return numbers


def check_arguments(metrics: Any, num: Any, value_range: Any, reference_range: Any, batch_size: Any) -> None:
    """Refuse what is of another kind. Raises `UserError`."""
    names = [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"metrics={metrics!r}: give names, of {', '.join(SHORT)} or official ones such as fid5k_full")
    for name, value in {"num": num, "batch_size": batch_size}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{name}={value!r}: give a whole number from 1")
    for name, pair in {"value_range": value_range, "reference_range": reference_range}.items():
        if pair is None and name == "reference_range":
            continue
        is_pair = isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(end, int | float) for end in pair)
        if not is_pair or not pair[0] < pair[1]:
            raise UserError(f"{name}={pair!r}: give black and white, such as (-1, 1) or (0, 1)")


def chooser(
    detector: Any, weights: str | None, resize: str, device: torch.device | str, verbose: bool
) -> Callable[[str], Detector]:
    """What is asked for the detector in place of a metric's usual one."""
    if isinstance(detector, str | os.PathLike):
        return Detectors(os.fspath(detector), weights, resize, device, verbose=verbose)
    own = detector if isinstance(detector, Detector) else detector_of_function(detector, device=device)
    return lambda usual: own


def is_statistics(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and Path(value).suffix in (".npz", ".pkl")


def images_of(value: Any, num: int | None, value_range: tuple[float, float], seed: int, name: str) -> Images:
    """What metrics read, from what a user has. Raises `UserError`."""
    if isinstance(value, str | os.PathLike):
        # The rooms of training/ stand above this one; it is called by name, as in metric_utils.
        return get_obj_by_name("training.data.image_sets.ImageSet")(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return ItemImages(torch.as_tensor(value), value_range, name)
    if hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        return ItemImages(value, value_range, name)
    if callable(value):
        if num is None:
            raise UserError("a function makes as many images as it is asked for: say how many with num=")
        return SampledImages(value, num, value_range, seed, name)
    raise UserError(f"{type(value).__name__} is no folder, zip, tensor, data set or function")


class ItemImages:
    """A tensor `[N, C, H, W]` or a data set, whose items may be tuples that begin with the image."""

    key: str | None = None
    reads_ahead, may_skip = True, False

    def __init__(self, items: Any, value_range: tuple[float, float], name: str):
        self.items, self.value_range, self.name = items, value_range, name

    def __len__(self) -> int:
        return len(self.items)

    def read(self, indices: Sequence[int]) -> Reading:
        return Reading.of((as_pixels(self.items[int(index)], self.value_range), "") for index in indices)


class SampledImages:
    """What a function makes, in blocks of `BATCH` that have a generator each: an image depends on its number only."""

    key: str | None = None
    reads_ahead, may_skip = False, False

    def __init__(self, sample: Sample, num: int, value_range: tuple[float, float], seed: int, name: str):
        self.sample, self.num, self.value_range, self.seed, self.name = sample, num, value_range, seed, name
        self._block: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return self.num

    def read(self, indices: Sequence[int]) -> Reading:
        return Reading.of((self._image(*divmod(int(index), BATCH)), "") for index in indices)

    def _image(self, number: int, place: int) -> torch.Tensor:
        if self._block is None or self._block[0] != number:
            size = min(BATCH, self.num - number * BATCH)
            with torch.no_grad():
                made = self.sample(size, seeding.generator("sampled images", self.seed, number))
            if not isinstance(made, torch.Tensor | np.ndarray) or made.ndim != 4:
                raise UserError(f"{self.name}: the function gave {type(made).__name__}, not images [n, C, H, W]")
            if len(made) != size:
                raise UserError(f"{self.name}: the function gave {len(made)} images, {size} were asked for")
            self._block = number, torch.as_tensor(made)
        return as_pixels(self._block[1][place], self.value_range)


def as_pixels(item: Any, value_range: tuple[float, float]) -> torch.Tensor:
    """uint8 `[C, H, W]` from an item of a data set. Raises `UserError`."""
    image = item[0] if isinstance(item, tuple | list) else item
    if isinstance(image, Image.Image):
        image = eight_bits(image)
        has_alpha = "A" in image.getbands() or "transparency" in image.info
        is_gray = image.mode in ("1", "L", "LA") and not has_alpha
        pixels = np.array(image.convert("RGBA" if has_alpha else "L" if is_gray else "RGB"))
        image = torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)
    image = torch.as_tensor(image)
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4) or image.numel() == 0:
        raise UserError(f"an image has shape {list(image.shape)}, must be [C, H, W] with C 1, 3 or 4")
    if image.dtype == torch.uint8:
        return image.cpu()
    if not image.dtype.is_floating_point:
        raise UserError(f"pixels are {str(image.dtype).removeprefix('torch.')}; give uint8, or floats in value_range")
    low, high = value_range
    image = image.detach().to("cpu", torch.float32)
    margin = (high - low) * 0.1  # generators overshoot a little
    if not image.isfinite().all():
        raise UserError("an image holds NaN or infinite pixels; whatever made it has gone wrong")
    if not (low - margin <= float(image.min()) and float(image.max()) <= high + margin):
        raise UserError(
            f"pixels reach from {float(image.min()):.3g} to {float(image.max()):.3g}, far beyond value_range={value_range}"
        )
    return ((image - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)


def eight_bits(image: Image.Image) -> Image.Image:
    """Pictures of 16 bits as those of 8. Raises `UserError` for numbers whose white nobody knows."""
    if image.mode in ("I", "F"):
        raise UserError(
            f"a picture of Pillow's mode {image.mode} does not say what is white; give 8 or 16 bits, or an array"
        )
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
