"""The training loop: load, then { step, report, draw, save } until done."""

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError, naming
from torch_utils import distributed, seeding
from training.config import TrainingConfig
from training.dataset import BatchLoader, ImageFolderDataset, default_cache_bytes, to_float
from training.evaluation import DiversityWatch, Evaluation
from training.grids import grid_size, save_grid, save_pairs
from training.memory import choose_micro_batch
from training.phases import TrainingStep
from training.progress import Progress, StopSignal
from training.snapshot import save_snapshot
from training.state import TrainingState, build_state, snapshot_generator

EARLY_SNAPSHOT_TICKS = (1, 2, 4, 8, 16, 32)
SNAPSHOT_TICKS = 50
GPU_POLL_STEPS = 16  # looking at the losses or for Ctrl-C makes the processor wait for the GPU


def training_loop(config: TrainingConfig, run_dir: Path, device: torch.device) -> bool:
    """Train until the configuration's length, or Ctrl-C; True if the run was interrupted. On every rank."""
    say = distributed.print0
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    if config.deterministic:
        add_in_one_order()
    is_writer = distributed.get_rank() == 0
    say("Loading data and source...")
    cache_bytes = default_cache_bytes() // distributed.get_local_world_size()
    dataset = ImageFolderDataset(**config.training_set_kwargs, cache_bytes=cache_bytes)
    state = build_state(config, device, verbose=is_writer)
    batch_gpu = choose_micro_batch(config, state)
    labels = torch.from_numpy(dataset.get_labels(np.arange(len(dataset))))  # [N, c_dim]
    step = TrainingStep(state, config, batch_gpu, labels)
    pictures = Pictures(run_dir, dataset, state, config, labels, batch_gpu)
    stop = StopSignal()
    evaluation = Evaluation(run_dir, config, state, labels, keep_going=lambda: not stop.is_asked_anywhere())
    watch = DiversityWatch(config, state, labels)
    say(f"Training for {config.total_kimg:g} kimg, {batch_gpu} images at a time per process.")

    if is_writer:
        write_options(run_dir, config, state, batch_gpu)
        with naming("--data"):
            pictures.save_start()
    loader = BatchLoader(
        dataset,
        config.batch_size,
        rows_start=distributed.get_rank(),
        rows_step=distributed.get_world_size(),
        seed=config.seed,
        start=state.cur_nimg,
        num_workers=config.num_workers,
    )
    progress = Progress(run_dir, state, config.total_kimg, device)
    take_step = saving_on_error(step, loader, lambda: is_writer and save_state(run_dir, config, state))
    poll_steps = 1 if device.type == "cpu" else GPU_POLL_STEPS
    with loader, stop:
        tick_end = state.cur_nimg + config.kimg_per_tick * 1000
        is_done = is_stopped = False
        while not is_done:
            take_step()
            if state.batch_idx % poll_steps == 0:
                progress.step()
                is_stopped = stop.is_asked_anywhere()
            is_done = is_stopped or state.cur_nimg >= config.total_kimg * 1000
            if state.cur_nimg < tick_end and not is_done:
                continue

            tick_end += config.kimg_per_tick * 1000
            state.cur_tick += 1
            if is_writer:
                watch.tick(int(config.kimg_per_tick * 1000))
            progress.tick()
            if is_done or is_snapshot_tick(state.cur_tick, config.snapshot_ticks):
                if is_writer:
                    pictures.save(f"{state.cur_nimg // 1000:06d}")
                    watch.save_neighbours(run_dir / "neighbors.png")
                    say(f"Saved {save_state(run_dir, config, state)}")
                if not is_stopped:
                    evaluation.run(snapshot_path(run_dir, state), progress.events)
                progress.resume_clock()
    progress.close()
    say("Interrupted; the snapshot above holds the run so far." if is_stopped else "Done.")
    return is_stopped


def saving_on_error(step: TrainingStep, loader: BatchLoader, save: Callable[[], Any]) -> Callable[[], None]:
    """One step on the next batch. What the user can mend (a broken image, gradients that stay NaN) saves the run first."""

    def take_step() -> None:
        try:
            with naming("--data"):
                batch = next(loader)
            step.run(*batch)
        except UserError:
            if step.state.cur_nimg > 0:
                save()
            raise

    return take_step


def add_in_one_order() -> None:
    """Repeatable sums on a GPU. PyTorch warns where it has none, as in the gradient of ADA's geometric resampling."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def is_snapshot_tick(tick: int, interval: int | None) -> bool:
    if interval is None:
        return tick in EARLY_SNAPSHOT_TICKS or tick % SNAPSHOT_TICKS == 0
    return tick % interval == 0


def snapshot_path(run_dir: Path, state: TrainingState) -> Path:
    return run_dir / f"network-snapshot-{state.cur_nimg // 1000:06d}.pkl"


def save_state(run_dir: Path, config: TrainingConfig, state: TrainingState) -> Path:
    path = snapshot_path(run_dir, state)
    contents = {
        "G": state.G,
        "D": state.D,
        "G_ema": snapshot_generator(state),
        "source": state.feed.source.root,
        "augment_pipe": state.augment_pipe,
        "training_set_kwargs": {"class_name": "training.dataset.ImageFolderDataset", **config.training_set_kwargs},
        "meta": describe_run(config, state),
    }
    save_snapshot(path, contents)
    return path


def describe_run(config: TrainingConfig, state: TrainingState) -> dict[str, Any]:
    return {
        "cfg": config.cfg,
        "cur_nimg": state.cur_nimg,
        "seed": config.seed,
        "source": state.feed.source.describe(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
    }


def write_options(run_dir: Path, config: TrainingConfig, state: TrainingState, batch_gpu: int) -> None:
    options = {**config.as_dict(), "batch_gpu_chosen": batch_gpu, "run": describe_run(config, state)}
    (run_dir / "training_options.json").write_text(json.dumps(options, indent=2) + "\n")


class Pictures:
    """The same source samples and labels, drawn again at every snapshot."""

    def __init__(
        self,
        run_dir: Path,
        dataset: ImageFolderDataset,
        state: TrainingState,
        config: TrainingConfig,
        labels: torch.Tensor,
        batch_gpu: int,
    ):
        self.run_dir = run_dir
        self.dataset = dataset
        self.state = state
        self.batch_gpu = batch_gpu
        _, height, width = dataset.image_shape
        self.columns, rows = grid_size(height, width, config.device)
        num = self.columns * rows
        gen = seeding.generator(config.seed, "pictures")
        self.draw = state.feed.draw(num, gen)
        self.indices = reals_by_row(dataset, self.columns, rows, gen)
        self.labels = labels[torch.from_numpy(self.indices)].to(state.pl_mean.device)

    def save_start(self) -> None:
        reals = torch.from_numpy(self.dataset.read_images(self.indices))
        save_grid(self.run_dir / "reals.png", to_float(reals), self.columns)
        sources = self.state.feed.images(self.draw)
        if sources is not None:
            save_grid(self.run_dir / "sources.png", sources, self.columns)
        self.save("_init")

    def save(self, suffix: str) -> None:
        """`fakes<suffix>.png`, and with a source of images `pairs<suffix>.png`."""
        fakes = self.generate()
        save_grid(self.run_dir / f"fakes{suffix}.png", fakes, self.columns)
        sources = self.state.feed.images(self.draw)
        if sources is not None:
            save_pairs(self.run_dir / f"pairs{suffix}.png", sources, fakes, self.columns)

    @torch.no_grad()
    def generate(self) -> torch.Tensor:
        G = self.state.G_ema
        z = self.state.feed.latents(self.draw, G.mapping.encoder)
        parts = zip(z.split(self.batch_gpu), self.labels.split(self.batch_gpu), strict=True)
        return torch.cat([G(z, c, noise_mode="const").cpu() for z, c in parts])


def reals_by_row(dataset: ImageFolderDataset, columns: int, rows: int, gen: torch.Generator) -> np.ndarray:
    """Indices of the images shown: at random, and with class labels one class a row."""
    if not dataset.has_onehot_labels:
        return torch.randint(len(dataset), [columns * rows], generator=gen).numpy()
    classes = dataset.get_labels(np.arange(len(dataset))).argmax(axis=1)
    order = torch.randperm(dataset.label_dim, generator=gen).numpy()
    present = [c for c in order if (classes == c).any()]
    picks = []
    for row in range(rows):
        members = np.flatnonzero(classes == present[row % len(present)])
        picks.append(members[torch.randint(len(members), [columns], generator=gen).numpy()])
    return np.concatenate(picks)
