"""Features of images for the data instance prior: of the training data, and of images that somebody gives."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError, naming
from metrics.detectors import Detector, open_detector
from metrics.feature_stats import allocate, compute_features
from torch_utils import distributed
from training.config.run_config import TrainingConfig
from training.data.image_sets import ImageSet, MirroredImages
from training.sources.prior import InstancePrior

DETECTORS = ("auto", "inception", "vgg16", "tiny")
OF_FILES = ("inception", "vgg16")  # what a file of weights may be
ROWS = 4096  # that are turned into conditions at a time


class FeatureConditions:
    """The conditions of all training images, float32 `[N, dim]`, and the prior that they follow."""

    def __init__(self, prior: InstancePrior, features: torch.Tensor):
        """features: `[N, num_features]`, possibly mapped from a file."""
        self.prior = prior
        self.rows = allocate(len(features), prior.dim)
        for first in range(0, len(features), ROWS):
            part = slice(first, first + ROWS)
            self.rows[part] = prior.conditions(features[part])

    def __getitem__(self, index: Sequence[int] | np.ndarray) -> torch.Tensor:
        return self.rows[torch.as_tensor(np.asarray(index))]


def open_prior_detector(name: str, device: torch.device | str) -> Detector:
    """A detector by name, or by a file with the weights of Inception or VGG16. Raises `UserError`."""
    with naming_prior():
        if name in DETECTORS:
            return open_detector(name, device=device, verbose=True)
        if not Path(name).is_file():
            raise UserError(f"{name}: is no file of weights, and none of {', '.join(DETECTORS)}")
        complaints = []
        for kind in OF_FILES:
            try:
                return open_detector(kind, name, device=device)
            except UserError as error:
                complaints.append(str(error).removeprefix("--detector-weights: "))
        raise UserError(f"{name}: fits neither Inception-v3 nor VGG16 ({complaints[0]})")


@contextlib.contextmanager
def naming_prior() -> Iterator[None]:
    """What the block says of --detector and its weights is said of `--prior-detector`."""
    flag = "--prior-detector"
    try:
        yield
    except UserError as error:
        message = str(error).replace("--detector-weights", flag).replace("--detector=", f"{flag}=")
        raise UserError(message if message.startswith(flag) else f"{flag}: {message}") from error


def build_conditions(
    config: TrainingConfig, device: torch.device, verbose: bool, saved: Mapping[str, Any] | None
) -> FeatureConditions | None:
    """The conditions of the training data, on all ranks alike; None without a prior. Raises `UserError`.

    saved: the prior's `state_dict` of the run that is continued: its axes and mixture are not found anew.
    """
    if config.prior is None:
        return None
    prior = InstancePrior(**config.prior)
    detector = matching_detector(prior, prior.weights or prior.detector, device)
    with naming("--data"):
        images: Any = ImageSet(config.training_set_kwargs["path"])
        images = MirroredImages(images) if config.training_set_kwargs["xflip"] else images
        features = compute_features(images, detector, is_strict=True, is_verbose=verbose).features
    if saved is None:
        if distributed.get_rank() == 0:
            prior.fit(features, config.seed)
        saved = distributed.broadcast_object(prior.state_dict())
    prior.load_state_dict(dict(saved))
    return FeatureConditions(prior, features)


def matching_detector(prior: InstancePrior, name: str, device: torch.device | str) -> Detector:
    """The detector called `name` (or a file of weights), if it is the one that the prior was made with."""
    detector = open_prior_detector(name, device)
    if (detector.name, detector.weights_hash) != (prior.detector, prior.weights_hash):
        raise UserError(
            f"--prior-detector: {name} is {detector.name} with weights {detector.weights_hash}, and the network was trained "
            f"with {prior.detector}, {prior.weights_hash}; give that file"
        )
    return detector


def conditions_of_images(
    prior: InstancePrior, path: str, limit: int, device: torch.device | str, weights: str | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """c `[n, dim]` of the first images of a folder or zip, and those images, uint8 `[C, h, w]`. Raises `UserError`."""
    detector = matching_detector(prior, weights or prior.weights or prior.detector, device)
    images = ImageSet(path)
    if len(images) > limit:
        print(f"Warning: {path}: the first {limit} of {len(images):,} images are taken", file=sys.stderr)
    shown = images.read(range(min(len(images), limit)))
    for image in shown:
        if isinstance(image, str):
            raise UserError(f"{path}: {image}")
    good = [image for image in shown if isinstance(image, torch.Tensor)]
    return prior.conditions(detector.features_of(good)), good
