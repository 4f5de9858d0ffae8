"""The CUDA kernels: compiled at run time by NVRTC, once for a kind of GPU, then read from the cache.

Neither a CUDA toolkit nor a host compiler is needed: NVRTC comes with PyTorch, and NVIDIA's cuda-core calls it.
"""

import functools
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from torch_utils.ops.cpu_build import cache_root
from torch_utils.ops.dispatch import Extent, Provider, Readiness

SOURCES = Path(__file__).resolve().parent / "csrc" / "cuda"
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # as csrc/cuda/common.cuh has them
THREADS = 256
OLDEST = (7, 0)

Defines = tuple[tuple[str, int], ...]


def load() -> Readiness:
    """Whether kernels can be compiled and launched on the current GPU: the smallest is, to see."""
    if not torch.cuda.is_available():
        return Readiness(False, "PyTorch sees no GPU")
    capability = torch.cuda.get_device_capability()
    name = f"{torch.cuda.get_device_name()} (sm_{capability[0]}{capability[1]})"
    if capability < OLDEST:
        return Readiness(False, f"{name} is older than sm_{OLDEST[0]}{OLDEST[1]}", "Nothing can be installed for it.")
    major = (torch.version.cuda or "").split(".")[0]
    try:
        try_launch()
    except ImportError as error:
        return Readiness(False, f"a package is missing ({error})", f"pip install cuda-core 'cuda-bindings=={major}.*'")
    except Exception as error:  # whatever driver, NVRTC and cuda-core have to say; training goes on without them
        reason = str(error).strip().splitlines()
        return Readiness(
            False,
            f"NVRTC failed for {name}: {reason[0] if reason else type(error).__name__}",
            f"pip install -U cuda-core 'cuda-bindings=={major}.*' and a PyTorch that knows this GPU",
        )
    return Readiness(True, f"{name}, NVRTC {nvrtc_version()}, cached in {cache_root()}")


def try_launch() -> None:
    """2 * x by the smallest kernel. Raises RuntimeError if something else comes out."""
    x = torch.arange(4.0, device="cuda")
    y = torch.zeros_like(x)
    sizes = [np.int64(x.numel()), np.int32(1), np.int64(1)]
    launch("bias_act", (("ELEMENT", 0),), 1, x.device, [x, None, y, None, *sizes, *map(np.float32, (2, 2, np.inf))])
    if not torch.equal(y, 2 * x):
        raise RuntimeError("a kernel was launched and computed something else")


def compile_kernel(source: str, defines: Defines, arch: str) -> bytes:
    """The cubin of csrc/cuda/<source>.cu for an architecture like 'sm_90', from the cache if it is there.

    At most one process compiles a kernel; the others wait for it.
    """
    text = source_text(source)
    key = hashlib.sha256(repr((text, defines, arch, nvrtc_version())).encode()).hexdigest()[:24]
    path = cache_root() / "spider_cuda" / f"{source}_{arch}_{key}.cubin"
    if path.exists():
        return path.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            write_whole(path, run_nvrtc(text, defines, arch))
        return path.read_bytes()


def run_nvrtc(text: str, defines: Defines, arch: str) -> bytes:
    from cuda.core import Program, ProgramOptions  # only this needs it

    macros = [(name, str(value)) for name, value in defines]
    options = ProgramOptions(std="c++17", arch=arch, define_macro=macros)
    return bytes(Program(text, "c++", options).compile("cubin").code)


def source_text(source: str) -> str:
    return "\n".join((SOURCES / name).read_text() for name in ("common.cuh", f"{source}.cu")).replace(
        "#pragma once", ""
    )


@functools.cache
def nvrtc_version() -> str:
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"


def write_whole(path: Path, data: bytes) -> None:
    """A reader never sees half a file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


@functools.cache
def kernel(name: str, defines: Defines, device: int) -> Any:
    """A kernel that is ready to launch; the file it is in is named like it, up to `_derivative`."""
    from cuda.core import ObjectCode

    major, minor = torch.cuda.get_device_capability(device)
    cubin = compile_kernel(name.removesuffix("_derivative"), defines, f"sm_{major}{minor}")
    return ObjectCode.from_cubin(cubin).get_kernel(name)


@functools.cache
def stream_of(handle: int) -> Any:
    from cuda.core import Stream

    return Stream.from_handle(handle)


def launch(name: str, defines: Defines, blocks: int, device: torch.device, args: Sequence[Any]) -> None:
    """Queue a kernel on PyTorch's current stream. args: tensors, None (a null pointer), and NumPy scalars."""
    from cuda.core import LaunchConfig
    from cuda.core import launch as core_launch

    pointers = [np.uint64(0 if a is None else a.data_ptr()) if a is None or torch.is_tensor(a) else a for a in args]
    with torch.cuda.device(device):
        ready = kernel(name, defines, torch.cuda.current_device())
        stream = stream_of(torch.cuda.current_stream().cuda_stream)
        core_launch(stream, LaunchConfig(grid=blocks, block=THREADS), ready, *pointers)


# Tiles with the halo of more taps do not fit into shared memory; pixels of a channel and blocks are counted in 32 bits.
LIMITS = Extent(taps=32, factor=2**15, plane=2**31 - 1, blocks=2**31 - 1)
PROVIDER = Provider(load, frozenset(ELEMENTS), LIMITS)
