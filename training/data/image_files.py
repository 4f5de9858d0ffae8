"""Image files in folders and zips: list them, look at their headers, decode them.

Files are read where they lie (a zip is never unpacked to disk). What is wrong with a path, an archive or an image
becomes a `UserError` that names it.
"""

import contextlib
import hashlib
import io
import os
import stat
import sys
import threading
from abc import ABC, abstractmethod
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from dnnlib.bars import tqdm
from dnnlib.errors import DataError, UserError
from training.data import sheets, zip_index
from training.data.file_index import (
    CACHE_FROM,
    CHUNK,
    HEADER_DTYPE,
    IndexCache,
    Joined,
    Names,
    Subset,
    encode_name,
    share_a_name,
)
from training.data.file_kinds import GIVE, GIVE_IMAGES, describe_file
from training.data.file_names import canonical
from training.data.image_names import counted, extension_of, is_companion, is_image_name
from training.data.pixels import Header, clear_hidden, decode, probe, reason_for
from training.data.shards import part_paths
from training.data.zip_index import BadMember, DamagedZip, SharedFile, printable, too_large

MAX_FILE_BYTES = 1 << 30  # a small zip can unfold into more than the memory holds
KINDS = "PNG, JPEG, WebP, BMP, TIFF, GIF, PPM or TGA"


class BadImage(UserError):
    """One image that cannot be read. `name` and `reason` are for messages that list several."""

    def __init__(self, where: str, name: str, reason: str):
        way_out = "remove it, or convert the set with dataset_tool.py, which leaves such files out"
        super().__init__(f"{where}: {name} cannot be read ({reason}): {way_out}")
        self.where, self.name, self.reason = where, name, reason

    def __reduce__(self):
        return BadImage, (self.where, self.name, self.reason)


class ImageFiles(ABC):
    """Images in a folder, in a zip, or in several of them. They have numbers, in the order of `names`."""

    path: Path
    names: Sequence[str]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    @property
    @abstractmethod
    def parts(self) -> "list[StoredFiles]":
        """The zips and folders that the set consists of."""

    @abstractmethod
    def where(self, index: int) -> tuple[str, str]:
        """The zip or folder that holds an image, and its name there, for messages."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The file of an image. Raises `BadImage` where the storage is damaged."""

    @abstractmethod
    def probe(self, index: int) -> Header:
        """The header of an image. Raises `BadImage`."""

    @abstractmethod
    def identities(self, indices: np.ndarray) -> Iterator[tuple[str, str]]:
        """Names, and what changes when the contents do: size and checksum, or size and sampled bytes.

        indices: ascending. Raises `BadImage`.
        """

    def headers(self) -> np.ndarray:
        """`HEADER_DTYPE` records of all images, with a progress bar where they are many. Raises `BadImage`."""
        headers = np.empty(len(self), HEADER_DTYPE)
        disable = True if len(self) <= CACHE_FROM else None
        with tqdm(total=len(self), desc=f"Reading {self.path.name}", unit="img", leave=False, disable=disable) as bar:
            self.fill_headers(headers, bar)
        return headers

    def fill_headers(self, headers: np.ndarray, bar: tqdm) -> None:
        """Write the headers into `[N]` records."""
        for index in range(len(self)):
            headers[index] = self.probe(index)
            bar.update()

    def left_out(self) -> Counter[str]:
        """How many files are no images that can be read, by extension (`.heic`, or empty)."""
        return sum((part.left_out() for part in self.parts), Counter())

    def remarks(self) -> list[str]:
        """What else was left out, a sentence each."""
        return [remark for part in self.parts for remark in part.remarks()]

    def decode(self, index: int) -> np.ndarray:
        """The pixels of an image, uint8 or uint16 `[H, W, C]`, black where they are transparent. Raises `BadImage`."""
        pixels = self.decode_as_stored(index)
        cleared = clear_hidden(pixels)
        if cleared is not pixels:
            _say_hidden(str(self.path), self.where(index)[1])
        return cleared

    def decode_as_stored(self, index: int) -> np.ndarray:
        """Decode as `decode` does, with the colours that nobody sees."""
        data = self.read(index)
        try:
            return decode(data)
        except Exception as error:  # a damaged file can raise nearly anything inside an image library
            raise BadImage(*self.where(index), reason_for(error)) from error

    @abstractmethod
    def close(self) -> None:
        """Close what is open. A later read opens it again."""


class StoredFiles(ImageFiles):
    """One folder or zip."""

    def __init__(self, path: Path, all_names: Names, images: np.ndarray | None = None):
        """all_names: of all files, sorted, with forward slashes; images: which of them are images, if that is known."""
        self.path = path
        self.all_names = all_names
        self._images = _image_indices(all_names) if images is None else images
        self._sheets = self._images[:0]  # among the images, but no samples
        self.names = Subset(all_names, self._images)

    @property
    def parts(self) -> "list[StoredFiles]":
        return [self]

    def where(self, index: int) -> tuple[str, str]:
        return str(self.path), printable(self.names[index])

    def leave_out(self, indices: list[int]) -> None:
        """Have the set hold all images but these."""
        self._sheets = self._images[indices]
        self._images = np.delete(self._images, indices)
        self.names = Subset(self.all_names, self._images)

    def start_of(self, index: int) -> bytes:
        """The first bytes of an image's file; none where it cannot be read."""
        try:
            return self._start(int(self._images[index]))
        except Exception:  # whoever reads all of it will say what is wrong
            return b""

    @abstractmethod
    def _start(self, position: int) -> bytes:
        """The first `sheets.START_BYTES` of the file at a position in `all_names`. May raise anything."""

    def left_out(self) -> Counter[str]:
        taken = np.concatenate([self._images, self._sheets])
        others = np.setdiff1d(np.arange(len(self.all_names)), taken, assume_unique=True)
        return Counter(extension_of(name) for name in self.all_names.take(others) if not is_companion(name))

    def remarks(self) -> list[str]:
        return []

    @abstractmethod
    def _header(self, position: int) -> Header:
        """The header of the file at a position in `all_names`. May raise anything."""

    @abstractmethod
    def _read(self, position: int, max_bytes: int) -> bytes:
        """A whole file. Raises `BadMember` or `OSError`, also where it has more than `max_bytes`."""

    def read(self, index: int) -> bytes:
        try:
            return self._read(int(self._images[index]), MAX_FILE_BYTES)
        except STORAGE_ERRORS as error:
            raise BadImage(*self.where(index), reason_for(error)) from error

    def read_file(self, name: str, max_bytes: int) -> bytes:
        """Any file, by its name in `all_names`. Raises `BadImage` where it is damaged or larger than `max_bytes`."""
        position = self.all_names.position(name)
        assert position is not None
        try:
            return self._read(position, max_bytes)
        except STORAGE_ERRORS as error:
            raise BadImage(str(self.path), printable(name), reason_for(error)) from error

    def probe(self, index: int) -> Header:
        try:
            return self._header(int(self._images[index]))
        except UserError:
            raise
        except Exception as error:  # as in `decode`
            raise BadImage(*self.where(index), reason_for(error)) from error


def _image_indices(all_names: Names) -> np.ndarray:
    indices = array("I", (index for index, name in enumerate(all_names) if is_image_name(name)))
    return np.frombuffer(indices, np.uint32) if indices else np.zeros(0, np.uint32)


class FolderFiles(StoredFiles):
    """A folder and everything below it, links followed; each folder is read once, so that circles end."""

    SAMPLE_BYTES = 4096

    def __init__(self, path: Path):
        found, self._repeated = _walk(path)
        self._spelling: dict[str, str] = {}  # canonical name: the name on disk, where it is another
        for name in found:
            known = self._spelling.setdefault(canonical(name), name)
            if known != name:
                raise UserError(
                    f"{path}: {printable(known)} and {printable(name)} are one name ({printable(canonical(name))}) in "
                    "archives and labels; rename one"
                )
        names = sorted(encode_name(name) for name in self._spelling)
        self._spelling = {name: spelled for name, spelled in self._spelling.items() if name != spelled}
        super().__init__(path, Names.pack(names))

    def remarks(self) -> list[str]:
        if not self._repeated:
            return []
        more = f" and {len(self._repeated) - 1:,} more" if len(self._repeated) > 1 else ""
        return [f"{printable(self._repeated[0])}{more}: leads to a folder that is read already, and is not followed"]

    def _open(self, position: int) -> IO[bytes]:
        name = self.all_names[position]
        return open(self.path / self._spelling.get(name, name), "rb", opener=_open_regular)

    def _start(self, position: int) -> bytes:
        with self._open(position) as file:
            return file.read(sheets.START_BYTES)

    def _header(self, position: int) -> Header:
        with self._open(position) as file:
            return probe(file)

    def _read(self, position: int, max_bytes: int) -> bytes:
        with self._open(position) as file:
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise BadMember(too_large(max_bytes))
            return file.read(max_bytes)

    def identities(self, indices: np.ndarray) -> Iterator[tuple[str, str]]:
        for index in indices.tolist():
            try:
                identity = self._identity(int(self._images[index]))
            except STORAGE_ERRORS as error:
                raise BadImage(*self.where(index), reason_for(error)) from error
            yield self.names[index], identity

    def _identity(self, position: int) -> str:
        with self._open(position) as file:
            size = os.fstat(file.fileno()).st_size
            sample = file.read(self.SAMPLE_BYTES)
            file.seek(max(size - self.SAMPLE_BYTES, 0))
            sample += file.read(self.SAMPLE_BYTES)
        return f"{size} {hashlib.sha256(sample).hexdigest()}"

    def close(self) -> None:
        return


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Names of all files below a folder, with forward slashes, and the links that lead to folders read already.

    What lies in the folder itself goes first, then what its links lead to, then the links found there.
    """
    names: list[str] = []
    repeated: list[str] = []
    seen: set[tuple[int, int]] = set()
    places = [""]
    while places:
        links: list[str] = []
        for place in places:
            for folder, folders, file_names in os.walk(root / place, onerror=_raise):
                parent = Path(folder).relative_to(root)
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    repeated.append(parent.as_posix())
                    continue
                seen.add((status.st_dev, status.st_ino))
                names += [(parent / name).as_posix() for name in file_names]
                links += [(parent / name).as_posix() for name in folders if os.path.islink(os.path.join(folder, name))]
        places = sorted(links)
    return names, repeated


def _raise(error: OSError) -> None:
    raise UserError(
        f"{error.filename}: cannot be looked into ({error.strerror}); give the right to, or move it"
    ) from error


def _open_regular(path: str, flags: int) -> int:
    """Open a file, but nothing that waits for a writer or never ends."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadMember("it is a pipe, a device or the like, and no file")
    return descriptor


class ZipFiles(StoredFiles):
    """A zip archive. Readable from several threads, and again in the child of a fork.

    The index of a large one is kept in the user's cache.
    """

    START_BYTES = 1 << 15  # the headers of nearly all images are in the first 32 kB

    def __init__(self, path: Path):
        self.path = path
        self._file: SharedFile | None = None
        self._file = self._opened()
        self._version = self._file.version
        # Each record of a directory has so many bytes at least.
        is_small = self._version[0] < CACHE_FROM * zip_index.CENTRAL.itemsize
        self._cache = None if is_small else IndexCache(path)
        known = None if self._cache is None else self._cache.load("block", "ends", "entries", "images")
        if known is None:
            all_names, self._entries = zip_index.read_directory(path)
            super().__init__(path, all_names)
            if len(self._entries) <= CACHE_FROM:
                self._cache = None
            if self._cache is not None:
                self._cache.save(**self._arrays())
        else:
            self._entries = known["entries"]
            super().__init__(path, Names(known["block"].tobytes(), known["ends"]), known["images"])

    def _arrays(self) -> dict[str, np.ndarray]:
        block = np.frombuffer(self.all_names.block, np.uint8)
        return {"block": block, "ends": self.all_names.ends, "entries": self._entries, "images": self._images}

    def _opened(self) -> SharedFile:
        file = self._file
        if file is None:
            # Two threads may both open it; the one that is not kept is closed when its read is done.
            file = SharedFile(self.path)
            if self.__dict__.get("_version", file.version) != file.version:
                raise UserError(f"{self.path}: was changed while it was in use; start again")
            self._file = file
        return file

    def _read(self, position: int, max_bytes: int) -> bytes:
        return zip_index.read_member(self._opened(), self.all_names[position], self._entries[position], max_bytes)

    def leave_out(self, indices: list[int]) -> None:
        super().leave_out(indices)
        self._cache = None  # which is of all images

    def _start(self, position: int) -> bytes:
        entry, name = self._entries[position], self.all_names[position]
        return zip_index.read_start(self._opened(), name, entry, MAX_FILE_BYTES, sheets.START_BYTES)

    def _header(self, position: int) -> Header:
        entry = self._entries[position]
        if entry["size"] > self.START_BYTES:
            start = zip_index.read_start(
                self._opened(), self.all_names[position], entry, MAX_FILE_BYTES, self.START_BYTES
            )
            # The beginning of other formats can look like another image.
            if start.startswith((b"\x89PNG", b"\xff\xd8")):
                with contextlib.suppress(Exception):  # what stands before the pixels can be longer
                    return probe(io.BytesIO(start))
        return probe(io.BytesIO(self._read(position, MAX_FILE_BYTES)))  # and its checksum is checked

    def identities(self, indices: np.ndarray) -> Iterator[tuple[str, str]]:
        for first in range(0, len(indices), CHUNK):
            positions = self._images[indices[first : first + CHUNK]]
            entries, names = self._entries[positions], self.all_names.take(positions)
            for name, size, crc in zip(names, entries["size"].tolist(), entries["crc"].tolist(), strict=True):
                yield name, f"{size} {crc:08x}"

    def fill_headers(self, headers: np.ndarray, bar: tqdm) -> None:
        known = None if self._cache is None else self._cache.load("headers")
        if known is not None and known["headers"].dtype == HEADER_DTYPE and len(known["headers"]) == len(self):
            headers[:] = known["headers"]
            bar.update(len(self))
            return
        super().fill_headers(headers, bar)
        if self._cache is not None:
            self._cache.save(**self._arrays(), headers=headers)

    def close(self) -> None:
        self._file = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}


class ShardedFiles(ImageFiles):
    """Several zips or folders as one set, one after the other in the order given; few of them are open at a time.

    Names get the name of their zip as a prefix where two zips have a name in common.
    """

    MAX_OPEN = 32

    def __init__(self, path: Path, parts: list[StoredFiles]):
        self.path = path
        self._parts = parts
        prefixes = [""] * len(parts)
        if share_a_name([part.names for part in parts]):
            stems = [part.path.stem for part in parts]
            is_telling = len(set(stems)) == len(stems)
            prefixes = [f"{stem}/" if is_telling else f"{k:05d}-{stem}/" for k, stem in enumerate(stems)]
        self.names: Joined = Joined([part.names for part in parts], prefixes)
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def parts(self) -> list[StoredFiles]:
        return self._parts

    def where(self, index: int) -> tuple[str, str]:
        part, local = self.names.locate(index)
        return self._parts[part].where(local)

    def _use(self, part: int) -> StoredFiles:
        with self._lock:
            self._recent[part] = None
            self._recent.move_to_end(part)
            if len(self._recent) > self.MAX_OPEN:
                oldest, _ = self._recent.popitem(last=False)
                self._parts[oldest].close()
        return self._parts[part]

    def _at(self, index: int) -> tuple[StoredFiles, int]:
        part, local = self.names.locate(index)
        return self._use(part), local

    def read(self, index: int) -> bytes:
        files, local = self._at(index)
        return files.read(local)

    def probe(self, index: int) -> Header:
        files, local = self._at(index)
        return files.probe(local)

    def identities(self, indices: np.ndarray) -> Iterator[tuple[str, str]]:
        for part, (start, prefix) in enumerate(zip(self.names.starts.tolist(), self.names.prefixes, strict=False)):
            first, last = np.searchsorted(indices, [start, start + len(self._parts[part])])
            for name, identity in self._use(part).identities(indices[first:last] - start):
                yield prefix + name, identity

    def fill_headers(self, headers: np.ndarray, bar: tqdm) -> None:
        for part, start in enumerate(self.names.starts[:-1].tolist()):
            self._use(part).fill_headers(headers[start : start + len(self._parts[part])], bar)

    def close(self) -> None:
        with self._lock:
            self._recent.clear()
        for part in self._parts:
            part.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_lock": None, "_recent": OrderedDict()}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


STORAGE_ERRORS = (OSError, BadMember)


def open_files(path: str | os.PathLike) -> ImageFiles:
    """The image files of a folder or zip, or of several: `a.zip,b.zip`, `train-{000..127}.zip`.

    Raises `UserError` where one of them is missing, damaged or without images.
    """
    paths = part_paths(path)
    if len(paths) == 1:
        return _open_one(paths[0])
    disable = True if len(paths) < 8 else None
    parts = []
    for one in tqdm(paths, desc="Indexing", unit="zip", leave=False, disable=disable):
        parts.append(_open_one(one))
        parts[-1].close()  # thousands of open files are more than systems allow
    return ShardedFiles(Path(path), parts)


def add_identities(digest: Any, files: ImageFiles, indices: np.ndarray) -> None:
    """Update a hash by the names and contents of images, never by where they lie. indices: ascending."""
    lines: list[str] = []
    for name, identity in files.identities(indices):
        lines.append(f"{name}\0{identity}\n")
        if len(lines) == CHUNK:
            digest.update("".join(lines).encode("utf-8", "surrogateescape"))
            lines.clear()
    digest.update("".join(lines).encode("utf-8", "surrogateescape"))


def _open_one(path: Path) -> StoredFiles:
    if path.is_dir():
        files: StoredFiles = FolderFiles(path)
    elif path.is_file():
        files = _open_zip(path)
    elif path.exists():
        raise DataError(f"{path}: is neither a file nor a folder; give a folder of images or a zip")
    else:
        raise DataError(f"{path}: no such file or folder; give a folder of images or a zip")
    if not files.names:
        files.close()
        what = describe_file(path)
        if what is not None:
            raise DataError(f"{path}: is {what.replace(GIVE, GIVE_IMAGES)}")
        found = counted(files.left_out())
        found = f" (but {found})" if found else ""
        raise DataError(f"{path}: holds no images{found}; put {KINDS} files into it, or check the path")
    _leave_out_sheets(files)
    return files


def _leave_out_sheets(files: StoredFiles) -> None:
    """Pictures of many images that the tools here wrote beside samples are no samples; says so. Large zips are taken as they
    are: nobody packs millions of files by hand."""
    if isinstance(files, ZipFiles) and len(files) > CACHE_FROM:
        return
    names = {index: name for index, name in enumerate(files.names) if name.lower().endswith(".png")}
    starts = {index: sheets.look(files.start_of(index)) for index in names}
    older = sheets.older_sheets((names[index], start) for index, start in starts.items())
    found = [index for index, start in starts.items() if start.is_marked or names[index] in older]
    if len(found) == len(files):
        files.close()
        raise UserError(
            f"{files.path}: holds no samples: its {len(found):,} images are sheets that show many (such as "
            f"{printable(names[found[0]])}); give the images themselves"
        )
    sheets.say_left_out(str(files.path), [printable(names[index]) for index in found], len(files))
    if found:
        files.leave_out(found)


def _open_zip(path: Path) -> ZipFiles:
    try:
        return ZipFiles(path)
    except DamagedZip as error:
        raise DataError(_zip_complaint(path, str(error))) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({reason_for(error)})") from error


def _zip_complaint(path: Path, reason: str) -> str:
    with open(path, "rb") as file:
        start = file.read(2)
    if not start:
        return f"{path}: is empty (0 bytes); copy or download it again"
    if start == b"PK":
        return f"{path}: is {reason}; copy or download it again, or zip its files anew"
    what = describe_file(path)
    if what is not None:
        return f"{path}: is neither a folder nor a zip, but {what.replace(GIVE, GIVE_IMAGES)}"
    if path.suffix.lower() in (".pkl", ".safetensors"):
        return f"{path}: is a network, and images are needed here; it goes to --network, or to --source of train.py"
    return f"{path}: is neither a folder nor a zip; convert it with dataset_tool.py, or check the path"


_said_hidden: set[str] = set()


def _say_hidden(path: str, name: str) -> None:
    """Say it once for each set, on rank 0."""
    if path in _said_hidden:
        return
    _said_hidden.add(path)
    from torch_utils import distributed  # imports torch, which dataset_tool does without, as it says so itself

    distributed.print0(
        f"Note: {path}: {name} has colours where it is transparent, and other images may, too: they are read as black, "
        "so that networks see what people see",
        file=sys.stderr,
    )


def fingerprint_at(path: str) -> str:
    with contextlib.closing(open_files(path)) as files:
        return content_fingerprint(files)


def content_fingerprint(files: ImageFiles) -> str:
    """Hash of names and contents, never of the path."""
    digest = hashlib.sha256()
    add_identities(digest, files, np.arange(len(files)))
    return digest.hexdigest()
