"""Randomness as a function of position.

Every random number of a training step is drawn from a stream seeded with (seed, images seen, what for). Inside
`batch_rows`, `rand`, `randn` and `randint` draw for the whole batch, over all processes and gradient-accumulation
rounds, and return this micro-batch's rows: the same images meet the same noise however the batch is divided. Inside
`sample_rows` every sample has a stream of its own. Outside of both they are torch's own functions on torch's own stream.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

Sample = Callable[[tuple[int, ...], torch.Generator | None], torch.Tensor]  # shape, generator -> numbers


def derive(*key: int | str) -> int:
    """A 63-bit seed from a tuple of integers and words, the same on every machine and Python version."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for `key`."""
    return torch.Generator(device=device).manual_seed(derive(*key))


def spread(count: int, limit: int, *key: int | str) -> torch.Tensor:
    """Choose at most `limit` of `count` rows, int64, ascending: a random one of each of as many equal stretches.

    Every n-th row would be of one class where files of n classes take turns.
    """
    num = min(count, limit)
    if num == 0:
        return torch.arange(0)
    edges = torch.arange(num + 1) * count // num
    places = torch.rand([num], dtype=torch.float64, generator=generator("spread", *key))
    return edges[:-1] + (places * edges.diff()).long()


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
class _Generators:
    """One generator per device for a key."""

    key: tuple[int | str, ...]
    by_device: dict[torch.device, torch.Generator] = field(default_factory=dict)

    def on(self, device: torch.device | str) -> torch.Generator:
        device = torch.device(device)
        if device not in self.by_device:
            self.by_device[device] = generator(*self.key, device=device)
        return self.by_device[device]


@dataclass
class _BatchStream:
    """Numbers for the whole batch, of which these rows are taken."""

    rows: Rows
    generators: _Generators

    def draw(self, shape: Sequence[int], device: torch.device | str, sample: Sample) -> torch.Tensor:
        generator_here = self.generators.on(device)
        if shape[0] == len(self.rows):
            return self.rows.take(sample((self.rows.total, *shape[1:]), generator_here))
        # A part of the micro-batch (path length uses half of it): the whole batch's part, divided the same way.
        assert (shape[0] * self.rows.step) <= self.rows.total, "more samples than the micro-batch holds"
        part = Rows(shape[0] * self.rows.step, self.rows.start, self.rows.step)
        return part.take(sample((part.total, *shape[1:]), generator_here))


@dataclass
class _SampleStreams:
    """A stream of its own for every sample."""

    samples: list[_Generators]

    def draw(self, shape: Sequence[int], device: torch.device | str, sample: Sample) -> torch.Tensor:
        assert shape[0] == len(self.samples), "not one row per sample"
        return torch.cat([sample((1, *shape[1:]), generators.on(device)) for generators in self.samples])


_current: ContextVar[_BatchStream | _SampleStreams | None] = ContextVar("batch_rows", default=None)


@contextlib.contextmanager
def batch_rows(rows: Rows, *key: int | str) -> Iterator[None]:
    """Have random tensors in the block whose first dimension is `len(rows)` come from the stream of `key`."""
    with _drawing_from(_BatchStream(rows, _Generators(key))):
        yield


@contextlib.contextmanager
def sample_rows(keys: Sequence[tuple[int | str, ...]]) -> Iterator[None]:
    """Have row i of a random tensor in the block come from the stream of `keys[i]`, whatever the other rows are."""
    with _drawing_from(_SampleStreams([_Generators(key) for key in keys])):
        yield


@contextlib.contextmanager
def _drawing_from(stream: _BatchStream | _SampleStreams) -> Iterator[None]:
    token = _current.set(stream)
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


def _draw(shape: Sequence[int], device: torch.device | str, sample: Sample) -> torch.Tensor:
    stream = _current.get()
    return sample(tuple(shape), None) if stream is None else stream.draw(shape, device, sample)
