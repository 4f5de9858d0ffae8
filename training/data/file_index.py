"""Names and headers of millions of files in little memory, and on disk for the next time."""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from dnnlib.downloads import make_cache_dir_path
from dnnlib.errors import UserError
from dnnlib.files import atomic_write

CACHE_FROM = 5_000  # files; fewer are looked at in less than a second
CACHE_VERSION = 2
CHUNK = 1 << 16  # names that are decoded at a time
SAMPLE_BYTES = 1 << 16

HEADER_DTYPE = np.dtype(
    [("width", "<u4"), ("height", "<u4"), ("channels", "u1"), ("bits", "u1"), ("animated", "?")]
)  # of training.data.pixels.Header


def encode_name(name: str) -> bytes:
    """UTF-8 that also takes the stray bytes in names of files; sorts as the strings do."""
    return name.encode("utf-8", "surrogatepass")


def decode_name(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


class Names(Sequence[str]):
    """Strings in one block of bytes, made when they are asked for. A list of ten million would take a gigabyte."""

    def __init__(self, block: bytes, ends: np.ndarray):
        """ends: where each string ends in the block, ascending, `[N]`."""
        self.block, self.ends = block, ends

    @classmethod
    def pack(cls, names: Iterable[bytes]) -> "Names":
        """Pack strings that `encode_name` made."""
        names = list(names)
        return cls(b"".join(names), ends_of(np.fromiter(map(len, names), np.int64, len(names))))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        index = int(index) % len(self)
        start = int(self.ends[index - 1]) if index else 0
        return decode_name(self.block[start : int(self.ends[index])])

    def take(self, positions: np.ndarray) -> list[str]:
        """Several names at once, in a tenth of the time."""
        if len(positions) == 0:
            return []
        ends = self.ends[positions].tolist()
        starts = np.where(positions > 0, self.ends[positions.astype(np.int64) - 1], 0).tolist()
        return [decode_name(self.block[start:end]) for start, end in zip(starts, ends, strict=True)]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), CHUNK):
            yield from self.take(np.arange(first, min(first + CHUNK, len(self))))

    def position(self, name: str) -> int | None:
        """Where the name stands, by bisection; the names must be sorted."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self[middle] < name:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self[low] == name else None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.position(name) is not None


class Subset(Sequence[str]):
    """Some of the names."""

    def __init__(self, names: Names, indices: np.ndarray):
        self.names, self.indices = names, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        chosen = self.indices[index]
        return self.names.take(chosen) if isinstance(index, slice) else self.names[int(chosen)]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), CHUNK):
            yield from self.names.take(self.indices[first : first + CHUNK])


class Joined(Sequence[str]):
    """The names of several sets, one after the other, each with a prefix."""

    def __init__(self, parts: Sequence[Sequence[str]], prefixes: Sequence[str]):
        self.parts, self.prefixes = parts, prefixes
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Which part, and where in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        index = int(index) % len(self)
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return part, index - int(self.starts[part])

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part, local = self.locate(index)
        return self.prefixes[part] + self.parts[part][local]

    def __iter__(self) -> Iterator[str]:
        for part, prefix in zip(self.parts, self.prefixes, strict=True):
            for name in part:
                yield prefix + name


def ends_of(lengths: np.ndarray) -> np.ndarray:
    """Running sums in the smallest type that holds them."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return ends.astype(np.uint32) if len(ends) == 0 or ends[-1] < 1 << 32 else ends


def share_a_name(parts: Sequence[Sequence[str]]) -> bool:
    """Whether any name, of sorted ones, is in more than one part."""
    spans = sorted((part[0], part[-1], index) for index, part in enumerate(parts) if len(part))
    if all(last < first for (_, last, _), (first, _, _) in itertools.pairwise(spans)):
        return False  # one after the other, as tools number them
    if len({first for first, _, _ in spans}) < len(spans):
        return True  # each begins anew
    hashes = np.concatenate([_hashes(part) for part in parts])
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    joined = Joined(parts, [""] * len(parts))
    pairs = ((order[i], order[i + 1]) for i in same.tolist())
    return any(owners[a] != owners[b] and joined[int(a)] == joined[int(b)] for a, b in pairs)


def _hashes(names: Sequence[str]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(encode_name(name), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, np.uint64)


# On disk -------------------------------------------------------------------------------------------------------------


class IndexCache:
    """What is known about one file, kept in the user's cache as long as the file stays as it is. Never raises.

    The file is recognised by its path, size, time of change and last 64 kB, where a zip lists the checksums of its files.
    A copy that is damaged counts as missing.
    """

    def __init__(self, path: Path):
        digest = hashlib.sha256(os.fsencode(path.resolve()))
        self._file = Path(make_cache_dir_path("indices", f"{digest.hexdigest()[:32]}.npz"))
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            file.seek(max(status.st_size - SAMPLE_BYTES, 0))
            digest.update(f"{CACHE_VERSION} {status.st_size} {status.st_mtime_ns}\n".encode() + file.read(SAMPLE_BYTES))
        self._key = np.frombuffer(digest.digest(), np.uint8)

    def load(self, *names: str) -> dict[str, np.ndarray] | None:
        """The arrays of these names; None unless all are there and whole."""
        try:
            with np.load(self._file, allow_pickle=False) as archive:
                if not np.array_equal(archive["key"], self._key) or not set(names) <= set(archive.files):
                    return None
                return {name: archive[name] for name in names}
        except Exception:  # a damaged file can raise nearly anything inside an archive reader
            return None

    def save(self, **arrays: np.ndarray) -> None:
        with contextlib.suppress(
            OSError, UserError
        ):  # without room or right to write, it is looked at again the next time
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._file) as file:
                np.savez(file, key=self._key, **arrays)
