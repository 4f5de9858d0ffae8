"""Run a function in one process or in several that know each other, as a program's last act.

Several processes speak with one voice: an error that all of them meet is printed once, a traceback names the rank, and
that a process lost another one is said only where nothing tells why.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

import dnnlib.cli
from dnnlib import interrupts
from dnnlib.interrupts import PASSED_ON, STOPPED
from torch_utils import distributed

BROKEN = 1  # exit code where a process crashed or was lost: the same command may be run again
WRONG = 2  # exit code where the command or its files have to be mended first
INTERRUPTED = interrupts.EXIT_CODE  # after Ctrl-C
IN_ORDER = (0, INTERRUPTED, STOPPED)
GRACE_SEC = 10.0  # for the others to clean up after themselves when one process has failed
LONGEST_REPORT = 30_000  # characters: fits into a pipe that nobody reads yet
Work = Callable[..., int]


@dataclass
class Failure:
    """Why a process ended: what it has to say, and whether that is only the consequence of another's end."""

    text: str
    exit_code: int
    is_consequence: bool = False
    is_traceback: bool = False

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        line = dnnlib.cli.explanation(error)
        if line is None:
            text = "".join(traceback.format_exception(error)).rstrip()[-LONGEST_REPORT:]
            return cls(text, BROKEN, is_traceback=True)
        is_lost = isinstance(error, distributed.PeerLost)
        return cls(line, BROKEN if is_lost else WRONG, is_consequence=is_lost)

    def by(self, rank: int) -> str:
        """The error as it is printed: a line speaks for itself, a traceback needs to be told from those of the other ranks."""
        return "\n".join(f"[rank {rank}] {line}" for line in self.text.splitlines()) if self.is_traceback else self.text


def launch(work: Work, num_processes: int, device: str, *args: Any) -> int:
    """`work(*args, device)` in this process (alone, or as one of torchrun's), or in processes of its own; the exit code.

    Each process gets its own device of the kind. `work` must be importable by name.
    """
    if distributed.is_launched() and distributed.get_world_size() > 1:
        _launched(work, device, args)
    if distributed.is_launched() or num_processes == 1:
        return work(*args, distributed.init(device=device))
    with tempfile.TemporaryDirectory() as folder:
        return _spawn(work, num_processes, device, args, os.path.join(folder, "meeting-point"))


# One of torchrun's processes


def _launched(work: Work, device: str, args: tuple) -> NoReturn:
    distributed.share_threads()
    status, failure = _attempt(lambda: work(*args, distributed.init(device=device)))
    if failure is not None:
        distributed.say_once(failure.by(distributed.get_rank()), key=failure.text)
    _leave(status)


def _leave(status: int) -> NoReturn:
    """End the process here. While Python takes them down, backends may wait for the others, and threads of theirs abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _attempt(work: Callable[[], int]) -> tuple[int, Failure | None]:
    """The exit code, and why if the work failed."""
    try:
        with distributed.naming_lost_peers():
            return work(), None
    except KeyboardInterrupt:
        return INTERRUPTED, None
    except SystemExit as leaving:  # asked to, before there was anything to save
        return leaving.code if isinstance(leaving.code, int) else BROKEN, None
    except Exception as error:
        failure = Failure.of(error)
        return failure.exit_code, failure


# Processes of its own


def _spawn(work: Work, num_processes: int, device: str, args: tuple, meeting_point: str) -> int:
    context = torch.multiprocessing.get_context("spawn")
    processes: list[Any] = []
    reports = []
    os.environ[interrupts.LAUNCHED] = "1"
    for rank in range(num_processes):
        report, reporter = context.Pipe(duplex=False)
        target_args = (rank, num_processes, meeting_point, work, device, args, reporter)
        processes.append(context.Process(target=_spawned, args=target_args, daemon=True))
        processes[-1].start()
        reporter.close()  # the process has its own end; when that one closes, too, there is nothing more to read
        reports.append(report)
    del os.environ[interrupts.LAUNCHED]
    asked: set[int] = set()
    # Ctrl-C reaches the processes as well: they save and leave, and this one waits for them. One that was sent to this
    # process alone is passed on as another signal, which does not count as the second Ctrl-C.
    pass_on_quietly = lambda number, _: _pass_on(signal.SIGTERM, processes, asked)  # noqa: E731
    before: dict[int, Any] = {signal.SIGINT: signal.signal(signal.SIGINT, pass_on_quietly)}
    for number in PASSED_ON:
        before[number] = signal.signal(number, lambda number, _: _pass_on(number, processes, asked))
    killed = _wait_for(processes)
    for number, handler in before.items():  # other processes may be launched after these
        signal.signal(number, handler)
    codes = [INTERRUPTED if -process.exitcode in asked else process.exitcode for process in processes]
    failures = {rank: failure for rank, report in enumerate(reports) if (failure := _read(report)) is not None}
    for rank, code in enumerate(codes):
        if code not in IN_ORDER and rank not in failures and rank not in killed:
            failures[rank] = _silent_end(rank, code, num_processes)
    causes = {rank: failure for rank, failure in failures.items() if not failure.is_consequence} or failures
    _say_each_once(causes)
    if causes or killed:
        return max((failure.exit_code for failure in causes.values()), default=BROKEN)
    return max(codes)


def _spawned(
    rank: int, num_processes: int, meeting_point: str, work: Work, device: str, args: tuple, reporter: Any
) -> None:
    interrupts.end()
    _leave_with_parent()
    torch.set_num_threads(max(torch.get_num_threads() // num_processes, 1))
    status, failure = _attempt(lambda: work(*args, distributed.init(rank, num_processes, meeting_point, device=device)))
    if failure is not None:
        reporter.send(failure)
    _leave(status)


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone: killed, it cannot take its processes with it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(BROKEN)

    threading.Thread(target=watch, daemon=True).start()


def _pass_on(number: int, processes: Iterable[Any], asked: set[int]) -> None:
    asked.add(number)
    for process in processes:
        if process.exitcode is None:
            os.kill(process.pid, number)


def _wait_for(processes: list[Any]) -> set[int]:
    """Wait until all processes have ended. When one fails, the others get a moment; the ranks that had to be killed."""
    deadline: float | None = None
    killed: set[int] = set()
    while running := [rank for rank, process in enumerate(processes) if process.exitcode is None]:
        # Asked before each wait: whoever is not running was seen to end above, and its sentinel wakes nobody again.
        has_failed = any(process.exitcode not in (None, *IN_ORDER) for process in processes)
        if has_failed and deadline is None:
            deadline = time.monotonic() + GRACE_SEC
        patience = None if deadline is None else max(deadline - time.monotonic(), 0)
        if patience == 0:
            for rank in running:
                if processes[rank].exitcode is None:
                    processes[rank].kill()  # it waits for the one that is gone
                    processes[rank].join()
                    killed.add(rank)
        else:
            multiprocessing.connection.wait([processes[rank].sentinel for rank in running], patience)
    return killed


def _read(report: Any) -> Failure | None:
    try:
        return report.recv()
    except (EOFError, OSError):  # it had nothing to say
        return None


def _silent_end(rank: int, exit_code: int, num_processes: int) -> Failure:
    """The line of a process that could not speak: killed, or crashed below Python."""
    how = f"with exit code {exit_code}"
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        how = f"by {name}" + (" (out of memory, if nobody sent it)" if name == "SIGKILL" else "")
    way_out = "training continues from its last state with --resume=latest"
    return Failure(f"Error: process {rank} of {num_processes} was ended {how}; {way_out}", BROKEN)


def _say_each_once(failures: dict[int, Failure]) -> None:
    said = set()
    for rank, failure in sorted(failures.items()):
        if failure.text not in said:
            said.add(failure.text)
            dnnlib.cli.to_stderr(failure.by(rank))
