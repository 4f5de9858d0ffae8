"""The data instance prior (Mangla et al. 2020): features of a frozen network as conditions of G and D.

An image's condition c is its feature vector: centred, optionally reduced to its principal axes, scaled to unit norm. In
training D sees a real image with its own c, and generated images have those of random training images. Afterwards c is
drawn from what the snapshot carries: a memory of some of them, k-means centres with noise, or a Gaussian mixture. All
three are a mixture: shares, centres, and spreads, which the memory has none of.
"""

import importlib.util

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from dnnlib.errors import UserError
from torch_utils import persistence, seeding
from training.settings import PRIOR_NORMS, PRIOR_SAMPLINGS

MEMORY_ROWS, MEMORY_BYTES = 1000, 8 << 20  # what travels inside a snapshot
MAX_COMPONENTS, ROWS_OF_COMPONENT = 64, 10  # of mixtures; the fewest images that a component stands for on average
FIT_ROWS = 10_000  # images that axes and mixtures are found from
GMM_FLOOR = 1e-6  # added to variances, relative to unit norm


@persistence.persistent_class
class InstancePrior:
    """The way from features to conditions c `[n, dim]`, and c for images that nobody gave.

    detector: name; weights: the file that they came from, None for the published ones or `tiny`; weights_hash: as
    `Detector` has it; num_features: of the detector; dim: of c; norm: `unit` or `none`; num_images: in the training data.
    """

    def __init__(
        self,
        detector: str,
        weights: str | None,
        weights_hash: str,
        num_features: int,
        dim: int,
        norm: str,
        sampling: str,
        num_images: int,
    ):
        if norm not in PRIOR_NORMS or sampling not in PRIOR_SAMPLINGS:
            raise UserError(f"a prior of the norm {norm!r} and the sampling {sampling!r} is not known")
        self.detector, self.weights, self.weights_hash = str(detector), weights, weights_hash
        self.num_features, self.dim = int(num_features), int(dim)
        self.norm, self.sampling, self.num_images = norm, sampling, int(num_images)
        self.mean = torch.zeros([0])  # [num_features]
        self.axes: torch.Tensor | None = None  # [num_features, dim]; None where c keeps all features
        self.shares, self.centres = torch.zeros([0]), torch.zeros([0, 0])  # [K], [K, dim]
        self.spreads: torch.Tensor | None = None  # [K, dim] standard deviations; None for points

    def fit(self, features: torch.Tensor, seed: int) -> None:
        """Find centre, axes and mixture from the features `[N, num_features]` of the training images."""
        rows = seeding.spread(len(features), FIT_ROWS, "prior", seed)
        known = features[rows].double()  # [n, num_features]
        self.mean = known.mean(dim=0).float()
        self.axes = principal_axes(known, self.dim).float().contiguous() if self.dim < self.num_features else None
        if self.sampling == "memory":
            limit = max(min(MEMORY_ROWS, MEMORY_BYTES // (4 * self.dim)), 1)
            self.centres = self.conditions(features[seeding.spread(len(features), limit, "prior", seed)])
            self.shares, self.spreads = torch.full([len(self.centres)], 1 / len(self.centres)), None
            return
        c = self.conditions(known.float()).numpy()
        num = int(np.clip(len(c) // ROWS_OF_COMPONENT, 1, MAX_COMPONENTS))
        fit = fit_mixture if self.sampling == "gmm" else fit_clusters
        self.shares, self.centres, self.spreads = (torch.from_numpy(part).float() for part in fit(c, num, seed))

    def conditions(self, features: torch.Tensor) -> torch.Tensor:
        """Features `[n, num_features]` -> c `[n, dim]`."""
        centred = features.float() - self.mean
        return self.normalize(centred if self.axes is None else centred @ self.axes)

    def normalize(self, c: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(c, dim=1) if self.norm == "unit" else c

    def draw(self, n: int, generator: torch.Generator | None) -> torch.Tensor:
        """c `[n, dim]` from the mixture, on the CPU."""
        edges = self.shares.double().cumsum(dim=0)
        places = torch.rand([n], dtype=torch.float64, generator=generator) * edges[-1]
        index = torch.searchsorted(edges, places, right=True).clamp(max=len(edges) - 1)
        if self.spreads is None:
            return self.centres[index]
        noise = torch.randn([n, self.dim], generator=generator)
        return self.normalize(self.centres[index] + self.spreads[index] * noise)

    def of_seed(self, seed: int) -> torch.Tensor:
        """c `[1, dim]` of a seed."""
        return self.draw(1, seeding.generator("sample-prior", seed))

    def between(self, first: torch.Tensor, second: torch.Tensor, steps: int) -> torch.Tensor:
        """The way from one c `[dim]` to another in so many steps, both included: `[steps, dim]`, of unit norm where c is."""
        t = torch.linspace(0, 1, steps).unsqueeze(1)
        return self.normalize(torch.lerp(first, second, t))

    def state_dict(self) -> dict[str, torch.Tensor]:
        named = {"mean": self.mean, "axes": self.axes, "shares": self.shares}
        named |= {"centres": self.centres, "spreads": self.spreads}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Raises `UserError` where the tensors are not those of such a prior."""
        num, has_axes = len(state["centres"]), self.dim < self.num_features
        shapes = {"mean": [self.num_features], "shares": [num], "centres": [num, self.dim]}
        shapes |= {"axes": [self.num_features, self.dim]} if has_axes else {}
        shapes |= {} if self.sampling == "memory" else {"spreads": [num, self.dim]}
        if state.keys() != shapes.keys():
            raise UserError(f"a prior has {', '.join(sorted(shapes))}, not {', '.join(sorted(state))}")
        for name, shape in shapes.items():
            tensor = state[name]
            if list(tensor.shape) != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise UserError(f"{name} of a prior is no finite float32 {shape}")
            setattr(self, name, tensor.cpu().contiguous())  # strides decide how products are rounded
        if num == 0 or self.shares.min() < 0 or not self.shares.sum() > 0:
            raise UserError("the shares of a prior are no shares")


def principal_axes(features: torch.Tensor, dim: int) -> torch.Tensor:
    """The `dim` directions of largest variance of float64 `[N, d]`, `[d, dim]`; the largest entry of each is positive."""
    centred = features - features.mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.t() @ centred)
    axes = vectors.flip(1)[:, :dim]
    return axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()


def fit_clusters(c: np.ndarray, num: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares `[K]`, centres `[K, dim]` and standard deviations inside of the k-means clusters of `[N, dim]`."""
    rng = np.random.RandomState(seeding.derive("prior-kmeans", seed) % 2**32)
    _, labels = kmeans2(c.astype(np.float64), num, iter=30, minit="++", seed=rng)
    members = [c[labels == number] for number in range(num) if (labels == number).any()]
    counts = np.array([len(part) for part in members])[:, None]
    variances = np.stack([part.var(axis=0) for part in members])
    # A cluster of few says little of its width, and one of a single image would be copied: all clusters have a say.
    pooled = (counts * variances).sum(axis=0) / len(c)
    variances = (counts * variances + ROWS_OF_COMPONENT * pooled) / (counts + ROWS_OF_COMPONENT)
    return counts[:, 0] / len(c), np.stack([part.mean(axis=0) for part in members]), np.sqrt(variances)


def fit_mixture(c: np.ndarray, num: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of a mixture of Gaussians with diagonal covariances (scikit-learn)."""
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(num, covariance_type="diag", reg_covar=GMM_FLOOR, random_state=seed % 2**32)
    model.fit(c.astype(np.float64))
    return model.weights_, model.means_, np.sqrt(model.covariances_)


def check_sampling(sampling: str) -> None:
    """Raises `UserError` for an unknown way, and for one that needs a package which is not there."""
    if sampling not in PRIOR_SAMPLINGS:
        raise UserError(f"--prior-sampling={sampling}: choose from {', '.join(PRIOR_SAMPLINGS)}")
    if sampling == "gmm" and importlib.util.find_spec("sklearn") is None:
        raise UserError(
            '--prior-sampling=gmm: needs scikit-learn: pip install -e ".[prior]"; or use kmeans, which does without'
        )
