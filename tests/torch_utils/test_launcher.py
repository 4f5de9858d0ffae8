"""Several processes speak with one voice, none is left behind, and signals reach all of them."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.helpers.golden import ROOT
from torch_utils import launcher


def command(act, *args, is_torchrun=False):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if is_torchrun else []
    return [sys.executable, *torchrun, "-m", "tests.helpers.acts", act, *map(str, args)]


def run(act, *args, is_torchrun=False):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(act, *args, is_torchrun=is_torchrun),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def lines_of(result):
    """What the processes printed, without torchrun's own log lines."""
    return [line for line in result.stderr.splitlines() if line and not re.match(r"^\[?[EWI]\d{4} ", line)]


def test_processes_of_its_own():
    result = run("share")
    assert (result.returncode, result.stdout) == (0, "sum 2\n"), result.stderr


@pytest.mark.parametrize("is_torchrun", [False, True])
def test_the_same_error_is_printed_once(is_torchrun):
    result = run("make_the_same_mistake", is_torchrun=is_torchrun)
    assert result.returncode != 0
    assert result.stderr.count("Error: --data=x: nothing there") == 1, result.stderr
    if not is_torchrun:
        assert result.returncode == launcher.WRONG
        assert lines_of(result) == ["Error: --data=x: nothing there"]


@pytest.mark.parametrize("is_torchrun", [False, True])
def test_a_traceback_names_its_rank(is_torchrun):
    result = run("crash_on_rank_1", is_torchrun=is_torchrun)
    assert result.returncode == launcher.BROKEN
    assert "[rank 1] ZeroDivisionError: on purpose" in result.stderr
    assert "[rank 0]" not in result.stderr
    if not is_torchrun:  # that rank 0 lost rank 1 says nothing new
        assert all(line.startswith("[rank 1] ") for line in lines_of(result)), result.stderr


def test_a_killed_process_ends_the_run_with_one_line():
    result = run("be_killed_on_rank_1")
    assert result.returncode == launcher.BROKEN
    (line,) = lines_of(result)
    assert re.match(r"Error: process 1 of 2 was ended by SIGKILL .*--resume=latest", line)


def test_a_lost_process_is_named_by_those_that_remain_under_torchrun():
    result = run("be_killed_on_rank_1", is_torchrun=True)
    assert result.returncode != 0
    lines = [line for line in lines_of(result) if line.startswith("Error: ")]
    assert len(lines) <= 1  # torchrun may end the others before they notice
    assert all("process 0 of 2 has lost another one" in line for line in lines)
    assert "[rank 0]" not in result.stderr


def test_a_process_that_hangs_is_not_waited_for():
    start = time.time()
    result = run("hang_on_rank_1")
    assert result.returncode == launcher.BROKEN
    lines = lines_of(result)
    assert len(lines) == 1, result.stderr
    (line,) = lines
    assert "process 0 of 2 has lost another one" in line and "--resume=latest" in line
    assert time.time() - start < 150  # it sleeps for 300; a busy machine takes its time to start three processes


class FakeProcess:
    """Tells its exit code from the third question on: a sentinel may wake its waiter before there is one."""

    def __init__(self, codes):
        self.codes = list(codes)
        self.sentinel, self.writer = os.pipe()

    @property
    def exitcode(self):
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]

    def kill(self):
        self.codes = [-signal.SIGKILL]

    def join(self):
        pass


def test_a_failure_that_shows_late_is_not_missed(monkeypatch):
    """The launcher waited for ever where a process ended between two of its questions: one run of six, on a busy machine."""
    monkeypatch.setattr(launcher, "GRACE_SEC", 0.05)
    failed, hanging = FakeProcess([None, None, 1]), FakeProcess([None])
    os.close(failed.writer)  # its sentinel is ready
    killed = []
    waiter = threading.Thread(target=lambda: killed.append(launcher._wait_for([failed, hanging])), daemon=True)
    waiter.start()
    waiter.join(timeout=20)
    assert killed == [{1}]


def started(folder, process):
    """Ids of both processes, once they wait for signals."""
    deadline = time.time() + 60
    while len(names := os.listdir(folder)) < 2:
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    return [int(name.split("-")[1]) for name in names]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_passed_on(tmp_path, number):
    process = subprocess.Popen(command("stop_when_asked", tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    started(tmp_path, process)
    time.sleep(0.2)  # the launcher listens as soon as both are started
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == launcher.STOPPED, err
    assert err == ""


def test_processes_end_with_the_one_that_started_them(tmp_path):
    process = subprocess.Popen(command("stop_when_asked", tmp_path), cwd=ROOT)
    children = started(tmp_path, process)
    process.kill()
    process.wait()
    deadline = time.time() + 20
    while any(is_running(pid) for pid in children):
        assert time.time() < deadline
        time.sleep(0.05)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
