"""Snapshots: one pickle of plain data with the networks, the source that feeds them and what they were trained on."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch

import dnnlib
from dnnlib.errors import UserError
from dnnlib.files import atomic_write, check_seal
from torch_utils import persistence
from training.source import GaussianSource, ImageSource, LatentFeed, NetworkSource

KEYS = ("G", "D", "G_ema", "source", "augment_pipe", "training_set_kwargs", "meta")


def save_snapshot(path: str | os.PathLike, contents: dict[str, Any]) -> None:
    """Write the pickle, and a hash of it behind its end. A reader never sees half a file."""
    assert set(contents) == set(KEYS)
    with atomic_write(path, sealed=True) as file:
        pickle.dump(contents, file, protocol=pickle.HIGHEST_PROTOCOL)


def read_snapshot(file: BinaryIO) -> dict[str, Any]:
    """The contents of a snapshot file, networks in eval mode on the CPU. Raises `SnapshotError`; runs no code of it."""
    contents = persistence.load(file)
    if not isinstance(contents, dict) or not isinstance(contents.get("G_ema"), torch.nn.Module):
        raise persistence.SnapshotError("no snapshot of this project: there is no generator G_ema in it")
    source = contents.get("source")
    if source is None:
        contents["source"] = GaussianSource(contents["G_ema"].z_dim)
    return contents


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
    """Whether a --source names a network (by its ending, or by the first byte of a pickle) rather than images."""
    if dnnlib.util.is_url(path_or_url):
        return not path_or_url.lower().split("?")[0].endswith(".zip")
    path = Path(path_or_url)
    if path.is_file():
        with open(path, "rb") as file:
            return file.read(1) == b"\x80"
    return path.suffix.lower() == ".pkl"


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
