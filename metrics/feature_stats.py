"""From images to features: in batches, over processes, with a cache on disk and bounded memory.

The metrics see images through `Images`, whatever they come from: a data set, a generator, a folder.
"""

import hashlib
import json
import re
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

import dnnlib
from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from metrics.detectors import Detector
from metrics.progress_bar import progress_bar
from metrics.stopping import KeepGoing, check
from torch_utils import distributed, seeding

BATCH = 64
READ_AHEAD = 2  # batches that are decoded while the detector works
SPILL_BYTES = 1 << 30  # features beyond this go to a memory-mapped file
CACHE_VERSION = 1
MAX_TITLE_BYTES = 80  # of a name, in that of a cached file: file systems take 255 in all
MAX_NAMED = 5  # corrupt files that a message names
LEAVE_STRICT_OUT = "or leave --strict out"  # for the scripts that have the flag


@dataclass(frozen=True)
class Reading:
    """What came of reading some images: those that are good, and what is wrong with the others."""

    images: list[torch.Tensor]
    """uint8 `[C, H, W]`."""
    places: list[int]
    """Where each of them stands among the indices that were asked for."""
    problems: list[str]
    """A line for each of the others."""

    @classmethod
    def of(cls, attempts: Iterable[tuple[torch.Tensor | None, str]]) -> "Reading":
        """From an image, or None and a line, for each index."""
        images, places, problems = [], [], []
        for place, (image, problem) in enumerate(attempts):
            if image is None:
                problems.append(problem)
            else:
                images.append(image)
                places.append(place)
        return cls(images, places, problems)


class Images(Protocol):
    """What a metric asks of a set of images."""

    name: str
    key: str | None  # changes when the images do, wherever they lie; None: never cached
    reads_ahead: bool  # whether reading leaves the detector's processors alone, so that both can go on at once
    may_skip: bool  # whether images that cannot be read may be left out; those of a diverged network may not

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Reading:
        """Read images by number. Called from one thread at a time."""
        ...


@dataclass(frozen=True)
class FeatureSet:
    """Features of the images that could be read, in their order."""

    features: torch.Tensor  # [N, d] float32, possibly mapped from a file
    indices: np.ndarray  # [N] which of the images they are of, ascending
    num_requested: int
    skipped: list[str]  # what is wrong with the images left out

    def __len__(self) -> int:
        return len(self.features)


def compute_features(
    images: Images,
    detector: Detector,
    max_items: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH,
    is_strict: bool = False,
    is_verbose: bool = False,
    keep_going: KeepGoing = None,
    alternative: str = "",
) -> FeatureSet:
    """Features of the images, on every process, each of which does its share.

    max_items: of more images a random subset, drawn by `seed`, is seen. Images that cannot be read are left out and
    named; is_strict: they stop it. alternative: what the message then advises beside mending them. keep_going: asked on all
    ranks before each batch; False raises `Stopped`. The result is kept in the cache, where images and detector have keys.
    Raises `UserError`.
    """
    indices = choose_indices(len(images), max_items, seed)
    has_key = images.key is not None and detector.is_cacheable
    path = cache_path(images, detector, indices) if has_key else None
    # All or none: a file may appear for one of them while the others look, and machines may have caches of their own.
    is_cached = all(distributed.gather_objects(path is not None and is_kept(path)))
    if is_cached and path is not None:
        result = read_cache(path, indices)
    else:
        result = gather(images, detector, indices, batch_size, is_verbose, keep_going)
        if path is not None and distributed.get_rank() == 0:
            write_cache(path, result, indices)
    report_skipped(images, result, is_strict, alternative)
    return result


def choose_indices(num: int, max_items: int | None, seed: int) -> np.ndarray:
    """`[n]` in ascending order."""
    if max_items is None or max_items >= num:
        return np.arange(num)
    order = torch.randperm(num, generator=seeding.generator("metric-subset", seed))
    return np.sort(order[:max_items].numpy())


def content_order(images: Images, indices: np.ndarray, seed: int) -> np.ndarray:
    """A random order `[n]` of the images that follows from seed and contents: the same whatever the files are called.

    What has no files (a generator) goes by number. indices: ascending.
    """
    identities = getattr(images, "identities", None)
    names = [str(index) for index in indices.tolist()] if identities is None else identities(indices)
    copies: Counter[str] = Counter()
    places = []
    for name in names:  # copies go to places of their own, or they would stay together
        places.append(seeding.derive("content-order", seed, name, copies[name]))
        copies[name] += 1
    return np.argsort(np.array(places, dtype=np.int64), kind="stable")


def gather(
    images: Images,
    detector: Detector,
    indices: np.ndarray,
    batch_size: int,
    is_verbose: bool,
    keep_going: KeepGoing,
) -> FeatureSet:
    """Every process computes each world_size-th image; all of them get the whole."""
    own = indices[distributed.get_rank() :: distributed.get_world_size()]
    num_batches = -(-len(indices) // (batch_size * distributed.get_world_size()))  # the same on every rank
    rows = allocate(len(own), detector.num_features)
    is_good = torch.zeros(len(own), dtype=torch.uint8)  # not every backend knows booleans
    skipped, done = [], 0
    is_shown = is_verbose and distributed.get_rank() == 0
    with progress_bar(len(own), f"{detector.name} of {images.name}", "img", is_shown) as bar:
        for batch in read_ahead(images, own, batch_size, num_batches):
            check(keep_going)
            skipped += batch.problems
            if batch.images:
                places = [done + place for place in batch.places]
                rows[places] = detector.features_of(batch.images)
                is_good[places] = 1
            num = len(batch.images) + len(batch.problems)
            done += num
            bar.update(num)
    rows, is_good = distributed.gather_rows(rows), distributed.gather_rows(is_good)
    skipped = [message for messages in distributed.gather_objects(skipped) for message in messages]
    if not skipped:
        return FeatureSet(rows, indices, len(indices), skipped)
    return FeatureSet(rows[is_good.bool()], indices[is_good.bool().numpy()], len(indices), skipped)


def read_ahead(images: Images, indices: np.ndarray, batch_size: int, num_batches: int) -> Iterator[Reading]:
    """The images in so many batches (the last ones may be empty); where it helps, the next ones are read meanwhile."""
    batches = [indices[number * batch_size : (number + 1) * batch_size].tolist() for number in range(num_batches)]
    if not images.reads_ahead:
        yield from map(images.read, batches)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        pending = deque(pool.submit(images.read, batch) for batch in batches[:READ_AHEAD])
        for number in range(len(batches)):
            if number + READ_AHEAD < len(batches):
                pending.append(pool.submit(images.read, batches[number + READ_AHEAD]))
            yield pending.popleft().result()


def allocate(num: int, dim: int) -> torch.Tensor:
    """float32 `[num, dim]`, in a nameless file where the memory is not for it."""
    if 4 * num * dim <= SPILL_BYTES:
        return torch.empty([num, dim])
    file = tempfile.TemporaryFile(dir=cache_folder(make=True))  # noqa: SIM115 (it lives as long as the mapping)
    return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=(num, dim)))


def report_skipped(images: Images, result: FeatureSet, is_strict: bool, alternative: str) -> None:
    """One line on images that could not be read. Raises `UserError` when strict, when none is left or none may miss."""
    if not result.skipped:
        return
    named = "; ".join(result.skipped[:MAX_NAMED])
    more = f"; and {len(result.skipped) - MAX_NAMED} more" if len(result.skipped) > MAX_NAMED else ""
    message = f"{images.name}: {len(result.skipped)} of {result.num_requested} images cannot be read ({named}{more})"
    if not images.may_skip:
        is_generated = images.key is None
        way_out = "the network that made them has diverged, use an earlier snapshot"
        raise UserError(f"{message}; {way_out if is_generated else 'mend or remove them'}")
    if is_strict or len(result) == 0:
        other = f", {alternative}" if alternative and len(result) > 0 else ""
        raise UserError(f"{message}; mend or remove them{other}")
    distributed.print0(f"Warning: {message}; the others are used", file=sys.stderr)


def cache_folder(make: bool = False) -> Path:
    folder = Path(dnnlib.util.make_cache_dir_path("metrics"))
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_path(images: Images, detector: Detector, indices: np.ndarray) -> Path:
    """Named by what the features depend on: images, which of them, detector, its weights and its resizing."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {images.key} {detector.key}\n".encode())
    digest.update(indices.astype(np.int64).tobytes())
    title = re.sub(r"[^\w.-]+", "_", images.name).encode()[-MAX_TITLE_BYTES:].decode(errors="ignore")
    return cache_folder() / f"{title}-{detector.name}-{digest.hexdigest()[:32]}.npy"


def is_kept(path: Path) -> bool:
    """Whether there is an entry of the cache that says which images it is of; older ones do where all could be read."""
    try:
        info = json.loads(path.with_suffix(".json").read_text())
        return "missing" in info or not info["skipped"]
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True  # it is damaged, which `read_cache` says


def read_cache(path: Path, indices: np.ndarray) -> FeatureSet:
    """Features of these images, mapped from the file: pages are read as they are needed."""
    try:
        info = json.loads(path.with_suffix(".json").read_text())
        features = torch.from_numpy(np.load(path, mmap_mode="c"))
        kept = indices[~np.isin(indices, info.get("missing", []))]
        if list(features.shape) != info["shape"] or len(features) != len(kept):
            raise ValueError(f"{list(features.shape)} is not {info['shape']}, of {len(kept)} images")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: this entry of the cache is damaged ({error}); delete it") from error
    return FeatureSet(features, kept, info["num_requested"], info["skipped"])


def write_cache(path: Path, result: FeatureSet, indices: np.ndarray) -> None:
    """Features of what could be read of these images.

    Features first, then the description that makes them count; each under a temporary name until it is whole.
    """
    try:
        cache_folder(make=True)
        with atomic_write(path) as file:
            np.save(file, result.features.numpy())
        info = {
            "num_requested": result.num_requested,
            "skipped": result.skipped,
            "missing": np.setdiff1d(indices, result.indices).tolist(),
            "shape": list(result.features.shape),
        }
        with atomic_write(path.with_suffix(".json")) as file:
            file.write(json.dumps(info).encode())
    except (OSError, UserError) as error:
        print(f"Warning: features are not kept ({error}); DNNLIB_CACHE_DIR names another folder", file=sys.stderr)
