"""Sample after sample in batches, shared among the processes: for metrics that look inside a generator."""

from collections.abc import Callable

import torch

from dnnlib.errors import UserError
from metrics.progress_bar import progress_bar
from metrics.stopping import KeepGoing, check
from torch_utils import distributed


@torch.no_grad()
def over_samples(
    compute: Callable[[list[int]], torch.Tensor],
    num_samples: int,
    batch_size: int,
    progress: str | None = None,
    keep_going: KeepGoing = None,
) -> torch.Tensor:
    """Rows of `compute(numbers of samples) -> [n, ...]` for samples 0 … num_samples - 1, in order, on every process.

    progress: what a bar is called; None for no bar. keep_going: asked before each batch; False raises `Stopped`. Raises
    `UserError` where a row is not finite: that is what a network that has diverged makes.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    assert num_samples >= world_size
    own = list(range(rank, num_samples, world_size))
    num_batches = -(-num_samples // (batch_size * world_size))  # the same on every rank; the last one may be empty
    rows = []
    with progress_bar(len(own), progress or "", "sample", progress is not None and rank == 0) as bar:
        for number in range(num_batches):
            check(keep_going)
            samples = own[number * batch_size : (number + 1) * batch_size]
            if samples:
                rows.append(compute(samples))
                bar.update(len(samples))
    result = distributed.gather_rows(torch.cat(rows))
    num_bad = int((~result.isfinite().reshape(len(result), -1).all(dim=1)).sum())
    if num_bad > 0:
        raise UserError(
            f"generated images: {num_bad} of {num_samples} are NaN or infinite; the network that made them has diverged, "
            "use an earlier snapshot"
        )
    return result
