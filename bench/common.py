"""What the benchmarks share: the machine they ran on, its own rates, a training step to measure, and where results go."""

import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dnnlib.machine import processor_name
from torch_utils import misc
from training.config.options import TrainingOptions
from training.config.resolve import resolve
from training.config.run_config import TrainingConfig
from training.run.batches import Batches
from training.run.state import TrainingState, build_state
from training.run.step import TrainingStep
from training.sources.coreset import ShuffledOrder, TargetOrder
from training.training_loop import set_up_backends

RESULTS = Path(__file__).resolve().parent / "results"


def describe_machine() -> dict[str, Any]:
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
    }


def save_result(name: str, result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


@dataclass
class SyntheticRun:
    """A training step of a real configuration on noise images."""

    step: TrainingStep
    state: TrainingState
    images: torch.Tensor  # [batch, 3, res, res] uint8
    labels: torch.Tensor  # [batch, 0]
    device: torch.device
    decisions: list[tuple[str, str]]  # the start-up summary's lines on precision and speed


@contextlib.contextmanager
def synthetic_run(res: int, batch: int, **options: Any) -> Iterator[SyntheticRun]:
    """Resolve and build what `train.py` would with these options, ADA off."""
    misc.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        data = write_noise_images(Path(folder) / "data", res)
        resolved = resolve(TrainingOptions(data=str(data), batch=batch, aug="noaug", **options))
        device = torch.device(resolved.config.device)
        set_up_backends(resolved.config)
        state = build_state(resolved.config, device, verbose=False)
        step = step_on(state, resolved.config)
        images = torch.randint(256, [batch, 3, res, res], dtype=torch.uint8)
        decisions = [line for line in resolved.summary if line[0] in ("Precision", "Kernels", "Launches")]
        yield SyntheticRun(step, state, images, torch.zeros(batch, 0), device, decisions)


def step_on(state: TrainingState, config: TrainingConfig, order: TargetOrder | None = None) -> TrainingStep:
    """A step without labels, on one process's whole share at a time; order: what chooses real images."""
    order = ShuffledOrder(1, config.seed) if order is None else order
    return TrainingStep(state, config, Batches(state, config, config.per_process, torch.zeros(1, 0), order))


def write_noise_images(folder: Path, res: int, count: int = 256) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, [res, res, 3], dtype=np.uint8)).save(folder / f"{index:04d}.png")
    return folder


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a square matrix product, the fastest of twenty: a shared machine is slow by the moment."""
    size = (8192 if device.type == "cuda" else 2048) if size is None else size
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: a @ b, device, repeats=20))


def copy_rate(device: torch.device, megabytes: int = 256) -> float:
    """Bytes read and written per second by a copy, the median of seven."""
    a = torch.zeros(megabytes << 20, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() / median_seconds(lambda: b.copy_(a), device, repeats=7)


def median_seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    return statistics.median(seconds_of(run, device, repeats))


def seconds_of(run: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    run()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_gb(device: torch.device) -> float:
    """Highest so far: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
