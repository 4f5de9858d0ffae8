"""Batches of real images in an order that follows from the seed and the position, decoded ahead of the steps."""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch

from training.dataset import Dataset
from training.sources.coreset import ShuffledOrder, TargetOrder


class BatchLoader:
    """An endless iterator over this process's share of each batch: `(images, labels)`.

    images: uint8 or uint16 tensor `[n, C, H, W]`; labels: float32 `[n, label_dim]`; n = batch_size / rows_step.
    `order` says which indices the batch holds that begins at `start + k * batch_size` (None: those shuffled by `seed`), and this
    loader takes every `rows_step`-th of them from `rows_start`: what a batch holds depends on the position only. `num_workers`
    threads decode (0: the caller's own), `prefetch` batches ahead. A corrupt image raises `UserError` from `next`.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        rows_start: int = 0,
        rows_step: int = 1,
        seed: int = 0,
        start: int = 0,
        num_workers: int = 3,
        prefetch: int = 2,
        order: TargetOrder | None = None,
    ):
        assert 0 <= rows_start < rows_step
        assert batch_size > 0
        assert batch_size % rows_step == 0
        self.dataset = dataset
        self._batch_size, self._rows = batch_size, slice(rows_start, None, rows_step)
        self._order = ShuffledOrder(len(dataset), seed) if order is None else order
        self._num_workers = num_workers
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode") if num_workers > 0 else None
        self._positions = itertools.count(start, batch_size)
        self._pending: deque[_PendingBatch] = deque()
        self._num_ahead = prefetch if num_workers > 0 else 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        while len(self._pending) <= self._num_ahead:
            self._pending.append(self._request(next(self._positions)))
        return self._pending.popleft().wait()

    def _request(self, position: int) -> "_PendingBatch":
        indices = self._order.order(position, self._batch_size)[self._rows]
        return _PendingBatch(self.dataset, indices, self._pool, self._num_workers)

    def close(self) -> None:
        """Drop what was prefetched and end the threads."""
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _PendingBatch:
    """A batch whose images are being decoded."""

    def __init__(self, dataset: Dataset, indices: np.ndarray, pool: ThreadPoolExecutor | None, num_workers: int):
        self._images = np.empty([len(indices), *dataset.image_shape], dtype=dataset.dtype)
        self._labels = dataset.get_labels(indices)
        self._futures: list[Future] = []
        if pool is None or dataset.is_in_memory(indices):
            dataset.read_images(indices, self._images)
            return
        for rows in np.array_split(np.arange(len(indices)), min(num_workers, len(indices))):
            part = slice(rows[0], rows[-1] + 1)
            self._futures.append(pool.submit(dataset.read_images, indices[part], self._images[part]))

    def wait(self) -> tuple[torch.Tensor, torch.Tensor]:
        for future in self._futures:
            future.result()
        return torch.from_numpy(self._images), torch.from_numpy(self._labels)
