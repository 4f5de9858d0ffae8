"""Runs a function of a test in two processes that know each other."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torch_utils import distributed


def run_two(function: Callable[[], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What `function()`, of a module's top level, returns on rank 0 and on rank 1."""
    torch.multiprocessing.spawn(_run, args=(function, str(folder)), nprocs=2)
    return [torch.load(folder / f"result-{rank}.pt") for rank in range(2)]


def _run(rank: int, function: Callable[[], dict[str, Any]], folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init(rank, 2, os.path.join(folder, "meeting-point"))
    torch.save(function(), os.path.join(folder, f"result-{rank}.pt"))
    distributed.barrier()
    distributed.shutdown()
