"""Snapshots: one pickle of plain data with the networks, the source that feeds them and what they were trained on."""

import hashlib
import io
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

import dnnlib
from dnnlib.errors import UserError
from dnnlib.files import SEAL_BYTES, SEAL_MARK, atomic_write, check_seal
from torch_utils import distributed, persistence, tensor_files
from training.augment import AugmentPipe
from training.checkpoints.state_file import STATE_PATTERN
from training.checkpoints.whereabouts import labels_of, source_places, travelling_name, without_folders
from training.data.file_kinds import SET_OF_IMAGES, START_BYTES, STATE, describe_file, describe_start
from training.diff_augment import DiffAugment
from training.discriminator import ImageDiscriminator
from training.generator import SourceGenerator
from training.sources.cascade import Cascade
from training.sources.feed import LatentFeed
from training.sources.label_distribution import LabelDistribution
from training.sources.network_source import NetworkSource
from training.sources.prior import InstancePrior
from training.sources.source import GaussianSource, Source

KEYS = ("G", "D", "G_ema", "source", "augment_pipe", "training_set_kwargs", "meta", "prior", "labels")
OPTIONAL = {"prior", "labels"}
NETWORKS = ("G", "D", "G_ema")
MAX_ITEMS = 100_000  # of what a snapshot says about itself
KINDS: dict[str, tuple[type, ...]] = {
    "G": (SourceGenerator, Cascade, type(None)),
    "D": (ImageDiscriminator, type(None)),
    "G_ema": (SourceGenerator, Cascade),
    "source": (Source,),
    "augment_pipe": (AugmentPipe, DiffAugment, type(None)),
    "training_set_kwargs": (dict,),
    "meta": (dict,),
    "prior": (InstancePrior, type(None)),
    "labels": (LabelDistribution, type(None)),
}
ReadSnapshot = Callable[..., dict[str, Any]]  # as `load_snapshot`, or what foresees a file that is yet to be made


def save_snapshot(path: str | os.PathLike, contents: dict[str, Any]) -> None:
    """Write the pickle, and a hash of it behind its end. A reader never sees half a file."""
    with atomic_write(path, sealed=True) as file:
        pickle.dump(complete(contents), file, protocol=pickle.HIGHEST_PROTOCOL)


def save_tensors(path: str | os.PathLike, contents: dict[str, Any]) -> None:
    """The same as a safetensors file, for programs that read no pickles; `read_snapshot` reads it back."""
    data = tensor_files.pack(complete(contents))
    with atomic_write(path) as file:
        file.write(data)


def complete(contents: dict[str, Any]) -> dict[str, Any]:
    """What is written: all parts, those that may be left out where there are any, and what a program has added.

    Of paths only the names travel.
    """
    kept = {key: value for key, value in contents.items() if key not in OPTIONAL or value is not None}
    assert set(kept) | OPTIONAL >= set(KEYS)
    kept |= {key: without_folders(kept[key]) for key in ("training_set_kwargs", "meta")}
    source, prior = kept["source"], kept.get("prior")
    if source is not None:
        kept["source"] = source.renamed(travelling_name)
    if prior is not None and prior.weights is not None:
        kept["prior"] = persistence.with_arguments(prior, weights=travelling_name(prior.weights))
    return kept


def read_snapshot(file: BinaryIO) -> dict[str, Any]:
    """The contents of a snapshot file, networks as they were saved, on the CPU. Raises `SnapshotError`; runs no code of it.

    The file may also be a safetensors file of ours, or a pickle of the official PyTorch or TensorFlow code; the result
    has the same keys.
    """
    data = file.read()
    is_sealed = data[-SEAL_BYTES:].startswith(SEAL_MARK)
    what = describe_start(data[:START_BYTES], len(data), Path(str(getattr(file, "name", ""))).suffix.lower(), is_sealed)
    if what is None and data.startswith(b"PK"):
        what = SET_OF_IMAGES
    if what is not None:
        raise persistence.SnapshotError(f"is {what}")
    contents = tensor_files.unpack(data) if tensor_files.is_tensor_file(data) else persistence.load(io.BytesIO(data))
    if isinstance(contents, tuple) and len(contents) == 3:  # as the TensorFlow code wrote it
        contents = dict(zip(("G", "D", "G_ema"), contents, strict=True))
    if not isinstance(contents, dict) or not is_kind("G_ema", contents.get("G_ema")):
        raise persistence.SnapshotError("no snapshot of this project: there is no generator G_ema in it")
    contents = dict.fromkeys(KEYS) | contents  # keys of others stay
    z_dim = getattr(contents["G_ema"], "z_dim", None)
    source = GaussianSource(z_dim) if isinstance(z_dim, int) else None
    defaults: dict[str, Any] = {"source": source, "training_set_kwargs": {}, "meta": {}}
    contents |= {key: default for key, default in defaults.items() if contents[key] is None}
    check_contents(contents)
    return contents


def is_kind(key: str, value: Any) -> bool:
    """Whether a part is of its kind, or a network of a class that the program, which reads the snapshot, brings itself."""
    return isinstance(value, KINDS[key]) or (key in NETWORKS and is_of_program(value))


def is_of_program(value: Any) -> bool:
    is_ours = persistence.class_path(type(value)) in persistence.stored_classes()
    return isinstance(value, torch.nn.Module) and persistence.is_persistent(value) and not is_ours


def check_contents(contents: dict[str, Any]) -> None:
    """Each part is of its kind. Raises `SnapshotError`."""
    for key in KINDS:
        is_unknown = key == "source" and contents[key] is None and is_of_program(contents["G_ema"])
        if not is_kind(key, contents[key]) and not is_unknown:
            raise persistence.SnapshotError(
                f"no snapshot of this project: its {key} is a {type(contents[key]).__name__}"
            )
    for key in ("training_set_kwargs", "meta"):
        persistence.check_data(contents[key], f"the snapshot's {key}", MAX_ITEMS)
    if not is_of_program(contents["G_ema"]):
        check_agreement(contents)


def check_agreement(contents: dict[str, Any]) -> None:
    """What feeds the generator fits it. Raises `SnapshotError`."""
    misfit = contents["source"].misfit(contents["G_ema"].z_dim, contents["G_ema"].c_dim)
    if misfit is not None:
        raise persistence.SnapshotError(misfit)
    prior = contents["prior"]
    if prior is not None and prior.dim != contents["G_ema"].c_dim:
        raise persistence.SnapshotError(
            f"the prior makes conditions of {prior.dim} numbers, and G_ema takes {contents['G_ema'].c_dim}"
        )
    labels = contents["labels"]
    if labels is not None and labels.c_dim != contents["G_ema"].c_dim:
        raise persistence.SnapshotError(
            f"its labels are {labels.c_dim} numbers each, and G_ema takes {contents['G_ema'].c_dim}"
        )
    check_stages(contents["G_ema"])


def check_stages(network: torch.nn.Module) -> None:
    """The labels that the stages of a cascade are asked for are labels. Raises `SnapshotError`."""
    while isinstance(network, Cascade):
        if network.first_labels is not None:
            labels = LabelDistribution.from_values(network.first_labels)
            if labels.c_dim != network.first.c_dim:
                raise persistence.SnapshotError(
                    f"a stage is asked for labels of {labels.c_dim} numbers, and takes {network.first.c_dim}"
                )
        network = network.first


def load_snapshot(path_or_url: str | os.PathLike, verbose: bool = False) -> dict[str, Any]:
    """Read a snapshot from a path or an http(s) address. Raises `UserError` naming it."""
    shown = os.fspath(path_or_url)
    with open_snapshot(shown, verbose) as file:
        try:
            check_seal(file, "the snapshot")
            return in_eval_mode(read_snapshot(file))
        except UserError as error:
            raise type(error)(f"{shown}: {error}") from error


def in_eval_mode(contents: dict[str, Any]) -> dict[str, Any]:
    """However a program left its networks: tools ask them for images, without gradients."""
    for key in NETWORKS:
        if contents[key] is not None:
            contents[key].eval().requires_grad_(False)
    return contents


def images_seen(snapshot: Path) -> int | None:
    """The images that D had seen when a snapshot was saved; None where it does not say, or is damaged."""
    try:
        cur_nimg = (load_snapshot(snapshot).get("meta") or {}).get("cur_nimg")
    except UserError:
        return None
    return cur_nimg if isinstance(cur_nimg, int) else None


def open_snapshot(path_or_url: str, verbose: bool = False) -> BinaryIO:
    if not dnnlib.util.is_url(path_or_url):
        if Path(path_or_url).is_dir():
            what = describe_file(path_or_url) or "a folder; give the network-snapshot-*.pkl in it"
            raise UserError(f"{path_or_url}: is {what}")
        if not Path(path_or_url).is_file():
            raise UserError(f"{path_or_url}: no such file; give a network-snapshot-*.pkl or its http(s) address")
        if STATE_PATTERN.fullmatch(Path(path_or_url).name):
            raise UserError(f"{path_or_url}: is {STATE}")
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
    check_stage(contents, path_or_url)
    root = contents["source"]
    if not root.is_whole:
        root = root.reopened(source_places(root.path, path_or_url))
    labels, note = labels_of(contents, path_or_url)
    if note is not None:
        distributed.print0(f"Warning: {path_or_url}: {note}", file=sys.stderr)
    return NetworkSource(contents["G_ema"], root, path_or_url, fingerprint_file(path_or_url), labels)


def check_stage(contents: dict[str, Any], shown: str) -> None:
    """Raise `UserError` for a generator that cannot be an earlier stage, which is asked for images without labels."""
    source = known_source(contents, shown)
    if contents.get("prior") is not None:
        raise UserError(
            f"{shown}: makes images for given features (--prior), and an earlier stage is given none; give a snapshot that "
            "was trained without"
        )
    if source.pairs is not None:
        raise UserError(
            f"{shown}: takes source images of the class that it shall make (--source-match), and an earlier stage is told "
            "none; give a snapshot that was trained with --source-match=random"
        )


def known_source(contents: dict[str, Any], shown: str) -> Source:
    """What feeds `G_ema`. Raises `UserError` where a program's own network does not say."""
    if contents["source"] is None:
        raise UserError(f"{shown}: does not say what its generator takes (no source in it, and no z_dim)")
    return contents["source"]


def feed_of(contents: dict[str, Any], device: torch.device | str = "cpu") -> LatentFeed:
    """What `G_ema` of a snapshot takes: its own source, seen through its own encoder."""
    G_ema = contents["G_ema"].to(device)
    return LatentFeed(contents["source"], G_ema.mapping.encoder).to(device)
