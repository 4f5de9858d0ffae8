"""The demo's two trainings: train.py twice, at the same time, with one thread each, followed from one place."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dnnlib
from dnnlib.errors import UserError
from training.checkpoints.state_file import SNAPSHOT_PATTERN, numbered

ROOT = Path(__file__).resolve().parent.parent
POLL_SEC = 0.5
LINES_SHOWN = 15  # of the log of a training that failed

# What both trainings share: the README's small DCGAN, the network of this project that draws something soonest, without
# augmentation: ADA moves p by at most 0.002 per kimg, which is nothing in 60 kimg.
SETTINGS = (
    "--cfg=dcgan", "--z-dim=64", "--cbase=512", "--cmax=64", "--batch=16", "--aug=noaug", "--device=cpu", "--workers=1",
)  # fmt: skip
SPIDER = "--source-norm=whiten"  # goes with the source: noise has no use for it
NUM_TICKS = 20  # of a training, and a snapshot every other one
MIN_TICK_KIMG = 0.5  # which is 31 steps


@dataclass
class Training:
    """One run of train.py: how it is called, and how far it has come."""

    name: str
    outdir: Path
    arguments: list[str]
    total_kimg: float
    process: subprocess.Popen | None = None
    kimg: float = 0.0
    seconds: float = 0.0
    """Of training, without the start of the program."""
    _offset: int = 0
    """How much of its statistics has been read."""

    @property
    def log(self) -> Path:
        return self.outdir / "output.txt"

    @property
    def img_per_sec(self) -> float:
        return self.kimg * 1000 / self.seconds if self.seconds > 0 else 0.0

    @property
    def command(self) -> str:
        """The command as one would type it."""
        return shlex.join(["python", "train.py", *self.arguments])

    def start(self) -> None:
        self.outdir.mkdir(parents=True)
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *self.arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | one_thread,
            )

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def is_running(self) -> bool:
        """Raises `UserError` if the training has failed, after printing the last lines that it wrote."""
        assert self.process is not None
        status = self.process.poll()
        if status is None or status == 0:
            return status is None
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(lines[-LINES_SHOWN:]), file=sys.stderr)
        raise UserError(f"the {self.name} training failed with exit code {status}; {self.log} has all that it said")

    def new_ticks(self) -> Iterator[str]:
        """A line for each tick that was finished since the last call."""
        path = next(self.outdir.glob("*/stats.jsonl"), None)
        if path is None:
            return
        with open(path, "rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._offset += len(line)
                stats = json.loads(line)
                self.kimg = stats["Progress/kimg"]["mean"]
                self.seconds = stats["Timing/total_sec"]["mean"]
                yield self.progress_line()

    def progress_line(self) -> str:
        left = max(self.total_kimg - self.kimg, 0) * 1000 / max(self.img_per_sec, 1e-9)
        return (
            f"  {self.name:<8} {self.kimg:6.2f} of {self.total_kimg:g} kimg   {self.img_per_sec:4.0f} img/s   "
            f"{dnnlib.util.format_time(left)} left"
        )

    def snapshots(self) -> list[Path]:
        """Oldest first."""
        return [path for run in sorted(self.outdir.glob("*/")) for path in reversed(numbered(run, SNAPSHOT_PATTERN))]


def plan_trainings(outdir: Path, target: Path, source: Path, kimg: float, seed: int) -> dict[str, Training]:
    """The two trainings, which differ by `--source` (with its normalisation) and nothing else."""
    tick = max(kimg / NUM_TICKS, MIN_TICK_KIMG)
    shared = [*SETTINGS, f"--kimg={kimg:g}", f"--tick={tick:g}", "--snap=2", f"--seed={seed}", f"--data={target}"]

    def plan(name: str, folder: Path, *more: str) -> Training:
        return Training(name, folder, [*shared, *more, f"--outdir={folder}"], kimg)

    return {
        "plain": plan("plain", outdir / "plain"),
        "spider": plan("Spider", outdir / "spider", f"--source={source}", SPIDER),
    }


def run_trainings(trainings: list[Training]) -> None:
    """Run all at the same time until the last has finished, with a line per tick. None is left running after it."""
    try:
        for training in trainings:
            training.start()
        while sum(training.is_running() for training in trainings) > 0:  # asks all, so that every failure is seen
            time.sleep(POLL_SEC)
            print_ticks(trainings)
        print_ticks(trainings)
    finally:
        for training in trainings:
            training.stop()


def print_ticks(trainings: list[Training]) -> None:
    for training in trainings:
        for line in training.new_ticks():
            print(line, flush=True)
