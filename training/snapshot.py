"""Snapshots: one pickle of plain data with the networks, the source that feeds them and what they were trained on."""

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch

import dnnlib
from dnnlib.errors import UserError
from dnnlib.files import atomic_write, check_seal
from torch_utils import persistence, tensor_files
from training.augment import AugmentPipe
from training.cascade import Cascade
from training.discriminator import ImageDiscriminator
from training.mapping import SourceGenerator
from training.source import GaussianSource, ImageSource, LatentFeed, NetworkSource, Source

KEYS = ("G", "D", "G_ema", "source", "augment_pipe", "training_set_kwargs", "meta")
MAX_ITEMS = 100_000  # of what a snapshot says about itself
KINDS: dict[str, tuple[type, ...]] = {
    "G": (SourceGenerator, Cascade, type(None)),
    "D": (ImageDiscriminator, type(None)),
    "G_ema": (SourceGenerator, Cascade),
    "source": (Source,),
    "augment_pipe": (AugmentPipe, type(None)),
    "training_set_kwargs": (dict,),
    "meta": (dict,),
}


def save_snapshot(path: str | os.PathLike, contents: dict[str, Any]) -> None:
    """Write the pickle, and a hash of it behind its end. A reader never sees half a file."""
    assert set(contents) == set(KEYS)
    with atomic_write(path, sealed=True) as file:
        pickle.dump(contents, file, protocol=pickle.HIGHEST_PROTOCOL)


def save_tensors(path: str | os.PathLike, contents: dict[str, Any]) -> None:
    """The same as a safetensors file, for programs that read no pickles; `read_snapshot` reads it back."""
    assert set(contents) == set(KEYS)
    data = tensor_files.pack(contents)
    with atomic_write(path) as file:
        file.write(data)


def read_snapshot(file: BinaryIO) -> dict[str, Any]:
    """The contents of a snapshot file, networks in eval mode on the CPU. Raises `SnapshotError`; runs no code of it.

    The file may also be a safetensors file of ours, or a pickle of the official PyTorch or TensorFlow code; the result
    has the same keys.
    """
    data = file.read()
    contents = tensor_files.unpack(data) if tensor_files.is_tensor_file(data) else persistence.load(io.BytesIO(data))
    if isinstance(contents, tuple) and len(contents) == 3:  # as the TensorFlow code wrote it
        contents = dict(zip(("G", "D", "G_ema"), contents, strict=True))
    if not isinstance(contents, dict) or not isinstance(contents.get("G_ema"), SourceGenerator | Cascade):
        raise persistence.SnapshotError("no snapshot of this project: there is no generator G_ema in it")
    contents = {key: contents.get(key) for key in KEYS}
    defaults = {"source": GaussianSource(contents["G_ema"].z_dim), "training_set_kwargs": {}, "meta": {}}
    contents |= {key: default for key, default in defaults.items() if contents[key] is None}
    check_contents(contents)
    return contents


def check_contents(contents: dict[str, Any]) -> None:
    """Each part is of its kind. Raises `SnapshotError`."""
    for key, kinds in KINDS.items():
        if not isinstance(contents[key], kinds):
            raise persistence.SnapshotError(
                f"no snapshot of this project: its {key} is a {type(contents[key]).__name__}"
            )
    source, z_dim = contents["source"], contents["G_ema"].z_dim
    if isinstance(source, GaussianSource) and source.z_dim != z_dim:
        raise persistence.SnapshotError(f"the source makes z of {source.z_dim} numbers, and G_ema takes {z_dim}")
    for key in ("training_set_kwargs", "meta"):
        persistence.check_data(contents[key], f"the snapshot's {key}", MAX_ITEMS)


def load_snapshot(path_or_url: str | os.PathLike, verbose: bool = False) -> dict[str, Any]:
    """Read a snapshot from a path or an http(s) address. Raises `UserError` naming it."""
    shown = os.fspath(path_or_url)
    with open_snapshot(shown, verbose) as file:
        try:
            check_seal(file, "the snapshot")
            return read_snapshot(file)
        except UserError as error:
            raise type(error)(f"{shown}: {error}") from error


def open_snapshot(path_or_url: str, verbose: bool = False) -> BinaryIO:
    if not dnnlib.util.is_url(path_or_url):
        if Path(path_or_url).is_dir():
            raise UserError(f"{path_or_url}: is a folder; give the network-snapshot-*.pkl in it")
        if not Path(path_or_url).is_file():
            raise UserError(f"{path_or_url}: no such file; give a network-snapshot-*.pkl or its http(s) address")
    return dnnlib.util.open_url(path_or_url, verbose=verbose)


def is_snapshot(path_or_url: str) -> bool:
    """Whether a --source names a network (by its ending, or by its first bytes) rather than images."""
    if dnnlib.util.is_url(path_or_url):
        return not path_or_url.lower().split("?")[0].endswith(".zip")
    path = Path(path_or_url)
    if os.path.isfile(path):  # which a list of many zips, too long for a path, does not upset
        with open(path, "rb") as file:
            start = file.read(9)
        return start[:1] == b"\x80" or (start[8:] == b"{" and path.suffix.lower() == ".safetensors")
    return path.suffix.lower() in (".pkl", ".safetensors")


def fingerprint_file(path_or_url: str) -> str:
    with open_snapshot(path_or_url) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_network_source(path_or_url: str) -> NetworkSource:
    """The snapshot's `G_ema`, fed by the source that it was trained with, as a source for another generator."""
    contents = load_snapshot(path_or_url)
    root = contents["source"]
    if isinstance(root, ImageSource):
        root = root.reopened()
    return NetworkSource(contents["G_ema"], root, path_or_url, fingerprint_file(path_or_url))


def feed_of(contents: dict[str, Any], device: torch.device | str = "cpu") -> LatentFeed:
    """What `G_ema` of a snapshot takes: its own source, seen through its own encoder."""
    G_ema = contents["G_ema"].to(device)
    return LatentFeed(contents["source"], G_ema.mapping.encoder).to(device)
