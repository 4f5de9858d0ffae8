"""What a run saves: snapshots for people and later stages, training states for its own continuation."""

import copy
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.files import tolerated, write_text
from torch_utils import distributed
from training.checkpoints.snapshot import save_snapshot
from training.checkpoints.state_file import (
    OPTIONS_FILE,
    BackgroundWriter,
    random_state,
    rotate,
    seed_random_state,
    set_random_state,
    snapshot_path,
    state_path,
    to_cpu,
    write_state,
)
from training.config.official_loop import official_fields
from training.config.option_paths import absolute_options, absolute_set
from training.config.run_config import TrainingConfig
from training.run.state import TrainingState, snapshot_generator

AUTOSAVE_SEC = 600  # what a crash may cost


class Resumable(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, saved: Mapping[str, Any]) -> None: ...


class Saver:
    """Copies a run at a moment, and writes the copy while the run goes on. On every rank; rank 0 writes.

    A file that cannot be written is a warning, and tried again with the next state; at the end of a run it is an error.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrainingConfig,
        state: TrainingState,
        parts: Mapping[str, Resumable],
        batch_gpu: int,
    ):
        """parts: what has a state beside `state`, by the names that it gets in the file."""
        self.run_dir, self.config, self.state, self.parts, self.batch_gpu = run_dir, config, state, parts, batch_gpu
        self.is_writer = distributed.get_rank() == 0
        self.writer = BackgroundWriter()
        self.saved_at = time.monotonic()
        self.evaluation_due = False  # whether the metrics of the last snapshot are not known yet
        self.remembered: dict[str, Any] | None = None
        self.failures: dict[str, str] = {}  # kind of file -> why the last one is not on the disk
        if self.is_writer:
            self.write_options()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.writer.close()

    def capture(self) -> dict[str, Any]:
        """A copy of everything that the run would need to go on from here. On all ranks; complete on rank 0."""
        states = {"training": self.state, **self.parts}
        captured: dict[str, Any] = {name: part.state_dict() for name, part in states.items()}
        captured |= {
            "random": distributed.gather_objects(random_state()),
            "num_processes": distributed.get_world_size(),
            "batch_gpu": self.batch_gpu,
            "evaluation_due": self.evaluation_due,
        }
        return to_cpu(captured) if self.is_writer else captured

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from a copy; the training state itself has been taken care of by `build_state`."""
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.evaluation_due = saved["evaluation_due"]
        before, now = saved["num_processes"], distributed.get_world_size()
        if before == now:
            set_random_state(saved["random"][distributed.get_rank()])
            distributed.print0(f"Resume: {self.state.cur_nimg / 1000:g} kimg, exactly where the run was left")
            return
        seed_random_state(self.config.seed, "resumed", distributed.get_rank(), self.state.cur_nimg)
        distributed.print0(
            f"Resume: {self.state.cur_nimg / 1000:g} kimg, on {now} processes instead of {before}: the batches are the same "
            "ones, divided anew (equal up to rounding); the generators of the processes are seeded anew"
        )

    def save_state(self, captured: dict[str, Any]) -> None:
        """Write what `capture` returned; while steps are being left out, what was captured before. On all ranks.

        A state of the same number of images is replaced: it is the same one, or the run has come some phases further in
        the step that follows, and nothing but the continuation of the run reads it.
        """
        self.saved_at = time.monotonic()
        captured = self.remembered or captured
        if self.is_writer:
            path = state_path(self.run_dir, captured["training"]["counters"]["cur_nimg"])
            self.submit(lambda: write_state(path, captured), "state")

    def save_snapshot(self) -> bool:
        """Write the networks as they are now, and the source that feeds them; whether there is a new file. On rank 0.

        Between two steps the same number of images means the same networks: a run that is continued exactly may write its
        snapshot once more. In the middle of a step it does not, so that one from before the step stays what it is.
        """
        if not self.is_writer:
            return False
        path = snapshot_path(self.run_dir, self.state.cur_nimg)
        if self.state.phases_done > 0 and path.exists():
            print(f"{path} is from the beginning of this step and stays; the training state has what came after it")
            return False
        generator = snapshot_generator(self.state)
        networks = {"G": self.state.G, "D": self.state.D, "G_ema": generator, "augment_pipe": self.state.augment_pipe}
        contents = {name: None if network is None else frozen(network) for name, network in networks.items()} | {
            "source": self.state.feed.source.root,
            "labels": self.state.labels,
            "prior": self.state.conditions.prior,
            "training_set_kwargs": {
                "class_name": "training.dataset.ImageFolderDataset",
                **self.config.training_set_kwargs,
            },
            "meta": describe_run(self.config, self.state),
        }
        print(f"Saving {path}")
        self.submit(lambda: save_snapshot(path, contents), "snapshot")
        return True

    def is_due_anywhere(self) -> bool:
        """Whether the last state is so old that a crash would hurt. Rank 0's clock counts. On all ranks."""
        return distributed.is_true_anywhere(self.is_writer and time.monotonic() - self.saved_at >= AUTOSAVE_SEC)

    def remember(self, is_in_trouble: bool) -> None:
        """Keep a copy in memory while steps are left out, so that it can be saved should that not end. On all ranks."""
        self.remembered = self.capture() if is_in_trouble else None

    def save_remembered(self) -> Path:
        """Write that copy, wait for it, and return its path. On all ranks."""
        assert self.remembered is not None
        self.save_state(self.remembered)
        try:
            self.writer.wait()
        finally:
            distributed.barrier()  # processes that end before the writer is done would have it ended as well
        return state_path(self.run_dir, self.remembered["training"]["counters"]["cur_nimg"])

    def rescue(self) -> None:
        """Save what can be saved before an error that this process may be alone with ends the run."""
        if self.state.cur_nimg == 0:
            return
        if distributed.get_world_size() == 1:
            self.save_state(self.capture())
        self.save_snapshot()
        self.flush()

    def submit(self, write: Callable[[], None], kind: str) -> None:
        """Hand a file to the writer, once it is done with the one before."""
        self.flush()

        def write_and_rotate() -> None:
            try:
                write()
            except UserError as error:
                self.failures[kind] = str(error)
                raise
            self.failures.pop(kind, None)
            with tolerated("the removal of older files"):
                rotate(self.run_dir, self.config.keep)

        self.writer.submit(write_and_rotate)

    def flush(self) -> None:
        """Wait for what is being written; say so if it failed."""
        try:
            self.writer.wait()
        except UserError as error:
            print(f"Warning: {error}. Training goes on, and tries again with the next one", flush=True)

    def finish(self, is_complete: bool) -> None:
        """Wait for the last files; raises `UserError` if they could not be written. A complete run is marked as such."""
        self.flush()
        if not self.is_writer:
            return
        if self.failures:
            raise UserError("; ".join(self.failures.values()))
        if is_complete:
            self.write_options(finished_kimg=self.config.total_kimg)

    def write_options(self, **more: Any) -> None:
        run = describe_run(self.config, self.state)
        options = {
            **with_absolute_paths(self.config),
            **official_fields(self.config),
            "batch_gpu_chosen": self.batch_gpu,
            "run": run,
            **more,
        }
        write_text(self.run_dir / OPTIONS_FILE, json.dumps(options, indent=2) + "\n")


def with_absolute_paths(config: TrainingConfig) -> dict[str, Any]:
    """A configuration as it goes into the folder of its run: readers stand in other folders than the run did."""
    data = config.training_set_kwargs
    whole = dataclasses.replace(
        config,
        training_set_kwargs={**data, "path": absolute_set(data["path"])},
        source=config.source.renamed(absolute_set),
        prior=config.prior.renamed(absolute_set),
        options=absolute_options(config.options),
    )
    return whole.as_dict()


def frozen(network: torch.nn.Module) -> torch.nn.Module:
    """A copy on the CPU, in eval mode and without gradients, to be written while the original learns on."""
    return copy.deepcopy(network).cpu().eval().requires_grad_(False)


def micro_batch_of(saved: Mapping[str, Any] | None, config: TrainingConfig) -> int | None:
    """The micro-batch that a run was started with, where it still fits: another one would round differently."""
    if saved is None or config.batch_gpu is not None or saved["num_processes"] != config.num_gpus:
        return None
    is_same_device = saved["training"]["precision"]["device"] == config.device
    return saved["batch_gpu"] if is_same_device else None


def describe_run(config: TrainingConfig, state: TrainingState) -> dict[str, Any]:
    return {
        "cfg": config.cfg,
        "cur_nimg": state.cur_nimg,
        "seed": config.seed,
        "source": state.feed.source.describe(),
        "data": {"path": config.training_set_kwargs["path"], "fingerprint": config.data_fingerprint},
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
    }
