"""The ops, plain PyTorch and kernels, against golden numbers, their definitions and numerical derivatives."""

import itertools
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.golden import golden_cases, relative_error
from torch_utils.ops import cuda_build, dispatch
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.modulated_conv2d import modulated_conv2d
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

OPS = {
    op.__name__: op for op in (bias_act, upfirdn2d, filter2d, upsample2d, downsample2d, filtered_lrelu, conv2d_resample)
}
GOLDEN_FILES = {
    "ops_bias_act": ["bias_act"],
    "ops_upfirdn2d": ["upfirdn2d", "filter2d", "upsample2d", "downsample2d"],
    "ops_filtered_lrelu": ["filtered_lrelu"],
    "ops_conv2d_resample": ["conv2d_resample"],
}
GOLDEN = [case for name, ops in GOLDEN_FILES.items() for op in ops for case in golden_cases(name, op)]
FILTERS = ("f", "fu", "fd")
# d2_* of conv2d_resample are stored in float32, filters are float32 everywhere.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}


def errors_of(case, dtype):
    """Relative error of each output of a golden case: y, first (d*) and second-order (d2_*) gradients."""
    tensors = {k: v if v is None or k in FILTERS else v.to(dtype) for k, v in case.inputs().items()}
    expected = case.outputs()
    wanted = [name for name, value in tensors.items() if value is not None and f"d{name}" in expected]
    leaves = {name: tensors[name].requires_grad_() for name in [*wanted, "dy"]}

    y = OPS[case.op](**{k: v for k, v in tensors.items() if not k.startswith("d")}, **case.args)
    grads = torch.autograd.grad((y * leaves["dy"]).sum(), [leaves[name] for name in wanted], create_graph=True)
    first = dict(zip(wanted, grads, strict=True))
    actual = {"y": y} | {f"d{name}": grad for name, grad in first.items()}
    if any(name.startswith("d2_") for name in expected):
        terms = [(grad * tensors[f"dd{name}"]).sum() for name, grad in first.items() if f"dd{name}" in tensors]
        grads = torch.autograd.grad(sum(terms), list(leaves.values()), allow_unused=True)
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            actual[f"d2_{name}"] = torch.zeros_like(leaf) if grad is None else grad
    compared = {name: value for name, value in expected.items() if value is not None}
    assert compared.keys() <= actual.keys()
    return {name: relative_error(actual[name], value) for name, value in compared.items()}


@pytest.mark.parametrize("impl", dispatch.IMPLS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case, dtype, impl):
    with dispatch.forced(impl):
        errors = errors_of(case, dtype)
    for name, error in errors.items():
        assert error < TOLERANCE[dtype], name


@pytest.mark.parametrize("case", golden_cases("ops_upfirdn2d", "setup_filter"))
def test_setup_filter_golden(case):
    taps = setup_filter(**case.args)
    assert taps.dtype == torch.float32
    assert relative_error(taps, case.outputs()["f_out"]) < 1e-6


X, TAPS, WEIGHT = torch.zeros(1, 2, 4, 4), torch.ones(3), torch.zeros(2, 2, 3, 3)

# Derivatives, numerically.


# Numbers of the official ops on a CPU: gradients of sum(y^2) with respect to the bias, and of sum(dx^2) + sum(db^3) with
# respect to x, for x = [-1.5, -0.4, 0, 0.3, 0.9, 2], b = [0.2, -0.3, 0.1, 0.4, -1, 0.5], clamp = 1.6.
ONE_DIMENSIONAL = {
    "linear": ([-2.6, -1.4, 0.2, 1.4, -0.2, 0], [30.159998, 6.160002, 1.04, 17.360003, -0.56, 0]),
    "relu": ([0, 0, 0.4, 2.8, 0, 0], [0, 0, 5.12, 116.479988, 0, 0]),
    "lrelu": ([-0.208, -0.112, 0.4, 2.8, -0.016, 0], [-0.045793, -0.029819, 5.12, 116.479988, -0.004997, 0]),
    "tanh": (
        [-0.443672, -0.767232, 0.197356, 0.767232, -0.197356, 0.052473],
        [0.187614, -0.028145, 0.982769, -0.401303, -0.53381, -0.011561],
    ),
    "sigmoid": (
        [0.072087, 0.147134, 0.261834, 0.296292, 0.236918, 0.129572],
        [0.015634, 0.053094, 0.081173, -0.001157, 0.087479, -0.030977],
    ),
    "elu": (
        [-0.396516, -0.499977, 0.2, 1.4, -0.172213, 0],
        [0.079687, 0.001696, 1.04, 17.360003, -0.374304, 0],
    ),
    "selu": (
        [-1.225598, -1.545385, 0.220795, 1.545562, -0.532297, 0],
        [-1.575115, -0.085409, 1.297918, 22.647795, -0.971797, 0],
    ),
    "softplus": (
        [0.103231, 0.267564, 0.781586, 1.474271, 0.612204, 0],
        [0.041214, 0.299196, 3.132542, 13.087349, 1.814869, 0],
    ),
    "swish": (
        [0.005148, -0.164087, 0.115478, 1.540496, -0.08552, 0],
        [-0.002443, 0.059055, 0.356072, 35.12812, -0.10672, 0],
    ),
}


@pytest.mark.parametrize("impl", dispatch.IMPLS)
@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("act", ONE_DIMENSIONAL)
def test_bias_act_of_one_dimension(act, dim, impl):
    """The derivative raised: "invalid gradient at index 1 - got [] but expected shape compatible with [6]"."""
    x = torch.tensor([-1.5, -0.4, 0.0, 0.3, 0.9, 2.0], requires_grad=True)
    b = torch.tensor([0.2, -0.3, 0.1, 0.4, -1.0, 0.5], requires_grad=True)
    y = bias_act(x, b, dim=dim, act=act, clamp=1.6, impl=impl)
    dx, db = torch.autograd.grad(y.square().sum(), [x, b], create_graph=True)
    second = torch.autograd.grad(dx.square().sum() + db.pow(3).sum(), [x, b])
    expected_db, expected_second = map(torch.tensor, ONE_DIMENSIONAL[act])
    assert relative_error(db, expected_db) < 1e-5
    assert all(relative_error(d2, expected_second) < 1e-5 for d2 in second)


@pytest.mark.parametrize("dim", range(-4, 4))
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act_along_every_dimension(act, dim):
    torch.manual_seed(0)
    shape = (2, 3, 2, 5)
    x, b = randn(*shape), randn(shape[dim])
    results = []
    for impl in dispatch.IMPLS:
        y = bias_act(x, b, dim=dim, act=act, impl=impl)
        dx, db = torch.autograd.grad(y.pow(3).sum(), [x, b], create_graph=True)
        results.append([y, dx, db, *torch.autograd.grad(dx.pow(2).sum() + db.pow(2).sum(), [x, b])])
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize("impl", dispatch.IMPLS)
@pytest.mark.parametrize(
    ("x_dtype", "b_dtype", "y_dtype"),
    [
        (torch.float32, torch.float64, torch.float64), (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.float16, torch.float32), (torch.bfloat16, torch.float16, torch.float32),
        (torch.float32, torch.int64, torch.float32),
    ],
    ids=str,
)  # fmt: skip
def test_bias_of_another_dtype(x_dtype, b_dtype, y_dtype, impl):
    """It was refused; the official op adds as PyTorch does, and its result has the dtype of the sum."""
    x = torch.tensor([[1.0, -2.0]], dtype=x_dtype, requires_grad=True)
    b = torch.ones(2, dtype=b_dtype, requires_grad=b_dtype.is_floating_point)
    y = bias_act(x, b, act="lrelu", impl=impl)
    assert y.dtype == y_dtype
    assert relative_error(y, torch.tensor([[2.8284271, -0.2828427]])) < 1e-6
    y.sum().backward()
    assert x.grad.dtype == x_dtype
    assert not b.requires_grad or b.grad.dtype == b_dtype


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def check_derivatives(fn, *inputs):
    assert torch.autograd.gradcheck(fn, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(fn, inputs, fast_mode=True)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, 0.4])
def test_bias_act_derivatives(act, clamp):
    torch.manual_seed(0)
    check_derivatives(lambda x, b: bias_act(x, b, act=act, gain=1.3, clamp=clamp), randn(2, 3, 1, 2), randn(3))


@pytest.mark.parametrize("taps", [(3,), (2, 3)], ids=str)
@pytest.mark.parametrize(
    ("up", "down", "padding"), [(1, 1, [-1, 2, 0, 3]), (2, 1, 3), ([3, 1], [1, 2], 2), (2, 3, [0, 4, 5, -1])], ids=str
)
def test_upfirdn2d_derivatives(taps, up, down, padding):
    torch.manual_seed(0)
    f = torch.randn(taps)
    check_derivatives(lambda x: upfirdn2d(x, f, up=up, down=down, padding=padding, gain=1.5), randn(1, 2, 3, 4))


@pytest.mark.parametrize(("kernel", "up", "down"), list(itertools.product([1, 3], [1, 2], [1, 2])))
def test_conv2d_resample_derivatives(kernel, up, down):
    torch.manual_seed(0)
    f = torch.randn(4, 4)
    fn = lambda x, w: conv2d_resample(x, w, f, up=up, down=down, padding=kernel // 2, groups=2)  # noqa: E731
    check_derivatives(fn, randn(1, 2, 3, 4), randn(2, 1, kernel, kernel))


@pytest.mark.parametrize(("up", "down", "clamp"), [(1, 1, None), (2, 1, 0.5), (2, 2, None)], ids=str)
def test_filtered_lrelu_derivatives(up, down, clamp):
    torch.manual_seed(0)
    fu, fd = torch.randn(4), torch.randn(3, 3)
    fn = lambda x, b: filtered_lrelu(x, fu, fd, b, up=up, down=down, padding=3, clamp=clamp)  # noqa: E731
    check_derivatives(fn, randn(1, 2, 2, 3), randn(2))


def two_derivatives(op, x):
    """y, the gradient of sum(y^2), and that of the gradient's own square, for `x` and what else `op` holds."""
    x = x.clone().requires_grad_(True)
    y = op(x)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return y, first, *torch.autograd.grad(first.square().sum(), x)


# What a caller does to a result in place.

SHORT = setup_filter([1, 3, 3, 1])
STYLES = torch.tensor([[1.0, -0.5], [0.3, 2.0]])
IN_PLACE = {
    **{act: lambda x, act=act: bias_act(x, x[0, :, 0, 0], act=act) for act in ACTIVATIONS if act not in ("tanh", "sigmoid")},
    "tanh times 2": lambda x: bias_act(x, act="tanh", gain=2),
    "sigmoid times 2": lambda x: bias_act(x, act="sigmoid", gain=2),
    "linear with a gain": lambda x: bias_act(x, gain=0.7),
    "linear with a clamp": lambda x: bias_act(x, clamp=0.5),
    "lrelu with a clamp": lambda x: bias_act(x, act="lrelu", clamp=0.5),
    "upfirdn2d": lambda x: upfirdn2d(x, SHORT, up=2, down=[1, 2], padding=3),
    "filtered_lrelu": lambda x: filtered_lrelu(x, SHORT, SHORT, x[0, :, 0, 0], up=2, down=2, padding=4, clamp=0.5),
    "conv2d_resample up": lambda x: conv2d_resample(x, WEIGHT + 0.1, SHORT, up=2, padding=1),
    "conv2d_resample down": lambda x: conv2d_resample(x, WEIGHT + 0.1, SHORT, down=2, padding=1),
    "conv2d_resample 1x1 up": lambda x: conv2d_resample(x, WEIGHT[:, :, :1, :1] + 0.1, SHORT, up=2),
    "modulated_conv2d": lambda x: modulated_conv2d(x, WEIGHT + 0.1, STYLES, padding=1),
    "modulated_conv2d grouped": lambda x: modulated_conv2d(x, WEIGHT + 0.1, STYLES, grouped=True, padding=1),
}  # fmt: skip


@pytest.mark.parametrize("impl", dispatch.IMPLS)
@pytest.mark.parametrize("name", IN_PLACE)
def test_results_may_be_changed_in_place(name, impl):
    """The kernels kept their output for the backward pass, which refused one that `add_` had changed."""

    def changed(x):
        y = IN_PLACE[name](x)
        y.add_(0.3)
        y *= 2
        return y

    torch.manual_seed(0)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float32)
    with dispatch.forced(impl):
        actual, expected = two_derivatives(changed, x), two_derivatives(lambda x: (IN_PLACE[name](x) + 0.3) * 2, x)
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < 1e-6


@pytest.mark.parametrize("act", ["tanh", "sigmoid"])
def test_activations_that_need_their_result_say_so(act):
    """As in the official code on a CPU."""
    y = bias_act(torch.ones(1, 1, requires_grad=True), act=act)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(("act", "clamp"), [("linear", None), ("lrelu", None), ("linear", 1.0), ("relu", 0.5)])
def test_the_backward_pass_keeps_signs_and_nothing_else(act, clamp):
    """1,600 elements were kept in 6,400 bytes; two bits for each are 400."""
    if not dispatch.readiness("cpu").ready:
        pytest.skip("plain PyTorch keeps what it needs")
    kept = []
    x, b = torch.randn(4, 4, 10, 10, requires_grad=True), torch.randn(4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        bias_act(x, b, act=act, gain=1.5, clamp=clamp)
    assert kept == ([] if act == "linear" and clamp is None else [400])


# Definitions, word for word.


def literal_upfirdn2d(x, f, up, down, padding, flip_filter=False, gain=1):
    """Zeros really inserted, every position really filtered, unwanted ones thrown away."""
    n, c, h, w = x.shape
    f = torch.ones(1, 1, dtype=x.dtype) if f is None else f.to(x.dtype)
    f = gain * (torch.outer(f, f) if f.ndim == 1 else f)
    upsampled = x.new_zeros(n, c, h * up[1], w * up[0])
    upsampled[:, :, :: up[1], :: up[0]] = x
    kernel = f if flip_filter else f.flip([0, 1])
    padded = F.pad(F.pad(upsampled, [max(p, 0) for p in padding]), [min(p, 0) for p in padding])
    y = F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None])
    return y.reshape(n, c, *y.shape[2:])[:, :, :: down[1], :: down[0]]


def random_filter(rng, sizes=(1, 2, 3, 4, 5)):
    height, width = rng.choice(sizes), rng.choice(sizes)
    return rng.choice([None, torch.randn(width), torch.randn(height, width)])


@pytest.mark.parametrize("seed", range(60))
def test_upfirdn2d_is_its_definition(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    x = torch.randn(rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 7), rng.randint(1, 7), dtype=torch.float64)
    f = random_filter(rng)
    up, down = ([rng.randint(1, 3) for _ in "xy"] for _ in range(2))
    padding = [rng.randint(-3, 9) for _ in range(4)]
    args = dict(up=up, down=down, padding=padding, flip_filter=rng.random() < 0.5)
    width, height = (1, 1) if f is None else (f.shape[-1], f.shape[0])
    fits = x.shape[3] * up[0] + sum(padding[:2]) >= width and x.shape[2] * up[1] + sum(padding[2:]) >= height
    if not fits:
        with pytest.raises(ValueError, match="padding"):
            upfirdn2d(x, f, **args)
        return
    expected = literal_upfirdn2d(x, f, **args, gain=2.0)
    assert relative_error(upfirdn2d(x, f, **args, gain=2.0), expected) < 1e-6


@pytest.mark.parametrize("seed", range(40))
def test_conv2d_resample_is_its_definition(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    groups, kernel, up, down = rng.randint(1, 2), rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 3)
    x = torch.randn(2, 2 * groups, rng.randint(4, 7), rng.randint(4, 7), dtype=torch.float64)
    w = torch.randn(3 * groups, 2, kernel, rng.randint(1, 4), dtype=torch.float64)
    f = random_filter(rng, sizes=(3, 4, 5))
    padding = [rng.randint(0, 3) for _ in range(4)]
    flips = dict(flip_weight=rng.random() < 0.5, flip_filter=rng.random() < 0.5)
    taps = [1, 1] if f is None else [f.shape[-1], f.shape[0]]

    around = list(padding)
    for axis in (0, 1):
        around[2 * axis] += (taps[axis] + up - 1) // 2 * (up > 1) + (taps[axis] - down + 1) // 2 * (down > 1)
        around[2 * axis + 1] += (taps[axis] - up) // 2 * (up > 1) + (taps[axis] - down) // 2 * (down > 1)
    f_up, f_down = f if up > 1 else None, f if down > 1 else None
    expected = literal_upfirdn2d(x, f_up, [up] * 2, [1, 1], around, flips["flip_filter"], gain=up**2)
    expected = F.conv2d(expected, w if flips["flip_weight"] else w.flip([2, 3]), groups=groups)
    expected = literal_upfirdn2d(expected, f_down, [1, 1], [down] * 2, [0] * 4, flips["flip_filter"])
    actual = conv2d_resample(x, w, f, up=up, down=down, padding=padding, groups=groups, **flips)
    assert relative_error(actual, expected) < 1e-6


def test_filtered_lrelu_is_its_definition():
    torch.manual_seed(0)
    x, b = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    fu, fd = setup_filter(torch.rand(8)), setup_filter(torch.rand(6, 6))
    fine = literal_upfirdn2d(x + b[:, None, None], fu, [2, 2], [1, 1], [7, 6, 5, 4], gain=4)
    fine = torch.where(fine > 0, fine, 0.1 * fine).mul(1.7).clamp(-0.5, 0.5)
    expected = literal_upfirdn2d(fine, fd, [1, 1], [2, 2], [0] * 4)
    actual = filtered_lrelu(x, fu, fd, b, up=2, down=2, padding=[7, 6, 5, 4], gain=1.7, slope=0.1, clamp=0.5)
    assert relative_error(actual, expected) < 1e-6


@pytest.mark.parametrize("taps", [[1, 3, 3, 1], [1, 2, 1], list(range(1, 9))], ids=str)
@pytest.mark.parametrize("factor", [2, 3])
def test_resampling_keeps_sizes_and_constants(taps, factor):
    """A normalised filter changes no constant image away from the border, once it is smooth enough for the factor."""
    x, f = torch.ones(1, 2, 24, 18), setup_filter(taps)
    assert filter2d(x, f).shape == x.shape
    assert upsample2d(x, f, up=factor).shape == (1, 2, 24 * factor, 18 * factor)
    down = downsample2d(x, f, down=factor)
    assert down.shape == (1, 2, 24 // factor, 18 // factor)
    torch.testing.assert_close(down[:, :, 2:-2, 2:-2], torch.ones_like(down[:, :, 2:-2, 2:-2]))
    torch.testing.assert_close(upsample2d(x, f, up=factor).mean(), torch.tensor(1.0), rtol=0.2, atol=0)


# Kinds of tensors.


def calls(x):
    """Every op once on `x` [N, 4, H, W]."""
    f, b, w = setup_filter([1, 3, 3, 1]), torch.ones(4).to(x.dtype), torch.ones(2, 4, 3, 3).to(x.dtype) / 36
    return {
        "bias_act": lambda: bias_act(x, b, act="lrelu", clamp=2),
        "filter2d": lambda: filter2d(x, f),
        "upsample2d": lambda: upsample2d(x, f),
        "downsample2d": lambda: downsample2d(x, f),
        "filtered_lrelu": lambda: filtered_lrelu(x, f, f, b, up=2, down=2, padding=4),
        "conv up": lambda: conv2d_resample(x, w, f, up=2, padding=1),
        "conv down": lambda: conv2d_resample(x, w, f, down=2, padding=1),
    }


NAMES = list(calls(torch.zeros(1, 4, 4, 4)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str)
def test_half_precision(name, dtype, tolerance):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 8)
    y = calls(x.to(dtype))[name]()
    assert y.dtype == dtype
    assert relative_error(y, calls(x)[name]()) < tolerance


@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_is_of_no_account(name):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 8)
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (x.contiguous(memory_format=torch.channels_last), transposed, x.repeat(1, 2, 1, 1)[:, :4]):
        torch.testing.assert_close(calls(other)[name](), calls(x)[name](), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name):
    x = torch.zeros(0, 4, 6, 8, requires_grad=True)
    y = calls(x)[name]()
    assert y.shape[1:] == calls(torch.zeros(1, 4, 6, 8))[name]().shape[1:]
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert grad.shape == x.shape


def test_expanded_gradient():
    """sum() hands back a gradient without memory of its own."""
    x, f = torch.randn(1, 2, 4, 4, requires_grad=True), setup_filter([1, 3, 3, 1])
    (grad,) = torch.autograd.grad(upsample2d(x, f).sum(), x)
    (expected,) = torch.autograd.grad((upsample2d(x, f) * torch.ones(1, 2, 8, 8)).sum(), x)
    torch.testing.assert_close(grad, expected)


# What is beyond the kernels.

F48 = setup_filter(torch.hann_window(50, periodic=False)[1:-1])
F4 = setup_filter([1, 3, 3, 1])
IMAGE = torch.linspace(-1, 1, 60).sin().mul(3).cos().reshape(1, 2, 6, 5)


@pytest.fixture
def first_warnings(monkeypatch):
    """As in a process that has not warned yet, with kernels."""
    if not dispatch.readiness("cpu").ready:
        pytest.skip(f"no CPU kernels on this machine: {dispatch.readiness('cpu').reason}")
    monkeypatch.setattr(dispatch, "_warned", set())


def test_long_filters_run_as_the_official_code_runs_them():
    """`filtered_lrelu` of 48 taps and `upfirdn2d` of 47 raised ValueError: kernels take 32. Sums of the official ops."""
    x, b = IMAGE.clone().requires_grad_(True), torch.tensor([0.1, -0.7], requires_grad=True)
    y = filtered_lrelu(x, F48, F48, b, up=8, down=8, padding=[40, 39, 38, 41], clamp=0.5)
    dx, db = torch.autograd.grad(y.square().sum(), [x, b], create_graph=True)
    (second,) = torch.autograd.grad(dx.square().sum(), x)
    sums = [y.sum(), y.square().sum(), dx.square().sum(), *db, second.square().sum()]
    expected = [2.8619878, 2.2746413, 0.4331536, 3.1572821, -1.0081973, 0.0688162]
    assert relative_error(torch.stack(sums), torch.tensor(expected)) < 1e-5
    f47 = setup_filter(F48[:47], normalize=False)
    y = upfirdn2d(IMAGE, f47, up=2, padding=30, gain=4)
    assert relative_error(torch.stack([y.sum(), y.square().sum()]), torch.tensor([17.825481, 0.55788612])) < 1e-5


@pytest.mark.parametrize(
    ("call", "warning"),
    [
        (lambda x: filtered_lrelu(x, F48, F4, up=4, down=2, padding=30), "filters of up to 32 taps .* not of 48"),
        (lambda x: filtered_lrelu(x, F4, F48, up=4, down=2, padding=30), "filters of up to 32 taps .* not of 48"),
        (lambda x: upfirdn2d(x, torch.ones(3, 33), padding=20), "filters of up to 32 taps .* not of 33"),
        (lambda x: upsample2d(x, F48), "filters of up to 32 taps"),
        (lambda x: conv2d_resample(x, torch.ones(2, 2, 1, 1), F48, up=2), "filters of up to 32 taps"),
        (lambda x: upfirdn2d(x, F4, down=2**16, padding=3), "an up or down of up to 32768, not of 65536"),
        (lambda x: upfirdn2d(x, F4, down=[1, 2**32], padding=3), "an up or down of up to 32768"),
        (
            lambda x: upfirdn2d(x[..., :1], F4, up=[2**32, 1], padding=[3, 5 - 2**32, 0, 0]),
            "an up or down .* not of 4294967296",
        ),
        (
            lambda x: filtered_lrelu(x, F4, F4, up=2, down=2**16, padding=9),
            "an up or down of up to 32768, not of 65536",
        ),
    ],
)
def test_what_is_beyond_the_kernels_runs_with_one_warning(call, warning, first_warnings):
    """A factor that 32 bits do not hold once ended the process in the backward pass."""
    with pytest.warns(RuntimeWarning, match=f"the cpu kernels take {warning}.*plain PyTorch runs") as caught:
        actual = two_derivatives(call, IMAGE)
    assert len(caught) == 1
    with dispatch.forced(dispatch.REFERENCE), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = two_derivatives(call, IMAGE)
    assert all(map(torch.equal, actual, expected))


def test_a_dtype_that_kernels_do_not_take_is_said_once(first_warnings):
    x = IMAGE.half()
    with pytest.warns(RuntimeWarning, match="the cpu kernels do not take float16: plain PyTorch runs") as caught:
        upfirdn2d(filtered_lrelu(x, F4, F4, padding=9), F4)
    assert [warning.filename for warning in caught] == [__file__]


def test_channels_larger_than_a_gpu_counts(monkeypatch, first_warnings):
    """2^31 pixels and more, and calls of as many blocks, were refused everywhere: it is the limit of a GPU."""
    large, many = torch.empty(1, 1, 50000, 50000, device="meta"), torch.empty(2**16, 2**15, 1, 1, device="meta")
    everything = frozenset({torch.float32})
    provider = dispatch.Provider(lambda: dispatch.Readiness(True, ""), everything, cuda_build.LIMITS)
    monkeypatch.setitem(dispatch._providers, "meta", provider)
    monkeypatch.setitem(dispatch._readiness, "meta", dispatch.Readiness(True, ""))
    with pytest.warns(RuntimeWarning, match="up to 2147483647 pixels, .* not of 2500000000"):
        assert upfirdn2d(large, None, down=2).shape == (1, 1, 25000, 25000)
    with pytest.warns(RuntimeWarning, match="up to 2147483647 blocks, not of 2147483648"):
        assert upfirdn2d(many, None).shape == many.shape


@pytest.mark.parametrize("impl", dispatch.IMPLS)
def test_images_without_rows(impl):
    """What is padded round nothing is the bias."""
    x, b = torch.zeros(1, 2, 0, 3), torch.tensor([1.0, -1.0])
    assert torch.equal(upfirdn2d(x, TAPS, padding=3, impl=impl), torch.zeros(1, 2, 4, 7))
    y = filtered_lrelu(x, None, None, b, padding=[0, 0, 2, 0], gain=1, impl=impl)
    assert torch.equal(y, torch.zeros(1, 2, 2, 3))


# What a caller can get wrong.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bias_act(X, act="gelu"), ValueError, "act is 'gelu', not one of: linear"),
        (lambda: bias_act(X, impl="fast"), ValueError, "impl is 'fast', not one of: cuda, ref"),
        (lambda: bias_act(X, clamp=-1), ValueError, "clamp"),
        (lambda: bias_act(X, torch.zeros(3)), ValueError, r"b has shape \[3\]"),
        (lambda: bias_act(X, torch.zeros(2), dim=4), ValueError, "dim is 4"),
        (lambda: bias_act(X, torch.zeros(2, dtype=torch.complex64)), ValueError, "b must be"),
        (lambda: bias_act(X, [0, 0]), ValueError, "b must be"),
        (lambda: bias_act(X.int()), ValueError, "x must be"),
        (lambda: upfirdn2d(X[0], TAPS), ValueError, "x has shape"),
        (lambda: upfirdn2d(X.long(), TAPS), ValueError, "x must be"),
        (lambda: upfirdn2d(X, TAPS.double()), ValueError, "f must be"),
        (lambda: upfirdn2d(X, [1, 2, 1]), ValueError, "f must be"),
        (lambda: upfirdn2d(X, torch.ones(1, 1, 3)), ValueError, "f has shape"),
        (lambda: upfirdn2d(X, TAPS.clone().requires_grad_()), ValueError, "f requires a gradient"),
        (lambda: upfirdn2d(X, TAPS, up=0), ValueError, "up is 0"),
        (lambda: upfirdn2d(X, TAPS, down=[1, 2, 3]), ValueError, "down"),
        (lambda: upfirdn2d(X, TAPS, up=1.5), ValueError, "up is 1.5"),
        (lambda: upfirdn2d(X, TAPS, padding=[1, 2, 3]), ValueError, "padding"),
        (lambda: upfirdn2d(X, TAPS, padding=-1), ValueError, "padding"),
        (lambda: upfirdn2d(X, TAPS, impl="cpu"), ValueError, "impl"),
        (lambda: filtered_lrelu(X, TAPS, TAPS, up=[1, 2]), ValueError, "up"),
        (lambda: filtered_lrelu(X, TAPS, TAPS, clamp=-1), ValueError, "clamp"),
        (lambda: filtered_lrelu(X, impl="x"), ValueError, "impl"),
        (lambda: bias_act(X, gain=float("nan")), ValueError, "gain is nan, must be finite"),
        (lambda: bias_act(X, act="lrelu", alpha=float("inf")), ValueError, "alpha is inf"),
        (lambda: bias_act(X, clamp=float("nan")), ValueError, "clamp is nan"),
        (lambda: bias_act(X, torch.zeros(X.shape[1], device="meta")), ValueError, "b is on meta, must be on cpu"),
        (lambda: upfirdn2d(X, TAPS.to("meta")), ValueError, "f is on meta"),
        (lambda: upfirdn2d(X, TAPS, gain=float("inf")), ValueError, "gain is inf"),
        (lambda: filtered_lrelu(X, torch.ones(40), None), ValueError, "padding"),
        (lambda: filtered_lrelu(X, slope=float("nan")), ValueError, "slope is nan"),
        (lambda: filtered_lrelu(X, gain=float("inf")), ValueError, "gain is inf"),
        (lambda: filtered_lrelu(X, b=torch.zeros(X.shape[1] + 1)), ValueError, "b has shape"),
        (lambda: filtered_lrelu(X, b=torch.zeros(X.shape[1], dtype=torch.float64)), ValueError, "b must be"),
        (lambda: filtered_lrelu(X, TAPS.double()), ValueError, "fu must be"),
        (lambda: conv2d_resample(X, WEIGHT.double()), ValueError, "w must be"),
        (lambda: conv2d_resample(X, WEIGHT, groups=2), ValueError, "w has shape"),
        (lambda: conv2d_resample(X, WEIGHT, down=[1, 2]), ValueError, "down"),
        (lambda: conv2d_resample(X, WEIGHT, padding=-1), ValueError, "padding"),
        (lambda: setup_filter([]), ValueError, "f has shape"),
        (lambda: setup_filter([[1, 2]], separable=True), ValueError, "separable"),
        (lambda: setup_filter([1, 2], gain=float("nan")), ValueError, "gain is nan"),
        (lambda: setup_filter([1, float("inf")]), ValueError, "f has taps that are NaN or infinite"),
        (lambda: setup_filter([1, -1]), ValueError, "taps that sum to 0"),
        (lambda: setup_filter([1] * 8, gain=-2), ValueError, "gain is -2.0, must be at least 0"),
        (lambda: upfirdn2d(X, TAPS, gain=None), ValueError, "gain is None, must be a number"),
        (lambda: bias_act(X, gain="2"), ValueError, "gain is '2', must be a number"),
        (lambda: bias_act(X, clamp="2"), ValueError, "clamp is 2"),
        (lambda: conv2d_resample(X, WEIGHT.to("meta")), ValueError, "w is on meta, must be on cpu"),
        (
            lambda: modulated_conv2d(X, WEIGHT[:, :1], X[:, :, 0, 0]),
            ValueError,
            r"weight .* must be \[out, 2, kh, kw\]",
        ),
        (lambda: modulated_conv2d(X, WEIGHT, X[0, :, 0, 0]), ValueError, r"styles has shape \[2\], must be \[1, 2\]"),
        (lambda: modulated_conv2d(X, WEIGHT, X[:, :, 0, 0], input_gain=torch.ones(3)), ValueError, "input_gain has"),
        (lambda: modulated_conv2d(X, WEIGHT, X[:, :, 0, 0].to("meta")), ValueError, "styles is on meta"),
        (lambda: modulated_conv2d(X[0], WEIGHT, X[:, :, 0, 0]), ValueError, "x has shape"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Dispatch.


def test_setup_filter_kinds_of_input():
    expected = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    for f in ([1, 2, 1], (1, 2, 1), np.array([1, 2, 1]), torch.tensor([1, 2, 1])):
        torch.testing.assert_close(setup_filter(f), expected)
    assert setup_filter(None).shape == setup_filter(3.0).shape == (1, 1)
