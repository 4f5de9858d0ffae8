"""Kernels against the plain PyTorch ops: on random shapes, in every layout and precision, with their derivatives."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.helpers.golden import ROOT
from torch_utils.ops import cpu_build, dispatch, kernels
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d

# A separated filter is so to 1e-7.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2, torch.float64: 1e-6}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def has_cpu_kernels():
    status = dispatch.readiness("cpu")
    if not status.ready:
        pytest.skip(f"no CPU kernels on this machine: {status.reason}")


@pytest.fixture(params=DEVICES)
def device(request):
    """Every device that this machine has; a GPU without kernels is a failure."""
    status = dispatch.readiness(request.param)
    assert status.ready, status.reason
    return request.param


def derivatives(op, x, b, impl, probe_seed=0):
    """y, the gradients of y with respect to x and b, and the derivative of those in a random direction."""
    x, b = x.detach().requires_grad_(True), b.detach().requires_grad_(True)
    with dispatch.forced(impl):
        y = op(x, b)
        if y.numel() == 0:
            return [y]
        gen = torch.Generator().manual_seed(probe_seed)
        dy = torch.randn(y.shape, generator=gen).to(y).requires_grad_(True)
        dx, db = torch.autograd.grad(y, [x, b], dy, create_graph=True)
        ddx, ddb = (torch.randn(t.shape, generator=gen).to(y) for t in (dx, db))
        (second,) = torch.autograd.grad([dx, db], dy, [ddx, ddb])
    return [y, dx, db, second]


def compare(op, x, b, device="cpu"):
    """A device's kernel in the precision of x against plain PyTorch in float64 on the processor."""
    actual = [y.cpu() for y in derivatives(op, x.to(device), b.to(device), "cuda")]
    expected = derivatives(op, x.double(), b.double(), dispatch.REFERENCE)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == x.dtype
        # A bias' gradient sums over dx and may cancel: it is judged by no less than the size that such a sum has.
        scale = max(e.norm(), expected[1].norm()) if e.ndim == 1 else e.norm()
        assert (a.double() - e).norm() <= TOLERANCES[x.dtype] * scale


def has_kernels(device, x):
    """Of float16 the processor has none."""
    return device == "cuda" or x.dtype != torch.float16


@st.composite
def images(draw):
    """Batches of images in odd sizes and layouts: dense either way, slices with gaps, transposed, expanded, empty."""
    n, c = draw(st.integers(0, 3)), draw(st.sampled_from([1, 3, 5, 16, 17, 33]))
    h, w = draw(st.integers(1, 21)), draw(st.integers(1, 21))
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    layout = draw(st.sampled_from(["nchw", "channels_last", "gaps", "transposed", "expanded"]))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shape = {"gaps": [n, c, h, 2 * w], "transposed": [n, c, w, h], "expanded": [1, c, h, w]}.get(layout, [n, c, h, w])
    x = torch.randn(shape, generator=gen).to(dtype)
    b = torch.randn([c], generator=gen).to(dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "gaps":
        x = x[..., ::2]
    elif layout == "transposed":
        x = x.transpose(2, 3)
    elif layout == "expanded":
        x = x.expand(n, c, h, w)
    return x, b


def filters(two_dimensions=True):
    def make(shape, seed):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    tap_counts = st.sampled_from([1, 2, 3, 4, 6, 7, 12, 24])
    one = st.builds(lambda n, seed: make([n], seed), tap_counts, st.integers(0, 9))
    two = st.builds(lambda h, w, seed: make([h, w], seed), tap_counts, tap_counts, st.integers(0, 9))
    return st.one_of(st.none(), one, two) if two_dimensions else st.one_of(st.none(), one)


paddings = st.lists(st.integers(-3, 14), min_size=4, max_size=4)


@FEW
@given(
    images(),
    st.sampled_from(["linear", "relu", "lrelu"]),
    st.sampled_from([None, 0.0, 0.7, 1.3]),
    st.floats(0.1, 3),
    st.sampled_from([None, -0.5]),
    st.sampled_from([1, -1]),
)
def test_bias_act(device, image, act, clamp, gain, alpha, sign):
    assume(has_kernels(device, image[0]))
    compare(lambda x, b: bias_act(x, b, act=act, alpha=alpha, gain=sign * gain, clamp=clamp), *image, device)


@FEW
@given(
    images(),
    filters(),
    st.lists(st.sampled_from([1, 2, 3, 4]), min_size=2, max_size=2),
    st.lists(st.sampled_from([1, 2, 4]), min_size=2, max_size=2),
    paddings,
    st.booleans(),
    st.sampled_from([1.0, 0.3, -2.0]),
)
def test_upfirdn2d(device, image, f, up, down, padding, flip, gain):
    assume(has_kernels(device, image[0]))

    def op(x, b):
        return upfirdn2d(x + b[:, None, None], beside(x, f), up, down, padding, flip, gain)

    if is_possible(op, *image):
        compare(op, *image, device)


@FEW
@given(
    images(),
    filters(),
    filters(),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from([1, 2, 4]),
    paddings,
    st.sampled_from([None, 0.5, 2.0]),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.booleans(),
)
def test_filtered_lrelu(device, image, fu, fd, up, down, padding, clamp, slope, flip):
    assume(has_kernels(device, image[0]))

    def op(x, b):
        return filtered_lrelu(x, beside(x, fu), beside(x, fd), b, up, down, padding, 1.4, slope, clamp, flip)

    if is_possible(op, *image):
        compare(op, *image, device)


def beside(x, f):
    """A filter, or None, on the device of x."""
    return None if f is None else f.to(x.device)


def is_possible(op, x, b):
    try:
        with dispatch.forced(dispatch.REFERENCE), torch.no_grad():
            op(x, b)
    except ValueError:  # the padding leaves nothing
        return False
    return True


TWELVE = torch.hann_window(14, periodic=False)[1:-1] / 6.5
TWENTY_FOUR = torch.hann_window(26, periodic=False)[1:-1] / 12.5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("fd", [TWELVE, torch.outer(TWELVE, TWELVE) + 0.01], ids=["separable", "radial"])
@pytest.mark.parametrize(("up", "fu"), [(2, TWELVE), (4, TWENTY_FOUR)])
def test_the_layers_of_stylegan3_in_bfloat16(device, up, fu, fd, layout):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn([2, 19, 36, 36], generator=gen).bfloat16().contiguous(memory_format=layout)
    b = torch.randn([19], generator=gen).bfloat16()

    def op(x, b):
        return filtered_lrelu(x, beside(x, fu), beside(x, fd), b, up, 2, [9, 8, 7, 10], clamp=256)

    compare(op, x, b, device)


def test_results_have_the_layout_of_the_input():
    x = torch.randn(2, 5, 12, 12).contiguous(memory_format=torch.channels_last)
    for y in (bias_act(x, act="lrelu"), upfirdn2d(x, TWELVE, padding=6), filtered_lrelu(x, TWELVE, TWELVE, padding=12)):
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_rows_are_the_same_however_they_are_divided_over_threads():
    x = torch.randn(1, 3, 90, 40, requires_grad=True)

    def run():
        y = filtered_lrelu(x, TWELVE, TWELVE, up=2, down=2, padding=11, clamp=0.5)
        return y, *torch.autograd.grad(y.square().sum(), x)

    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 1, 2, 3):
            torch.set_num_threads(number)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(dx, results[0][1])


def test_nan_stays_visible():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = float("nan")
    for y in (bias_act(x, act="lrelu", clamp=1), upfirdn2d(x, torch.ones(3)), filtered_lrelu(x, clamp=1)):
        assert y.isnan().any()
    assert bias_act(x.bfloat16()).isnan().sum() == 1


def test_what_kernels_do_not_take_runs_as_plain_pytorch():
    for act, gain in (("swish", None), ("tanh", None), ("selu", -1.0)):
        assert torch.equal(
            bias_act(x := torch.randn(2, 3), act=act, gain=gain), bias_act(x, act=act, gain=gain, impl="ref")
        )
    half = torch.randn(1, 1, 4, 4).half()
    assert bias_act(half).dtype == torch.float16


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_operators_keep_the_rules_of_torch_library(layout):
    x = torch.randn(2, 5, 9, 8).contiguous(memory_format=layout).requires_grad_(True)
    b = torch.randn(5, requires_grad=True)
    f = torch.randn(4)
    lrelu = (x, f, f, b, 2, 2, [3, 2, 3, 2], 1.4, 0.2, 0.9, False, True)
    _, mask = kernels.ops.filtered_lrelu(*lrelu)
    small = torch.randn(2, 5, 9, 8).contiguous(memory_format=layout).requires_grad_(True)
    derivative = (small, mask, f, f, 2, 2, [3, 3], [0, 0], [9, 8], 5.6, 0.2, True, True, list(mask.shape[1:]))
    act = (x, b, 1, 0.2, 1.4, 0.9, True)
    y, signs = kernels.ops.bias_act(*act)
    cases = {
        "bias_act": act,
        "bias_act_derivative": (x, signs, list(y.stride()), 0.2, 1.4),
        "upfirdn2d": (x, f, [2, 1], [1, 2], [3, 2, 1, 4], False, 1.5),
        "filtered_lrelu": lrelu,
        "filtered_lrelu_derivative": derivative,
    }
    for name, args in cases.items():
        checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
        torch.library.opcheck(
            getattr(kernels.ops, name).default,
            args,
            test_utils=checks[: 3 if name in ("bias_act", "filtered_lrelu") else 4],
        )


def test_torch_compile_sees_through_them():
    def op(x, b):
        return bias_act(filtered_lrelu(x, TWELVE, TWELVE, b, up=2, down=2, padding=11), act="lrelu").square().sum()

    x, b = torch.randn(1, 3, 12, 12, requires_grad=True), torch.randn(3)
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    assert torch.equal(torch.autograd.grad(compiled(x, b), x)[0], torch.autograd.grad(op(x, b), x)[0])


# Building.


def run_python(code, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


ADD = (
    "import torch; from torch_utils.ops.bias_act import bias_act; from torch_utils.ops import dispatch;"
    "x = torch.ones(1, 1); assert bias_act(x, x[0]).item() == 2; print(dispatch.describe('cpu'))"
)


def test_two_processes_build_once(tmp_path):
    processes = [run_python(ADD, TORCH_EXTENSIONS_DIR=str(tmp_path)) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    assert sum("Building the CPU kernels" in stderr for _, stderr in outputs) == 1
    assert all("cpu kernels for bias_act" in stdout for stdout, _ in outputs)
    (library,) = tmp_path.glob("spider_cpu_*/spider_cpu.so")
    assert not list(tmp_path.glob("building_*"))
    library.write_bytes(b"")  # a file that is broken is named, and training goes on without it
    stdout, stderr = run_python(ADD, TORCH_EXTENSIONS_DIR=str(tmp_path)).communicate(timeout=300)
    assert "plain PyTorch ops" in stdout
    assert stderr.count("\n") == 1
    assert str(library.parent) in stderr


def test_no_compiler_gives_one_line_of_advice(tmp_path):
    process = run_python(ADD + "; bias_act(x)", TORCH_EXTENSIONS_DIR=str(tmp_path), CXX="no-such-compiler")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "plain PyTorch ops; no cpu kernels: no C++ compiler was found (no-such-compiler)" in stdout
    assert stderr.count("\n") == 1
    assert "apt install g++" in stderr


def test_a_compiler_that_fails_is_quoted(tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text(
        '#!/bin/sh\ncase "$1" in -*v*|-dump*) exec c++ "$@";; esac\necho "error: no such header" >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    process = run_python(ADD, TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"), CXX=str(compiler))
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "plain PyTorch ops" in stdout
    assert "no such header" in stderr
    assert not list((tmp_path / "cache").glob("building_*"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    process = run_python(ADD, TORCH_EXTENSIONS_DIR=str(tmp_path / "file"))
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "plain PyTorch ops" in stdout
    assert str(tmp_path / "file") in stderr


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path):
    """Python 3.12 brings no distutils, and PyTorch's builder asks for setuptools: this was a traceback in every op."""

    def build(folder):
        raise ModuleNotFoundError("No module named 'distutils'")

    monkeypatch.setattr(cpu_build, "build", build)
    monkeypatch.setattr(cpu_build, "cache_root", lambda: tmp_path)
    status = cpu_build.load()
    assert not status.ready
    assert "No module named 'distutils'" in status.reason
    assert status.advice == "pip install setuptools"


def test_the_cache_key_follows_what_the_library_depends_on(monkeypatch):
    key = cpu_build.cache_key()
    monkeypatch.setattr(cpu_build, "processor_flags", lambda: "flags: sse2")
    assert cpu_build.cache_key() != key


def test_self_test_at_the_command_line():
    result = subprocess.run(
        [sys.executable, "-m", "torch_utils.ops"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "cpu: kernels" in result.stdout
    assert result.stdout.count("  ok") == 8
    assert "WRONG" not in result.stdout
