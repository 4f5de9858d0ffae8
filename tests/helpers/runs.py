"""Runs of train.py, in this process or in one of its own, and what they leave."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest
import torch

import dnnlib.cli
import train as train_script
from tests.helpers.golden import ROOT
from training.checkpoints.snapshot import load_snapshot
from training.checkpoints.state_file import SNAPSHOT_PATTERN, file_number, newest_intact_state, numbered, read_state

TINY = (
    "--device=cpu --batch=8 --cbase=64 --cmax=8 --z-dim=16 --w-dim=16 --map-depth=2 --kimg=0.032 --tick=0.016"
).split()


def run(*args, env=None, **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, **kwargs)


def run_inside(*args):
    """`python train.py ARGS` within this process: (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["train.py", *map(str, args)])
        with pytest.raises(SystemExit) as leaving:
            dnnlib.cli.run(train_script.main)
    return leaving.value.code, out.getvalue(), err.getvalue()


def train(tmp_path, *args, cfg="stylegan2"):
    """A run and its output."""
    status, out, err = run_inside(f"--outdir={tmp_path / 'runs'}", f"--cfg={cfg}", *TINY, *args)
    assert status == 0, out + err
    return max((tmp_path / "runs").iterdir()), out


def snapshot_of(run_dir):
    return numbered(run_dir, SNAPSHOT_PATTERN)[0]


TIMES = ("Timing/", "Resources/", "timestamp")  # what no two runs have in common


def leaves(tree, name=""):
    """(name, value) of everything in a training state but times."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not key.startswith((*TIMES, "tick_sec", "total_sec", "total_cpu")):
                yield from leaves(value, f"{name}.{key}")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{name}[{index}]")
    else:
        yield name, tree


def state_of(run_dir):
    path, complaints = newest_intact_state(run_dir)
    assert complaints == []
    return dict(leaves(read_state(path)))


def snapshots_in(run_dir):
    """Images seen, by what the snapshots hold; their names say the same."""
    paths = numbered(run_dir, SNAPSHOT_PATTERN)[::-1]
    found = [load_snapshot(path)["meta"]["cur_nimg"] for path in paths]
    assert [path.name for path in paths] == [f"network-snapshot-{file_number(cur_nimg)}.pkl" for cur_nimg in found]
    return found


def stats_of(run_dir):
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(TIMES)} for line in lines]


def assert_same_run(a, b):
    """Parameters, optimizers, ADA, statistics, generators of both processes, losses of every tick, pictures: all bits.

    b may have more pictures: those of where it was stopped.
    """
    first, second = state_of(a), state_of(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name
    assert stats_of(a) == stats_of(b)
    pictures = sorted(path.name for path in a.glob("*.png"))
    assert any(name.startswith("fakes0") for name in pictures)
    for name in pictures:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def resume(run_dir, *args):
    status, out, err = run_inside("--resume=latest", f"--outdir={run_dir.parent}", *args)
    assert status == 0, out + err
    return out
