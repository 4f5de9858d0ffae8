"""Training states: the file beside a snapshot that an exact resume needs. What is in it, parts of a run say themselves.

A state is written by `torch.save`, ends with a hash of itself, appears under its name only when it is complete, and is read
as data (`weights_only`). Writing happens on a thread of its own.
"""

import contextlib
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, check_seal
from torch_utils import seeding

FORMAT_VERSION = 1
CONTENTS = {"training", "random", "num_processes", "batch_gpu", "evaluation_due"}  # and parts that loops add
STATE_PATTERN = re.compile(r"training-state-(\d{6,})\.pt")
SNAPSHOT_PATTERN = re.compile(r"network-snapshot-(\d{6,})\.pkl")
OPTIONS_FILE = "training_options.json"
STATS = "stats.jsonl"
BEST = "network-best.pkl"
STATES_KEPT = 2  # unless --keep says otherwise: the last one, and the one before in case a disk fails


def state_path(run_dir: Path, cur_nimg: int) -> Path:
    return run_dir / f"training-state-{cur_nimg // 1000:06d}.pt"


def snapshot_path(run_dir: Path, cur_nimg: int) -> Path:
    return run_dir / f"network-snapshot-{cur_nimg // 1000:06d}.pkl"


def state_beside(snapshot: Path) -> Path:
    """The training state that was saved with a snapshot. Raises `UserError` where there is none."""
    match = SNAPSHOT_PATTERN.fullmatch(Path(os.path.realpath(snapshot)).name)
    path = snapshot.parent / f"training-state-{match[1]}.pt" if match else None
    if path is None or not path.is_file():
        wanted = path.name if path else "training-state-….pt"
        raise UserError(f"there is no {wanted} beside {snapshot}, which would hold what is asked for")
    return path


def numbered(run_dir: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The files of a kind, newest first."""
    found = [(int(match[1]), path) for path in run_dir.iterdir() if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_intact_state(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest state that is what was written, None if there is none at all; and a line on each newer one that is not.

    Raises `UserError` where all are damaged.
    """
    complaints: list[str] = []
    states = numbered(run_dir, STATE_PATTERN)
    for path in states:
        try:
            with open(path, "rb") as file:
                check_seal(file, str(path), required=True)
            return path, complaints
        except (UserError, OSError) as error:
            complaints.append(str(error))
    if states:
        raise UserError(
            f"{complaints[0]}; no older state is left: start a new run with --resume=network-snapshot-….pkl from {run_dir}"
        )
    return None, []


def read_state(path: Path) -> dict[str, Any]:
    """The contents of a training state, tensors on the CPU. Raises `UserError` that names a missing or damaged file."""
    try:
        with open(path, "rb") as file:
            check_seal(file, str(path), required=True)
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); every machine of a run needs the folder of the run"
        ) from error
    except UserError:
        raise
    except Exception as error:  # whole, but written by somebody else: nearly anything can go wrong inside
        raise UserError(f"{path}: is no training state of this project ({type(error).__name__})") from error
    if not isinstance(contents, dict) or contents.get("version") != FORMAT_VERSION or not contents.keys() >= CONTENTS:
        raise UserError(
            f"{path}: is no training state that this version reads; start anew from a snapshot (--resume=PKL)"
        )
    return contents


def write_state(path: Path, contents: Mapping[str, Any]) -> None:
    """Raises `UserError` where the disk is full or may not be written."""
    with atomic_write(path, sealed=True) as file:
        try:
            torch.save({"version": FORMAT_VERSION, **contents}, file)
        except RuntimeError as error:  # PyTorch's complaint about its archive hides the disk's
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """Raise `UserError` where a training state is whole, but does not hold what the run in the block takes from it."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--resume: the training state does not belong to this run ({type(error).__name__}): somebody changed it; start "
            "a new run with --resume=network-snapshot-….pkl"
        ) from error


def to_cpu(tree: Any) -> Any:
    """Nested dicts and lists with every tensor copied to the CPU: what is written while the run goes on."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, Mapping):
        return {key: to_cpu(value) for key, value in tree.items()}
    return [to_cpu(value) for value in tree] if isinstance(tree, list | tuple) else tree


def random_state() -> dict[str, Any]:
    """Of every generator that belongs to the process. Steps draw from streams of their own; libraries may not."""
    kind, keys, *rest = np.random.get_state()
    version, numbers, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": [version, list(numbers), gauss],
    }
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def seed_random_state(*key: int | str) -> None:
    """The same generators, from a key."""
    seed = seeding.derive(*key)
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class BackgroundWriter:
    """Runs one job after another on a thread; what went wrong is raised by the next call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: Future | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Waits for the job before: a disk that is slower than the run must not pile up copies of it."""
        self.wait()
        self._pending = self._pool.submit(job)

    def wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for what is being written; errors are not raised."""
        self._pool.shutdown(wait=True)


def rotate(run_dir: Path, keep: int | None) -> None:
    """Delete older states, and with `keep` older snapshots; the last ones and the best snapshot stay."""
    for path in numbered(run_dir, STATE_PATTERN)[keep or STATES_KEPT :]:
        path.unlink(missing_ok=True)
    if keep is None:
        return
    best = os.path.realpath(run_dir / BEST)
    for path in numbered(run_dir, SNAPSHOT_PATTERN)[keep:]:
        if os.path.realpath(path) != best:
            path.unlink(missing_ok=True)
