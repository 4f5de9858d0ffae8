"""The CUDA kernels without a GPU: run by an emulation on the processor, and compiled by NVRTC for four architectures."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.helpers import cuda_emulation
from tests.helpers.golden import ROOT, relative_error
from torch_utils.ops import cuda_build, cuda_ops, dispatch, kernels
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d

TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
GEN = torch.Generator().manual_seed(0)
F4, F12, F24 = (torch.randn(n, generator=GEN) for n in (4, 12, 24))
F2D = torch.randn(12, 12, generator=GEN)


@pytest.fixture
def emulated(monkeypatch):
    if shutil.which("c++") is None:
        pytest.skip("emulating CUDA needs a C++ compiler (c++)")
    if not dispatch.readiness("cpu").ready:
        pytest.skip("the derivatives are compared with those of the CPU kernels")
    monkeypatch.setattr(cuda_build, "launch", cuda_emulation.launch)


def images(*shape, dtype=torch.float32, layout=torch.contiguous_format):
    gen = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=gen).to(dtype).contiguous(memory_format=layout)


LAYERS = {
    "t": (2, 2, F12, F12),
    "radial": (2, 2, F12, F2D),
    "t up 4": (4, 2, F24, F12),
    "no up": (1, 2, None, F12),
    "down 4": (2, 4, F4, F24),
    "pointwise": (1, 1, None, None),
}


@pytest.mark.parametrize(
    ("layer", "padding", "dtype"),
    [
        *[(layer, [9, 8, 7, 10], torch.float32) for layer in LAYERS],
        ("t", [-3, 4, 2, -1], torch.float32),
        ("radial", [-3, 4, 2, -1], torch.float32),
        ("t", [9, 8, 7, 10], torch.float16),
        ("t", [9, 8, 7, 10], torch.bfloat16),
    ],
    ids=str,
)
def test_filtered_lrelu(emulated, layer, padding, dtype):
    """Forward, and the derivative with what the forward pass noted; planes of more than one tile, and less than one."""
    up, down, fu, fd = LAYERS[layer]
    for shape in ((1, 2, 40, 45), (2, 3, 13, 17)):
        x, b = images(*shape, dtype=dtype), images(shape[1], 1, 1, 1, dtype=dtype).flatten()
        forward = (fu, fd, b, up, down, padding, 1.4, 0.2, 3.0, False)
        y, notes = cuda_ops.filtered_lrelu(x, *forward, True)
        expected = filtered_lrelu(x.double(), fu, fd, b.double(), *forward[3:], impl="ref")
        assert relative_error(y, expected) < TOLERANCES[dtype]
        unnoted, _ = cuda_ops.filtered_lrelu(x, *forward, False)
        assert torch.equal(y, unnoted)

        exact = (x.double(), fu, fd, b.double(), *forward[3:], True)
        _, mask = kernels.ops.filtered_lrelu(*exact)
        dy = images(*y.shape, dtype=dtype)
        (wu, hu), (wd, hd) = cuda_ops.taps_of(fu), cuda_ops.taps_of(fd)
        offsets = ([wd - 1, hd - 1], [wu - 1 - padding[0], hu - 1 - padding[2]])
        backward = (fd, fu, down, up, *offsets, list(shape[2:]), 1.4 * up**2, 0.2, True, True, list(mask.shape[1:]))
        expected = kernels.ops.filtered_lrelu_derivative(dy.double(), mask, *backward)
        dx = cuda_ops.filtered_lrelu_derivative(dy, notes, *backward)
        if dtype == torch.float32:
            assert relative_error(dx, expected) < 1e-5
        else:  # a sample within a rounding of its bend may be on the other side of it than in float64
            assert relative_error(dx, expected) < 5e-2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("up", "down", "f", "gain"),
    [
        ([2, 2], [1, 1], torch.outer(F4, F4), 4.0), ([1, 1], [2, 2], torch.outer(F4, F4), 1.0), ([1, 1], [1, 1], F12, 1.0),
        ([2, 2], [1, 1], F12, 4.0), ([2, 1], [1, 2], F2D[:5, :3], 0.5), ([3, 3], [2, 2], F12[:7], -1.0),
        ([1, 1], [1, 1], None, 2.0),
    ],
)  # fmt: skip
def test_upfirdn2d(emulated, up, down, f, gain, layout):
    x = images(2, 5, 14, 41, layout=layout)
    for padding in ([2, 1, 3, 2], [5, -1, 0, 4]):
        y = cuda_ops.upfirdn2d(x, f, up, down, padding, False, gain)
        assert relative_error(y, upfirdn2d(x.double(), f, up, down, padding, gain=gain, impl="ref")) < 1e-5
        assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("clamp", [None, 1.3, 0.0])
def test_bias_act(emulated, clamp, dtype):
    limit = float("inf") if clamp is None else clamp
    for layout in (torch.contiguous_format, torch.channels_last):
        x, b = images(3, 5, 7, 9, dtype=dtype, layout=layout), images(5, 1, 1, 1, dtype=dtype).flatten()
        y, notes = cuda_ops.bias_act(x, b, 1, 0.2, 1.4, limit, True)
        assert torch.equal(y, cuda_ops.bias_act(x, b, 1, 0.2, 1.4, limit, False)[0])
        exact = x.double().requires_grad_(True)
        expected = bias_act(exact, b.double(), act="lrelu", gain=1.4, clamp=clamp, impl="ref")
        assert relative_error(y, expected) < TOLERANCES[dtype]
        assert y.stride() == x.stride()
        dx = cuda_ops.bias_act_derivative(torch.ones(y.shape, dtype=dtype), notes, y.stride(), 0.2, 1.4)
        (expected,) = torch.autograd.grad(expected.sum(), exact)
        assert relative_error(dx, expected) < TOLERANCES[dtype]


def test_nothing_to_do_launches_nothing(monkeypatch):
    monkeypatch.setattr(cuda_build, "launch", None)
    assert cuda_ops.bias_act(torch.empty(0, 3), None, 1, 1.0, 1.0, 1.0, True)[0].shape == (0, 3)
    assert cuda_ops.upfirdn2d(torch.empty(0, 3, 8, 8), F4, [1, 1], [1, 1], [0] * 4, False, 1.0).shape == (0, 3, 5, 5)


def test_too_many_blocks_are_refused():
    with pytest.raises(ValueError, match="divide the batch"):
        cuda_ops.blocks_for(2**31 * cuda_build.THREADS)


def test_an_odd_factor_is_not_fused():
    assert not cuda_ops.is_fused(F12, 3)
    assert not cuda_ops.is_fused(F2D[:3], 2)
    assert cuda_ops.is_fused(F2D, 2)


def test_tiles_fit_into_shared_memory():
    for dtype in cuda_build.ELEMENTS:
        for taps in (1, 12, 32):
            f = torch.ones(taps, taps)
            for up, down in ((1, 4), (4, 1), (4, 4), (2, 2)):
                way_up, way_down = (cuda_ops.Half(f, factor, (3, 2), False, 1.0) for factor in (up, down))
                tile, _ = cuda_ops.plan(dtype, way_up, way_down, (100, 100), cuda_ops.ACTIVATE)
                assert tile in cuda_ops.TILES


# NVRTC.

NOTE, DERIVATIVE = cuda_ops.ACTIVATE_AND_NOTE, cuda_ops.DERIVATIVE
STYLEGAN_LAYERS = [
    (NOTE, cuda_ops.Half(F12, 2, (9, 9), False, 4.0), cuda_ops.Half(F12, 2, (0, 0), False, 1.0)),
    (NOTE, cuda_ops.Half(F24, 4, (-5, -5), False, 16.0), cuda_ops.Half(F12, 2, (0, 0), False, 1.0)),
    (NOTE, cuda_ops.Half(F12, 2, (9, 9), False, 4.0), cuda_ops.Half(F2D, 2, (0, 0), False, 1.0)),
    (DERIVATIVE, cuda_ops.Half(F2D, 2, (11, 11), True, 1.0), cuda_ops.Half(F12, 2, (2, 2), True, 1.0)),
    (DERIVATIVE, cuda_ops.Half(F12, 2, (11, 11), True, 1.0), cuda_ops.Half(F24, 4, (28, 28), True, 1.0)),
]


@pytest.mark.parametrize("arch", ["sm_70", "sm_80", "sm_90", "sm_100"])
def test_every_kernel_compiles(arch):
    newest_that_forgot_sm_70 = 13
    version = nvrtc_or_skip()
    if arch == "sm_70" and int(version.split(".")[0]) >= newest_that_forgot_sm_70:
        pytest.skip(f"NVRTC {version} no longer knows sm_70")
    for dtype in cuda_build.ELEMENTS:
        element = (("ELEMENT", cuda_build.ELEMENTS[dtype]),)
        for mode, up, down in STYLEGAN_LAYERS:
            _, defines = cuda_ops.plan(dtype, up, down, (84, 84), mode)
            assert cuda_build.run_nvrtc(cuda_build.source_text("resample"), defines, arch)
        assert cuda_build.run_nvrtc(cuda_build.source_text("bias_act"), element, arch)
        factors = (
            ("UP_X", 2),
            ("UP_Y", 1),
            ("DOWN_X", 1),
            ("DOWN_Y", 3),
            ("TAPS_X", 4),
            ("TAPS_Y", 4),
            ("SEPARABLE", 0),
        )
        assert cuda_build.run_nvrtc(cuda_build.source_text("upfirdn2d"), element + factors, arch)


@pytest.mark.parametrize("arch", ["sm_70", "sm_80", "sm_90", "sm_100"])
def test_every_kernel_compiles_with_nvcc(arch, tmp_path):
    """The compiler of the toolkit, where there is one, has an opinion of its own."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on this machine")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if arch not in known:
        pytest.skip(f"this nvcc does not know {arch}")
    for dtype, element in cuda_build.ELEMENTS.items():
        mode, up, down = STYLEGAN_LAYERS[element]
        factors = {"UP_X": 2, "UP_Y": 1, "DOWN_X": 1, "DOWN_Y": 3, "TAPS_X": 4, "TAPS_Y": 4, "SEPARABLE": 0}
        for source, defines in (
            ("resample", cuda_ops.plan(dtype, up, down, (84, 84), mode)[1]),
            ("upfirdn2d", (("ELEMENT", element), *factors.items())),
            ("bias_act", (("ELEMENT", element),)),
        ):
            path = tmp_path / f"{source}.cu"
            path.write_text(cuda_build.source_text(source))
            macros = [f"-D{name}={value}" for name, value in defines]
            command = [nvcc, "-std=c++17", "-cubin", f"-arch={arch}", *macros, "-o", str(path) + "bin", str(path)]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr


COMPILE = (
    "from torch_utils.ops import cuda_build; run = cuda_build.run_nvrtc;"
    "cuda_build.run_nvrtc = lambda *args: print('compiling') or run(*args);"
    "print(len(cuda_build.compile_kernel('bias_act', (('ELEMENT', 1),), 'sm_80')))"
)


def test_two_processes_compile_once(tmp_path):
    nvrtc_or_skip()
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", COMPILE]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert sum(output.count("compiling") for output in outputs) == 1
    sizes = {output.split()[-1] for output in outputs}
    (path,) = (tmp_path / "spider_cuda").glob("*.cubin")
    assert sizes == {str(path.stat().st_size)}


def test_the_kernel_cache_follows_text_constants_and_architecture(tmp_path, monkeypatch):
    nvrtc_or_skip()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(cuda_build, "run_nvrtc", lambda text, defines, arch: f"{defines}{arch}".encode())
    for defines, arch in (
        ((("A", 1),), "sm_80"),
        ((("A", 2),), "sm_80"),
        ((("A", 1),), "sm_90"),
        ((("A", 1),), "sm_80"),
    ):
        assert cuda_build.compile_kernel("bias_act", defines, arch) == f"{defines}{arch}".encode()
    assert len(list((tmp_path / "spider_cuda").glob("*.cubin"))) == 3


def nvrtc_or_skip():
    pytest.importorskip("cuda.core", reason="cuda-core is not installed, or cannot be imported", exc_type=ImportError)
    try:
        return cuda_build.nvrtc_version()
    except Exception as error:  # whatever loading the library says where it is missing
        pytest.skip(f"NVRTC is not on this machine: {error}")


def test_without_a_gpu_the_reason_is_said():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert cuda_build.load() == dispatch.Readiness(False, "PyTorch sees no GPU")


def test_arguments_have_the_types_that_the_kernels_declare(emulated, monkeypatch):
    """A wrong width would shift all arguments behind it; the emulation reads them like the driver, by size."""
    seen = {}
    monkeypatch.setattr(cuda_build, "launch", lambda name, defines, blocks, device, args: seen.update({name: args}))
    cuda_ops.filtered_lrelu(images(1, 2, 40, 45), F12, F12, None, 2, 2, [9] * 4, 1.4, 0.2, 3.0, False, True)
    cuda_ops.upfirdn2d(images(1, 2, 9, 9), F2D[:3, :4], [1, 1], [1, 1], [9] * 4, False, 1.0)
    _, notes = cuda_ops.bias_act(images(1, 2, 9, 9), None, 1, 1.0, 1.0, 1.0, True)
    cuda_ops.bias_act_derivative(images(1, 2, 9, 9), notes, (162, 81, 9, 1), 1.0, 1.0)
    for name, args in seen.items():
        text = cuda_build.source_text(name.removesuffix("_derivative"))
        declared = text[text.index(f"SPIDER_KERNEL {name}(") :].split("(", 1)[1].split(")", 1)[0].split(",")
        assert len(declared) == len(args)
        for declaration, arg in zip(declared, args, strict=True):
            kind = " ".join(declaration.split()[:-1])
            expected = {"int": np.int32, "long long": np.int64, "scalar": np.float32}.get(kind)
            assert (arg is None or torch.is_tensor(arg)) if "*" in kind else isinstance(arg, expected), declaration
