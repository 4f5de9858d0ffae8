"""Runs of several processes: the same data in the same order, torchrun's agents, a worker that is lost."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.helpers.golden import ROOT
from tests.helpers.runs import TINY
from tests.helpers.sources import write_images
from tests.helpers.steps import make_step
from torch_utils import distributed
from training.dataset import ImageFolderDataset
from training.run.loader import BatchLoader

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def what_is_seen(step, dataset, num_processes, num_rounds, monkeypatch):
    """Real images and latents of three steps, by their position in the batch, however it is divided."""
    step.batches.num_rounds = num_rounds
    seen = []
    for k in range(3):
        images, latents = torch.zeros(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64)
        for rank in range(num_processes):
            monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
            monkeypatch.setattr(distributed, "get_world_size", lambda: num_processes)
            step.state.cur_nimg = 8 * k
            with BatchLoader(dataset, 8, rank, num_processes, seed=0, start=8 * k, num_workers=0) as loader:
                for batch in step.batches.rounds([phase.name for phase in step.phases], *next(loader)):
                    rows = slice(batch.rows.start, None, batch.rows.step)
                    images[rows] = batch.real_images
                    latents[rows] = batch.draws["Gmain"].index
        seen += [images, latents]
    return seen


@pytest.mark.parametrize("num_rounds", [1, 2])
def test_data_and_latents_come_in_the_same_order_in_1_2_and_4_processes(tmp_path, monkeypatch, num_rounds):
    step = make_step(tmp_path)
    dataset = ImageFolderDataset(str(tmp_path / "data"))
    one, *others = (what_is_seen(step, dataset, num, num_rounds, monkeypatch) for num in (1, 2, 4))
    assert one[0].std() > 0.1 and not torch.equal(one[0], one[2])
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_memory_and_threads_are_shared_on_a_machine_only(monkeypatch):
    variables = {"RANK": 9, "WORLD_SIZE": 16, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4, "MASTER_ADDR": "x"}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    assert distributed.get_local_world_size() == 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    distributed.share_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    distributed.share_threads()
    assert given == [2]


def test_two_machines(tmp_path):
    """Two agents of torchrun, as on two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = write_images(tmp_path / "data", size=(16, 16), count=20)
    command = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two"]
    command += [f"--rdzv-endpoint=127.0.0.1:{port}", "train.py", *TINY, "--cfg=stylegan2"]
    command += [f"--data={data}", f"--outdir={tmp_path / 'runs'}"]
    agents = [
        subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    outputs = [agent.communicate(timeout=150)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(outputs)
    assert sum("Run folder" in output for output in outputs) == 1
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert list(run_dir.glob("network-snapshot-*.pkl"))
