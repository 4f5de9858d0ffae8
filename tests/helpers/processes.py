"""Runs a function of a test in several processes that know each other."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torch_utils import distributed


def run_two(function: Callable[[], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What `function()`, of a module's top level, returns on rank 0 and on rank 1."""
    return run_many(function, folder, 2)


def run_many(function: Callable[[], dict[str, Any]], folder: Path, num_processes: int) -> list[dict[str, Any]]:
    """What `function()`, of a module's top level, returns on each rank."""
    torch.multiprocessing.spawn(_run, args=(function, str(folder), num_processes), nprocs=num_processes)
    return [torch.load(folder / f"result-{rank}.pt") for rank in range(num_processes)]


def _run(rank: int, function: Callable[[], dict[str, Any]], folder: str, num_processes: int) -> None:
    torch.set_num_threads(1)
    distributed.init(rank, num_processes, os.path.join(folder, "meeting-point"))
    torch.save(function(), os.path.join(folder, f"result-{rank}.pt"))
    distributed.barrier()
    distributed.shutdown()
