"""Statistics of real images as a file: computed once, used in place of the images, exchanged with other tools.

An .npz holds `mu [d]` and `sigma [d, d]`, as pytorch-fid and clean-fid write and read them, and here also `num_images`,
`detector` (what the numbers of two files must share) and, if asked for, `features [N, d]`, which KID, precision and the like
need. The .pkl files of the official code are read, too (as data: nothing in them is run).
"""

import dataclasses
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, reading_arrays
from metrics.detectors import Detector
from metrics.feature_stats import FeatureSet
from metrics.frechet_distance import Gaussian, fit_gaussian
from torch_utils import official_pickles

TOLERANCE = 1e-3  # of a covariance, relative to its size: other tools compute in float32


@dataclass(frozen=True)
class Reference:
    """What is known of a set of real images."""

    name: str
    gaussian: Gaussian
    num_images: int | None = None
    """How many they were; None: the file does not say."""
    features: torch.Tensor | None = None
    """float32 `[N, d]`; None where there are only mean and covariance."""
    detector_key: str | None = None
    """`Detector.key` of what has seen them; None: the file does not say."""

    def check(self, detector: Detector) -> None:
        """Raise `UserError` unless the detector's numbers compare with these."""
        if self.detector_key is not None and self.detector_key != detector.key:
            raise UserError(
                f"--stats: {self.name} was made with {self.detector_key}, and this computation uses {detector.key}; give the "
                "same --detector, --detector-weights and --resize, or --data"
            )
        num = len(self.gaussian.mean)
        if num != detector.num_features:
            raise UserError(
                f"--stats: {self.name} is of {num} features, and {detector.name} has {detector.num_features}; give the "
                "--detector that it was made with, or --data"
            )

    def feature_set(self, metric: str) -> FeatureSet:
        """The features, for metrics that compare image with image. Raises `UserError` where the file has none."""
        if self.features is None:
            raise UserError(
                f"--stats: {metric} needs features, and {self.name} holds mean and covariance only; --features-out writes them, "
                "--data computes them"
            )
        return FeatureSet(self.features, np.arange(len(self.features)), len(self.features), [])

    @property
    def unnamed(self) -> list[str]:
        """What to know about numbers that are made with it."""
        return [] if self.detector_key else [f"{self.name} does not say which network has seen its images, nor how"]


def write_reference(path: str | os.PathLike, features: torch.Tensor, detector: Detector, with_features: bool) -> None:
    """Write an .npz of features `[N, d]`: whole or not at all. Raises `UserError`."""
    gaussian = fit_gaussian(features, "real images")
    arrays: dict[str, Any] = {
        "mu": gaussian.mean,
        "sigma": gaussian.covariance,
        "num_images": np.int64(len(features)),
    }
    if detector.is_cacheable:
        arrays["detector"] = np.str_(detector.key)
    if with_features:
        arrays["features"] = features.numpy()
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def read_reference(path: str | os.PathLike) -> Reference:
    """Read an .npz or an official .pkl. Raises `UserError`."""
    name = os.path.basename(path)
    with reading_arrays(path, "an .npz with mu and sigma, or an official .pkl"):
        arrays = converted(read_npz(Path(path)) if zipfile.is_zipfile(path) else read_official(Path(path)))
    return dataclasses.replace(reference_of(arrays, str(path)), name=name)


def converted(arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays in the types that are computed with. Raises ValueError or TypeError."""
    if any(np.iscomplexobj(arrays[name]) for name in ("mu", "sigma", "features") if name in arrays):
        raise ValueError("complex numbers")
    kinds = {"mu": np.float64, "sigma": np.float64, "features": np.float32}
    result: dict[str, Any] = {
        name: np.ascontiguousarray(arrays[name], dtype=kinds[name]) for name in kinds if name in arrays
    }
    result |= {"num_images": int(arrays["num_images"])} if "num_images" in arrays else {}
    return result | ({"detector": str(arrays["detector"])} if "detector" in arrays else {})


def read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in ("mu", "sigma", "num_images", "detector", "features") if key in file.files}


def read_official(path: Path) -> dict[str, Any]:
    """What `FeatureStats.save` of the official code writes: sums of features, or the features."""
    with open(path, "rb") as file:
        data = official_pickles.read(file)
    if not isinstance(data, dict) or "num_items" not in data:
        raise ValueError("no statistics in it")
    if data.get("all_features") is not None:
        features = np.concatenate([numbers(part) for part in data["all_features"]]).astype(np.float32)
        return {"features": features, "num_images": len(features)}
    num = int(data["num_items"])
    mu = numbers(data["raw_mean"]) / num
    return {"mu": mu, "sigma": numbers(data["raw_cov"]) / num - np.outer(mu, mu), "num_images": num}


def numbers(array: Any) -> np.ndarray:
    """float64. Raises ValueError for what is no array."""
    if not isinstance(array, official_pickles.NumpyArray) or array.values is None:
        raise ValueError("statistics that are no arrays")
    return array.values.astype(np.float64)


def reference_of(arrays: dict[str, Any], path: str) -> Reference:
    """Check shapes and values. Raises `UserError`."""
    features = None
    if "features" in arrays:
        features = torch.from_numpy(arrays["features"])
        if features.ndim != 2:
            raise UserError(f"{path}: features have shape {list(features.shape)}, not [N, d]")
    if "mu" in arrays and "sigma" in arrays:
        gaussian = Gaussian(arrays["mu"], arrays["sigma"])
    elif features is not None:
        gaussian = fit_gaussian(features, path)
    else:
        raise UserError(f"{path}: holds no mu and sigma")
    size = len(gaussian.mean) if gaussian.mean.ndim == 1 else -1
    if gaussian.covariance.shape != (size, size) or (features is not None and features.shape[1] != size):
        raise UserError(
            f"{path}: mu of shape {list(gaussian.mean.shape)} and sigma of {list(gaussian.covariance.shape)} do not fit together"
        )
    if not all(np.isfinite(part).all() for part in gaussian) or not (features is None or features.isfinite().all()):
        raise UserError(f"{path}: its numbers are not all finite")
    if not is_covariance(gaussian.covariance):
        raise UserError(f"{path}: sigma is no covariance: it must be symmetric, without negative eigenvalues")
    num = arrays.get("num_images")
    if num is not None and num < 2:
        raise UserError(f"{path}: says that it is of {num} images; at least 2 have a covariance")
    if features is not None and not np.allclose(features.double().mean(dim=0), gaussian.mean, rtol=1e-3, atol=1e-3):
        raise UserError(f"{path}: mu is not the mean of its features; write both anew with --features-out")
    if features is not None and num not in (None, len(features)):
        raise UserError(f"{path}: says that it is of {num} images and holds the features of {len(features)}")
    return Reference(path, gaussian, num, features, arrays.get("detector"))


def is_covariance(matrix: np.ndarray) -> bool:
    """Symmetric and positive semidefinite, up to the rounding of float32."""
    scale = float(np.trace(matrix)) / len(matrix)
    if not scale >= 0 or np.abs(matrix - matrix.T).max() > TOLERANCE * max(np.abs(matrix).max(), 1e-12):
        return False
    try:
        np.linalg.cholesky(matrix + (TOLERANCE * scale + 1e-12) * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True
