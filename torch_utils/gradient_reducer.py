"""Gradients averaged over processes in flat buckets, while the backward pass that makes them still runs.

    reducer = GradientReducer(params)       # in the order in which a forward pass uses them
    ...                                     # any number of backward passes that add up
    with reducer.overlapping():             # around the last one
        loss.backward()
    reducer.finish()                        # now every rank's .grad is the mean

Buckets follow the order of the parameters, backwards, and never the order in which gradients happen to arrive: every rank
adds the same numbers in the same order in each run, with and without overlap. A process on its own does nothing here.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from torch_utils import distributed

IS_OVERLAPPED = True  # the one switch; bench/scaling.py and docs/scaling.md say what it brings
NUM_BUCKETS = 8  # about; the last one can hide behind nothing, and every one costs messages
SMALLEST_BUCKET, LARGEST_BUCKET = 1 << 20, 25 << 20  # bytes


@dataclass
class Bucket:
    """Parameters of one dtype and device, whose gradients travel together."""

    params: list[torch.nn.Parameter]
    awaited: set[torch.nn.Parameter] = field(default_factory=set)  # gradients that the running backward pass still owes
    flat: torch.Tensor | None = None  # what travels
    work: dist.Work | None = None
    is_outdated: bool = False  # a gradient changed after it had left

    def launch(self) -> None:
        self.flat = flatten(self.params)
        self.work = dist.all_reduce(self.flat, async_op=True)
        self.is_outdated = False

    def receive(self) -> None:
        """Wait for the sum, and put the mean into `.grad`."""
        self.wait()
        assert self.flat is not None
        unflatten(self.params, self.flat.div_(distributed.get_world_size()))

    def wait(self) -> None:
        assert self.work is not None
        self.work.wait()


class GradientReducer:
    """Averages `.grad` of `params` over the ranks; one for each kind of step, since each learns from different gradients.

    All ranks pass the same parameters in the same order. A gradient that is None on some ranks counts as zero there; one
    that is None on all stays None, so that the optimizer skips the parameter as it does in a single process.

    A bucket leaves as soon as the last backward pass has been through all its parameters. Which ones a pass never
    reaches (R1 and path lengths have no gradients for some biases) is learned at the first `finish()`, and not waited
    for. Where that turns out wrong, the bucket is sent again: the guess decides about the time only, never about numbers.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        is_overlapped: bool | None = None,
        bucket_bytes: int | None = None,
    ):
        """is_overlapped: False sends everything in `finish()`. bucket_bytes: by default a share of all gradients."""
        params = list(params)
        groups = buckets_of(reversed(params), usual_size(params) if bucket_bytes is None else bucket_bytes)
        self.buckets = [Bucket(group) for group in groups]
        self.is_overlapped = IS_OVERLAPPED if is_overlapped is None else is_overlapped
        self.num_launched = 0  # buckets leave in order: ranks whose gradients arrive in another one must meet
        self._is_observed = False  # whether the block of `overlapping` was entered since `finish`
        self._arrived: set[torch.nn.Parameter] = set()
        self._absent: set[torch.nn.Parameter] | None = None  # those that never arrive here; None before the first pass
        self._is_guess = False  # whether any rank knows of absent ones

    @contextlib.contextmanager
    def overlapping(self) -> Iterator[None]:
        """The last backward pass before `finish()` runs in this block. All ranks enter it, or none does."""
        if not (self.is_overlapped and distributed.is_joined()):
            yield
            return
        with contextlib.ExitStack() as hooks:
            self._is_observed = True
            for bucket in self.buckets:
                bucket.awaited = {p for p in bucket.params if p.requires_grad} - (self._absent or set())
                for param in bucket.params:
                    if param.requires_grad:
                        hook = functools.partial(self._take_note, bucket)
                        hooks.callback(param.register_post_accumulate_grad_hook(hook).remove)
            yield

    def _take_note(self, bucket: Bucket, param: torch.nn.Parameter) -> None:
        """A gradient is complete: buckets that waited for it leave."""
        assert param not in self._arrived, "one backward pass between overlapping() and finish()"
        self._arrived.add(param)
        bucket.awaited.discard(param)
        bucket.is_outdated = bucket.work is not None
        while self.num_launched < len(self.buckets) and not self.buckets[self.num_launched].awaited:
            self._launch_next()

    @torch.no_grad()
    def _launch_next(self) -> None:
        self.buckets[self.num_launched].launch()
        self.num_launched += 1

    @torch.no_grad()
    def finish(self) -> None:
        """Send what has not left yet, and wait for the means. On every rank."""
        if not distributed.is_joined():
            return
        while self.num_launched < len(self.buckets):
            self._launch_next()
        for bucket in self._outdated_anywhere():
            bucket.wait()
            bucket.launch()
        for bucket in self.buckets:
            bucket.receive()
            bucket.flat = bucket.work = None
        if self._is_observed and self._absent is None:
            self._learn_absent()
        self._is_observed = False
        self._arrived.clear()
        self.num_launched = 0

    def _outdated_anywhere(self) -> list[Bucket]:
        """Buckets that left too early on some rank. Only a guess can be wrong: where nobody made one, nobody asks."""
        if self._absent is None or not self._is_guess:
            return []
        device = self.buckets[0].params[0].device
        outdated = torch.tensor([float(bucket.is_outdated) for bucket in self.buckets], device=device)
        counts = distributed.all_sum(outdated).tolist()
        resent = [bucket for bucket, count in zip(self.buckets, counts, strict=True) if count]
        for bucket in resent:
            self._absent.difference_update(bucket.params)
        return resent

    def _learn_absent(self) -> None:
        """The parameters that the first overlapped backward pass did not reach on this rank."""
        self._absent = {param for bucket in self.buckets for param in bucket.params} - self._arrived
        self._is_guess = any(distributed.gather_objects(bool(self._absent)))


def usual_size(params: Sequence[torch.nn.Parameter]) -> int:
    """Bytes of a bucket."""
    total = sum(param.numel() * param.element_size() for param in params)
    return min(max(total // NUM_BUCKETS, SMALLEST_BUCKET), LARGEST_BUCKET)


def buckets_of(params: Iterable[torch.nn.Parameter], bucket_bytes: int) -> list[list[torch.nn.Parameter]]:
    """Groups of one dtype and device, each at most so many bytes or a single parameter."""
    buckets: list[list[torch.nn.Parameter]] = []
    filling: dict[tuple[torch.dtype, torch.device], tuple[list[torch.nn.Parameter], int]] = {}
    for param in params:
        key, size = (param.dtype, param.device), param.numel() * param.element_size()
        bucket, used = filling.get(key, ([], 0))
        if not bucket or used + size > bucket_bytes:
            bucket, used = [], 0
            buckets.append(bucket)
        bucket.append(param)
        filling[key] = (bucket, used + size)
    return buckets


def flatten(params: list[torch.nn.Parameter]) -> torch.Tensor:
    """All gradients in one row, then one flag per parameter: whether this rank has a gradient for it."""
    pieces = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in params]
    flags = torch.ones(len(params), dtype=params[0].dtype, device=params[0].device)
    for index, param in enumerate(params):
        if param.grad is None:
            flags[index] = 0  # a fill: copying a list to the GPU would wait for it
    return torch.cat([*pieces, flags])  # [numel + number of parameters]


def unflatten(params: list[torch.nn.Parameter], flat: torch.Tensor) -> None:
    """Into `.grad`; a parameter without a gradient on any rank keeps none."""
    *pieces, flags = flat.split([p.numel() for p in params] + [len(params)])
    # Reading the flags waits for the GPU: only where this rank has something to learn from them.
    is_known = all(p.grad is not None for p in params)
    is_used = [True] * len(params) if is_known else (flags > 0).tolist()
    for param, piece, used in zip(params, pieces, is_used, strict=True):
        if param.grad is not None:
            param.grad.copy_(piece.view_as(param))
        elif used:
            param.grad = piece.view_as(param).clone()
