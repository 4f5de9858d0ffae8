"""Randomness as a function of position.

Every random number of a training step is drawn from a stream seeded with (seed, images seen, what for). Inside
`batch_rows`, `rand`, `randn` and `randint` draw for the whole batch, over all processes and gradient-accumulation
rounds, and return this micro-batch's rows: the same images meet the same noise however the batch is divided.
Outside of it they are torch's own functions on torch's own stream.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import torch


def derive(*key: int | str) -> int:
    """A 63-bit seed from a tuple of integers and words, the same on every machine and Python version."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for `key`."""
    return torch.Generator(device=device).manual_seed(derive(*key))


@dataclass(frozen=True)
class Rows:
    """Which samples of a batch a micro-batch holds: every `step`-th of `total`, from `start`.

    Strided rows keep the groups of the minibatch standard deviation layer the same however the batch is divided.
    """

    total: int
    start: int = 0
    step: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.start < self.step and self.total % self.step == 0

    def __len__(self) -> int:
        return self.total // self.step

    def take(self, batch: torch.Tensor) -> torch.Tensor:
        assert batch.shape[0] == self.total
        return batch[self.start :: self.step]


@dataclass
class _Stream:
    rows: Rows
    key: tuple[int | str, ...]
    generators: dict[torch.device, torch.Generator]

    def on(self, device: torch.device | str) -> torch.Generator:
        device = torch.device(device)
        if device not in self.generators:
            self.generators[device] = generator(*self.key, device=device)
        return self.generators[device]


_current: ContextVar[_Stream | None] = ContextVar("batch_rows", default=None)


@contextlib.contextmanager
def batch_rows(rows: Rows, *key: int | str) -> Iterator[None]:
    """Inside the block, random tensors whose first dimension is `len(rows)` come from the stream of `key`."""
    token = _current.set(_Stream(rows, key, {}))
    try:
        yield
    finally:
        _current.reset(token)


def randn(shape: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal numbers, shape `[n, ...]`."""
    return _draw(shape, device, lambda size, gen: torch.randn(size, generator=gen, device=device, dtype=dtype))


def rand(shape: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Uniform numbers in [0, 1), shape `[n, ...]`."""
    return _draw(shape, device, lambda size, gen: torch.rand(size, generator=gen, device=device, dtype=dtype))


def randint(high: int, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Integers in [0, high), shape `[n, ...]`."""
    return _draw(shape, device, lambda size, gen: torch.randint(high, size, generator=gen, device=device))


def _draw(shape, device, sample):
    stream = _current.get()
    if stream is None:
        return sample(tuple(shape), None)
    if shape[0] == len(stream.rows):
        return stream.rows.take(sample((stream.rows.total, *shape[1:]), stream.on(device)))
    # A part of the micro-batch (path length uses half of it): the whole batch's part, divided the same way.
    assert (shape[0] * stream.rows.step) <= stream.rows.total, "more samples than the micro-batch holds"
    part = Rows(shape[0] * stream.rows.step, stream.rows.start, stream.rows.step)
    return part.take(sample((part.total, *shape[1:]), stream.on(device)))
