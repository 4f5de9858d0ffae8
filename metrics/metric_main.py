"""The metrics by name, as StyleGAN users know them, and what a result carries.

A number that was not made with the metric's usual detector says so in its name: `fid50k_full[tiny]`.
"""

import difflib
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from metrics.detectors import Detector
from metrics.equivariance import equivariance
from metrics.feature_stats import BATCH, LEAVE_STRICT_OUT, FeatureSet, Images, compute_features, content_order
from metrics.frechet_distance import (
    FEW_FOR_FID,
    FEWEST_PER_FEATURE,
    Gaussian,
    extrapolated_distance,
    fit_gaussian,
    frechet_distance,
)
from metrics.inception_score import NUM_SPLITS, inception_score
from metrics.kernel_inception_distance import DEGREE, FEWEST_FOR_ERROR, KIDOptions, kernel_inception_distance
from metrics.perceptual_path_length import perceptual_path_length
from metrics.precision_recall import density_coverage, precision_recall
from metrics.reference_stats import Reference
from metrics.signed_inception_distance import signed_inception_distance
from metrics.stopping import KeepGoing
from torch_utils import distributed

KILO = 1000
PATHS = EQUIVARIANCE_IMAGES = 50 * KILO
# Real images that a `_full` metric takes at most, as in the official code: neighbours cost their number squared.
MOST_REAL_FOR_NEIGHBOURS = 200 * KILO
MOST_REAL_FOR_KID = 1000 * KILO


class NeedsData(UserError):
    """A metric compares with real images, and there are none."""


@dataclass
class MetricOptions:
    """What metrics are computed on, and with. Features of the same images are computed once for all of them."""

    detector: Callable[[str], Detector]
    """The detector to use in place of a metric's usual one (`inception`, `vgg16`, `lpips`)."""
    real: Images | None = None
    """The data set; None for metrics that need none."""
    generated: Callable[[int], Images] | None = None
    """So many images of the generator (or those of a folder, at most)."""
    sampler: Any = None
    """A `Sampler` for metrics that look inside the generator: `G` and `latents(indices) -> (z, c)`; None for folders."""
    seed: int = 0
    batch_size: int = BATCH
    is_strict: bool = False
    is_verbose: bool = False
    kid: KIDOptions = field(default_factory=KIDOptions)
    """Number and size of the subsets of a KID, and the degree of its kernel."""
    keep_going: KeepGoing = None
    """Asked now and then on all ranks; False ends the computation with `stopping.Stopped`."""
    notes: Sequence[str] = ()
    """What to know about all of the numbers."""
    warnings: list[str] = field(default_factory=list)
    """What to know about the numbers since the last result."""
    reference: Reference | None = None
    """What is known of the data set, in its place."""
    _known: dict[tuple, FeatureSet] = field(default_factory=dict)

    def use_generator(self, generated: Callable[[int], Images], sampler: Any) -> None:
        """Go on with other generated images; features of the real ones are kept."""
        self.generated, self.sampler = generated, sampler
        self._known = {key: features for key, features in self._known.items() if key[0] == "real"}

    def features_of_both(
        self, usual: str, count: int, full: str | None, most_real: int | None = None
    ) -> tuple[FeatureSet, FeatureSet, Detector]:
        """The features of the data set (as many images as are generated, unless `full`) and of `count` generated images.

        most_real: of a larger data set, where it is `full`, a random subset of so many images is taken.
        """
        if self.reference is not None:
            gen, detector = self.features_of_generated(usual, count)
            self.reference.check(detector)
            self.warnings.extend(self.reference.unnamed)
            return self.reference.feature_set("this metric"), gen, detector
        assert self.real is not None
        max_real = None if full else count
        if full and most_real is not None and len(self.real) > most_real:
            max_real = most_real
            self.warnings.append(
                f"{self.real.name}: {most_real:,} of its {len(self.real):,} images, a random subset, stand for it"
            )
        real, detector = self._features(self.real, usual, ("real", max_real), max_real)
        return real, self.features_of_generated(usual, count)[0], detector

    def fit_both(
        self, usual: str, count: int, full: str | None
    ) -> tuple[Gaussian, FeatureSet, Detector, dict[str, int]]:
        """Mean and covariance of the data set, features of `count` generated images, and how many images they are of."""
        if self.reference is None:
            real, gen, detector = self.features_of_both(usual, count, full)
            return fit_gaussian(real.features, "real images"), gen, detector, counts_of(real, gen)
        gen, detector = self.features_of_generated(usual, count)
        self.reference.check(detector)
        self.warnings.extend(self.reference.unnamed)
        num = self.reference.num_images
        counts = {} if num is None else {"num_real": num}
        return self.reference.gaussian, gen, detector, counts | {"num_gen": len(gen), "num_skipped": len(gen.skipped)}

    def features_of_generated(self, usual: str, count: int) -> tuple[FeatureSet, Detector]:
        assert self.generated is not None
        return self._features(self.generated(count), usual, ("generated", count), count)

    def _features(self, images: Images, usual: str, what: tuple, max_items: int | None) -> tuple[FeatureSet, Detector]:
        detector = self.detector(usual)
        key = (*what, detector.key)
        if key not in self._known:
            self._known[key] = compute_features(
                images,
                detector,
                max_items,
                self.seed,
                self.batch_size,
                self.is_strict,
                self.is_verbose,
                self.keep_going,
                LEAVE_STRICT_OUT,
            )
        num = len(self._known[key])
        if max_items is not None and num < max_items:
            self.warnings.append(f"{images.name}: {num:,} images were used, {max_items:,} were asked for")
        return self._known[key], detector


@dataclass(frozen=True)
class Value:
    """What a metric computes."""

    results: dict[str, float]  # by what follows the metric's name; "" is the metric itself
    detector: Detector | None = None
    errors: dict[str, float] = field(default_factory=dict)  # standard errors, where they can be had
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Metric:
    """A name's meaning."""

    compute: Callable[[MetricOptions], "Value | dict[str, float]"]
    usual: str | None = "inception"  # the detector that the plain name stands for; None: it needs none
    needs_real: bool = True  # compares with a data set
    needs_features: bool = True  # of each real image, not their mean and covariance alone
    is_of_all: bool = True  # compares with all of the data set, not with as many images of it as are generated
    needs_network: bool = False  # looks inside the generator
    needs_movable_input: bool = False  # moves the generator's input, which only StyleGAN3 has
    needs_classes: bool = False  # asks the detector what it sees
    asked: int = 0  # how many images it generates
    fewest: int = 0  # images, generated and real ones each, that it cannot do without
    fewest_per_feature: int = 0  # generated images for each feature of the detector
    main: str = ""  # of several values the one that snapshots are compared by
    better: str = "low"  # low, high, or near_zero


_registry: dict[str, Metric] = {}
_families: list[tuple[re.Pattern, Callable[..., Metric]]] = []


def register_metric(function: Callable[[MetricOptions], Any]) -> Callable[[MetricOptions], Any]:
    """Decorator for a metric of your own: the function's name is the metric's, its dict the results."""
    _registry[function.__name__] = Metric(function, usual=None)
    return function


def register_family(pattern: str, *names: str) -> Callable[[Callable[..., Metric]], Callable[..., Metric]]:
    """Decorator: the decorated function makes the metrics whose names match, from the groups of the match.

    names: those that users know, for lists.
    """

    def register(make: Callable[..., Metric]) -> Callable[..., Metric]:
        compiled = re.compile(pattern)
        _families.append((compiled, make))
        for name in names:
            match = compiled.fullmatch(name)
            assert match is not None, f"{name} is none of its family"
            _registry[name] = make(**match.groupdict())
        return make

    return register


def list_valid_metrics() -> list[str]:
    """The names that users know; families of them go on with other sizes (`fid5k_full`)."""
    return list(_registry)


def is_valid_metric(name: str) -> bool:
    return name in _registry or any(pattern.fullmatch(name) for pattern, _ in _families)


def find_metric(name: str) -> Metric:
    """The metric of a name. Raises `UserError` that lists the known ones and suggests the nearest."""
    if name in _registry:
        return _registry[name]
    for pattern, make in _families:
        match = pattern.fullmatch(name)
        if match:
            return make(**match.groupdict())
    near = difflib.get_close_matches(name, list_valid_metrics(), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    known = ", ".join(list_valid_metrics())
    raise UserError(f"--metrics: {name} is not known{hint}; choose from {known}, or other sizes such as fid5k_full")


def prepare(names: Sequence[str], opts: MetricOptions, may_lack_images: bool = False) -> list[Detector]:
    """Check that the metrics can be computed, and open their detectors, before anything long begins.

    On every process; rank 0 downloads. may_lack_images: too few images are no reason to stop, `shortages` names them.
    Raises `UserError`.
    """
    detectors = {}
    for name in names:
        metric = find_metric(name)
        if metric.needs_real and opts.reference is not None:
            check_reference(name, metric, opts.reference)
        elif metric.needs_real and opts.real is None:
            raise NeedsData(f"--data is needed: {name} compares with real images")
        if metric.needs_network and opts.sampler is None:
            raise UserError(f"--metrics: {name} looks inside a generator; give a snapshot with --network, not images")
        if metric.needs_movable_input and not hasattr(getattr(opts.sampler.G.synthesis, "input", None), "transform"):
            raise UserError(f"--metrics: {name} needs a StyleGAN3 network; this one is StyleGAN2")
        if metric.usual is not None:
            with distributed.rank0_first():
                detector = opts.detector(metric.usual)
            if metric.needs_classes and not detector.has_classes:
                raise UserError(
                    f"--metrics: {name} needs classes, and {detector.name} knows none; add --detector=inception or efficientnet"
                )
            if metric.needs_real and opts.reference is not None:
                opts.reference.check(detector)
            check_features(name, metric, detector)
            detectors[detector.key] = detector
    for shortage in [] if may_lack_images else shortages(names, opts):
        raise UserError(shortage)
    return list(detectors.values())


def check_features(name: str, metric: Metric, detector: Detector) -> None:
    """Raise `UserError` where a metric generates too few images for so many features."""
    needed = metric.fewest_per_feature * detector.num_features
    if metric.asked < needed:
        enough = re.sub(r"\d+(?=k)", str(-(-needed // KILO)), name)
        raise UserError(
            f"--metrics: {name} needs {needed:,} images with the {detector.num_features:,} features of {detector.name}; use "
            f"{enough}"
        )


def check_reference(name: str, metric: Metric, reference: Reference) -> None:
    """Raise `UserError` where a metric needs more of the data set than what is known of it."""
    if not metric.is_of_all:
        raise UserError(
            f"--metrics: {name} compares with as many images as are generated; with --stats, use {name}_full"
        )
    if metric.needs_features:
        reference.feature_set(name)


def shortages(names: Sequence[str], opts: MetricOptions) -> list[str]:
    """Which of the metrics have too few images, real or generated, and the ways out."""
    return [shortage for name in names if (shortage := shortage_of(name, opts)) is not None]


def shortage_of(name: str, opts: MetricOptions) -> str | None:
    metric = find_metric(name)
    available = []
    if metric.needs_real and opts.reference is not None:
        available.append((opts.reference.num_images or metric.fewest, opts.reference.name))
    elif metric.needs_real and opts.real is not None:
        available.append((len(opts.real), opts.real.name))
    if metric.asked > 0:
        images = None if opts.generated is None else opts.generated(metric.asked)
        title = "generated images" if images is None else images.name
        available.append((metric.asked if images is None else min(metric.asked, len(images)), title))
    for num, title in available:
        if num < metric.fewest:
            smaller = re.sub(r"(?<=\dk)\d+", str(num - 1), name)  # of those that have a k
            way_out = f"use {smaller} or more images" if smaller != name and num >= 2 else "use more images"
            return f"--metrics: {name} needs {metric.fewest} images at least, not {num} ({title}); {way_out}"
    return None


def try_metric(name: str, opts: MetricOptions) -> tuple[dict[str, Any] | None, str | None]:
    """The result of a metric, or why it failed, in one line: a network may have diverged, or too few images be readable.

    What can fail on one process and not on the others is an exception where there are several. May raise `Stopped`.
    """
    on_all = (ValueError, ArithmeticError, torch.linalg.LinAlgError)  # UserError is among them
    alone = (OSError, MemoryError, torch.OutOfMemoryError) if distributed.get_world_size() == 1 else ()
    try:
        return calc_metric(name, opts), None
    except (*on_all, *alone) as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return None, f"{name} could not be computed: {' '.join(reason.split())}"


def calc_metric(metric: str, opts: MetricOptions | None = None, **official: Any) -> dict[str, Any]:
    """Compute one metric, on every process; the result as plain data. Raises `UserError`.

    official: without options, the official keywords (`metric_utils.MetricOptions`): `G=`, `dataset_kwargs=`, ….
    """
    if opts is None:
        from metrics.metric_utils import MetricOptions as OfficialOptions

        opts = OfficialOptions(**official).own
        prepare([metric], opts)
    kind = find_metric(metric)
    started = time.monotonic()
    opts.warnings.clear()
    value = kind.compute(opts)
    value = value if isinstance(value, Value) else Value(value)
    tag = tag_of(value.detector, kind.usual)
    seconds = time.monotonic() - started
    return {
        "metric": metric,
        "results": {f"{metric}{suffix}{tag}": number for suffix, number in value.results.items()},
        "standard_errors": {f"{metric}{suffix}{tag}": number for suffix, number in value.errors.items()},
        "seed": opts.seed,
        **value.counts,
        "detector": None if value.detector is None else value.detector.name,
        "detector_hash": None if value.detector is None else value.detector.weights_hash,
        "resize": None if value.detector is None else value.detector.resize,
        "warnings": [*opts.notes, *opts.warnings, *value.warnings],
        "num_gpus": distributed.get_world_size(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "total_time": seconds,
    }


def score(result: dict[str, Any]) -> float:
    """A number that is the lower the better, from the metric's main value."""
    metric = find_metric(result["metric"])
    start = result["metric"] + metric.main
    value = next(value for name, value in result["results"].items() if name.startswith(start))
    return {"low": value, "high": -value, "near_zero": abs(value)}[metric.better] if math.isfinite(value) else math.inf


def tag_of(detector: Detector | None, usual: str | None) -> str:
    """What the name of a number must say: nothing where detector, its weights and resizing are the usual ones."""
    if detector is None:
        return ""
    parts = [] if detector.title == usual else [detector.title]
    parts += ["clean"] if detector.resize == "clean" else []
    return f"[{'-'.join(parts)}]" if parts else ""


def report_path(run_dir: Any, name: str) -> Path:
    """Where the results of a metric are kept, a JSON line each."""
    return Path(run_dir) / f"metric-{name}.jsonl"


def result_line(result_dict: dict[str, Any], run_dir: Any = None, snapshot_pkl: str | None = None) -> str:
    """A result as JSON, which names the snapshot as seen from the run's folder."""
    if run_dir is not None and snapshot_pkl is not None and os.path.dirname(snapshot_pkl):
        snapshot_pkl = os.path.relpath(snapshot_pkl, run_dir)
    return json.dumps({**result_dict, "snapshot_pkl": snapshot_pkl, "timestamp": time.time()})


def report_metric(
    result_dict: dict[str, Any], run_dir: Any = None, snapshot_pkl: str | None = None, is_printed: bool = True
) -> str:
    """One JSON line, printed and appended to `metric-<name>.jsonl` in the run's folder."""
    line = result_line(result_dict, run_dir, snapshot_pkl)
    if is_printed:  # before what may fail: a result can be hours of work
        print(line, flush=True)
    if run_dir is not None:
        with open(report_path(run_dir, result_dict["metric"]), "a", encoding="utf-8") as file:
            file.write(line + "\n")
    return line


@register_family(r"fid(?P<size>[1-9]\d{0,3})k(?P<full>_full)?", "fid50k_full", "fid50k")
def fid(size: str, full: str | None) -> Metric:
    """Fréchet distance of N thousand generated images to the data set (`_full`), or to as many of its images."""

    def compute(opts: MetricOptions) -> Value:
        real, gen, detector, counts = opts.fit_both("inception", KILO * int(size), full)
        distance = frechet_distance(real, fit_gaussian(gen.features, "generated images"))
        return Value({"": distance}, detector, counts=counts, warnings=few_images(counts))

    return Metric(compute, asked=KILO * int(size), fewest=2, needs_features=False, is_of_all=full is not None)


@register_family(r"fid_inf(?P<size>[1-9]\d{0,3})k(?P<full>_full)?", "fid_inf50k_full")
def fid_infinity(size: str, full: str | None) -> Metric:
    """The FID that infinitely many generated images would have, extrapolated (Chong & Forsyth 2020), and that of these."""

    def compute(opts: MetricOptions) -> Value:
        real, gen, detector, counts = opts.fit_both("inception", KILO * int(size), full)
        result = extrapolated_distance(real, gen.features, opts.seed)
        known = {
            key: value for key, value in counts.items() if key == "num_real"
        }  # only those generated are extrapolated
        return Value({"": result.value, "_at_all": result.at_all}, detector, counts=counts, warnings=few_images(known))

    return Metric(
        compute,
        asked=KILO * int(size),
        fewest=2,
        fewest_per_feature=FEWEST_PER_FEATURE,
        needs_features=False,
        is_of_all=full is not None,
    )


@register_family(r"kid(?P<size>[1-9]\d{0,3})k(?P<full>_full)?", "kid50k_full", "kid50k")
def kid(size: str, full: str | None) -> Metric:
    """Kernel distance, with its standard deviation over the subsets."""

    def compute(opts: MetricOptions) -> Value:
        real, gen, detector = opts.features_of_both("inception", KILO * int(size), full, MOST_REAL_FOR_KID)
        kid = opts.kid
        value, error, std = kernel_inception_distance(
            real.features, gen.features, kid.num_subsets, kid.max_subset_size, opts.seed, kid.degree
        )
        # Another kernel is another distance, and its name says so.
        name = "" if kid.degree == DEGREE else f"_degree{kid.degree}"
        subset_size = min(len(real), len(gen), kid.max_subset_size)
        counts = {"kid_subsets": 1 if std is None else kid.num_subsets}
        counts |= {"kid_subset_size": subset_size, "kid_degree": kid.degree}
        results = {name: value} if std is None else {name: value, f"{name}_std": std}
        errors = {} if error is None else {name: error}
        warnings = [] if error is not None else [f"no ± of a KID of fewer than {FEWEST_FOR_ERROR} images"]
        if subset_size < kid.max_subset_size:
            warnings.append(f"KID: its subsets have {subset_size:,} images, {kid.max_subset_size:,} were asked for")
        return Value(results, detector, errors, counts_of(real, gen) | counts, warnings)

    return Metric(compute, asked=KILO * int(size), fewest=2, is_of_all=full is not None)


@register_family(r"pr(?P<size>[1-9]\d{0,3})k(?P<nhood>[1-9]\d{0,3})(?P<full>_full)?", "pr50k3_full", "pr50k3")
def pr(size: str, nhood: str, full: str | None) -> Metric:
    """Precision and recall, in VGG16's features."""

    def compute(opts: MetricOptions) -> Value:
        real, gen, detector = opts.features_of_both("vgg16", KILO * int(size), full, MOST_REAL_FOR_NEIGHBOURS)
        precision, recall = precision_recall(real.features, gen.features, int(nhood))
        results = {"_precision": precision, "_recall": recall}
        errors = {"_precision": binomial_error(precision, len(gen)), "_recall": binomial_error(recall, len(real))}
        return Value(results, detector, errors, counts_of(real, gen))

    fewest = int(nhood) + 1
    return Metric(
        compute,
        usual="vgg16",
        asked=KILO * int(size),
        fewest=fewest,
        main="_recall",
        better="high",
        is_of_all=full is not None,
    )


@register_family(r"dc(?P<size>[1-9]\d{0,3})k(?P<nhood>[1-9]\d{0,3})(?P<full>_full)?", "dc50k5_full")
def dc(size: str, nhood: str, full: str | None) -> Metric:
    """Density and coverage."""

    def compute(opts: MetricOptions) -> Value:
        real, gen, detector = opts.features_of_both("inception", KILO * int(size), full, MOST_REAL_FOR_NEIGHBOURS)
        density, coverage = density_coverage(real.features, gen.features, int(nhood))
        errors = {"_coverage": binomial_error(coverage, len(real))}
        return Value({"_density": density, "_coverage": coverage}, detector, errors, counts_of(real, gen))

    return Metric(
        compute,
        asked=KILO * int(size),
        fewest=int(nhood) + 1,
        main="_coverage",
        better="high",
        is_of_all=full is not None,
    )


@register_family(r"is(?P<size>[1-9]\d{0,3})k", "is50k")
def inception(size: str) -> Metric:
    """Inception score, mean and standard deviation over ten random splits: files of a folder may be sorted by class."""

    def compute(opts: MetricOptions) -> Value:
        assert opts.generated is not None
        gen, detector = opts.features_of_generated("inception", KILO * int(size))
        order = content_order(opts.generated(KILO * int(size)), gen.indices, opts.seed)
        mean, std = inception_score(detector.probabilities(gen.features[order]))
        errors = {"_mean": std / math.sqrt(NUM_SPLITS)}
        return Value({"_mean": mean, "_std": std}, detector, errors, {"num_gen": len(gen)})

    return Metric(
        compute,
        needs_real=False,
        needs_classes=True,
        asked=KILO * int(size),
        fewest=NUM_SPLITS,
        main="_mean",
        better="high",
    )


@register_family(r"(?P<kind>c?sid)(?P<size>[1-9]\d{0,3})k(?P<full>_full)?", "sid50k_full", "csid50k_full")
def sid(kind: str, size: str, full: str | None) -> Metric:
    """Signed inception distance of generated images (the source) to real ones (the target): summed, or the curve."""

    def compute(opts: MetricOptions) -> Value:
        real, gen, detector = opts.features_of_both("inception", KILO * int(size), full)
        result = signed_inception_distance(gen.features, real.features, seed=opts.seed)
        if kind == "csid":
            return Value({"": result.csid}, detector, {"": result.csid_se}, counts_of(real, gen))
        results = {f"_r{radius:g}": float(value) for radius, value in zip(result.radii, result.sid, strict=True)}
        errors = {f"_r{radius:g}": float(error) for radius, error in zip(result.radii, result.se, strict=True)}
        return Value(results, detector, errors, counts_of(real, gen))

    return Metric(compute, asked=KILO * int(size), fewest=2, better="near_zero", is_of_all=full is not None)


def path_length(space: str, sampling: str, crop: bool) -> Metric:
    def compute(opts: MetricOptions) -> Value:
        assert opts.sampler is not None
        detector = opts.detector("lpips")
        result = perceptual_path_length(
            opts.sampler.G,
            opts.sampler.latents,
            detector.vectors,
            PATHS,
            space,
            sampling,
            crop,
            opts.seed,
            progress="paths" if opts.is_verbose else None,
            keep_going=opts.keep_going,
        )
        return Value({"": result.mean}, detector, {"": result.error}, {"num_kept": result.num_kept})

    return Metric(compute, usual="lpips", needs_real=False, needs_network=True)


def shift_or_turn(kind: str) -> Metric:
    def compute(opts: MetricOptions) -> Value:
        assert opts.sampler is not None
        result = equivariance(
            opts.sampler.G,
            opts.sampler.latents,
            kind,
            EQUIVARIANCE_IMAGES,
            opts.seed,
            progress=kind if opts.is_verbose else None,
            keep_going=opts.keep_going,
        )
        return Value({"": result.psnr}, errors={"": result.error})

    return Metric(compute, usual=None, needs_real=False, needs_network=True, needs_movable_input=True, better="high")


_registry["ppl2_wend"] = path_length("w", "end", crop=False)
_registry["ppl_zfull"] = path_length("z", "full", crop=True)
_registry["ppl_wfull"] = path_length("w", "full", crop=True)
_registry["ppl_zend"] = path_length("z", "end", crop=True)
_registry["eqt50k_int"] = shift_or_turn("eqt_int")
_registry["eqt50k_frac"] = shift_or_turn("eqt_frac")
_registry["eqr50k"] = shift_or_turn("eqr")


def counts_of(real: FeatureSet, gen: FeatureSet) -> dict[str, int]:
    return {"num_real": len(real), "num_gen": len(gen), "num_skipped": len(real.skipped) + len(gen.skipped)}


def few_images(counts: dict[str, int]) -> list[str]:
    few = [
        f"{counts[key]} {name} images"
        for key, name in (("num_real", "real"), ("num_gen", "generated"))
        if counts.get(key, FEW_FOR_FID) < FEW_FOR_FID
    ]
    return [f"{' and '.join(few)}: under {FEW_FOR_FID} the FID reads too high; look at kid, too"] if few else []


def binomial_error(share: float, num: int) -> float:
    return math.sqrt(share * (1 - share) / num)
