"""What a run tells people while it goes on: a bar or plain lines, log.txt, stats.jsonl, TensorBoard; and Ctrl-C."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import dnnlib
from dnnlib.bars import tqdm
from dnnlib.errors import UserError
from dnnlib.files import tolerated
from torch_utils import distributed, training_stats
from training.checkpoints.state_file import STATS
from training.run.state import TrainingState

HEARTBEAT_SEC = 30  # between plain lines within a tick
FORETOLD_SEC, FORETOLD_STEPS = (
    5.0,
    17,
)  # after which it is known how long the run will take; the lazy penalties have come by then
WORTH_SAYING_SEC, TOO_LONG_SEC = 60, 7 * 24 * 3600
LOSSES = {"G": "Loss/G/loss", "D": "Loss/D/loss"}


def make_run_dir(outdir: str, desc: str) -> Path:
    """A new folder `<outdir>/<number>-<desc>`, numbered after the ones that are there."""
    root = Path(outdir)
    try:
        root.mkdir(parents=True, exist_ok=True)
        numbers = [int(match[0]) for entry in root.iterdir() if (match := re.match(r"^\d+", entry.name))]
        number = max(numbers, default=-1) + 1
        while True:
            run_dir = root / f"{number:05d}-{desc}"
            try:
                run_dir.mkdir()
                break
            except FileExistsError:  # another run that starts now was quicker
                number += 1
    except OSError as error:
        raise UserError(f"--outdir={outdir}: no run folder can be made there ({error.strerror})") from error
    return run_dir


def remove_unstarted(run_dir: Path) -> None:
    """Remove the folder of a run that ended before its first step: `Progress` has not begun its statistics."""
    if not (run_dir / STATS).exists():
        shutil.rmtree(run_dir)


class StopSignal:
    """Ctrl-C, SIGTERM or SIGUSR1 asks the run to save and leave; a second Ctrl-C stops at once."""

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

    def __init__(self) -> None:
        self.is_asked = False
        self.is_agreed = False  # by all processes
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.is_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.is_asked:
            return
        self.is_asked = True
        if distributed.get_rank() == 0:
            say_at_once("\nStopping as soon as the state can be saved. Press Ctrl-C again to leave at once.\n")

    def is_asked_anywhere(self) -> bool:
        """Whether any process was asked. Call on all ranks."""
        self.is_agreed = self.is_agreed or distributed.is_true_anywhere(self.is_asked)
        return self.is_agreed


def say_at_once(message: str) -> None:
    """Write to the terminal from within a signal's handler: the signal may have come while `print` was at work."""
    if sys.__stdout__ is not None:
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.__stdout__.fileno(), message.encode())


class Progress:
    """Times, statistics and their files. On every rank, since statistics are summed over ranks; rank 0 writes."""

    def __init__(
        self, run_dir: Path, state: TrainingState, total_kimg: float, device: torch.device, start_cpu: float = 0.0
    ):
        """start_cpu: processor seconds of this process when its work on the run began."""
        self.run_dir = run_dir
        self.state = state
        self.total_kimg = total_kimg
        self.device = device
        self.is_writer = distributed.get_rank() == 0
        self.tick_stats = training_stats.Collector()
        self.recent_stats = training_stats.Collector(regex="|".join(LOSSES.values()))
        self.start_time = self.tick_time = self.beat_time = self.pause_time = time.time()
        self.start_nimg = self.tick_nimg = self.beat_nimg = state.cur_nimg
        self.steps = 0
        self.is_foretold = False
        self.earlier_sec = 0.0  # spent on this run before it was resumed
        self.earlier_cpu = 0.0  # processor seconds of this process, likewise
        self.start_cpu = start_cpu
        self.pause_cpu = self.paused_cpu = 0.0  # processor seconds at the last pause, and in pauses
        self.img_per_sec = 0.0
        self.maintenance_sec = 0.0
        self.has_bar = self.is_writer and sys.stderr.isatty()
        self._bar = tqdm(
            total=total_kimg,
            initial=state.cur_nimg / 1000,
            disable=not self.has_bar,
            bar_format="{percentage:3.0f}%|{bar}| {n:.1f}/{total:g} kimg [{elapsed}<{remaining}{postfix}]",
        )
        self._jsonl = open(run_dir / STATS, "a", encoding="utf-8") if self.is_writer else None  # noqa: SIM115
        self.events = self._open_events() if self.is_writer else None

    def _open_events(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        # What an earlier process noted of the time after the state that this one continues from is hidden.
        return SummaryWriter(self.run_dir, purge_step=self.state.cur_nimg + 1)

    def state_dict(self) -> dict[str, Any]:
        """The tick that has begun: its statistics, and where the clock stands. On all ranks."""
        now = time.time()
        return {
            "tick_stats": self.tick_stats.state_dict(),
            "tick_nimg": self.tick_nimg,
            "tick_sec": now - self.tick_time,
            "total_sec": self.earlier_sec + now - self.start_time,
            "total_cpu": self.cpu_sec(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.tick_stats.load_state_dict(saved["tick_stats"])
        self.tick_nimg = saved["tick_nimg"]
        self.tick_time -= saved["tick_sec"]
        self.earlier_sec = saved["total_sec"]
        self.earlier_cpu = saved.get("total_cpu", 0.0)  # runs that began before 0.2 did not count them

    def cpu_sec(self) -> float:
        """Processor seconds that this process has spent on the run: reading, features, pre-training and steps."""
        return self.earlier_cpu + time.process_time() - self.start_cpu - self.paused_cpu

    def step(self) -> None:
        """Move the bar after a step, or print a plain line now and then. On all ranks."""
        self.recent_stats.update()
        now = time.time()
        if not self.is_writer:
            return
        self.foretell(now)
        if self.has_bar:
            self.measure_speed(now)
            self._bar.set_postfix_str(self.short_status(), refresh=False)
            self._bar.update(self.state.cur_nimg / 1000 - self._bar.n)
        elif now - self.beat_time >= HEARTBEAT_SEC:
            self.measure_speed(now)
            print(
                f"  kimg {self.state.cur_nimg / 1000:<8.2f} {self.short_status()}, {self.time_left()} left", flush=True
            )

    def foretell(self, now: float) -> None:
        """Say once how long the run will take, from its first steps; warn where nobody would wait for its end."""
        self.steps += 1
        elapsed = now - self.start_time
        if self.is_foretold or self.steps < FORETOLD_STEPS or elapsed < FORETOLD_SEC:
            return
        self.is_foretold = True
        seconds, speed = self.seconds_left(), (self.state.cur_nimg - self.start_nimg) / elapsed
        if seconds < WORTH_SAYING_SEC:
            return
        self.say(f"About {dnnlib.util.format_time(seconds)} to {self.total_kimg:g} kimg, at {speed:.3g} img/s so far.")
        if seconds > TOO_LONG_SEC:
            self.say(
                "Warning: that is long. Stop with Ctrl-C, and choose a --preset, smaller images, a smaller --cbase or --kimg; "
                "or a GPU"
            )

    def say(self, line: str) -> None:
        tqdm.write(line) if self.has_bar else print(line, flush=True)

    def measure_speed(self, now: float) -> None:
        """Images per second since the last look, smoothed."""
        current = (self.state.cur_nimg - self.beat_nimg) / max(now - self.beat_time, 1e-9)
        self.img_per_sec = current if self.img_per_sec == 0 else 0.8 * self.img_per_sec + 0.2 * current
        self.beat_time, self.beat_nimg = now, self.state.cur_nimg

    def short_status(self) -> str:
        shown = [f"{short} {self.recent_stats[name]:.3f}" for short, name in LOSSES.items()]
        return ", ".join([f"{self.img_per_sec:.1f} img/s", *shown, f"augment p {self.augment_p():.3f}"])

    def augment_p(self) -> float:
        pipe = self.state.augment_pipe
        return 0.0 if pipe is None else float(pipe.p)

    def seconds_left(self) -> float:
        done = self.state.cur_nimg - self.start_nimg
        left = self.total_kimg * 1000 - self.state.cur_nimg
        elapsed = time.time() - self.start_time
        return elapsed / max(done, 1) * max(left, 0)

    def time_left(self) -> str:
        return dnnlib.util.format_time(self.seconds_left())

    def tick(self) -> None:
        """Write the line of a tick that ends, stats.jsonl, TensorBoard. On all ranks."""
        now = time.time()
        sec_per_tick = now - self.tick_time
        kimg = (self.state.cur_nimg - self.tick_nimg) / 1000
        cpu_sec = torch.tensor(self.cpu_sec(), dtype=torch.float64, device=self.device)
        timing = {
            "Progress/tick": self.state.cur_tick,
            "Progress/kimg": self.state.cur_nimg / 1000,
            "Progress/augment": self.augment_p(),
            "Timing/total_sec": self.earlier_sec + now - self.start_time,
            "Timing/cpu_sec": float(distributed.all_sum(cpu_sec)),  # of all processes
            "Timing/sec_per_tick": sec_per_tick,
            "Timing/sec_per_kimg": sec_per_tick / max(kimg, 1e-9),
            "Timing/maintenance_sec": self.maintenance_sec,
            "Resources/peak_gb": peak_memory_gb(self.device),
            **self.official_fields(now),
        }
        for name, value in timing.items():
            training_stats.report0(name, value)
        self.tick_stats.update()
        self.tick_time, self.tick_nimg = now, self.state.cur_nimg
        self.pause_time, self.maintenance_sec = now, 0.0
        self.pause_cpu = time.process_time()
        if self.is_writer:
            self.print_line(timing)
            with tolerated(STATS):
                self.write_files(now)

    def official_fields(self, now: float) -> dict[str, float]:
        """The names under which scripts of other people look for hours and memory."""
        is_gpu = self.device.type == "cuda"
        return {
            "Timing/total_hours": (self.earlier_sec + now - self.start_time) / 3600,
            "Timing/total_days": (self.earlier_sec + now - self.start_time) / 86400,
            "Resources/cpu_mem_gb": memory_gb(),
            "Resources/peak_gpu_mem_gb": peak_memory_gb(self.device) if is_gpu else 0.0,
        }

    def resume_clock(self) -> None:
        """Leave out snapshots and metrics: their time, since the tick ended or the run went on, is no training time.

        Clocks are put forward rather than set to 0, since the images that they count go on from where they stood.
        """
        paused = time.time() - self.pause_time
        self.maintenance_sec += paused
        self.paused_cpu += time.process_time() - self.pause_cpu
        self.tick_time += paused
        self.beat_time += paused

    def print_line(self, timing: dict[str, float]) -> None:
        line = (
            f"tick {self.state.cur_tick:<5d} kimg {timing['Progress/kimg']:<8.1f} "
            f"time {dnnlib.util.format_time(timing['Timing/total_sec']):<12s} "
            f"sec/kimg {timing['Timing/sec_per_kimg']:<8.2f} "
            f"G {self.tick_stats[LOSSES['G']]:<7.3f} D {self.tick_stats[LOSSES['D']]:<7.3f} "
            f"augment {timing['Progress/augment']:.3f}  {self.coverage()}"
            f"peak {timing['Resources/peak_gb']:.2f} GB  left {self.time_left()}"
        )
        self.say(line)

    def coverage(self) -> str:
        """What part of the data the samples of the tick cover, as a part of its line."""
        value = self.tick_stats["Diversity/coverage"] if "Diversity/coverage" in self.tick_stats.names() else math.nan
        return "" if math.isnan(value) else f"cover {value:.2f}  "

    def write_files(self, now: float) -> None:
        assert self._jsonl is not None and self.events is not None
        stats = {name: value for name, value in self.tick_stats.as_dict().items() if value["num"] > 0}
        self._jsonl.write(json.dumps({**stats, "timestamp": now}) + "\n")
        self._jsonl.flush()
        for name, value in stats.items():
            self.events.add_scalar(name, value["mean"], global_step=self.state.cur_nimg, walltime=now)
        self.events.flush()

    def close(self) -> None:
        self._bar.close()
        with tolerated(STATS):
            if self._jsonl is not None:
                self._jsonl.close()
            if self.events is not None:
                self.events.close()


def memory_gb() -> float:
    """Memory that this process has now, in GB (2^30 bytes); its peak where the system says only that."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (OSError, ValueError, AttributeError):
        return peak_memory_gb(torch.device("cpu"))


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory use so far in GB (2^30 bytes): of the GPU, or of the process. NaN where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
