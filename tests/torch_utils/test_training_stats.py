"""Means and deviations equal numpy's, over reports, devices and processes."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch

from tests.helpers.processes import run_two
from torch_utils import training_stats
from torch_utils.training_stats import Collector, held, report, report0


def test_equals_numpy():
    values = np.random.default_rng(0).normal(3, 2, size=[7, 3])
    collector = Collector()
    for row in values:
        report("x", torch.from_numpy(row))
    collector.update()
    assert collector.num("x") == values.size
    assert collector.mean("x") == collector["x"] == pytest.approx(values.mean(), rel=1e-13)
    assert collector.std("x") == pytest.approx(values.std(), rel=1e-12)
    assert collector.as_dict() == {"x": {"num": 21, "mean": collector.mean("x"), "std": collector.std("x")}}
    assert collector.as_dict().x.num == 21


@pytest.mark.parametrize(
    "value",
    [0.1, 3, True, [1.5, 2.5], np.float64(0.1), np.arange(6).reshape(2, 3), torch.ones(2, 2, dtype=torch.float16)],
)
def test_all_kinds_of_numbers_come_back(value):
    collector = Collector()
    assert report("x", value) is value
    collector.update()
    expected = np.asarray(value, dtype=np.float64)
    assert (collector.num("x"), collector.mean("x")) == (expected.size, expected.mean())


def test_gradients_are_left_alone():
    collector = Collector()
    x = torch.ones(3, requires_grad=True)
    assert report("x", x) is x
    collector.update()
    assert x.requires_grad
    assert collector.mean("x") == 1


def test_large_offsets_keep_the_deviation():
    """float32 sums would lose it: 1e4 +- 1e-2."""
    collector = Collector()
    report("x", torch.tensor([1e4 - 1e-2, 1e4 + 1e-2], dtype=torch.float64))
    collector.update()
    assert collector.std("x") == pytest.approx(1e-2, rel=1e-4)


def test_update_starts_anew():
    collector = Collector()
    report("x", 1.0)
    collector.update()
    report("x", 5.0)
    assert collector.mean("x") == 1
    collector.update()
    assert (collector.num("x"), collector.mean("x")) == (1, 5)


@pytest.mark.parametrize("keep_previous", [True, False])
def test_names_that_are_silent(keep_previous):
    collector = Collector(keep_previous=keep_previous)
    report("x", [1.0, 2.0])
    collector.update()
    report("y", 3.0)
    collector.update()
    assert collector.names() == ["x", "y"]
    assert collector.num("x") == (2 if keep_previous else 0)
    assert math.isnan(collector.mean("x")) != keep_previous


def test_empty_values_and_unknown_names():
    collector = Collector()
    report("x", [])
    collector.update()
    assert collector.names() == ["x"]
    for name in ("x", "unknown"):
        assert collector.num(name) == 0
        assert math.isnan(collector.mean(name))
        assert math.isnan(collector.std(name))
    report("x", 1.0)
    collector.update()
    assert (collector.mean("x"), collector.std("x")) == (1, 0)


def test_nan_does_not_outlive_its_update():
    collector = Collector()
    report("x", [math.nan, 1.0])
    collector.update()
    assert math.isnan(collector.mean("x"))
    assert math.isnan(collector.std("x"))
    report("x", 2.0)
    collector.update()
    assert collector.mean("x") == 2


def test_regex_matches_the_whole_name():
    collector = Collector(regex="Loss/.*")
    for name in ("Loss/D", "Not/Loss/D", "Loss"):
        report(name, 1.0)
    collector.update()
    assert collector.names() == ["Loss/D"]


def test_collectors_are_independent():
    first = Collector()
    report("x", 1.0)
    second = Collector()
    report("x", 3.0)
    first.update()
    report("x", 4.0)
    second.update()
    assert first.mean("x") == 2
    assert second.mean("x") == 3.5  # nothing from before it existed


def test_forgotten_collectors_vanish():
    reference = weakref.ref(Collector())
    gc.collect()
    assert reference() is None


def test_first_report_in_inference_mode():
    collector = Collector()
    with torch.inference_mode():
        report("x", torch.ones(2))
    report("x", torch.zeros(2))
    with torch.inference_mode():
        report("x", torch.zeros(2))
    collector.update()
    assert collector.mean("x") == pytest.approx(1 / 3)


def test_report0_and_fixed_rank(monkeypatch):
    monkeypatch.setattr(training_stats, "_rank", None)
    monkeypatch.setattr(training_stats, "_sync_device", None)
    collector = Collector()
    report0("x", 1.0)
    training_stats.init_multiprocessing(rank=1, sync_device="cpu")
    assert report0("x", 3.0) == 3.0
    collector.update()
    assert (collector.num("x"), collector.mean("x")) == (1, 1)


def test_held_reports_count_when_told():
    collector = Collector()
    with held() as count:
        report("x", 1.0)
    with held():
        report("x", float("nan"))
    collector.update()
    assert collector.num("x") == 0
    count()
    report("x", 3.0)
    collector.update()
    assert (collector.num("x"), collector.mean("x")) == (2, 2.0)


def test_saved_state_continues_exactly():
    rng = np.random.default_rng(1)
    values = [torch.from_numpy(rng.normal(size=5)) for _ in range(6)]
    undisturbed, stopped = Collector(), Collector()
    report("old", 7.0)
    for collector in (undisturbed, stopped):
        collector.update()
    for value in values[:3]:
        report("x", value)
    state = stopped.state_dict()
    del stopped
    resumed = Collector()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    report("y", 1.0)
    for value in values[3:]:
        report("x", value)
    undisturbed.update()
    resumed.update()
    assert resumed.as_dict() == undisturbed.as_dict()
    assert resumed.names() == ["old", "x", "y"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_reports_do_not_wait_for_the_gpu():
    collector = Collector()
    value = torch.ones(4, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            report("x", value)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    report("x", torch.zeros(4))
    collector.update()
    assert (collector.num("x"), collector.mean("x")) == (16, 0.75)


def reports_of_two() -> dict:
    from torch_utils import distributed

    rank = distributed.get_rank()
    collector = Collector()
    report("all", torch.arange(3.0) + 10 * rank)
    report0("first", 5.0 + rank)
    report(f"only/{rank}", 1.0)
    state = collector.state_dict()
    assert len(state["pending"]) == 2
    collector.update()
    resumed = Collector()
    resumed.load_state_dict(state)
    alone = Collector(regex="all")
    alone.load_state_dict({**state, "pending": [*state["pending"], {"all": [1, 1, 1]}]})  # three processes, then two
    report("all", 100.0 * rank)
    resumed.update()
    collector.update()
    collector.update()  # nothing new
    return {
        "stats": {name: dict(values) for name, values in collector.as_dict().items()},
        "state": state,
        "resumed": resumed.mean("all"),
        "alone": alone.state_dict()["pending"],
    }


def test_two_processes(tmp_path):
    first, second = run_two(reports_of_two, tmp_path)
    assert first["stats"] == second["stats"]
    assert first["state"] == second["state"]
    assert [rank["all"] for rank in first["state"]["pending"]] == [[3, 3, 0 + 1 + 4], [3, 33, 100 + 121 + 144]]
    own = [1, 100.0 * 0, 0.0]  # what rank 0 reported after its numbers were carried over
    assert first["alone"][0]["all"] == [7 + own[0], 37 + own[1], 0 + 1 + 4 + 100 + 121 + 144 + 1 + own[2]]
    stats = first["stats"]
    assert (stats["all"]["num"], stats["all"]["mean"]) == (2, 50)
    assert (stats["first"]["num"], stats["first"]["mean"]) == (1, 5)
    assert stats["only/1"] == {"num": 1, "mean": 1, "std": 0}
    assert first["resumed"] == second["resumed"] == (36 + 100) / 8
