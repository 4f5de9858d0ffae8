"""Training states: the file beside a snapshot that an exact resume needs. What is in it, parts of a run say themselves.

A state is written by `torch.save`, ends with a hash of itself, appears under its name only when it is complete, and is read
as data (`weights_only`). Writing happens on a thread of its own.
"""

import contextlib
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.files import PART, atomic_write, check_seal, whole_file
from torch_utils import seeding

FORMAT_VERSION = 1
CONTENTS = {"training", "random", "num_processes", "batch_gpu", "evaluation_due"}  # and parts that loops add
NUMBER = r"(\d{6,})(?:\.(\d{3}))?"  # what `file_number` writes: thousands of images, and the rest of them
STATE_PATTERN = re.compile(rf"training-state-{NUMBER}\.pt")
SNAPSHOT_PATTERN = re.compile(rf"network-snapshot-{NUMBER}\.pkl")
OPTIONS_FILE = "training_options.json"
STATS = "stats.jsonl"
BEST = "network-best.pkl"
STATES_KEPT = 2  # unless --keep says otherwise: the last one, and the one before in case a disk fails


def file_number(cur_nimg: int) -> str:
    """The number of whatever is saved after so many images, in thousands and exact: `000200`, `000000.320`.

    Versions before this one left the rest out, so that their `000000` holds anything below a thousand images.
    """
    kimg, rest = divmod(cur_nimg, 1000)
    return f"{kimg:06d}.{rest:03d}" if rest else f"{kimg:06d}"


def images_of(match: re.Match[str]) -> int:
    """The inverse of `file_number`, of a name that matches one of the patterns."""
    return int(match[1]) * 1000 + int(match[2] or 0)


def state_path(run_dir: Path, cur_nimg: int) -> Path:
    return run_dir / f"training-state-{file_number(cur_nimg)}.pt"


def snapshot_path(run_dir: Path, cur_nimg: int) -> Path:
    return run_dir / f"network-snapshot-{file_number(cur_nimg)}.pkl"


def state_beside(snapshot: Path, cur_nimg: int) -> Path:
    """The training state that was saved with a snapshot of so many images. Raises `UserError` where there is none."""
    name = Path(os.path.realpath(snapshot)).name  # earlier versions linked network-best.pkl to the snapshot
    path = state_path(snapshot.parent, cur_nimg)
    if SNAPSHOT_PATTERN.fullmatch(name):
        path = snapshot.parent / name.replace("network-snapshot", "training-state").replace(".pkl", ".pt")
    if not path.is_file():
        raise UserError(f"there is no {path.name} beside {snapshot}, which would hold what is asked for")
    return path


def newest_run(folder: Path) -> Path | None:
    """The folder itself if it is that of a run, else the run with the highest number in it."""
    if (folder / OPTIONS_FILE).is_file():
        return folder
    if not folder.is_dir():
        return None
    runs = [
        (int(match[0]), entry)
        for entry in folder.iterdir()
        if (match := re.match(r"^\d+", entry.name)) and (entry / OPTIONS_FILE).is_file()
    ]
    return max(runs)[1] if runs else None


def newest_snapshot(folder: Path) -> Path | None:
    """Of a run's folder, or of the run with the highest number in a folder of runs."""
    run = newest_run(folder)
    snapshots = [] if run is None else numbered(run, SNAPSHOT_PATTERN)
    return snapshots[0] if snapshots else None


def numbered(run_dir: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The files of a kind, newest first: by their number, since names do not sort by it (`000001.500`, `000001`)."""
    found = [(images_of(match), path) for path in run_dir.iterdir() if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def keep_as_best(best: Path, snapshot: Path) -> None:
    """Make `best` the network in a snapshot, whatever becomes of the file that it was measured in.

    Both are one file under two names where the disk allows that, else it is copied. Files here are replaced whole, never
    written to, so that a second name keeps what it was given.
    """
    temporary = best.with_name(f"{best.name}.{os.getpid()}{PART}")
    try:
        os.link(snapshot, temporary)
        os.replace(temporary, best)
    except OSError:  # exFAT, some network disks
        with open(snapshot, "rb") as source, whole_file(best) as file:
            shutil.copyfileobj(source, file)
    finally:
        temporary.unlink(missing_ok=True)


def settle_best(run_dir: Path) -> None:
    """Where an earlier version made `network-best.pkl` a link to a snapshot, let it be that network for good."""
    best = run_dir / BEST
    if best.is_symlink():
        target = Path(os.path.realpath(best))
        if target.is_file():
            keep_as_best(best, target)
        else:
            best.unlink()


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
    """The state of every generator that belongs to the process. Steps draw from streams of their own; libraries may not."""
    kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
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
    """Delete older states, and with `keep` older snapshots; the last ones stay, and the best under its own name."""
    for path in numbered(run_dir, STATE_PATTERN)[keep or STATES_KEPT :]:
        path.unlink(missing_ok=True)
    for path in numbered(run_dir, SNAPSHOT_PATTERN)[keep:] if keep is not None else []:
        path.unlink(missing_ok=True)
