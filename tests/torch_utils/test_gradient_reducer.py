"""Means of gradients over processes: the same to the bit whether they travel during the backward pass or after it."""

import pytest
import torch

from tests.helpers.processes import run_many, run_two
from torch_utils import distributed
from torch_utils.gradient_reducer import GradientReducer, buckets_of, usual_size

BUCKET_SIZES = (1, 300, 32 << 20)


def tiny_params(rank: int) -> list[torch.nn.Parameter]:
    """Five parameters: both ranks have gradients, none has, only one has, another dtype, another memory format."""
    shapes = [[3], [2, 2], [4], [2], [2, 3, 2, 2]]
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    params[3] = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    for index in (0, 3, 4):
        params[index].grad = torch.full_like(params[index], 10.0 * index + rank)
    params[4].grad = params[4].grad.to(memory_format=torch.channels_last)
    if rank == 1:
        params[2].grad = torch.full_like(params[2], 6.0)
    return params


def averaged(bucket_bytes: int) -> list[torch.Tensor | None]:
    params = tiny_params(distributed.get_rank())
    GradientReducer(params, bucket_bytes=bucket_bytes).finish()
    return [p.grad for p in params]


def averages() -> dict:
    return {"grads": [averaged(size) for size in (1, 50, 32 << 20)]}


@pytest.fixture(scope="module")
def results_of_two(tmp_path_factory):
    return run_two(averages, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("bucketing", range(3))
def test_gradients_are_averaged(results_of_two, bucketing):
    for result in results_of_two:
        both, none, one, double, channels_last = result["grads"][bucketing]
        torch.testing.assert_close(both, torch.full([3], 0.5))
        assert none is None
        torch.testing.assert_close(one, torch.full([4], 3.0))
        torch.testing.assert_close(double, torch.full([2], 30.5, dtype=torch.float64))
        torch.testing.assert_close(channels_last, torch.full([2, 3, 2, 2], 40.5))


FACTORS = ("first_pass_only", "of_rank_1", "sometimes", "never")


class Uneven(torch.nn.Module):
    """Layers whose gradients arrive in another order on every rank, and some that not everybody uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(9, 9) for _ in range(5))
        self.frozen = torch.nn.Linear(9, 9)
        self.factors = torch.nn.ParameterDict({name: torch.randn(9) for name in FACTORS})

    def forward(self, x: torch.Tensor, is_first_pass: bool, step: int) -> torch.Tensor:
        rank = distributed.get_rank()
        order = [(index * (rank + 1) + step) % 5 for index in range(5)]
        for index in order:
            x = self.frozen(self.layers[index](x)).tanh()
        if is_first_pass:
            x = x * self.factors["first_pass_only"]
        if rank == 1:
            x = x * self.factors["of_rank_1"]
        if rank == 2 and step == 2:  # two steps have made everybody believe that it is never used
            x = x * self.factors["sometimes"]
        return x


def penalty(module: Uneven, x: torch.Tensor, step: int) -> torch.Tensor:
    """A loss with second derivatives."""
    x = x.detach().requires_grad_(True)
    (grads,) = torch.autograd.grad(module(x, False, step).sum(), x, create_graph=True)
    return grads.square().sum()


def train(bucket_bytes: int, is_overlapped: bool) -> dict:
    """Gradients of four steps of two passes each, and how many buckets had left before each `finish()`."""
    module = Uneven()
    reducer = GradientReducer(module.parameters(), is_overlapped, bucket_bytes)
    generator = torch.Generator().manual_seed(distributed.get_rank())
    local, grads, early = [], [], []
    for step in range(4):
        module.zero_grad(set_to_none=True)
        module.requires_grad_(True)
        module.frozen.requires_grad_(step == 3)
        x = torch.randn(4, 9, generator=generator)
        module(x, True, step).square().sum().backward()
        loss = penalty(module, x, step)
        with reducer.overlapping():
            loss.backward()
        module.requires_grad_(False)
        early.append(reducer.num_launched)
        local.append([None if p.grad is None else p.grad.clone() for p in module.parameters()])
        reducer.finish()
        grads.append([p.grad for p in module.parameters()])
    return {"local": local, "grads": grads, "early": early, "num_buckets": len(reducer.buckets)}


def uneven_steps() -> dict:
    return {
        (size, is_overlapped, attempt): train(size, is_overlapped)
        for size in BUCKET_SIZES
        for is_overlapped in (True, False)
        for attempt in range(2)
    }


@pytest.fixture(scope="module")
def results_of_three(tmp_path_factory):
    """Three: the sum of two numbers does not show in which order they were added."""
    return run_many(uneven_steps, tmp_path_factory.mktemp("three"), 3)


def assert_identical(a: list, b: list) -> None:
    for x, y in zip(a, b, strict=True):
        for p, q in zip(x, y, strict=True):
            assert (p is None) == (q is None)
            assert p is None or torch.equal(p, q)


@pytest.mark.parametrize("size", BUCKET_SIZES)
def test_overlap_changes_no_bit(results_of_three, size):
    reference = results_of_three[0][size, False, 0]["grads"]
    for result in results_of_three:
        for attempt in range(2):
            assert_identical(result[size, True, attempt]["grads"], reference)


@pytest.mark.parametrize("size", BUCKET_SIZES)
def test_the_means_are_right(results_of_three, size):
    names = [name for name, _ in Uneven().named_parameters()]
    for step in range(4):
        local = [result[size, True, 0]["local"][step] for result in results_of_three]
        for name, mean, *own in zip(names, results_of_three[1][size, True, 0]["grads"][step], *local, strict=True):
            if all(grad is None for grad in own):
                assert mean is None, name
            else:
                total = sum(grad for grad in own if grad is not None)
                torch.testing.assert_close(mean, total / 3, msg=name)


def test_the_cases_occur(results_of_three):
    names = [name for name, _ in Uneven().named_parameters()]
    for step, found in enumerate(results_of_three[0][300, True, 0]["grads"]):
        grads = dict(zip(names, found, strict=True))
        assert grads["factors.never"] is None
        assert (grads["factors.sometimes"] is None) == (step != 2)
        assert (grads["frozen.weight"] is None) == (step != 3)
        assert grads["factors.of_rank_1"].abs().sum() > 0
        assert grads["factors.first_pass_only"].abs().sum() > 0


def test_buckets_leave_during_the_backward_pass(results_of_three):
    """Also those whose unused parameters had to be learned first, at the first step."""
    for result in results_of_three:
        for size in BUCKET_SIZES[:2]:
            overlapped, plain = result[size, True, 0], result[size, False, 0]
            assert plain["early"] == [0] * 4
            assert overlapped["early"][0] == 0  # the first bucket holds what is never used
            assert overlapped["early"][1] >= overlapped["num_buckets"] // 2


def test_one_process_does_nothing():
    params = tiny_params(0)
    params[0].requires_grad_(True)
    reducer = GradientReducer(params)
    with reducer.overlapping():
        params[0].sum().backward()
    reducer.finish()
    assert params[0].grad.tolist() == [1, 1, 1]
    assert params[1].grad is None
    assert not params[0]._post_accumulate_grad_hooks


def test_buckets_keep_their_size():
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 5, 2 << 20, 1, 2)]
    params.insert(1, torch.nn.Parameter(torch.zeros(4, dtype=torch.float16)))
    buckets = buckets_of(params, 1 << 20)
    assert [[p.numel() for p in bucket] for bucket in buckets] == [[3, 5], [4], [2 << 20], [1, 2]]


def test_large_networks_have_about_eight_buckets():
    params = [torch.nn.Parameter(torch.empty(1 << 18, device="meta")) for _ in range(64)]
    assert len(buckets_of(params, usual_size(params))) == 8
    assert len(buckets_of(params[:2], usual_size(params[:2]))) == 2
