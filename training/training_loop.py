"""The training loop: load, then { step, report, draw, save } until done."""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError, naming
from dnnlib.files import tolerated
from torch_utils import distributed, seeding
from training.checkpoints.state_file import (
    file_number,
    fitting,
    read_state,
    seed_random_state,
    settle_best,
    snapshot_path,
)
from training.config.official_loop import config_from_official
from training.config.resume import rewind_files, set_aside_damaged, set_aside_later
from training.config.run_config import TrainingConfig
from training.data.grids import grid_size, save_grid
from training.data.image_sets import ImageSet
from training.dataset import ImageFolderDataset, LabelTable, default_cache_bytes
from training.run.batches import Batches
from training.run.evaluation import DiversityWatch, Evaluation
from training.run.loader import BatchLoader
from training.run.memory import choose_micro_batch
from training.run.pictures import Pictures, reals_by_row
from training.run.pretraining import pretrain
from training.run.progress import Progress, StopSignal
from training.run.saving import Saver, micro_batch_of
from training.run.state import TrainingState, build_state
from training.run.step import NotFinite, TrainingStep
from training.sources.coreset import DetectorChoice, TargetOrder
from training.sources.label_distribution import LabelDistribution

EARLY_SNAPSHOT_TICKS = (1, 2, 4, 8, 16, 32)
SNAPSHOT_TICKS = 50
GPU_POLL_STEPS = 8  # looking at the losses or for signals makes the processor wait for the GPU


def training_loop(
    config: TrainingConfig | None = None,
    run_dir: Path = Path(),
    device: torch.device | None = None,
    state_file: Path | None = None,
    **official: Any,
) -> bool:
    """Train until the configuration's length, or a signal; True if the run was stopped. On every rank.

    state_file: the training state to continue from, in the same folder. official: without a configuration, the keywords
    of the official training loop (`official_loop.config_from_official`).
    """
    if config is None:
        config, run_dir, device = config_from_official(run_dir=run_dir, **official)
    assert device is not None
    set_up_backends(config)
    seed_random_state(config.seed, "process", distributed.get_rank())
    run = open_run(config, run_dir, device, state_file)
    with run.loader, run.stop, run.saver:
        run.train()
    run.progress.close()
    return run.stop.is_agreed


@dataclass
class Run:
    """A run that is under way. On every rank."""

    run_dir: Path
    config: TrainingConfig
    state: TrainingState
    step: TrainingStep
    loader: BatchLoader
    pictures: Pictures
    evaluation: Evaluation
    watch: DiversityWatch
    progress: Progress
    saver: Saver
    stop: StopSignal

    def train(self) -> None:
        """Train from where the state stands to the end."""
        poll_steps = 1 if self.progress.device.type == "cpu" else GPU_POLL_STEPS
        must_stop = self.stop.is_asked_anywhere if poll_steps == 1 else never
        if self.saver.evaluation_due:
            self.saver.save_snapshot()  # the same once more, should that be what a full disk or an earlier version left out
            self.evaluate()
        while not self.stop.is_agreed:
            if self.is_tick_over():
                self.end_tick()  # a signal in here ends an evaluation, behind the state that was saved
            if self.is_done() or self.stop.is_agreed:
                break
            self.take_step(must_stop)
            if self.state.batch_idx % poll_steps == 0:
                self.progress.step()
                self.save_if_due()
        self.saver.finish(is_complete=not self.stop.is_agreed)

    def take_step(self, must_stop: Callable[[], bool]) -> None:
        """Take the next batch. What the user can mend (a broken image, gradients that stay NaN) saves the run first.

        must_stop: asked between the phases of a step.
        """
        try:
            with naming("--data"):
                batch = next(self.loader)
            self.step.run(*batch, must_stop)
        except NotFinite as error:
            raise UserError(f"{error}; the state before it is {self.saver.save_remembered()}") from error
        except UserError:
            self.saver.rescue()
            raise

    def save_if_due(self) -> None:
        """Where a signal asks for it, with a snapshot and its pictures, or after some minutes."""
        if self.stop.is_asked_anywhere():
            self.saver.save_state(self.saver.capture())
            if self.saver.save_snapshot():
                self.saver.flush()  # before pictures, which may take longer than a scheduler waits
                self.draw()
        elif self.saver.is_due_anywhere():
            self.saver.save_state(self.saver.capture())

    def end_tick(self) -> None:
        """Report; at the end and every few ticks draw, save, and evaluate."""
        # A run that ends in the middle of a tick may be made longer: its state is that from before the tick was closed.
        captured = self.saver.capture() if self.state.cur_nimg < self.tick_end else None
        self.state.cur_tick += 1
        if self.saver.is_writer:
            self.watch.tick(int(self.config.kimg_per_tick * 1000))
        self.progress.tick()
        if self.is_done() or is_snapshot_tick(self.state.cur_tick, self.config.snapshot_ticks):
            self.draw()
            self.saver.evaluation_due = bool(self.config.metrics)
            self.saver.save_state(
                captured or self.saver.capture()
            )  # first: a run with snapshots has a state to go on from
            self.saver.save_snapshot()
            self.evaluate()

    def draw(self) -> None:
        if self.saver.is_writer:
            with tolerated("pictures"):
                self.pictures.save(file_number(self.state.cur_nimg), self.progress.events)
                self.watch.save_neighbours(self.run_dir / "neighbors.png")

    def evaluate(self) -> None:
        self.saver.flush()
        snapshot = snapshot_path(self.run_dir, self.state.cur_nimg)
        self.saver.evaluation_due = not self.evaluation.run(snapshot, self.progress.events)
        self.progress.resume_clock()

    def is_done(self) -> bool:
        return self.state.cur_nimg >= self.config.total_kimg * 1000

    def is_tick_over(self) -> bool:
        """Whether it is over between two steps, of which the tick has had at least one."""
        has_more = self.state.cur_nimg > self.progress.tick_nimg and self.state.phases_done == 0
        return has_more and (self.is_done() or self.state.cur_nimg >= self.tick_end)

    @property
    def tick_end(self) -> float:
        """Images at which the present tick ends: the next multiple of --tick after its start, since --tick may have changed."""
        per_tick = self.config.kimg_per_tick * 1000
        return round((math.floor(self.progress.tick_nimg / per_tick + 1e-6) + 1) * per_tick, 6)


def open_run(config: TrainingConfig, run_dir: Path, device: torch.device, state_file: Path | None) -> Run:
    """All parts of a run, at its beginning or as `state_file` holds them. Raises `UserError`."""
    is_writer, start_cpu = distributed.get_rank() == 0, time.process_time()
    distributed.print0("Loading data and source...")
    saved = None if state_file is None else read_state(state_file)
    dataset, images, state = load(config, device, saved)
    trained_on = dataset.subset_of(images)
    if is_writer:
        metrics_due = config.metrics if saved is not None and saved["evaluation_due"] else []
        clean_up(run_dir, state, state_file, metrics_due)
    batch_gpu = micro_batch_of(saved, config) or choose_micro_batch(config, state)
    labels = LabelTable(dataset)
    judged = labels if state.labels is None else state.labels  # the same that readers of a snapshot draw from
    detector = DetectorChoice.of_coreset(config.detector, config.detector_weights, device)
    order = config.coreset.of_targets(dataset.mirrored(trained_on), detector, config.seed)
    step = TrainingStep(state, config, Batches(state, config, batch_gpu, labels, order))
    pictures = Pictures(run_dir, dataset, state, config, labels, batch_gpu)
    stop = StopSignal()
    evaluation = Evaluation(run_dir, config, state, images, judged, keep_going=lambda: not stop.is_asked_anywhere())
    watch = DiversityWatch(config, state, trained_on, judged)
    distributed.print0(f"Training for {config.total_kimg:g} kimg, {batch_gpu} images at a time per process.")
    if saved is None and config.pretrain_kimg is not None:
        pretrain(step, dataset, config)
    if is_writer and saved is None:
        show_start(config, pictures)
    loader = open_loader(dataset, config, order, state.cur_nimg)
    progress = Progress(run_dir, state, config.total_kimg, device, start_cpu)
    saver = Saver(run_dir, config, state, {"step": step, "progress": progress, "watch": watch}, batch_gpu)
    if saved is not None:
        with fitting():
            saver.restore(saved)
    step.before_trouble = saver.remember
    return Run(run_dir, config, state, step, loader, pictures, evaluation, watch, progress, saver, stop)


def load(
    config: TrainingConfig, device: torch.device, saved: Mapping[str, Any] | None
) -> tuple[ImageFolderDataset, ImageSet, TrainingState]:
    """The data, its files as metrics look at them, and the state at the beginning or as it was saved."""
    cache_bytes = default_cache_bytes() // distributed.get_local_world_size()
    dataset = ImageFolderDataset(**config.training_set_kwargs, cache_bytes=cache_bytes)
    is_writer = distributed.get_rank() == 0
    before = None if saved is None else saved["training"]
    state = build_state(config, device, verbose=is_writer, saved=before)
    images = dataset.image_set()
    own = dataset.mirrored(dataset.subset_of(images))
    state.conditions = config.prior.conditions(own, device, config.seed, before, verbose=is_writer)
    state.conditions.become_labels_of(dataset)
    state.labels = LabelDistribution.of(dataset)
    return dataset, images, state


def clean_up(run_dir: Path, state: TrainingState, state_file: Path | None, metrics_due: list[str]) -> None:
    """What an earlier process left in the folder of the time after the state."""
    try:
        if state_file is not None:
            set_aside_damaged(run_dir, state_file)
        settle_best(run_dir)
        set_aside_later(run_dir, state.cur_nimg)
    except OSError as error:
        raise UserError(
            f"{run_dir}: nothing can be renamed there ({error.strerror or error}); mend that first"
        ) from error
    rewind_files(run_dir, state.cur_tick, state.cur_nimg / 1000, metrics_due)


def show_start(config: TrainingConfig, pictures: Pictures) -> None:
    """The pairs of classes, and the pictures before the first step."""
    for line in config.source.pair_lines():
        print(line)
    with naming("--data"):
        pictures.save_start()


def open_loader(dataset: ImageFolderDataset, config: TrainingConfig, order: TargetOrder, start: int) -> BatchLoader:
    """Load this process's share of the real images, from so many images seen."""
    return BatchLoader(
        dataset,
        config.batch_size,
        rows_start=distributed.get_rank(),
        rows_step=distributed.get_world_size(),
        start=start,
        num_workers=config.num_workers,
        order=order,
    )


def setup_snapshot_image_grid(training_set: Any, random_seed: int = 0) -> tuple[tuple[int, int], Any, Any]:
    """Official name: `((columns, rows), images, labels)` of a sheet of real images, a class a row where there are classes."""
    _, height, width = training_set.image_shape
    columns, rows = grid_size(height, width, "cuda")
    indices = reals_by_row(training_set, columns, rows, seeding.generator(random_seed, "pictures"))
    images, labels = zip(*(training_set[int(index)] for index in indices), strict=True)
    return (columns, rows), np.stack(images), np.stack(labels)


def save_image_grid(
    img: Any, fname: str | os.PathLike, drange: tuple[float, float], grid_size: tuple[int, int]
) -> None:
    """Official name: images `[n, C, h, w]` whose black and white are `drange`, as one PNG."""
    low, high = drange
    images = (torch.as_tensor(np.asarray(img), dtype=torch.float32) - low) * (2 / (high - low)) - 1
    save_grid(Path(fname), images, grid_size[0])


def is_snapshot_tick(tick: int, interval: int | None) -> bool:
    if interval is None:
        return tick in EARLY_SNAPSHOT_TICKS or tick % SNAPSHOT_TICKS == 0
    return tick % interval == 0


def never() -> bool:
    return False


def set_up_backends(config: TrainingConfig) -> None:
    """Repeatable sums on a GPU, if asked for. PyTorch warns where it has none, as in the gradient of geometric resampling."""
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
