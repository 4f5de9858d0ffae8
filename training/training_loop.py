"""The training loop: load, then { step, report, draw, save } until done."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from dnnlib.errors import UserError, naming
from dnnlib.files import tolerated
from torch_utils import distributed
from training.checkpoint import fitting, read_state, seed_random_state, snapshot_path
from training.config import TrainingConfig
from training.coreset import open_target_coreset
from training.dataset import BatchLoader, ImageFolderDataset, LabelTable, default_cache_bytes
from training.evaluation import DiversityWatch, Evaluation
from training.memory import choose_micro_batch
from training.phases import NotFinite, TrainingStep
from training.pictures import Pictures
from training.pretraining import pretrain
from training.progress import Progress, StopSignal
from training.resume import rewind_files, set_aside_damaged
from training.saving import Saver, micro_batch_of
from training.source_match import pair_lines
from training.state import TrainingState, build_state

EARLY_SNAPSHOT_TICKS = (1, 2, 4, 8, 16, 32)
SNAPSHOT_TICKS = 50
GPU_POLL_STEPS = 8  # looking at the losses or for signals makes the processor wait for the GPU


def training_loop(config: TrainingConfig, run_dir: Path, device: torch.device, state_file: Path | None = None) -> bool:
    """Train until the configuration's length, or a signal; True if the run was stopped. On every rank.

    state_file: the training state to continue from, in the same folder.
    """
    say = distributed.print0
    is_writer = distributed.get_rank() == 0
    set_up_backends(config)
    seed_random_state(config.seed, "process", distributed.get_rank())
    say("Loading data and source...")
    saved = None if state_file is None else read_state(state_file)
    cache_bytes = default_cache_bytes() // distributed.get_local_world_size()
    dataset = ImageFolderDataset(**config.training_set_kwargs, cache_bytes=cache_bytes)
    state = build_state(config, device, verbose=is_writer, saved=None if saved is None else saved["training"])
    if state.conditions is not None:
        dataset.condition_on(state.conditions, state.conditions.prior.dim)
    if is_writer:
        evaluation_due = saved is not None and saved["evaluation_due"]
        if state_file is not None:
            set_aside_damaged(run_dir, state_file)
        rewind_files(run_dir, state.cur_tick, state.cur_nimg / 1000, evaluation_due)
    batch_gpu = micro_batch_of(saved, config) or choose_micro_batch(config, state)
    labels = LabelTable(dataset)
    step = TrainingStep(state, config, batch_gpu, labels)
    pictures = Pictures(run_dir, dataset, state, config, labels, batch_gpu)
    stop = StopSignal()
    evaluation = Evaluation(run_dir, config, state, labels, keep_going=lambda: not stop.is_asked_anywhere())
    step.target_coreset = open_target_coreset(config, device)
    watch = DiversityWatch(config, state, labels)
    say(f"Training for {config.total_kimg:g} kimg, {batch_gpu} images at a time per process.")

    if saved is None and config.pretrain_kimg is not None:
        pretrain(step, dataset, config)
    if is_writer and saved is None:
        for line in pair_lines(config.source.get("match")):
            say(line)
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
        order=None if step.target_coreset is None else step.target_coreset.order,
    )
    progress = Progress(run_dir, state, config.total_kimg, device)
    saver = Saver(run_dir, config, state, {"step": step, "progress": progress, "watch": watch}, batch_gpu)
    if saved is not None:
        with fitting():
            saver.restore(saved)
    step.before_trouble = saver.remember
    poll_steps = 1 if device.type == "cpu" else GPU_POLL_STEPS
    take_step = saving_on_error(step, loader, saver, stop.is_asked_anywhere if poll_steps == 1 else never)

    def evaluate() -> None:
        saver.flush()
        saver.evaluation_due = not evaluation.run(snapshot_path(run_dir, state.cur_nimg), progress.events)
        progress.resume_clock()

    def end_tick() -> None:
        # A run that ends in the middle of a tick may be made longer: its state is that from before the tick was closed.
        captured = saver.capture() if state.cur_nimg < tick_end(state, config) else None
        state.cur_tick += 1
        if is_writer:
            watch.tick(int(config.kimg_per_tick * 1000))
        progress.tick()
        if is_done(state, config) or is_snapshot_tick(state.cur_tick, config.snapshot_ticks):
            if is_writer:
                with tolerated("pictures"):
                    pictures.save(f"{state.cur_nimg // 1000:06d}")
                    watch.save_neighbours(run_dir / "neighbors.png")
            saver.evaluation_due = bool(config.metrics)
            saver.save_snapshot()
            saver.save_state(captured or saver.capture())
            evaluate()

    with loader, stop, saver:
        if saver.evaluation_due:
            evaluate()
        while not stop.is_agreed:
            has_more = state.cur_nimg > progress.tick_nimg and state.phases_done == 0
            if has_more and (is_done(state, config) or state.cur_nimg >= tick_end(state, config)):
                end_tick()  # a signal in here ends an evaluation, behind the state that was saved
            if is_done(state, config) or stop.is_agreed:
                break
            take_step()
            if state.batch_idx % poll_steps == 0:
                progress.step()
                if stop.is_asked_anywhere():
                    saver.save_state(saver.capture())
                    saver.save_snapshot(may_replace_best=False)
                elif saver.is_due_anywhere():
                    saver.save_state(saver.capture())
        saver.finish(is_complete=not stop.is_agreed)
    progress.close()
    say("Stopped; the same command with --resume=latest continues." if stop.is_agreed else "Done.")
    return stop.is_agreed


def tick_end(state: TrainingState, config: TrainingConfig) -> float:
    """Images at which the present tick ends."""
    return round((state.cur_tick + 1) * config.kimg_per_tick * 1000, 6)


def is_done(state: TrainingState, config: TrainingConfig) -> bool:
    return state.cur_nimg >= config.total_kimg * 1000


def is_snapshot_tick(tick: int, interval: int | None) -> bool:
    if interval is None:
        return tick in EARLY_SNAPSHOT_TICKS or tick % SNAPSHOT_TICKS == 0
    return tick % interval == 0


def saving_on_error(
    step: TrainingStep, loader: BatchLoader, saver: Saver, must_stop: Callable[[], bool]
) -> Callable[[], None]:
    """One step on the next batch. What the user can mend (a broken image, gradients that stay NaN) saves the run first.

    must_stop: asked between the phases of a step.
    """

    def take_step() -> None:
        try:
            with naming("--data"):
                batch = next(loader)
            step.run(*batch, must_stop)
        except NotFinite as error:
            raise UserError(f"{error}; the state before it is {saver.save_remembered()}") from error
        except UserError:
            saver.rescue()
            raise

    return take_step


def never() -> bool:
    return False


def set_up_backends(config: TrainingConfig) -> None:
    """Repeatable sums on a GPU, if asked for. PyTorch warns where it has none, as in the gradient of geometric resampling."""
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
