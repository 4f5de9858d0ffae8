"""The official names around features, for programs and metrics of other people; nothing in this project uses them.

Numbers without a name of their own (`compute_fid`, …) come from the usual detector only: what else would see the images here
(`tiny`) says so in the names of `metric_main.calc_metric`, and a bare number cannot.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

import dnnlib
from dnnlib.errors import UserError
from metrics.detectors import Detector, Detectors, normalise_vgg
from metrics.feature_stats import compute_features
from metrics.frechet_distance import fit_gaussian


class MetricOptions:
    """What the official metrics are called with. `detector` and `detector_weights` are this project's."""

    def __init__(
        self,
        G: Any = None,
        G_kwargs: Mapping[str, Any] = {},
        dataset_kwargs: Mapping[str, Any] = {},
        num_gpus: int = 1,
        rank: int = 0,
        device: torch.device | str | None = None,
        progress: "ProgressMonitor | None" = None,
        cache: bool = True,
        seed: int = 0,
        detector: str = "auto",
        detector_weights: str | None = None,
    ):
        self.G, self.G_kwargs = G, dnnlib.EasyDict(G_kwargs)
        self.dataset_kwargs = dnnlib.EasyDict(dataset_kwargs)
        self.num_gpus, self.rank, self.cache, self.seed = num_gpus, rank, cache, seed
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
        self.progress = ProgressMonitor() if progress is None else progress
        self.detectors = Detectors(detector, detector_weights, device=self.device, verbose=rank == 0)
        # By name: metrics know nothing of training, and the official dataset_kwargs name a class there, too.
        self.own = dnnlib.util.call_func_by_name(
            func_name="training.sampling.generated_images.options_from_official", official=self
        )

    def features(self, usual: str, is_generated: bool, max_items: int | None) -> tuple[torch.Tensor, Detector]:
        """`[N, d]` of the data set or of the generator, as the usual detector sees them, and that."""
        detector = self.detectors(usual)
        if detector.name != usual and self.detectors.name == "auto":
            raise UserError(
                f"metrics: the weights of {usual} are not at hand; calc_metric names numbers of other detectors, or give "
                "detector= and detector_weights= to MetricOptions"
            )
        images = self.own.generated(max_items) if is_generated else self.own.real
        if images is None:
            raise UserError("metrics: give dataset_kwargs=, the real images to compare with")
        return compute_features(images, detector, max_items, self.seed).features, detector

    def both(self, usual: str, max_real: int | None, num_gen: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features(usual, False, max_real)[0], self.features(usual, True, num_gen)[0]


class FeatureStats:
    """Features, kept as they are (`capture_all`) or asked for mean and covariance; up to `max_items` of them."""

    def __init__(self, capture_all: bool = False, capture_mean_cov: bool = False, max_items: int | None = None):
        self.capture_all, self.capture_mean_cov, self.max_items = capture_all, capture_mean_cov, max_items
        self._parts: list[torch.Tensor] = []

    @property
    def num_items(self) -> int:
        return sum(len(part) for part in self._parts)

    @property
    def num_features(self) -> int | None:
        return self._parts[0].shape[1] if self._parts else None

    def is_full(self) -> bool:
        return self.max_items is not None and self.num_items >= self.max_items

    def append(self, x: Any) -> None:
        left = None if self.max_items is None else self.max_items - self.num_items
        self._parts.append(torch.as_tensor(np.asarray(x), dtype=torch.float32)[:left])

    def append_torch(self, x: torch.Tensor, num_gpus: int = 1, rank: int = 0) -> None:
        self.append(x.cpu())

    def get_all(self) -> np.ndarray:
        return self.get_all_torch().numpy()

    def get_all_torch(self) -> torch.Tensor:
        return torch.cat(self._parts)

    def get_mean_cov(self) -> tuple[np.ndarray, np.ndarray]:
        gaussian = fit_gaussian(self.get_all_torch())
        return gaussian.mean, gaussian.covariance


class ProgressMonitor:
    """Prints `tag items N time T` every `flush_interval` items if `verbose`; `progress_fn(done, total)` is called, too."""

    def __init__(
        self,
        tag: str | None = None,
        num_items: int | None = None,
        flush_interval: int = 1000,
        verbose: bool = False,
        progress_fn: Callable[[float, float], None] | None = None,
        pfn_lo: float = 0,
        pfn_hi: float = 1000,
        pfn_total: float = 1000,
    ):
        self.tag, self.num_items, self.flush_interval, self.verbose = tag, num_items, flush_interval, verbose
        self.progress_fn, self.pfn_lo, self.pfn_hi, self.pfn_total = progress_fn, pfn_lo, pfn_hi, pfn_total
        self.start, self.shown = time.monotonic(), 0

    def update(self, cur_items: int) -> None:
        if self.progress_fn is not None:
            share = cur_items / self.num_items if self.num_items else 0
            self.progress_fn(self.pfn_lo + (self.pfn_hi - self.pfn_lo) * share, self.pfn_total)
        if cur_items != self.num_items and cur_items - self.shown < self.flush_interval:
            return
        self.shown = cur_items
        if self.verbose and self.tag is not None:
            print(
                f"{self.tag:<19s} items {cur_items:<7d} time {dnnlib.util.format_time(time.monotonic() - self.start)}"
            )

    def sub(
        self, tag: str | None = None, num_items: int | None = None, flush_interval: int = 1000,
        rel_lo: float = 0, rel_hi: float = 1,
    ) -> "ProgressMonitor":  # fmt: skip
        low, width = self.pfn_lo, self.pfn_hi - self.pfn_lo
        return ProgressMonitor(
            tag, num_items, flush_interval, self.verbose, self.progress_fn,
            low + width * rel_lo, low + width * rel_hi, self.pfn_total,
        )  # fmt: skip


def get_feature_detector_name(url: str) -> str:
    """`inception-2015-12-05` of an address."""
    return re.split(r"[/\\]", url)[-1].rsplit(".", 1)[0]


def usual_of(url: str) -> str:
    """Which of this project's detectors stands for an address."""
    name = get_feature_detector_name(url).lower()
    for usual in ("inception", "vgg16"):
        if usual in name:
            return usual
    raise UserError(f"metric_utils: {url}: no such detector here; inception and vgg16 are known")


def get_feature_detector(
    url: str, device: torch.device | str = "cpu", num_gpus: int = 1, rank: int = 0, verbose: bool = False
) -> "FeatureDetector":
    """The official name of `metrics.detectors.open_detector`; nothing is loaded from the address itself."""
    return FeatureDetector(usual_of(url), Detectors("auto", device=device, verbose=verbose and rank == 0))


class FeatureDetector:
    """Called as the official TorchScript detectors are: images `[n, 3, h, w]` in [0, 255].

    `return_lpips=True` (VGG16): vectors whose squared distance is LPIPS, which images get gradients from. Otherwise the
    detector's features; `return_features`, `resize_images` and the like are accepted, since that is all that it does.
    """

    def __init__(self, usual: str, detectors: Detectors):
        self.usual, self.detectors = usual, detectors

    def __call__(
        self, images: torch.Tensor, return_lpips: bool = False, resize_images: bool = True, **kwargs: Any
    ) -> Any:
        if return_lpips:
            if resize_images and max(images.shape[2:]) > 256:
                raise UserError(
                    "get_feature_detector: resize images of more than 256 pixels a side before return_lpips=True"
                )
            return self.detectors("lpips").network(normalise_vgg(images.expand(-1, 3, -1, -1).float()))
        detector = self.detectors(self.usual)
        if detector.name != self.usual:
            raise UserError(
                f"get_feature_detector: the weights of {self.usual} are not at hand (calc_metrics.py --help)"
            )
        return detector.features(images.round().clamp(0, 255).to(torch.uint8))


def iterate_random_labels(opts: MetricOptions, batch_size: int) -> Iterator[torch.Tensor]:
    """Labels `[batch_size, c_dim]` of the data set, drawn at random without end."""
    number = 0
    while True:
        _, c = opts.own.sampler.latents(range(number, number + batch_size))
        yield torch.zeros([batch_size, 0], device=opts.device) if c is None else c
        number += batch_size


def compute_feature_stats_for_dataset(
    opts: MetricOptions, detector_url: str, detector_kwargs: Mapping[str, Any] = {}, rel_lo: float = 0, rel_hi: float = 1,
    batch_size: int = 64, data_loader_kwargs: Any = None, max_items: int | None = None, **stats_kwargs: Any,
) -> FeatureStats:  # fmt: skip
    """The statistics of the real images; kept in this project's cache."""
    stats = FeatureStats(max_items=max_items, **stats_kwargs)
    stats.append(opts.features(usual_of(detector_url), False, max_items)[0])
    return stats


def compute_feature_stats_for_generator(
    opts: MetricOptions, detector_url: str, detector_kwargs: Mapping[str, Any] = {}, rel_lo: float = 0, rel_hi: float = 1,
    batch_size: int = 64, batch_gen: int | None = None, max_items: int | None = None, **stats_kwargs: Any,
) -> FeatureStats:  # fmt: skip
    """The statistics of `max_items` generated images."""
    if max_items is None:
        raise UserError("compute_feature_stats_for_generator: give max_items=, the number of images")
    stats = FeatureStats(max_items=max_items, **stats_kwargs)
    stats.append(opts.features(usual_of(detector_url), True, max_items)[0])
    return stats
