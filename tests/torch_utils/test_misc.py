"""Copying by name, summaries, constants, checks and the sampler."""

import itertools
import warnings

import pytest
import torch

from torch_utils import misc


class Net(torch.nn.Module):
    def __init__(self, width=4, dtype=torch.float32, has_extra=False):
        super().__init__()
        self.first = torch.nn.Linear(3, width, dtype=dtype)
        self.second = torch.nn.Linear(width, 2, dtype=dtype)
        if has_extra:
            self.extra = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("w_avg", torch.randn(5))
        self.register_buffer("absent", None)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(torch.relu(hidden)), hidden


# Copying


def test_names():
    net = Net()
    names = [name for name, _ in misc.named_params_and_buffers(net)]
    assert names == ["first.weight", "first.bias", "second.weight", "second.bias", "w_avg"]
    assert [id(t) for t in misc.params_and_buffers(net)] == [id(t) for _, t in misc.named_params_and_buffers(net)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copy(dtype):
    src, dst = Net(), Net(dtype=dtype)
    dst.first.requires_grad_(False)
    assert misc.copy_params_and_buffers(src, dst, require_all=True) is None
    for ours, theirs in zip(misc.params_and_buffers(dst), misc.params_and_buffers(src), strict=True):
        assert torch.equal(ours.to(theirs.dtype), theirs)
        assert ours.grad_fn is None
    assert dst.first.weight.dtype == dtype
    assert not dst.first.weight.requires_grad
    assert dst.second.weight.requires_grad


def test_copy_of_part():
    src, dst = Net(), Net(has_extra=True)
    misc.copy_params_and_buffers(src, dst)
    assert torch.equal(dst.first.weight, src.first.weight)
    with pytest.raises(ValueError, match="extra"):
        misc.copy_params_and_buffers(src, dst, require_all=True)


def test_copy_refuses_other_shapes_before_it_starts():
    src, dst = Net(width=1), Net(width=4)
    before = [tensor.clone() for tensor in misc.params_and_buffers(dst)]
    with pytest.raises(ValueError, match=r"first.weight: shape \[1, 3\] is not \[4, 3\]"):
        misc.copy_params_and_buffers(src, dst)
    assert all(map(torch.equal, before, misc.params_and_buffers(dst)))


def test_transfer_reports_what_it_left():
    src, dst = Net(width=6), Net(width=4, has_extra=True)
    src.register_buffer("retired", torch.zeros(1))
    before = dst.first.weight.clone()
    report = misc.transfer_params_and_buffers(src, dst)
    assert report.copied == ["second.bias", "w_avg"]
    assert dict(report.skipped) == {
        "extra": "not in the snapshot",
        "first.weight": "shape [6, 3] is not [4, 3]",
        "first.bias": "shape [6] is not [4]",
        "second.weight": "shape [2, 6] is not [2, 4]",
    }
    assert report.unused == ["retired"]
    assert report.summary() == "2 of 6 tensors taken over, 4 start afresh; 1 of the snapshot's have no place here"
    assert "retired: in the snapshot, and not in this network" in report.left_out()
    assert len(report.left_out()) == 5
    assert misc.weights_in_common(src, dst) == []  # a bias fits, and follows weights that do not
    assert misc.weights_in_common(Net(), Net(has_extra=True)) == ["first.weight", "second.weight"]
    assert torch.equal(dst.w_avg, src.w_avg)
    assert torch.equal(dst.first.weight, before)


def test_transfer_can_leave_names_alone():
    src, dst = Net(), Net()
    report = misc.transfer_params_and_buffers(src, dst, exclude=r"w_avg|first\..*")
    assert report.copied == ["second.weight", "second.bias"]
    assert ("w_avg", "kept on purpose") in report.skipped
    assert not torch.equal(dst.first.weight, src.first.weight)


def test_transfer_keeps_the_filters_of_the_resolution():
    src, dst = Net(), Net()
    for net, value in ((src, 1.0), (dst, 2.0)):
        net.first.register_buffer("up_filter", torch.full([3], value))
        net.second.register_buffer("resample_filter", torch.ones(2))
    report = misc.transfer_params_and_buffers(src, dst)
    assert report.skipped == [("first.up_filter", "belongs to the resolution")]
    assert dst.first.up_filter.tolist() == [2, 2, 2]
    assert "second.resample_filter" in report.copied
    misc.copy_params_and_buffers(src, dst)
    assert dst.first.up_filter.tolist() == [1, 1, 1]


def test_transfer_between_equals_takes_everything():
    report = misc.transfer_params_and_buffers(Net(), Net())
    assert (len(report.copied), report.skipped, report.unused) == (5, [], [])
    assert report.summary() == "5 of 5 tensors taken over"


# Summary


def test_summary_counts_every_tensor_once(capsys):
    net = Net()
    x = torch.randn(7, 3)
    state = torch.get_rng_state()
    outputs = misc.print_module_summary(net, [x])
    assert torch.equal(outputs[0], net(x)[0])
    assert not outputs[0].requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.first._forward_hooks
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines() if line]
    cells = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert cells["Net"] == ["Parameters", "Buffers", "Output shape", "Datatype"]
    assert cells["first"] == ["16", "-", "[7, 4]", "float32"]
    assert cells["second"] == ["10", "-", "[7, 2]", "float32"]
    assert cells["<top-level>"] == ["-", "5", "[7, 2]", "float32"]
    assert cells["Total"] == ["26", "5", "-", "-"]


def test_summary_depth_and_redundant_rows(capsys):
    net = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Identity()))
    misc.print_module_summary(net, [torch.zeros(1, 2)])
    assert "0.1" not in capsys.readouterr().out
    misc.print_module_summary(net, [torch.zeros(1, 2)], skip_redundant=False)
    assert "0.1" in capsys.readouterr().out
    misc.print_module_summary(net, [torch.zeros(1, 2)], max_nesting=1)
    shown = capsys.readouterr().out
    assert "0.0" not in shown
    assert "Total       6" in shown


def test_summary_of_random_networks_keeps_the_random_state():
    net = torch.nn.Dropout(0.5)
    state = torch.get_rng_state()
    misc.print_module_summary(net, [torch.ones(9)])
    assert torch.equal(torch.get_rng_state(), state)


# Constants and checks


def test_constant_is_cached():
    first = misc.constant([1, 2, 3], shape=[2, 3])
    assert first is misc.constant((1, 2, 3), shape=(2, 3))
    assert first.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert first.dtype == torch.float32
    assert misc.constant([1, 2, 3], dtype=torch.int64).dtype == torch.int64
    assert misc.constant(0.5).shape == ()
    assert misc.constant([0.5]).shape == (1,)
    assert misc.constant(True) is not misc.constant(1.0, dtype=torch.float64)


def test_constant_memory_format():
    x = misc.constant(1.0, shape=[2, 3, 4, 5], memory_format=torch.channels_last)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_constant_made_in_inference_mode_serves_training():
    with torch.inference_mode():
        misc.constant([17.25])
    w = torch.ones(1, requires_grad=True)
    (w * misc.constant([17.25])).backward()
    assert w.grad.item() == 17.25


def test_assert_shape():
    x = torch.zeros(2, 3)
    misc.assert_shape(x, [2, 3])
    misc.assert_shape(x, [None, 3])
    misc.assert_shape(torch.tensor(0.0), [])
    for shape in ([2], [2, 3, 1], [2, 4], [None, 2]):
        with pytest.raises(AssertionError):
            misc.assert_shape(x, shape)


def test_tracing_is_quiet():
    def checked(x):
        misc.assert_shape(x, [None, 3])
        return x + misc.constant(1.0)

    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(checked, torch.zeros(2, 3))
    assert traced(torch.ones(4, 3)).sum() == 24


def test_profiled_function():
    @misc.profiled_function
    def my_special_step(x):
        """Its own text."""
        return x + 1

    with torch.profiler.profile() as profile:
        assert my_special_step(torch.zeros(1)).item() == 1
    assert my_special_step.__doc__ == "Its own text."
    assert "my_special_step" in [event.key for event in profile.key_averages()]


def test_nan_to_num():
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert misc.nan_to_num(x, nan=0, posinf=1e5, neginf=-1e5).tolist() == [0, 1e5, -1e5]


def test_one_process_is_consistent():
    misc.check_ddp_consistency(Net())


# Sampler


def take(num, **kwargs):
    return list(itertools.islice(misc.InfiniteSampler(range(7), **kwargs), num))


def test_sampler_visits_everything_once_per_pass():
    indices = take(21, seed=3)
    passes = [indices[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(each) == list(range(7)) for each in passes)
    assert passes[0] != passes[1]
    assert indices == take(21, seed=3)
    assert indices != take(21, seed=4)


def test_sampler_stream_does_not_depend_on_the_number_of_ranks():
    stream = take(30)
    for num_replicas in (2, 3):
        ranks = [take(10, rank=rank, num_replicas=num_replicas) for rank in range(num_replicas)]
        merged = list(itertools.chain.from_iterable(zip(*ranks, strict=True)))
        assert merged == stream[: 10 * num_replicas]


def test_sampler_starts_anywhere():
    assert take(10, start_idx=13) == take(23)[13:]
    assert take(5, start_idx=12, rank=1, num_replicas=2) == take(22)[13::2]


def test_sampler_without_shuffling():
    assert take(9, shuffle=False) == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    repeated = take(14, window_size=0)
    assert repeated[:7] == repeated[7:]
