"""Network pickles of any origin: for other people's code, and converted.

\b
# An official StyleGAN2-ADA-PyTorch or StyleGAN3 pickle, or one of TensorFlow StyleGAN2, as a snapshot of this project
python legacy.py --source=stylegan3-t-ffhq-1024x1024.pkl --dest=ffhq.pkl

\b
# The tensors for programs that read no pickles; every script here reads the file back
python legacy.py --source=ffhq.pkl --dest=ffhq.safetensors

\b
# ONNX: ffhq.onnx makes images and ws of z (and labels), ffhq-synthesis.onnx makes images of ws. Needs pip install -e ".[onnx]"
python legacy.py --source=ffhq.pkl --dest=ffhq.onnx

\b
# A pickle for other people's programs, which legacy.load_network_pkl of StyleGAN3 and StyleGAN2-ADA-PyTorch reads
python legacy.py --source=network-snapshot-000200.pkl --dest=theirs.pkl --format=official

\b
# A folder that can be uploaded as it is: safetensors, ONNX, facts as JSON, samples, a card
python legacy.py --source=latest --dest=my-network --model-card --license=cc-by-4.0

In Python: legacy.load_network_pkl(file)["G_ema"], legacy.save_official_pkl(file, contents). Nothing in a file is ever run.
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

import dnnlib.cli
import shared_options
from dnnlib.errors import UserError, naming
from dnnlib.files import atomic_write
from dnnlib.interrupts import importing

if TYPE_CHECKING:
    import torch

NETWORKS = ("G", "D", "G_ema")


def load_network_pkl(
    f: BinaryIO, force_fp16: bool = False, custom: bool = False, size: Any = None, scale_type: str | None = None
) -> dict[str, Any]:
    """The contents of a snapshot: `G`, `D`, `G_ema`, `source`, `augment_pipe`, `training_set_kwargs`, `meta`.

    Reads this project's snapshots, the official pickles of StyleGAN3, StyleGAN2-ADA-PyTorch and TensorFlow StyleGAN2, and
    safetensors files that this script wrote. Networks are this project's, in eval mode on the CPU. `force_fp16` makes the
    four highest resolutions run in float16 on a GPU. Raises `UserError` (a ValueError) for any other file; never runs code
    found in it. `custom`, `size` and `scale_type` are dvschultz's: images of another size than the network's are refused.
    """
    if custom or size is not None:
        raise UserError(
            "legacy.load_network_pkl: custom=True (images of another size) is not taken here; resize the images"
        )
    from training.checkpoints.snapshot import read_snapshot

    contents = read_snapshot(f)
    return with_half_precision(contents) if force_fp16 else contents


def save_official_pkl(f: BinaryIO, contents: dict[str, Any]) -> list[str]:
    """Write the contents of a snapshot as a pickle that `load_network_pkl` of StyleGAN3 and StyleGAN2-ADA-PyTorch reads.

    Their loaders run the text in it, which is `torch_utils/official_client.py`. Returns what is not as it was, a line
    each. Raises `UserError` for networks other than StyleGAN2 and StyleGAN3.
    """
    from training.checkpoints import official_export

    return official_export.write(f, contents)


class _LegacyUnpickler:
    """The official name of what reads old pickles, for `_LegacyUnpickler(file).load()`."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def load(self) -> dict[str, Any]:
        return load_network_pkl(self.file)


def __getattr__(name: str) -> Any:
    """Official names that are refused, each with what to use."""
    if name in ("convert_tf_generator", "convert_tf_discriminator", "convert_network_pickle"):
        raise AttributeError(
            f"legacy.{name}: load_network_pkl converts by itself; legacy.py --source=OLD.pkl --dest=NEW.pkl writes a file"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def with_half_precision(contents: dict[str, Any]) -> dict[str, Any]:
    return contents | {name: with_fp16(contents[name]) for name in NETWORKS if contents.get(name) is not None}


def with_fp16(network: torch.nn.Module) -> torch.nn.Module:
    """The same network with mixed precision switched on."""
    from torch_utils import persistence

    kwargs = half_precision(network.init_kwargs)
    return persistence.instantiate(persistence.class_path(type(network)), kwargs, network.state_dict())


def half_precision(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments with float16 switched on, in every stage of a cascade."""
    if "img_resolution" in kwargs:
        return {**kwargs, "num_fp16_res": 4, "conv_clamp": 256}
    return {name: half_precision(stage) if isinstance(stage, dict) else stage for name, stage in kwargs.items()}


@click.command(help=__doc__, context_settings=shared_options.HELP)
@click.option(
    "--source",
    help="Network pickle or safetensors file, or the folder of a run",
    metavar="PATH|URL|RUN",
    required=True,
    type=shared_options.Snapshot(),
)
@click.option("--dest", help="What to write, by its ending: .pkl, .safetensors or .onnx", metavar="PATH", required=True)
@click.option("--model-card", help="Write a folder for model hubs, --dest, with all of them and a card", is_flag=True)
@click.option("--license", "licence", help="Of the network, for its card", metavar="NAME")
@click.option(
    "--format",
    "layout",
    help="Of a .pkl: as this project writes snapshots, or as the official PyTorch code does",
    type=click.Choice(["snapshot", "official"]),
    default="snapshot",
)
@click.option(
    "--force-fp16",
    help="Run the four highest resolutions in float16 on a GPU",
    metavar="BOOL",
    type=bool,
    default=False,
)
def main(source: str, dest: str, model_card: bool, licence: str | None, layout: str, force_fp16: bool) -> None:
    path = Path(dest)
    if licence is not None and not model_card:
        raise UserError(f"--license={licence}: stands in the card of --model-card, which is not asked for")
    if model_card:
        if layout != "snapshot" or force_fp16:
            raise UserError("--model-card writes float32 files of this project; leave --format and --force-fp16 out")
        write_model(source, path, licence)
        return
    with importing():
        from training.checkpoints.snapshot import load_snapshot
    write = writer_for(path, layout, force_fp16)
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise UserError(f"--dest={dest}: is --source itself, which would be lost; name another file")
    with naming("--source"):
        contents = load_snapshot(source, verbose=True)
    for line in write(path, with_half_precision(contents) if force_fp16 else contents):
        print(line)


def write_model(source: str, folder: Path, licence: str | None) -> None:
    """The folder of a network, for model hubs."""
    with importing():
        from training.checkpoints.snapshot import load_snapshot
        from training.sampling.model_card import write_folder
    with naming("--source"):
        contents = load_snapshot(source, verbose=True)
    for line in write_folder(folder, contents, source, licence):
        print(line)


def writer_for(path: Path, layout: str, force_fp16: bool) -> Callable[[Path, dict[str, Any]], list[str]]:
    """What writes files of this ending, once everything that can be known before reading has been checked."""
    ending = path.suffix.lower()
    if ending not in WRITERS:
        raise UserError(f"--dest={path}: the ending says what to write; choose from {', '.join(WRITERS)}")
    if not path.parent.is_dir():
        raise UserError(f"--dest={path}: there is no folder {path.parent}; make it first")
    if ending == ".onnx":
        if force_fp16:
            raise UserError("--force-fp16: ONNX files are float32; leave it out")
        from training.checkpoints import onnx_export

        with naming("--dest"):
            onnx_export.require_packages()
    if layout == "official":
        if ending != ".pkl":
            raise UserError(
                f"--format=official: is a pickle, and --dest={path} none; name it {path.with_suffix('.pkl')}"
            )
        return write_official_pickle
    return WRITERS[ending]


def write_pickle(path: Path, contents: dict[str, Any]) -> list[str]:
    from training.checkpoints.snapshot import save_snapshot

    save_snapshot(path, contents)
    return [f"{path}: {describe(contents)}"]


def write_official_pickle(path: Path, contents: dict[str, Any]) -> list[str]:
    with naming("--format=official"), atomic_write(path) as file:
        notes = save_official_pkl(file, contents)
    return [f"{path}: {describe(contents)}; in the official format", *(f"Note: {note}" for note in notes)]


def write_tensors(path: Path, contents: dict[str, Any]) -> list[str]:
    from training.checkpoints.snapshot import save_tensors

    save_tensors(path, contents)
    return [f"{path}: {describe(contents)}"]


def write_onnx(path: Path, contents: dict[str, Any]) -> list[str]:
    """Both models, once both have been checked."""
    from training.checkpoints import onnx_export

    network = contents["G_ema"]
    with naming("--dest"):
        models = {
            path: onnx_export.export_generator(network),
            path.with_name(f"{path.stem}-synthesis.onnx"): onnx_export.export_synthesis(network),
        }
    for name, model in models.items():
        with atomic_write(name) as file:
            file.write(model.data)
    return [
        f"{name}: {', '.join(model.inputs)} -> {', '.join(model.outputs)}; "
        f"onnxruntime and PyTorch differ by {model.difference:.2g} at most"
        for name, model in models.items()
    ]


def describe(contents: dict[str, Any]) -> str:
    from torch_utils import persistence

    names = [name for name in (*NETWORKS, "augment_pipe") if contents.get(name) is not None]
    network = contents["G_ema"]
    return f"{', '.join(names)}; {persistence.class_path(type(network))}, resolution {network.img_resolution}"


WRITERS = {".pkl": write_pickle, ".safetensors": write_tensors, ".onnx": write_onnx}


if __name__ == "__main__":
    dnnlib.cli.run(main)
