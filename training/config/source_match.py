"""`--source-match`: classes of the source for classes of the target, by number or by the signed inception distance."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError, naming
from metrics.class_distances import csid_between_classes
from metrics.detectors import open_detector
from metrics.feature_stats import choose_indices, compute_features
from torch_utils import distributed
from training.checkpoints.snapshot import is_snapshot
from training.config.options import TrainingOptions
from training.data.image_files import open_files
from training.data.image_sets import ImageSet
from training.data.labels import find_classes
from training.sources.class_pairs import ClassPairs

FEWEST_IMAGES = 10  # of a class whose distance is measured
COMPARED_IMAGES, COMPARED_OF_CLASS = 10_000, 50  # of a set; more where it has very many classes


@dataclass(frozen=True)
class ClassMatch:
    """Which source class feeds which target class, and how that was found."""

    kind: str
    """`label` or `csid`."""
    pairs: list[int]
    """A source class for each target class."""
    csid: list[float] | None = None
    """Distances of the pairs, where they were measured."""
    detector: str | None = None
    """What they were measured with."""

    def __post_init__(self) -> None:
        is_list = isinstance(self.pairs, list) and all(isinstance(source, int) for source in self.pairs)
        if self.kind not in ("label", "csid") or not is_list:
            raise TypeError(f"classes are not paired by {self.kind!r}: {self.pairs!r}")

    def as_data(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def describe(self) -> str:
        """The line of the summary."""
        how = {"label": "of the same number", "csid": f"nearest by CSID[{self.detector}]"}[self.kind]
        return f"each of {len(self.pairs)} classes from the source class {how} ({len(set(self.pairs))} used)"

    def lines(self) -> Iterator[str]:
        """The lines of the log: which class is fed by which, with the distances where they were measured."""
        values: Sequence[float | None] = self.csid or [None] * len(self.pairs)
        for target, (source, value) in enumerate(zip(self.pairs, values, strict=True)):
            distance = "" if value is None else f"  CSID[{self.detector}] {value:g}"
            yield f"Class {target:>4} <- source class {source:>4}{distance}"


UNMATCHED = "source images whatever the class (--source-match=label and csid pair classes)"


def match_classes(options: TrainingOptions, device: str) -> ClassMatch | None:
    """The pairs that `--source-match` asks for; None for `random`. Raises `UserError`."""
    kind = options.source_match
    if kind == "random":
        return None
    flag = f"--source-match={kind}"
    assert options.source is not None and options.data is not None
    if not options.cond:
        raise UserError(f"{flag}: needs --cond=1, a generator that knows classes; add that, or leave it out")
    if is_snapshot(options.source):
        raise UserError(f"{flag}: {options.source} is a snapshot, and images with labels are needed; use random")
    with naming(f"{flag}: --source"):
        source_classes = classes_of(options.source)
    with naming(f"{flag}: --data"):
        target_classes = classes_of(options.data)
    if kind == "label":
        match = ClassMatch(kind, same_numbers(options, source_classes, target_classes))
    else:
        match = nearest_classes(options, source_classes, target_classes, device)
    with naming(f"{flag}: --source={options.source}"):
        ClassPairs(match.pairs, torch.from_numpy(source_classes))
    return match


def classes_of(path: str) -> np.ndarray:
    """The class number of every image, int64 `[N]`."""
    files = open_files(path)
    try:
        return find_classes(files)
    finally:
        files.close()


def same_numbers(options: TrainingOptions, source_classes: np.ndarray, target_classes: np.ndarray) -> list[int]:
    num_source, num_target = int(source_classes.max()) + 1, int(target_classes.max()) + 1
    if num_source != num_target:
        raise UserError(
            f"--source-match=label: --source={options.source} has {num_source} classes and --data={options.data} has "
            f"{num_target}; use csid, which takes the nearest ones, or random"
        )
    return list(range(num_target))


def nearest_classes(
    options: TrainingOptions, source_classes: np.ndarray, target_classes: np.ndarray, device: str
) -> ClassMatch:
    """Find for every target class the source class with the smallest |CSID| in the features of `--detector`."""
    detector = open_detector(options.detector, options.detector_weights, device=device, verbose=True)
    features, classes = [], []
    with distributed.alone():
        for flag, path, labels in (("source", options.source, source_classes), ("data", options.data, target_classes)):
            with naming(f"--{flag}"):
                images = ImageSet(path)
                limit = max(COMPARED_IMAGES, COMPARED_OF_CLASS * (int(labels.max()) + 1))
                chosen = labels[choose_indices(len(images), limit, options.seed)]
                check_counts(chosen, path)
                found = compute_features(images, detector, limit, options.seed, is_strict=True, is_verbose=True)
            features.append(found.features)
            classes.append(chosen)
        with naming("--source-match=csid: --data"):
            table = csid_between_classes(
                features[0], classes[0], features[1], classes[1], seed=options.seed, progress="classes"
            )
    nearest = np.nanargmin(np.abs(table), axis=1)
    values = table[np.arange(len(table)), nearest]
    return ClassMatch("csid", nearest.tolist(), [float(f"{value:.4g}") for value in values], detector.name)


def check_counts(classes: np.ndarray, path: str) -> None:
    counts = np.bincount(classes)
    if counts.min() < FEWEST_IMAGES:
        raise UserError(
            f"{path}: its class {int(counts.argmin())} has {counts.min()} images, and csid needs {FEWEST_IMAGES} of each "
            "class; use --source-match=label or random, or leave such classes out of the set"
        )
