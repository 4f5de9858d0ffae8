"""What `--source` stands for, as plain data: a spec describes itself, says what it takes, and opens the source.

A new kind of source is its class (`training/sources/`), its spec here with a place in `KINDS` and `spec_of`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dnnlib.errors import UserError, naming
from training.checkpoints.snapshot import ReadSnapshot, check_stage, is_snapshot, load_snapshot, open_network_source
from training.config.source_match import UNMATCHED, ClassMatch
from training.data.image_files import open_files
from training.data.pixels import CHANNEL_NAMES
from training.layers.pyramid import image_size
from training.sources.source import MAX_SIDE, GaussianSource, ImageSource, Source, common_shape


@dataclass(frozen=True)
class SourceSpec:
    """Base of the specs."""

    kind: ClassVar[str]
    has_images: ClassVar[bool] = True
    """Whether an encoder stands before the latents."""
    can_be_cached: ClassVar[bool] = False
    """Whether its outputs cost enough for `--stage-cache`."""
    candidates: ClassVar[str | None] = None
    """What core-sets compare samples by in place of z and images, and why."""

    why: dict[str, Any] | None = dataclasses.field(default=None, kw_only=True)
    """Why `--source=auto` chose it."""
    match: ClassMatch | None = dataclasses.field(default=None, kw_only=True)
    """Which of its classes feed which of the target, where they are paired."""

    def open(self, seed: int, verbose: bool) -> Source:
        """The source, with its images or its network in memory. Raises `UserError`."""
        raise NotImplementedError

    def foreseen(self) -> Source:
        """What is known of the source without opening it."""
        return Source()

    def probe(self, read: ReadSnapshot = load_snapshot) -> tuple[int, str]:
        """`(channels, line for the summary)`, from a look at the files; read: opens a snapshot. Raises `UserError`."""
        raise NotImplementedError

    def num_images(self) -> int | None:
        """How many different samples there are; None for no end of them."""
        return None

    def pair_lines(self) -> Iterator[str]:
        """Which of its classes feeds which of the target, a line each."""
        return iter(()) if self.match is None else self.match.lines()

    def chosen(self, why: dict[str, Any] | None, match: ClassMatch | None) -> "SourceSpec":
        """The same with the reasons of its choice, and the pairs of classes."""
        return dataclasses.replace(self, why=why, match=match)

    def class_line(self) -> str | None:
        """The line of a conditional network's summary; None where classes are nothing to the source."""
        return None

    def as_data(self) -> dict[str, Any]:
        """Plain data for training_options.json; `from_data` reads it back."""
        said = {"kind": self.kind, **vars(self), "match": None if self.match is None else self.match.as_data()}
        return {name: value for name, value in said.items() if value is not None}

    @property
    def place(self) -> str | None:
        """Where it lies; None for nowhere."""
        return None

    def renamed(self, rename: Callable[[str], Any]) -> "SourceSpec":
        """The same at another place."""
        return self


@dataclass(frozen=True)
class NoiseSpec(SourceSpec):
    """Gaussian noise."""

    kind = "gaussian"
    has_images = False
    z_dim: int

    def __post_init__(self) -> None:
        if not isinstance(self.z_dim, int):
            raise TypeError(f"noise has {self.z_dim!r} numbers, which is no number")

    def open(self, seed: int, verbose: bool) -> GaussianSource:
        return GaussianSource(self.z_dim)

    def foreseen(self) -> GaussianSource:
        return GaussianSource(self.z_dim)


@dataclass(frozen=True)
class StoredSpec(SourceSpec):
    """Base of the specs of what lies on a disk."""

    path: str

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            raise TypeError(f"the path of a source is {self.path!r}, which is no text")

    @property
    def place(self) -> str:
        return self.path

    def renamed(self, rename: Callable[[str], Any]) -> "StoredSpec":
        return dataclasses.replace(self, path=rename(self.path))


@dataclass(frozen=True)
class ImagesSpec(StoredSpec):
    """Images of another data set."""

    kind = "images"

    def open(self, seed: int, verbose: bool) -> ImageSource:
        pairs = None if self.match is None else self.match.pairs
        with naming("--source"):
            return ImageSource.open(self.path, seed=seed, verbose=verbose, pairs=pairs)

    def probe(self, read: ReadSnapshot = load_snapshot) -> tuple[int, str]:
        with contextlib.closing(open_files(self.path)) as files:
            if len(files) < 2:
                raise UserError(f"{self.path}: holds a single image; a source is many images")
            channels, height, width = common_shape(files, MAX_SIDE)
            return channels, f"{len(files):,} {CHANNEL_NAMES[channels]} images, seen at {width}x{height}"

    def num_images(self) -> int:
        with contextlib.closing(open_files(self.path)) as files:
            return len(files)

    def class_line(self) -> str:
        return UNMATCHED if self.match is None else self.match.describe()


@dataclass(frozen=True)
class NetworkSpec(StoredSpec):
    """A trained network: stage one of a cascade."""

    kind = "network"
    can_be_cached = True
    candidates = "the z of stage one (images of all candidates would cost too much; --stage-cache has them)"

    def open(self, seed: int, verbose: bool) -> Source:
        with naming("--source"):
            return open_network_source(self.path)

    def probe(self, read: ReadSnapshot = load_snapshot) -> tuple[int, str]:
        contents = read(self.path, verbose=True)
        check_stage(contents, self.path)
        network = contents["G_ema"]
        height, width = image_size(network.img_resolution)
        colors = CHANNEL_NAMES.get(network.img_channels, f"{network.img_channels} channels")
        return network.img_channels, f"generator of {colors} images {width}x{height}"


KINDS: dict[str, type[SourceSpec]] = {spec.kind: spec for spec in (NoiseSpec, ImagesSpec, NetworkSpec)}


def spec_of(path: str) -> ImagesSpec | NetworkSpec:
    """What lies at a path."""
    return NetworkSpec(path) if is_snapshot(path) else ImagesSpec(path)


def from_data(data: Mapping[str, Any]) -> SourceSpec:
    """The inverse of `as_data`. Raises `KeyError` or `TypeError` for what is none."""
    fields = {name: value for name, value in data.items() if name != "kind"}
    if "match" in fields:
        fields["match"] = ClassMatch(**fields["match"])
    return KINDS[data["kind"]](**fields)
