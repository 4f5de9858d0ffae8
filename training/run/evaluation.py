"""What a run is judged by while it goes on: metrics at snapshots, the best snapshot, a watch over diversity, neighbours."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from dnnlib.errors import naming
from dnnlib.files import SHEET_TEXT, tolerated, whole_file
from metrics import metric_main
from metrics.detectors import Detectors, describe, open_detector
from metrics.feature_stats import Images, choose_indices, compute_features
from metrics.precision_recall import density_coverage
from metrics.stopping import Stopped
from torch_utils import distributed, seeding, training_stats
from training.checkpoints.snapshot import images_seen
from training.checkpoints.state_file import BEST, STATS, keep_as_best
from training.config.run_config import TrainingConfig
from training.data.grids import rgb_pixels, save_png, tile
from training.data.image_sets import ImageSet
from training.data.image_tensors import resize, to_float
from training.dataset import Labels
from training.run.state import TrainingState
from training.sampling.generated_images import GeneratedImages

WATCHED_SAMPLES = 256  # made at the end of a tick, but no more than a sixteenth of what the tick trained on
FEWEST_WATCHED = 64
NHOOD_SIZE = 5
COLLAPSED_SHARE = 0.5  # of the best coverage so far: less than this is a warning
NOTEWORTHY_COVERAGE = 0.3  # below, a run has not begun to cover anything that it could lose
TICKS_TO_WARN = 2  # a fall must last so long: a few samples scatter
LATE_KIMG, NO_COVERAGE = 20, 0.05  # a run that has covered no more after so many images has not begun to learn
REFERENCE_IMAGES = 10_000  # of the training data, that samples are compared with
NUM_NEIGHBOURS, NEIGHBOUR_ROWS = 6, 8
COVERAGE = "coverage (samples of a tick, tiny)"


class Evaluation:
    """The metrics of `--metrics` at snapshots, and the link to the best. On every rank; rank 0 writes."""

    def __init__(
        self,
        run_dir: Path,
        config: TrainingConfig,
        state: TrainingState,
        images: Images,
        labels: Labels,
        keep_going: Callable[[], bool],
    ):
        """Opens what the metrics need, so that what is missing shows before training. Raises `UserError`.

        images: the training data; labels: `[N, c_dim]` of it. keep_going: asked now and then on all ranks, False ends an
        evaluation.
        """
        self.run_dir, self.config, self.state, self.labels = run_dir, config, state, labels
        self.is_writer = distributed.get_rank() == 0
        self.history: dict[str, list[tuple[float, float, float]]] = defaultdict(list)  # kimg, value, standard error
        self.best_score = math.inf
        if self.is_writer:  # which alone may take lines back meanwhile
            self.read_history()
        self.opts = metric_main.MetricOptions(
            detector=Detectors(config.detector, config.detector_weights, device=state.device, verbose=self.is_writer),
            real=images if config.metrics_data is None else ImageSet(config.metrics_data),
            seed=config.seed,
            is_verbose=self.is_writer,
            keep_going=keep_going,
        )
        self.look_at_generator()
        # What lacks images was refused before the run began; one that began all the same goes on, see `run`.
        for detector in metric_main.prepare(config.metrics, self.opts, may_lack_images=True):
            distributed.print0(describe(detector))

    def read_history(self) -> None:
        """What an earlier process of this run has measured."""
        best: dict[str, Any] | None = None
        for name in self.config.metrics:
            path = metric_main.report_path(self.run_dir, name)
            for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
                result = json.loads(line)
                if "kimg" not in result or "by" in result:  # of calc_metrics.py, or of another program
                    continue
                self.remember(result, result["kimg"])
                if name == self.config.metrics[0] and metric_main.score(result) < self.best_score:
                    self.best_score, best = metric_main.score(result), result
        if not (self.run_dir / BEST).is_file():  # it was of the time that was taken back, or somebody removed it
            self.bring_back_best(best)

    def bring_back_best(self, result: dict[str, Any] | None) -> None:
        """Make `network-best.pkl` of the file that a result names, where that still is the network that was measured."""
        snapshot = self.run_dir / str(result and result.get("snapshot_pkl"))
        if result is not None and snapshot.is_file() and images_seen(snapshot) == round(result["kimg"] * 1000):
            keep_as_best(self.run_dir / BEST, snapshot)
        else:
            self.best_score = math.inf  # nothing is left that a later one must surpass

    def remember(self, result: dict[str, Any], kimg: float) -> None:
        for name, value in result["results"].items():
            self.history[name].append((kimg, value, result["standard_errors"].get(name, 0.0)))

    def look_at_generator(self) -> None:
        """Look at the generator's present weights: features of earlier images are forgotten."""
        samples = samples_of(self.state, self.labels, self.config.seed)
        self.opts.use_generator(samples.first, samples)

    def run(self, snapshot: Path, events: Any) -> bool:
        """All metrics of the state that `snapshot` holds; False if a signal ended that. One that fails is a warning.

        events: TensorBoard's writer, None but on rank 0.
        """
        kimg = self.state.cur_nimg / 1000
        self.look_at_generator()
        try:
            tried = [metric_main.try_metric(name, self.opts) for name in self.config.metrics]
        except Stopped:
            distributed.print0(
                "The evaluation was left out; the snapshot is saved, and the run makes up for it when it goes on."
            )
            return False
        for failure in (failure for _, failure in tried if failure is not None):
            distributed.print0(f"Warning: {failure}; training goes on without it")
        results = [result for result, _ in tried if result is not None]
        if self.is_writer and results:
            with tolerated("metrics"):
                for result in results:
                    self.record(result, snapshot, kimg, events)
                draw_history(self.run_dir / "metrics.png", {**self.history, **coverage_so_far(self.run_dir)})
                if results[0]["metric"] == self.config.metrics[0]:
                    self.link_best(results[0], snapshot)
        return True

    def record(self, result: dict[str, Any], snapshot: Path, kimg: float, events: Any) -> None:
        """A line in metric-<name>.jsonl and on the terminal, a point in TensorBoard."""
        against = {} if self.config.metrics_data is None else {"metrics_data": self.config.metrics_data}
        metric_main.report_metric({**result, "kimg": kimg, **against}, self.run_dir, snapshot.name, is_printed=False)
        self.remember(result, kimg)
        for name, value in result["results"].items():
            events.add_scalar(f"Metrics/{name}", value, global_step=self.state.cur_nimg)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in list(result["results"].items())[:4])
        print(f"{shown} ({result['total_time']:.0f} s)", flush=True)
        for warning in result["warnings"] if len(self.history[name]) == 1 else []:
            print(f"Warning: {warning}", flush=True)

    def link_best(self, result: dict[str, Any], snapshot: Path) -> None:
        """`network-best.pkl` is the network with the best value of the first metric so far."""
        score = metric_main.score(result)
        if score >= self.best_score or not snapshot.is_file():  # a full disk may have kept it from being written
            return
        keep_as_best(self.run_dir / BEST, snapshot)
        self.best_score = score


class DiversityWatch:
    """Density and coverage of a few samples at every tick, in the features of `tiny`.

    The numbers are for seeing a fall, not for comparing runs: a handful of samples covers a handful of images.
    """

    def __init__(self, config: TrainingConfig, state: TrainingState, images: Images, labels: Labels):
        """Construct on every rank; call the other methods on rank 0. Raises `UserError` where an image cannot be read."""
        self.config, self.state, self.images, self.labels = config, state, images, labels
        self.detector = open_detector("tiny")
        self.best_coverage, self.num_low, self.has_warned = 0.0, 0, False
        self.reference = choose_indices(len(self.images), REFERENCE_IMAGES, config.seed)
        with naming("--data"):
            reals = compute_features(self.images, self.detector, REFERENCE_IMAGES, config.seed, is_strict=True)
        self.eye, seen = self.detector, reals  # of neighbours
        if config.detector != "auto" and config.metrics:
            self.eye = open_detector(config.detector, config.detector_weights, device=state.device)
            is_verbose = distributed.get_rank() == 0
            with naming("--data"):
                seen = compute_features(
                    self.images, self.eye, REFERENCE_IMAGES, config.seed, is_strict=True, is_verbose=is_verbose
                )
        self.features, self.seen = reals.features, seen.features

    def state_dict(self) -> dict[str, Any]:
        return {"best_coverage": self.best_coverage, "num_low": self.num_low, "has_warned": self.has_warned}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.best_coverage, self.num_low = saved["best_coverage"], saved["num_low"]
        self.has_warned = saved.get("has_warned", False)  # states of version 0.1 do not say

    def tick(self, num_trained: int) -> None:
        """Measure, and warn of a fall. num_trained: images of this tick, which bound the effort."""
        num = min(max(num_trained // 16, FEWEST_WATCHED), WATCHED_SAMPLES)
        samples = samples_of(self.state, self.labels, self.config.seed).read(range(num))
        if len(self.features) <= NHOOD_SIZE or samples.problems:  # has diverged
            return
        features = self.detector.features_of(samples.images)
        # As many reals as samples: then coverage of a perfect generator is nearly 1, whatever the number.
        reals = self.features[seeding.spread(len(self.features), num, "watch", self.config.seed)]
        density, coverage = density_coverage(reals, features, NHOOD_SIZE)
        training_stats.report0("Diversity/density", density)
        training_stats.report0("Diversity/coverage", coverage)
        self.best_coverage = max(self.best_coverage, coverage)
        is_low = self.best_coverage >= NOTEWORTHY_COVERAGE and coverage < COLLAPSED_SHARE * self.best_coverage
        self.num_low = self.num_low + 1 if is_low else 0
        if self.num_low == TICKS_TO_WARN:
            print(
                f"Warning: the samples cover {coverage:.0%} of the data where they covered {self.best_coverage:.0%} before: the "
                "generator may be collapsing. An earlier snapshot with lower --glr and --dlr, or with a larger --gamma or "
                "--aug=ada where its discriminator has them, is the usual way out",
                flush=True,
            )
        self.warn_of_standstill()

    def warn_of_standstill(self) -> None:
        """Say once that a run has not begun to make anything like the data."""
        is_late = self.state.cur_nimg >= LATE_KIMG * 1000
        if is_late and self.best_coverage < NO_COVERAGE and not self.has_warned:
            self.has_warned = True
            print(
                f"Warning: after {self.state.cur_nimg / 1000:.0f} kimg the samples cover {self.best_coverage:.0%} of the data at "
                "best: the generator has not begun to make anything like it. For small images --cfg=dcgan --aug=noaug begins "
                "sooner, and --preset names what does for which data; a smaller network (--cbase, --cmax) is another way out",
                flush=True,
            )

    def save_neighbours(self, path: Path) -> None:
        """Rows of a sample and the training images nearest to it: copies of the data would show."""
        samples = samples_of(self.state, self.labels, self.config.seed).read(range(NEIGHBOUR_ROWS)).images
        if not samples:  # the network has diverged
            return
        # By differences: a copy is at 0, where a matrix product would leave the rounding of the norms.
        distances = torch.cdist(self.eye.features_of(samples), self.seen, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(min(NUM_NEIGHBOURS, len(self.seen)), largest=False).indices.numpy()
        size = (samples[0].shape[1], samples[0].shape[2])
        cells = []
        for sample, row in zip(samples, nearest, strict=True):
            read = self.images.read(self.reference[row].tolist())
            if read.problems:  # with files that were whole at the start
                continue
            for image in [sample, *read.images]:
                cells.append(rgb_pixels(resize(to_float(image[None]), size))[0])
        if cells:
            save_png(path, Image.fromarray(tile(np.stack(cells), 1 + nearest.shape[1])))


def samples_of(state: TrainingState, labels: Labels, seed: int) -> GeneratedImages:
    """Images of the averaged generator at its present weights."""
    return GeneratedImages(state.G_ema, state.feed, 0, seed, labels if labels.shape[1] > 0 else None)


def coverage_so_far(run_dir: Path) -> dict[str, list[tuple[float, float, float]]]:
    """What the watch has written into stats.jsonl, as a history of metrics has it."""
    path, points = run_dir / STATS, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        tick = json.loads(line)
        if "Diversity/coverage" in tick:
            points.append((tick["Progress/kimg"]["mean"], tick["Diversity/coverage"]["mean"], 0.0))
    return {COVERAGE: points} if points else {}


def draw_history(path: Path, history: dict[str, list[tuple[float, float, float]]]) -> None:
    """Every value against kimg, one panel each, with error bars of two standard errors."""
    names = [name for name in history if "_std" not in name][:12]  # a curve of SID has a name for each radius
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.5 * columns, 3.2 * rows), layout="constrained", squeeze=False)
    for panel, name in zip(axes.flat, names, strict=False):
        kimg, values, errors = np.array(history[name]).T
        panel.errorbar(kimg, values, yerr=2 * errors, marker="o", markersize=3, capsize=2)
        panel.set_title(name)
        panel.set_xlabel("kimg")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        if name == COVERAGE:
            panel.set_ylim(0, 1)
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    with whole_file(path) as file:
        figure.savefig(file, dpi=110, format="png", metadata=SHEET_TEXT)
    plt.close(figure)
