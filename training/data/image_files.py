"""Image files in folders and zips: list them, look at their headers, decode them, encode PNGs.

Files are read where they lie (a zip is never unpacked to disk). What is wrong with a path, an archive or an image
becomes a `UserError` that names it.
"""

import contextlib
import hashlib
import io
import os
import stat
import struct
import sys
import threading
import zlib
from abc import ABC, abstractmethod
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

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
from training.data.shards import part_paths
from training.data.zip_index import BadMember, DamagedZip, SharedFile, printable, too_large

EXTENSIONS = frozenset(
    {"png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "tif", "tiff", "gif", "ppm", "pgm", "pbm", "pnm", "tga"}
)
MAX_FILE_BYTES = 1 << 30  # a small zip can unfold into more than the memory holds
WEBP_START, MAX_ANIMATED_PIXELS = 30, 1 << 24
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "TGA")  # TGA last: its files begin with no signature
KINDS = "PNG, JPEG, WebP, BMP, TIFF, GIF, PPM or TGA"
# What people take for images, too. What is not here (texts, metadata) is expected beside them.
OTHER_IMAGES = frozenset(
    {
        "avif", "avifs", "heic", "heif", "jxl", "jp2", "j2k", "jpx", "jpf", "psd", "psb", "xcf", "kra", "svg", "svgz",
        "eps", "ai", "pdf", "ico", "cur", "icns", "pcx", "dds", "exr", "hdr", "pfm", "qoi", "raw", "dng", "cr2", "cr3",
        "nef", "arw", "orf", "rw2", "apng", "mng", "ras", "sgi", "rgb", "bw", "xbm", "xpm", "npy", "npz", "mp4", "webm",
    }
)  # fmt: skip

GRAY_16 = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
# Pillow keeps the more significant byte of a 16-bit colour sample. Under the opposite byte order it keeps the other.
_SWAPPED_NATIVE = "16B" if sys.byteorder == "little" else "16L"
SWAPPED_16 = {
    f"{mode};{order}": f"{mode};{swapped}"
    for mode in ("RGB", "RGBA")
    for order, swapped in (("16B", "16L"), ("16L", "16B"), ("16N", _SWAPPED_NATIVE))
}
GRAY_ALPHA_16 = "LA;16B"  # only in PNGs

MODE_CHANNELS = {
    "1": 1, "L": 1, "I;16": 1, "I;16B": 1, "I;16L": 1, "I": 1,
    "P": 3, "RGB": 3, "RGBX": 3, "CMYK": 3, "YCbCr": 3, "LAB": 3, "HSV": 3,
    "LA": 4, "La": 4, "PA": 4, "RGBA": 4, "RGBa": 4,
}  # fmt: skip
CHANNEL_NAMES = {1: "gray", 3: "RGB", 4: "RGBA"}


class BadImage(UserError):
    """One image that cannot be read. `name` and `reason` are for messages that list several."""

    def __init__(self, where: str, name: str, reason: str):
        way_out = "remove it, or convert the set with dataset_tool.py, which leaves such files out"
        super().__init__(f"{where}: {name} cannot be read ({reason}): {way_out}")
        self.where, self.name, self.reason = where, name, reason

    def __reduce__(self):
        return BadImage, (self.where, self.name, self.reason)


class Header(NamedTuple):
    """What an image will decode to, known without decoding it."""

    width: int
    height: int
    channels: int  # 1 gray, 3 RGB, 4 RGBA
    bits: int  # 8 or 16
    animated: bool = False  # several pictures, of which the first is taken


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
        """As `decode`, with the colours that nobody sees."""
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
        return Counter(_extension(name) for name in self.all_names.take(others) if not _is_companion(name))

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


def is_image_name(name: str) -> bool:
    """An image by its extension, and not one of the hidden companions that macOS puts into zips."""
    return _extension(name)[1:] in EXTENSIONS and not _is_companion(name)


def _extension(name: str) -> str:
    """`.png`, in small letters; empty where there is none."""
    _, dot, extension = name.rpartition("/")[2].rpartition(".")
    return dot + extension.lower() if dot else ""


def _is_companion(name: str) -> bool:
    """Files that systems and tools put beside images: hidden ones, those of macOS, and `dataset.json`."""
    file_name = name.rpartition("/")[2]
    return file_name.startswith(".") or file_name == "dataset.json" or "__MACOSX" in name.split("/")


def counted(extensions: Counter[str], most: int = 8) -> str:
    """`3 .heic, 1 .txt`, the most frequent first."""
    kinds = sorted(extensions.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count:,} {printable(extension)[:16] or 'without extension'}" for extension, count in kinds[:most]]
    rest = sum(count for _, count in kinds[most:])
    return ", ".join([*parts, f"{rest:,} others"] if rest else parts)


def other_images(extensions: Counter[str]) -> Counter[str]:
    """Those of `left_out` that people take for images."""
    return Counter({kind: count for kind, count in extensions.items() if kind[1:] in OTHER_IMAGES})


def reason_for(error: Exception) -> str:
    """What went wrong with a file, in a few words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return "it has far more pixels than an image for training, which may be a decompression bomb"
    if isinstance(error, ValueError) and "MAX_TEXT" in str(error):
        return "its text or colour profile unfolds into more than 1 MB"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def probe(file: IO[bytes]) -> Header:
    """The header of an image file; the pixels are not decoded."""
    _refuse_large_webp(file.read(WEBP_START))
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        orientation = _orientation(image)
        if image.format == "TIFF":
            # Pillow's own size is turned already or not, depending on its version.
            tags = image.tag_v2  # type: ignore[attr-defined]
            width, height, orientation = tags[256], tags[257], tags.get(274, 1)
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        # A phone's JPEG with further pictures for depth or brightness (MPO) is one picture for people.
        is_animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        return Header(width, height, *_channels_bits(image), is_animated)


def _refuse_large_webp(start: bytes) -> None:
    """Pillow has memory for the canvas of a WebP, and for two more of an animation, before it looks at the size."""
    if len(start) < WEBP_START or (start[:4], start[8:16]) != (b"RIFF", b"WEBPVP8X"):
        return
    flags, *sides = struct.unpack("<B3xH B H B", start[20:])
    width, height = sides[0] + (sides[1] << 16) + 1, sides[2] + (sides[3] << 16) + 1
    limit = MAX_ANIMATED_PIXELS if flags & 2 else 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if width * height > limit:
        raise Image.DecompressionBombError


def decode(data: bytes) -> np.ndarray:
    """Pixels of an image file, uint8 or uint16 `[H, W, C]` with C 1 (gray), 3 (RGB) or 4 (RGBA), turned upright."""
    _refuse_large_webp(data[:WEBP_START])
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        orientation = _orientation(image)
        channels, bits = _channels_bits(image)
        raw_mode = _raw_mode(image)
        image.load()  # numpy would swallow some of the errors
        pixels = _decode_16(data, image, raw_mode) if bits == 16 else _decode_8(image, channels)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return np.ascontiguousarray(_turn(pixels, orientation))


def has_hidden(pixels: np.ndarray) -> bool:
    """Whether `[H, W, C]` has colours where alpha is 0: people do not see them, networks do."""
    return pixels.shape[2] == 4 and bool(pixels[pixels[:, :, 3] == 0].any())


def clear_hidden(pixels: np.ndarray) -> np.ndarray:
    """Black in place of colours under alpha 0; the same array where there are none."""
    return np.where(pixels[:, :, 3:] == 0, pixels.dtype.type(0), pixels) if has_hidden(pixels) else pixels


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


def _channels_bits(image: ImageFile.ImageFile) -> tuple[int, int]:
    raw_mode = _raw_mode(image)
    if raw_mode == GRAY_ALPHA_16:
        return 4, 16
    if raw_mode in GRAY_16:
        return 1, 16
    if raw_mode in SWAPPED_16:
        return (4 if raw_mode.startswith("RGBA") else 3), 16
    if image.format == "PPM" and image.tile[0][0].startswith("ppm") and image.tile[0][3][-1] > 255:  # type: ignore[operator]
        raise ValueError("a PPM of more than 8 bits, of which half would be lost; save it as PNG")
    if image.mode not in MODE_CHANNELS or image.mode.startswith("I") or ";16" in raw_mode:
        raise ValueError(f"its pixel type, {raw_mode or image.mode}, is not one of 8- and 16-bit gray, RGB and RGBA")
    has_key = "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    return (4 if has_key else MODE_CHANNELS[image.mode]), 8


def _raw_mode(image: ImageFile.ImageFile) -> str:
    args = image.tile[0][3] if image.tile else ""
    mode = args if isinstance(args, str) else args[0] if isinstance(args, tuple) and args else ""
    return mode if isinstance(mode, str) else ""


def _orientation(image: ImageFile.ImageFile) -> int:
    # Pillow turns TIFFs while decoding. A PNG's EXIF may follow its pixels, where a look at the header misses it.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return image.getexif().get(274, 1)
    except Exception:  # damaged EXIF is common, and no reason to do without the image
        return 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the EXIF orientation: 2 to 4 are flips, 5 to 8 swap the axes first."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _decode_8(image: Image.Image, channels: int) -> np.ndarray:
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    if mode == "RGBA" and image.mode == "1":
        image = image.convert("L")
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _decode_16(data: bytes, image: Image.Image, raw_mode: str) -> np.ndarray:
    if raw_mode in GRAY_16:
        return np.asarray(image).astype(np.uint16)
    if raw_mode == GRAY_ALPHA_16:
        luma_high, luma_low, alpha_high, alpha_low = np.moveaxis(_decode_as(data, "RGBA"), -1, 0).astype(np.uint16)
        luma, alpha = luma_high << 8 | luma_low, alpha_high << 8 | alpha_low
        return np.stack([luma, luma, luma, alpha], axis=-1)
    high, low = np.asarray(image).astype(np.uint16), _decode_as(data, SWAPPED_16[raw_mode])
    return high << 8 | low


def _decode_as(data: bytes, raw_mode: str) -> np.ndarray:
    """Decode with another notion of what the file's bytes mean."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        tiles: list[Any] = []
        for tile in image.tile:
            args = (raw_mode, *tile[3][1:]) if isinstance(tile[3], tuple) else raw_mode
            # Pillow before version 11 has plain tuples.
            tiles.append(tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args))
        image.tile = tiles
        image.load()
        return np.asarray(image)


def widen(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Gray to RGB, RGB to opaque RGBA: `[H, W, C]` to `[H, W, channels]` without loss."""
    if pixels.shape[2] == 1 and channels > 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 3 and channels == 4:
        opaque = np.full_like(pixels[:, :, :1], np.iinfo(pixels.dtype).max)
        pixels = np.concatenate([pixels, opaque], axis=2)
    assert pixels.shape[2] == channels, f"{pixels.shape[2]} channels do not fit into {channels}"
    return pixels


def encode_png(pixels: np.ndarray, compress_level: int = 6) -> bytes:
    """A PNG of uint8 or uint16 pixels `[H, W, C]` with 1, 3 or 4 channels."""
    if pixels.dtype == np.uint16:
        return _encode_png_16(pixels, compress_level)
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    image.save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()


def _encode_png_16(pixels: np.ndarray, compress_level: int) -> bytes:
    # Pillow writes no 16-bit colour. Filter 2 (each byte less the one above it) for every row.
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    above = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), rows - above], axis=1)
    color_type = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), compress_level)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
