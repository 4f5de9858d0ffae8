"""The calls mean the same in one process and in two."""

import pytest
import torch

from dnnlib import UserError
from tests.helpers.processes import run_two
from torch_utils import distributed, misc


def consistency_error(module: torch.nn.Module, ignore_regex: str | None = None) -> str:
    try:
        misc.check_ddp_consistency(module, ignore_regex)
    except RuntimeError as error:
        return str(error)
    return ""


def module_with_buffers(rank: int) -> torch.nn.Module:
    torch.manual_seed(rank)
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    module[0].weight.data = module[0].weight.data.to(memory_format=torch.channels_last)
    module.register_buffer("flags", torch.tensor([rank == 0, False]))
    module.register_buffer("nan", torch.tensor(float("nan")))
    module.register_buffer("rank", torch.full([2], float(rank), dtype=torch.float16))
    return module


def everything() -> dict:
    rank = distributed.get_rank()
    module = module_with_buffers(rank)
    before = consistency_error(module)
    ignored = consistency_error(module, r".*\.(weight|bias|flags|rank)")
    distributed.broadcast_module(module)
    is_written = rank == 0
    with distributed.rank0_first():
        is_written = is_written or distributed.get_rank() == 1
    return {
        "rank": (rank, distributed.get_world_size(), distributed.get_local_rank()),
        "mean": distributed.all_mean(torch.tensor([1.0, 3.0]) * (rank + 1)),
        "sum": distributed.all_sum(torch.tensor([rank + 1, 5])),
        "object": distributed.broadcast_object({"from": rank}),
        "objects": distributed.gather_objects("ab"[rank]),
        "errors": [before, ignored, consistency_error(module)],
        "state": module.state_dict(),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_two(everything, tmp_path_factory.mktemp("two"))


def test_ranks(results):
    assert [result["rank"] for result in results] == [(0, 2, 0), (1, 2, 1)]


def test_exchange(results):
    for result in results:
        assert result["mean"].tolist() == [1.5, 4.5]
        assert result["sum"].tolist() == [3, 10]
        assert result["object"] == {"from": 0}
        assert result["objects"] == ["a", "b"]


def test_broadcast_module(results):
    expected = module_with_buffers(0).state_dict()
    for result in results:
        for name, tensor in expected.items():
            torch.testing.assert_close(result["state"][name], tensor, rtol=0, atol=0, equal_nan=True)


def test_consistency_is_checked_on_every_rank(results):
    for result in results:
        before, ignored, after = result["errors"]
        assert "Sequential.0.weight" in before
        assert "Sequential.flags" in before
        assert "nan" not in before
        assert ignored == ""
        assert after == ""


# One process


def test_one_process_changes_nothing(capsys):
    tensor = torch.ones(2)
    assert distributed.init() == torch.device("cpu")
    distributed.broadcast_module(torch.nn.Linear(1, 1))
    distributed.barrier()
    with distributed.rank0_first():
        distributed.print0("hello")
    distributed.shutdown()
    assert (distributed.get_rank(), distributed.get_world_size(), distributed.get_local_rank()) == (0, 1, 0)
    assert distributed.all_mean(tensor) is tensor
    assert distributed.broadcast_object(tensor) is tensor
    assert distributed.gather_objects(3) == [3]
    assert capsys.readouterr().out == "hello\n"


@pytest.fixture
def torchrun_env(monkeypatch):
    def set_env(rank, world_size, local_rank):
        values = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": local_rank}
        values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_env


def test_ranks_under_torchrun(torchrun_env, capsys):
    assert not distributed.is_launched()
    torchrun_env("5", "8", "1")
    assert distributed.is_launched()
    assert (distributed.get_rank(), distributed.get_world_size(), distributed.get_local_rank()) == (5, 8, 1)
    distributed.print0("hello")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("rank", "world_size", "named"), [("x", "2", "RANK='x'"), ("2", "2", "RANK=2")])
def test_bad_environment_is_named(torchrun_env, rank, world_size, named):
    torchrun_env(rank, world_size, "0")
    with pytest.raises(UserError, match=named):
        distributed.init()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_cuda_is_named():
    with pytest.raises(UserError, match="--device"):
        distributed.init(device="cuda")
