"""Means of what training reports, over the batches and processes since the last look.

    collector = training_stats.Collector(regex="Loss/.*")
    training_stats.report("Loss/D/loss", loss)          # anywhere, every element counts
    collector.update()                                  # on every rank
    print(collector["Loss/D/loss"], collector.std("Loss/D/loss"))

A collector adds up [number, sum, sum of squares] per name in float64 on the device that reports, so that reporting
never waits for a GPU; `update()` adds the ranks together.
"""

import contextlib
import functools
import math
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch

import dnnlib
from torch_utils import distributed

T = TypeVar("T")

_collectors: "weakref.WeakSet[Collector]" = weakref.WeakSet()
_rank: int | None = None
_sync_device: torch.device | None = None


def init_multiprocessing(rank: int, sync_device: torch.device | str | None) -> None:
    """Fix this process's rank and the device for exchange. Optional: by default `torch_utils.distributed` knows."""
    global _rank, _sync_device
    _rank, _sync_device = rank, None if sync_device is None else torch.device(sync_device)


def report(name: str, value: T) -> T:
    """Count every element of `value` (tensor, array, list or number) under `name`, and return `value`.

    An empty value makes the name known without counting. Only collectors that exist already take part.
    """
    takers = [collector for collector in _collectors if collector.wants(name)]
    if takers:
        # Counters outlive the block that creates them, which may be one of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            report = _Report(name, _moments_of(value), takers)
            report.count() if _held is None else _held.append(report)
    return value


class _Report:
    """Moments on their way to collectors."""

    def __init__(self, name: str, moments: torch.Tensor, takers: "list[Collector]"):
        self.name, self.moments, self.takers = name, moments, takers

    def count(self) -> None:
        for collector in self.takers:
            collector.add(self.name, self.moments)


def _count_all(reports: list[_Report]) -> None:
    for report in reports:
        report.count()


_held: list[_Report] | None = None


@contextlib.contextmanager
def held() -> Iterator[Callable[[], None]]:
    """Reports inside the block count only when the function that it yields is called, after the block or in it."""
    global _held
    outer = _held
    reports: list[_Report] = []
    _held = reports
    try:
        yield functools.partial(_count_all, reports)
    finally:
        _held = outer


def report0(name: str, value: T) -> T:
    """Report as `report` does, without what other ranks than 0 pass."""
    rank = distributed.get_rank() if _rank is None else _rank
    report(name, value if rank == 0 else [])
    return value


class Collector:
    """Statistics of the names that match `regex` (as a whole), between two calls of `update()`.

    With `keep_previous` a name that was not reported in between keeps its last numbers; without, it has none.
    """

    def __init__(self, regex: str = ".*", keep_previous: bool = True):
        self._regex = re.compile(regex)
        self._keep_previous = keep_previous
        self._wanted: dict[str, bool] = {}
        self._counters: dict[str, dict[torch.device, torch.Tensor]] = {}  # this rank's, since the last update
        self._carried: dict[str, torch.Tensor] = {}  # the same, from a saved state
        self._moments: dict[str, list[float]] = {}  # over all ranks, at the last update
        _collectors.add(self)

    def wants(self, name: str) -> bool:
        if name not in self._wanted:
            self._wanted[name] = self._regex.fullmatch(name) is not None
        return self._wanted[name]

    def add(self, name: str, moments: torch.Tensor) -> None:
        """Add [number, sum, sum of squares], float64 `[3]`, to this rank's counters."""
        by_device = self._counters.setdefault(name, {})
        if moments.device in by_device:
            by_device[moments.device].add_(moments)
        elif name in self._carried:
            by_device[moments.device] = self._carried.pop(name).to(moments.device) + moments
        else:
            by_device[moments.device] = moments.clone()

    def update(self) -> None:
        """Take what was reported since the last update. With several processes: on every rank."""
        moments = self._pending_over_ranks()
        self._counters.clear()
        self._carried.clear()
        if not self._keep_previous:
            self._moments = {name: [0.0, 0.0, 0.0] for name in self._moments}
        for name, values in moments.items():
            if values[0] > 0 or name not in self._moments:
                self._moments[name] = values

    def names(self) -> list[str]:
        """The names known at the last update, sorted."""
        return sorted(self._moments)

    def num(self, name: str) -> int:
        """How many numbers were counted; 0 for an unknown name."""
        return int(self._moments.get(name, (0, 0, 0))[0])

    def mean(self, name: str) -> float:
        """Their mean; NaN if there were none."""
        num, total, _ = self._moments.get(name, (0.0, 0.0, 0.0))
        return total / num if num else math.nan

    def std(self, name: str) -> float:
        """Their standard deviation (of the population: divided by n); NaN if there were none."""
        num, _, total_of_squares = self._moments.get(name, (0.0, 0.0, 0.0))
        mean = self.mean(name)
        if not num or not math.isfinite(mean) or not math.isfinite(total_of_squares):
            return math.nan
        return math.sqrt(max(total_of_squares / num - mean * mean, 0.0)) if num > 1 else 0.0

    def __getitem__(self, name: str) -> float:
        return self.mean(name)

    def as_dict(self) -> dnnlib.EasyDict:
        """Name -> num, mean and std."""
        stats = dnnlib.EasyDict()
        for name in self.names():
            stats[name] = dnnlib.EasyDict(num=self.num(name), mean=self.mean(name), std=self.std(name))
        return stats

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for an exact resume. On every rank, like `update()`."""
        pending = {name: moments.tolist() for name, moments in self._local().items()}
        return {
            "moments": {name: list(values) for name, values in self._moments.items()},
            "pending": distributed.gather_objects(pending),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`. Every rank carries on its own numbers; with another number of processes, rank 0
        carries on those of all."""
        self._moments = {name: [float(value) for value in values] for name, values in state["moments"].items()}
        self._counters.clear()
        self._carried = {}
        ranks = state["pending"]
        if len(ranks) == distributed.get_world_size():
            ranks = [ranks[distributed.get_rank()]]
        elif distributed.get_rank() != 0:
            ranks = []
        for name, values in ((name, values) for rank in ranks for name, values in rank.items()):
            moments = torch.tensor(values, dtype=torch.float64)
            self._carried[name] = self._carried[name] + moments if name in self._carried else moments

    def _local(self) -> dict[str, torch.Tensor]:
        """Name -> [number, sum, sum of squares] of this rank since the last update."""
        local = dict(self._carried)
        for name, by_device in self._counters.items():
            for counter in by_device.values():
                local[name] = local[name] + counter.cpu() if name in local else counter.cpu()
        return local

    def _pending_over_ranks(self) -> dict[str, list[float]]:
        """Name -> [number, sum, sum of squares] since the last update, all ranks together."""
        local = self._local()
        # Ranks may have reported different names.
        names = sorted(set().union(*distributed.gather_objects(list(local))))
        if not names:
            return {}
        nothing = torch.zeros(3, dtype=torch.float64)
        table = torch.stack([local.get(name, nothing) for name in names])  # [number of names, 3]
        table = distributed.all_sum(table if _sync_device is None else table.to(_sync_device))
        return dict(zip(names, table.tolist(), strict=True))


def _moments_of(value: Any) -> torch.Tensor:
    """[number, sum, sum of squares] of all elements: float64 `[3]` on the device of the value."""
    tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(value, dtype=torch.float64)
    elements = tensor.detach().flatten().to(torch.float64)
    num = torch.full([], float(elements.numel()), dtype=torch.float64, device=elements.device)
    return torch.stack([num, elements.sum(), elements.square().sum()])
