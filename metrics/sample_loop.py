"""Sample after sample in batches, shared among the processes: for metrics that look inside a generator."""

from collections.abc import Callable

import torch

from metrics.progress_bar import progress_bar
from torch_utils import distributed


@torch.no_grad()
def over_samples(
    compute: Callable[[list[int]], torch.Tensor], num_samples: int, batch_size: int, progress: str | None = None
) -> torch.Tensor:
    """Rows of `compute(numbers of samples) -> [n, ...]` for samples 0 … num_samples - 1, in order, on every process.

    progress: what a bar is called; None for no bar.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    own = range(rank, num_samples, world_size)
    assert num_samples >= world_size
    rows = []
    with progress_bar(len(own), progress or "", "sample", progress is not None and rank == 0) as bar:
        for first in range(0, len(own), batch_size):
            samples = list(own[first : first + batch_size])
            rows.append(compute(samples))
            bar.update(len(samples))
    return distributed.gather_rows(torch.cat(rows))
