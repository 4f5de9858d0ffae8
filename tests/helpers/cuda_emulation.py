"""Runs the CUDA kernels on a processor: the same source text, sizes and launches, with fibres for threads."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from torch_utils.ops import cuda_build

HEADER = Path(__file__).with_name("cuda_emulation.h")


@functools.cache
def compiled(name: str, defines: cuda_build.Defines) -> ctypes.CDLL:
    source = cuda_build.source_text(name.removesuffix("_derivative"))
    macros = "".join(f"#define {key} ({value})\n" for key, value in defines).replace("(", "").replace(")", "")
    entry = (
        f"static void entry(void** args) {{ call(&{name}, args); }}\n"
        'extern "C" void run(int blocks, int threads, void** args) { run_blocks(&entry, blocks, threads, args); }\n'
    )
    folder = Path(tempfile.mkdtemp())
    (folder / "kernel.cpp").write_text(f"{HEADER.read_text()}\n{macros}\n{source}\n{entry}")
    flags = ["-std=c++17", "-O1", "-ffp-contract=fast", "-shared", "-fPIC", "-w"]
    try:
        command = ["c++", *flags, str(folder / "kernel.cpp"), "-o", str(folder / "kernel.so")]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return ctypes.CDLL(str(folder / "kernel.so"))
    except subprocess.CalledProcessError as error:
        raise AssertionError(error.stderr) from None
    finally:
        shutil.rmtree(folder)


def launch(name, defines, blocks, device, args) -> None:
    """In place of `cuda_build.launch`, on CPU tensors."""
    values = [np.uint64(0 if a is None else a.data_ptr()) if a is None or torch.is_tensor(a) else a for a in args]
    cells = [np.asarray(value).reshape(1) for value in values]
    pointers = (ctypes.c_void_p * len(cells))(*[cell.ctypes.data for cell in cells])
    compiled(name, defines).run(blocks, cuda_build.THREADS, pointers)
