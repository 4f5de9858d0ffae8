"""Runs that are killed, starved of disk and fed damaged states. `make test-faults` does it at length."""

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dnnlib.errors import UserError
from tests.helpers.golden import ROOT
from tests.helpers.reliability import amount, record
from tests.helpers.runs import TINY, leaves, run_inside, stats_of
from tests.helpers.sources import write_images
from training.checkpoints.state_file import STATE_PATTERN, newest_intact_state, numbered, read_state, write_state

TICK = 16  # images
KILLING = "Killed"
DISK = "Full and read-only disks"
DAMAGE = "Damaged states"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    target = write_images(root / "target", size=(16, 16), count=20)
    source = write_images(root / "source", size=(16, 16), count=20, seed=1)
    return ["--cfg=stylegan2", *TINY, f"--data={target}", f"--source={source}", "--snap=1", "--target=0.1", "--fp32=1"]


def start(*args, module=("train.py",)):
    return subprocess.Popen(
        [sys.executable, "-u", *module, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_later(process, rng, seconds=1.5):
    """SIGKILL to the run and all its processes, at a random moment after its first tick; what it had said."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("tick"):
            time.sleep(rng.uniform(0, seconds))
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return "".join(lines) + process.communicate(timeout=60)[0]


def run_dir_in(outdir):
    (run_dir,) = Path(outdir).iterdir()
    return run_dir


def numbers_of(run_dir):
    """The newest state, flat, but for times."""
    path, complaints = newest_intact_state(run_dir)
    assert complaints == []
    return dict(leaves(read_state(path)))


def assert_equal_runs(a, b):
    first, second = numbers_of(a), numbers_of(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name], name
    assert stats_of(a) == stats_of(b)


def train_inside(*args):
    status, out, err = run_inside(*args)
    assert status == 0, out + err


def test_a_run_killed_again_and_again_ends_where_the_undisturbed_one_does(tmp_path, settings):
    rng = random.Random(0)
    args = [*settings, f"--outdir={tmp_path / 'killed'}", "--resume=latest"]
    num_kills = amount(3, 30)
    progress = []
    for _ in range(num_kills):
        output = kill_later(start(*args, "--kimg=1000"), rng)
        assert "tick" in output, output
        state, complaints = newest_intact_state(run_dir_in(tmp_path / "killed"))
        assert complaints == []
        progress.append(read_state(state)["training"]["counters"]["cur_nimg"] if state else 0)
    assert progress == sorted(progress)  # every restart went on
    assert progress[-1] > 0
    kimg = (progress[-1] // TICK + 2) * TICK / 1000
    train_inside(*args, f"--kimg={kimg}")
    train_inside(*settings, f"--outdir={tmp_path / 'whole'}", f"--kimg={kimg}")
    killed = run_dir_in(tmp_path / "killed")
    assert_equal_runs(killed, run_dir_in(tmp_path / "whole"))
    assert list(killed.glob("*.part")) == []
    outcome = f"every restart went on ({progress[-1]:,} images); parameters, optimizers, ADA and statistics end equal to the bit"
    record(
        KILLING,
        "a run, by SIGKILL at random moments, states written every tick (0.2 s)",
        num_kills,
        len(progress),
        outcome,
    )


def test_a_lost_worker_restarts_from_the_last_state_under_torchrun(tmp_path, settings):
    """Two processes; one is killed; torchrun starts both again by the same command."""
    module = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3", "train.py")
    args = [*settings, f"--outdir={tmp_path / 'elastic'}", "--resume=latest", f"--kimg={40 * TICK / 1000}"]
    process = start(*args, module=module)
    lines, num_kills, wanted = [], 0, amount(1, 3)
    for line in process.stdout:
        lines.append(line)
        if num_kills < wanted and line.startswith("tick") and int(line.split()[1]) >= 5 * (num_kills + 1):
            workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            os.kill(int(workers[num_kills % len(workers)]), signal.SIGKILL)
            num_kills += 1
    output = "".join(lines) + process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert num_kills == wanted
    assert output.count("exactly where the run was left") == wanted
    train_inside(*settings, f"--outdir={tmp_path / 'whole'}", "--gpus=2", f"--kimg={40 * TICK / 1000}")
    assert_equal_runs(run_dir_in(tmp_path / "elastic"), run_dir_in(tmp_path / "whole"))
    record(
        KILLING,
        "one of two workers under torchrun --max-restarts",
        wanted,
        num_kills,
        "restarted from the last state, equal to the bit",
    )


@contextlib.contextmanager
def small_disk(folder, megabytes):
    """A tmpfs; the test is skipped where none can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("a small disk (tmpfs) can be mounted by root only")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_no_state(tmp_path, settings):
    kimg = 12 * TICK / 1000
    train_inside(*settings, f"--outdir={tmp_path / 'whole'}", f"--kimg={kimg}")
    survived, sizes = 0, [2, 3] if amount(1, 2) == 2 else [2]
    for megabytes in sizes:
        with small_disk(tmp_path / f"disk{megabytes}", megabytes) as remount:
            disk = tmp_path / f"disk{megabytes}"
            train_inside(*settings, f"--outdir={disk / 'runs'}", f"--kimg={4 * TICK / 1000}")
            before = numbers_of(run_dir_in(disk / "runs"))
            free = shutil.disk_usage(disk).free
            (disk / "ballast").write_bytes(bytes(max(free - 50_000, 0)))
            args = ["--resume=latest", f"--outdir={disk / 'runs'}"]
            status, out, err = run_inside(*args, f"--kimg={kimg}")
            assert status == 2, out + err
            # Pictures of every tick stay, so that the last byte may be gone before the log's end: that is said as well.
            said = [line for line in err.splitlines() if not line.endswith("; logging stops here")]
            assert "No space left on device" in err and len(said) == 1 and said[0].startswith("Error: ")
            assert "Warning:" in out
            assert list(run_dir_in(disk / "runs").glob("*.part")) == []
            after = numbers_of(run_dir_in(disk / "runs"))
            assert all(
                torch.equal(v, after[k]) if isinstance(v, torch.Tensor) else v == after[k] for k, v in before.items()
            )
            (disk / "ballast").unlink()
            remount("size=64m")
            train_inside(*args, f"--kimg={kimg}")
            assert_equal_runs(run_dir_in(tmp_path / "whole"), run_dir_in(disk / "runs"))
            survived += 1
    outcome = "training went on with warnings, the last state stayed whole, exit code 2; with space again, on to the same bits"
    record(DISK, "the disk fills up during a run", len(sizes), survived, outcome)


def test_a_disk_that_turns_read_only_costs_no_state(tmp_path, settings):
    kimg = 8 * TICK / 1000
    train_inside(*settings, f"--outdir={tmp_path / 'whole'}", f"--kimg={kimg}")
    with small_disk(tmp_path / "disk", 64) as remount:
        runs = tmp_path / "disk" / "runs"
        train_inside(*settings, f"--outdir={runs}", f"--kimg={4 * TICK / 1000}")
        before = {path.name: path.read_bytes() for path in run_dir_in(runs).iterdir()}
        remount("ro")
        status, out, err = run_inside("--resume=latest", f"--outdir={runs}", f"--kimg={kimg}")
        assert status == 2, out + err
        assert "Read-only file system" in err and len(err.splitlines()) == 1
        assert {path.name: path.read_bytes() for path in run_dir_in(runs).iterdir()} == before
        remount("rw")
        train_inside("--resume=latest", f"--outdir={runs}", f"--kimg={kimg}")
        assert_equal_runs(run_dir_in(tmp_path / "whole"), run_dir_in(runs))
    record(
        DISK,
        "a read-only run folder",
        1,
        1,
        "one line, exit code 2, nothing changed; writable again, on to the same bits",
    )


def test_a_writer_killed_before_its_file_is_complete(tmp_path):
    """The process ends between the last byte and the rename, as hard as it can."""
    path = tmp_path / "training-state-000001.pt"
    write_state(path, {"n": torch.arange(10)})
    before = path.read_bytes()
    code = (
        "import os, sys, torch\n"
        "from pathlib import Path\n"
        "from training.checkpoints.state_file import write_state\n"
        "os.replace = lambda *paths: os.kill(os.getpid(), 9)\n"
        "write_state(Path(sys.argv[1]), {'n': torch.arange(20)})\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(list(tmp_path.glob("*.part"))) == 1
    assert newest_intact_state(tmp_path) == (path, [])
    record(KILLING, "the writer of a state, before the rename", 1, 1, "the state before it is untouched")


@pytest.fixture(scope="module")
def small_state(tmp_path_factory):
    path = tmp_path_factory.mktemp("states") / "training-state-000007.pt"
    training = {"networks": {"G": {"weight": torch.randn(20)}}, "counters": {"cur_nimg": 7000}}
    rest = {"random": [], "num_processes": 1, "batch_gpu": 8, "evaluation_due": False}
    write_state(path, {"training": training, **rest})
    return path


def is_refused(path):
    try:
        read_state(path)
    except UserError as error:
        return str(path) in str(error)
    return False


def test_a_state_with_any_byte_changed_is_refused(tmp_path, small_state):
    whole = small_state.read_bytes()
    path = tmp_path / small_state.name
    tried = range(0, len(whole), amount(29, 1))
    refused = 0
    for position in tried:
        for flip in (0x01, 0x80):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
            refused += is_refused(path)
    assert refused == 2 * len(tried)
    path.write_bytes(whole)
    assert not is_refused(path)
    record(
        DAMAGE, "one bit of one byte flipped, every byte of a state", 2 * len(tried), refused, "refused, the file named"
    )


def test_a_state_cut_short_anywhere_is_refused(tmp_path, small_state):
    whole = small_state.read_bytes()
    path = tmp_path / small_state.name
    lengths = range(0, len(whole), amount(31, 1))
    refused = 0
    for length in lengths:
        path.write_bytes(whole[:length])
        refused += is_refused(path)
    assert refused == len(lengths)
    record(DAMAGE, "cut short, at every length", len(lengths), refused, "refused, the file named")


def test_a_run_goes_on_from_the_state_before_a_damaged_one(tmp_path, settings):
    outdir = tmp_path / "runs"
    large = ["--batch=500", "--mbstd-group=1", "--tick=1"]
    args = [*settings[: settings.index("--batch=8")], *settings[settings.index("--batch=8") + 1 :], *large]
    train_inside(*args, f"--outdir={outdir}", "--kimg=2")
    run_dir = run_dir_in(outdir)
    rng = random.Random(0)
    newest, older = numbered(run_dir, STATE_PATTERN)
    whole = newest.read_bytes()
    num = amount(5, 100)
    taken = 0
    for _ in range(num):
        position = rng.randrange(len(whole))
        newest.write_bytes(whole[:position] + rng.randbytes(rng.randint(1, 1000)) + whole[position + 1000 :])
        with contextlib.redirect_stdout(io.StringIO()):
            path, complaints = newest_intact_state(run_dir)
        taken += path == older and len(complaints) == 1
    assert taken == num
    record(
        DAMAGE,
        "a random piece of up to 1,000 bytes overwritten",
        num,
        taken,
        "the state before it is taken, and said so",
    )
