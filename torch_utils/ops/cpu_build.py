"""The CPU kernels: C++, built once for a machine with its own compiler, then loaded from the cache."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from filelock import FileLock

from torch_utils.ops.dispatch import NO_LIMITS, Provider, Readiness

SOURCES = Path(__file__).resolve().parent / "csrc" / "cpu"
LIBRARY_FILE = "spider_cpu.so"
FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
ADVICE = "Install g++ (Debian: apt install g++; conda: conda install gxx) and start again."


def load() -> Readiness:
    """Load the kernels into this process, after building them if this machine has not done so yet."""
    if sys.platform == "win32":
        return Readiness(False, "they need GCC or Clang", "Use WSL.")
    folder = cache_root() / f"spider_cpu_{cache_key()}"
    try:
        if not (folder / LIBRARY_FILE).exists():
            compiler = os.environ.get("CXX", "c++")
            if shutil.which(compiler.split()[0]) is None:
                return Readiness(False, f"no C++ compiler was found ({compiler})", ADVICE)
            return Readiness(True, f"{instruction_set()}, {build(folder)}")
        torch.ops.load_library(str(folder / LIBRARY_FILE))
    except ImportError as error:
        return Readiness(False, f"PyTorch's builder needs a package ({error})", "pip install setuptools")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        cause = next((line for line in lines if "error" in line), lines[0] if lines else type(error).__name__)
        return Readiness(False, f"building them in {folder} failed: {cause.strip()}", ADVICE)
    return Readiness(True, f"{instruction_set()}, from {folder}")


def build(folder: Path) -> str:
    """Build and load the library, at most one process at a time; says how that went.

    It is built in a folder of its own, so that a build that was killed leaves nothing that a later one could trip over.
    """
    from torch.utils import cpp_extension  # takes a second to import, and only this needs it

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / LIBRARY_FILE).exists():  # another process was faster
            torch.ops.load_library(str(folder / LIBRARY_FILE))
            return f"from {folder}"
        print("Building the CPU kernels, once for this machine (less than a minute)...", file=sys.stderr)
        start = time.perf_counter()
        make_ninja_visible()
        openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building_") as workplace:
            cpp_extension.load(
                name=Path(LIBRARY_FILE).stem,
                sources=[str(path) for path in sorted(SOURCES.glob("*.cpp"))],
                extra_cflags=FLAGS + openmp,
                extra_ldflags=openmp,
                build_directory=workplace,
                is_python_module=False,
            )
            folder.mkdir(exist_ok=True)
            os.replace(Path(workplace) / LIBRARY_FILE, folder / LIBRARY_FILE)
        return f"built in {time.perf_counter() - start:.0f} s"


def make_ninja_visible() -> None:
    """The ninja of the Python package is not on the path of an environment that was not activated."""
    if shutil.which("ninja") is None:
        import ninja

        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])


def cache_root() -> Path:
    """Where PyTorch keeps extensions; TORCH_EXTENSIONS_DIR moves it."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(given) if given else Path.home() / ".cache" / "torch_extensions"


def cache_key() -> str:
    """Changes with all that the library depends on: its text, how it is compiled, PyTorch, and the processor."""
    parts = [str(torch.__version__), platform.machine(), processor_flags(), *FLAGS]
    parts += [path.read_text() for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def processor_flags() -> str:
    """What -march=native looks at; nodes of a cluster that share a cache may differ in it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def instruction_set() -> str:
    return torch.backends.cpu.get_cpu_capability()


# Rings of rows are as long as a filter and a factor are.
LIMITS = NO_LIMITS._replace(taps=32, factor=2**15)
PROVIDER = Provider(load, frozenset({torch.float32, torch.float64, torch.bfloat16}), LIMITS)
