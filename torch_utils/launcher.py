"""Run a function in one process or in several that know each other, as a program's last act."""

import multiprocessing.connection
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch

import dnnlib.cli
from dnnlib.errors import UserError
from torch_utils import distributed

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
STOPPED = 75  # exit code of a run that saved its state and left because a signal asked for it: try again later
Work = Callable[..., int]


def launch(work: Work, num_processes: int, device: str, *args: Any) -> int:
    """`work(*args, device)` in this process (alone, or as one of torchrun's), or in processes of its own; the exit code.

    Each process gets its own device of the kind. `work` must be importable by name.
    """
    if distributed.is_launched() or num_processes == 1:
        return work(*args, distributed.init(device=device))
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = os.path.join(folder, "meeting-point")
        processes = [
            context.Process(target=_spawned, args=(rank, num_processes, meeting_point, work, device, args), daemon=True)
            for rank in range(num_processes)
        ]
        for process in processes:
            process.start()
        # Ctrl-C reaches the processes as well: they save and leave, and this one waits for them. SIGTERM is passed on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
            signal.signal(number, lambda *_: _pass_on(processes))
        return _wait_for(processes)


def _pass_on(processes: list[Any]) -> None:
    for process in processes:
        process.terminate()


def _wait_for(processes: list[Any]) -> int:
    """Wait until all processes have ended; one that fails takes the others with it. The exit code of the run."""
    while running := [process for process in processes if process.exitcode is None]:
        multiprocessing.connection.wait([process.sentinel for process in running])
        if any(process.exitcode not in (None, 0, INTERRUPTED, STOPPED) for process in processes):
            for process in running:
                process.kill()  # it may be waiting for the one that is gone
    codes = [process.exitcode for process in processes]
    failures = [code for code in codes if code > 0]  # negative: ended by a signal, such as ours
    return failures[0] if failures else int(any(codes))


def _spawned(rank: int, num_processes: int, meeting_point: str, work: Work, device: str, args: tuple) -> None:
    torch.set_num_threads(max(torch.get_num_threads() // num_processes, 1))
    try:
        status = work(*args, distributed.init(rank, num_processes, meeting_point, device=device))
    except UserError as error:
        dnnlib.cli.fail(f"Error: {dnnlib.cli.one_line(str(error))}")
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)
