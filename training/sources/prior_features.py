"""Features of images for the data instance prior: of the training data, and of images that somebody gives."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError, naming
from metrics.detectors import Detector, Flags, open_detector
from metrics.feature_stats import Images, allocate, compute_features
from metrics.settings import DETECTORS
from torch_utils import distributed
from training.data.image_sets import ImageSet
from training.dataset import Dataset
from training.sources.prior import InstancePrior

FLAGS = Flags("--prior-detector", "--prior-detector")
OF_FILES = ("inception", "vgg16", "efficientnet")  # what a file of weights may be
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

    def become_labels_of(self, dataset: Dataset) -> None:
        """Give every image of the dataset its condition."""
        dataset.condition_on(self, self.prior.dim)

    def state_dict(self) -> dict[str, Any]:
        """What is not found anew in a run that is continued."""
        return {"prior": self.prior.state_dict()}


class NoConditions:
    """What stands for `FeatureConditions` where no prior is asked for."""

    prior = None

    def become_labels_of(self, dataset: Dataset) -> None:
        return

    def state_dict(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class PriorSpec:
    """What `--prior` asks for: the arguments of `InstancePrior`."""

    detector: str
    weights: str | None
    weights_hash: str
    num_features: int
    dim: int
    norm: str
    sampling: str
    num_images: int

    def as_data(self) -> dict[str, Any]:
        return dict(vars(self))

    def renamed(self, rename: Callable[[str], Any]) -> "PriorSpec":
        """The same with another path of the weights."""
        return self if self.weights is None else dataclasses.replace(self, weights=rename(self.weights))

    def c_dim(self, label_dim: int) -> int:
        """Length of what G and D are conditioned on, in place of labels of `label_dim`."""
        return self.dim

    def describe(self) -> str:
        """The line of the summary."""
        reduced = f", {self.dim} principal axes" if self.dim < self.num_features else ""
        norm = ", unit norm" if self.norm == "unit" else ""
        drawn = {"memory": "a memory of them", "kmeans": "k-means centres with noise", "gmm": "a Gaussian mixture"}
        return (
            f"{self.num_features} features of {self.detector} (weights {self.weights_hash}) condition G and D"
            f"{reduced}{norm}; afterwards drawn from {drawn[self.sampling]}"
        )

    def conditions(
        self, images: Images, device: torch.device, seed: int, saved: Mapping[str, Any] | None, verbose: bool = False
    ) -> FeatureConditions:
        """The conditions of the training images, on all ranks alike. Raises `UserError`.

        saved: `FeatureConditions.state_dict` of the run that is continued: its axes and mixture are not found anew.
        """
        prior = InstancePrior(**self.as_data())
        detector = matching_detector(prior, prior.weights or prior.detector, device)
        with naming("--data"):
            features = compute_features(images, detector, is_strict=True, is_verbose=verbose).features
        state = None if saved is None else saved.get("prior")
        if state is None:
            if distributed.get_rank() == 0:
                prior.fit(features, seed)
            state = distributed.broadcast_object(prior.state_dict())
        prior.load_state_dict(dict(state))
        return FeatureConditions(prior, features)


class NoPrior:
    """What stands for a `PriorSpec` where no prior is asked for."""

    def as_data(self) -> None:
        return None

    def renamed(self, rename: Callable[[str], Any]) -> "NoPrior":
        return self

    def c_dim(self, label_dim: int) -> int:
        return label_dim

    def describe(self) -> None:
        return None

    def conditions(
        self, images: Images, device: torch.device, seed: int, saved: Mapping[str, Any] | None, verbose: bool = False
    ) -> NoConditions:
        return NoConditions()


def prior_from_data(data: Mapping[str, Any] | None) -> PriorSpec | NoPrior:
    """The inverse of `as_data`. Raises `TypeError` for what is none."""
    return NoPrior() if data is None else PriorSpec(**data)


def open_prior_detector(name: str, device: torch.device | str) -> Detector:
    """A detector by name, or by a file with the weights of Inception, VGG16 or EfficientNet-Lite0. Raises `UserError`."""
    with naming(FLAGS.name):
        if name in DETECTORS:
            return open_detector(name, device=device, verbose=True, flags=FLAGS)
        if not Path(name).is_file():
            raise UserError(f"{name}: is no file of weights, and none of {', '.join(DETECTORS)}")
        complaints = []
        for kind in OF_FILES:
            try:
                return open_detector(kind, name, device=device, flags=FLAGS)
            except UserError as error:
                complaints.append(error.reason)
        raise UserError(f"{name}: fits neither Inception-v3 nor VGG16 nor EfficientNet-Lite0 ({complaints[0]})")


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
    for problem in shown.problems:
        raise UserError(f"{path}: {problem}")
    return prior.conditions(detector.features_of(shown.images)), shown.images
