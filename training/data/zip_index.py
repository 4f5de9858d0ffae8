"""The directory of a zip as compact arrays, and its files read by any number of threads.

The standard library keeps an object of half a kilobyte for each file and decompresses whatever comes. Here ten million
files take 0.6 GB, a file is never unfolded beyond what the directory says, and files that lie upon each other are refused.
The layout is that of PKWARE's APPNOTE 6.3.
"""

import bz2
import itertools
import operator
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from training.data.file_index import Names, decode_name, encode_name, ends_of
from training.data.file_names import member_name

MAX_ENTRIES = 1 << 25
BLOCK_BYTES = 1 << 22
SUSPICIOUS_BYTES, SUSPICIOUS_RATIO = 64 << 20, 200  # together they make a bomb; images hardly shrink

STORED, DEFLATED, BZIP2 = 0, 8, 12
METHODS = {1: "shrink", 6: "implode", 9: "Deflate64", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
ENCRYPTED, PATCHED = 0x1 | 0x40 | 0x2000, 0x20
UNKNOWN_32, UNKNOWN_16 = 0xFFFFFFFF, 0xFFFF

END, LOCATOR, END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = np.dtype(
    [
        ("signature", "S4"), ("made_by", "<u2"), ("needs", "<u2"), ("flags", "<u2"), ("method", "<u2"), ("time", "<u4"),
        ("crc", "<u4"), ("packed", "<u4"), ("size", "<u4"), ("name_bytes", "<u2"), ("extra_bytes", "<u2"),
        ("comment_bytes", "<u2"), ("disk", "<u2"), ("internal", "<u2"), ("external", "<u4"), ("offset", "<u4"),
    ]
)  # fmt: skip
ENTRY = np.dtype(
    [("offset", "<u8"), ("packed", "<u4"), ("size", "<u4"), ("crc", "<u4"), ("method", "<u2"), ("flags", "<u2")]
)  # sizes stop at 4 GB, far beyond any file that is read


class DamagedZip(Exception):
    """An archive that cannot be read, or must not be; the message is the reason."""


class BadMember(Exception):
    """A file in an archive that cannot be read; the message is the reason."""


class SharedFile:
    """A file that threads and forked children read at any place. It is closed when nobody holds it any more."""

    def __init__(self, path: Path):
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        self._lock = threading.Lock()  # where reading moves the position
        status = os.fstat(self._fd)
        self.version = (status.st_size, status.st_mtime_ns)

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes, or fewer at the end of the file."""
        parts = []
        while count > 0:
            part = self._read_some(offset, count)
            if not part:
                break
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return b"".join(parts)

    def _read_some(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._fd, count, offset)
        with self._lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.read(self._fd, count)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


# The directory -------------------------------------------------------------------------------------------------------


def read_directory(path: Path) -> tuple[Names, np.ndarray]:
    """Names of all files, canonical and sorted, without folders, and `ENTRY` records aligned with them.

    Raises `DamagedZip` for what is no sound archive, `OSError` where it cannot be read.
    """
    with open(path, "rb") as file:
        start, size, shift = _find_directory(file)
        names, entries = _read_entries(file, start, size)
    if shift:
        entries["offset"] += np.uint64(shift)
    _check_places(entries, start)
    return names, entries


def _find_directory(file: BinaryIO) -> tuple[int, int, int]:
    """Where the directory begins, its size, and by how much all places are shifted (by what stands before the zip)."""
    file_size = file.seek(0, os.SEEK_END)
    tail_start = max(file_size - END.size - UNKNOWN_16, 0)
    file.seek(tail_start)
    tail = file.read()
    place = tail.rfind(b"PK\5\6", 0, len(tail) - END.size + 4)
    if place < 0:
        raise DamagedZip("a damaged or incomplete zip")
    _, disk, first_disk, _, _, size, offset, _ = END.unpack_from(tail, place)
    end = tail_start + place
    end_64 = _find_end_64(file, end)
    if end_64 is not None:
        end, disk, first_disk, size, offset = end_64
    start = end - size
    if disk or first_disk:
        raise DamagedZip("one part of a zip in several parts")
    if start < 0 or start < offset:
        raise DamagedZip("a damaged or incomplete zip")
    return start, size, start - offset


def _find_end_64(file: BinaryIO, end: int) -> tuple[int, int, int, int, int] | None:
    """Place, disks, size and offset of the directory as the 64-bit record says; None where there is no such record."""
    if end < LOCATOR.size:
        return None
    file.seek(end - LOCATOR.size)
    signature, _, offset, num_disks = LOCATOR.unpack(file.read(LOCATOR.size))
    if signature != b"PK\6\7":
        return None
    if num_disks > 1:
        raise DamagedZip("one part of a zip in several parts")
    for place in (end - LOCATOR.size - END_64.size, offset):  # the usual one is right where bytes stand before the zip
        if not 0 <= place <= end - LOCATOR.size - END_64.size:
            continue
        file.seek(place)
        fields = END_64.unpack(file.read(END_64.size))
        if fields[0] == b"PK\6\6":
            return place, fields[4], fields[5], fields[8], fields[9]
    raise DamagedZip("a damaged or incomplete zip")


_MAY_CLIMB = re.compile(rb"\.\.|\n[\\/]|\n[A-Za-z]:")


def _read_entries(file: BinaryIO, start: int, size: int) -> tuple[Names, np.ndarray]:
    """All files in the order of their names."""
    blocks, lengths, entries, is_sorted, last, count = [], [], [], True, b"", 0
    for names, records in _records(file, start, size):
        _refuse_climbing(names)
        is_sorted = is_sorted and all(map(operator.lt, itertools.chain([last], names), names))
        last = names[-1] if names else last
        blocks.append(b"".join(names))
        lengths.append(np.fromiter(map(len, names), np.int64, len(names)))
        entries.append(records)
        count += len(names)
        if count > MAX_ENTRIES:
            raise DamagedZip(f"a zip of more than {MAX_ENTRIES:,} files, which are too many")
    if not entries:
        return Names(b"", ends_of(np.zeros(0, np.int64))), np.zeros(0, ENTRY)
    packed, records = Names(b"".join(blocks), ends_of(np.concatenate(lengths))), np.concatenate(entries)
    return (packed, records) if is_sorted else _in_order(packed, records)


def _refuse_climbing(names: list[bytes]) -> None:
    """Names that lead out of the archive are in no zip that means well."""
    if not _MAY_CLIMB.search(b"\n" + b"\n".join(names)):  # as nearly always
        return
    for name in names:
        parts = re.split(rb"[\\/]", name)
        if b".." in parts or parts[0] == b"" or re.match(rb"[A-Za-z]:", name):
            raise DamagedZip(f"a zip with a file named {printable(decode_name(name))}, which leads out of it")


def _in_order(names: Names, entries: np.ndarray) -> tuple[Names, np.ndarray]:
    starts = np.concatenate([[0], names.ends[:-1].astype(np.int64)]).tolist()
    texts = [names.block[start:end] for start, end in zip(starts, names.ends.tolist(), strict=True)]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    texts = [texts[index] for index in order]
    for first, second in itertools.pairwise(texts):
        if first == second:
            raise DamagedZip(f"a zip with two files named {printable(decode_name(first))}")
    return Names.pack(texts), entries[np.asarray(order)]


def _records(file: BinaryIO, start: int, size: int) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Names and `ENTRY` records of files, some thousands at a time, in the order of the directory."""
    file.seek(start)
    rest = b""
    while size or rest:
        block = rest + file.read(min(BLOCK_BYTES, size))
        size -= len(block) - len(rest)
        places, end = _walk(block)
        if not places:
            raise DamagedZip("a damaged or incomplete zip")
        rest = block[end:]
        yield _parse(block, places)


def _walk(block: bytes) -> tuple[list[int], int]:
    """Where the records begin that lie in the block as a whole, and where they end."""
    places, place, fields = [], 0, struct.Struct("<4s24x3H")
    while place + CENTRAL.itemsize <= len(block):
        signature, *lengths = fields.unpack_from(block, place)
        if signature != b"PK\1\2":
            raise DamagedZip("a damaged or incomplete zip")
        end = place + CENTRAL.itemsize + sum(lengths)
        if end > len(block):
            break
        places.append(place)
        place = end
    return places, place


def _parse(block: bytes, places: list[int]) -> tuple[list[bytes], np.ndarray]:
    raw = np.frombuffer(block, np.uint8)
    central = raw[np.array(places)[:, None] + np.arange(CENTRAL.itemsize)].view(CENTRAL)[:, 0]
    entries = np.empty(len(places), ENTRY)
    for field in ENTRY.names or ():
        entries[field] = central[field]
    is_long = (central["offset"] == UNKNOWN_32) | (central["packed"] == UNKNOWN_32) | (central["size"] == UNKNOWN_32)
    for index in np.flatnonzero(is_long).tolist():
        extra_start = places[index] + CENTRAL.itemsize + int(central["name_bytes"][index])
        extra = block[extra_start : extra_start + int(central["extra_bytes"][index])]
        _take_64(entries, index, extra)
    name_starts = [place + CENTRAL.itemsize for place in places]
    fields = (central[field].tolist() for field in ("name_bytes", "extra_bytes", "flags"))
    names = [
        _name_of(block[start : start + length], flag, block[start + length : start + length + extra])
        for start, length, extra, flag in zip(name_starts, *fields, strict=True)
    ]
    is_file = [bool(name) and not name.endswith(b"/") for name in names]
    if all(is_file):
        return names, entries
    return list(itertools.compress(names, is_file)), entries[np.array(is_file)]


def _take_64(entries: np.ndarray, index: int, extra: bytes) -> None:
    """Fill in what the 64-bit field of a record holds: size, packed size, offset, those that are marked as missing."""
    missing = [field for field in ("size", "packed", "offset") if entries[field][index] == UNKNOWN_32]
    while len(extra) >= 4:
        kind, count = struct.unpack_from("<2H", extra)
        if kind == 1 and count >= 8 * len(missing) and len(extra) >= 4 + 8 * len(missing):
            for field, value in zip(missing, struct.unpack_from(f"<{len(missing)}Q", extra, 4), strict=True):
                entries[field][index] = value if field == "offset" else min(value, UNKNOWN_32)
            return
        extra = extra[4 + count :]
    if missing == ["offset"]:
        raise DamagedZip("a damaged or incomplete zip")  # sizes of exactly 4 GB - 1 can be meant


def _name_of(raw: bytes, flags: int, extra: bytes) -> bytes:
    try:
        return encode_name(member_name(raw, flags, extra))
    except UnicodeDecodeError:
        raise DamagedZip("a damaged zip: its names are not what they are said to be") from None


def _check_places(entries: np.ndarray, directory_start: int) -> None:
    """Files lie one after the other before the directory. Bombs lay them upon each other, damage puts them anywhere."""
    if len(entries) == 0:
        return
    order = np.argsort(entries["offset"], kind="stable")
    starts = entries["offset"][order]
    ends = starts + entries["packed"][order] + np.uint64(LOCAL.size)  # at least
    if (ends[:-1] > starts[1:]).any():
        raise DamagedZip("a zip whose files lie upon each other, as in a decompression bomb")
    if ends[-1] > directory_start or ends[-1] < starts[-1]:
        raise DamagedZip("a damaged or incomplete zip")


# Files ---------------------------------------------------------------------------------------------------------------


def read_member(file: SharedFile, name: str, entry: np.void, max_bytes: int) -> bytes:
    """The contents of a file, checked against its size and checksum. Raises `BadMember`."""
    _check_readable(entry, max_bytes)
    size = int(entry["size"])
    data = unfold(_packed_data(file, name, entry, int(entry["packed"])), int(entry["method"]), size + 1)
    if len(data) != size:
        more = "more" if len(data) > size else "less"
        raise BadMember(f"it unfolds into {more} than the {size:,} bytes that its zip announces")
    if zlib.crc32(data) != entry["crc"]:
        raise BadMember("its checksum (CRC) is not the one in its zip")
    return data


def read_start(file: SharedFile, name: str, entry: np.void, max_bytes: int, count: int) -> bytes:
    """The first `count` bytes of a file (more than there are: all), not checked against its checksum."""
    _check_readable(entry, max_bytes)
    # What deflate makes larger is stored, so that so many packed bytes are enough.
    packed = _packed_data(file, name, entry, min(int(entry["packed"]), count + 1024))
    return unfold(packed, int(entry["method"]), count)


def _check_readable(entry: np.void, max_bytes: int) -> None:
    flags, method, size, packed = (int(entry[field]) for field in ("flags", "method", "size", "packed"))
    if flags & ENCRYPTED:
        raise BadMember("it is encrypted; unpack the zip with its password first")
    if flags & PATCHED:
        raise BadMember("it is a patch for another file")
    if method not in (STORED, DEFLATED, BZIP2):
        raise BadMember(f"its compression, {METHODS.get(method, f'number {method}')}, is not supported; zip it anew")
    if size > max_bytes:
        raise BadMember(too_large(max_bytes))
    if size > SUSPICIOUS_BYTES and size > SUSPICIOUS_RATIO * packed:
        raise BadMember(f"its {packed:,} bytes unfold into {size:,}, which may be a decompression bomb")


def _packed_data(file: SharedFile, name: str, entry: np.void, count: int) -> bytes:
    offset = int(entry["offset"])
    header = file.read(offset, LOCAL.size)
    if len(header) < LOCAL.size or header[:4] != b"PK\3\4":
        raise BadMember("its zip is damaged where it should be")
    fields = LOCAL.unpack(header)
    data = file.read(offset + LOCAL.size, fields[9] + fields[10] + count)
    try:
        is_same = decode_name(_name_of(data[: fields[9]], fields[2], data[fields[9] : fields[9] + fields[10]])) == name
    except DamagedZip:
        is_same = False
    if not is_same:
        raise BadMember("its zip is damaged: another name stands where it should be")
    data = data[fields[9] + fields[10] :]
    if len(data) < count:
        raise BadMember("its zip ends before it does")
    return data


def unfold(data: bytes, method: int, max_bytes: int) -> bytes:
    """Unfold at most `max_bytes` of what was packed. Raises `BadMember`."""
    try:
        if method == DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max_bytes)
        if method == BZIP2:
            return bz2.BZ2Decompressor().decompress(data, max_bytes)
    except (zlib.error, OSError, EOFError) as error:
        raise BadMember(f"its packed data is damaged ({error})") from error
    return data[:max_bytes]


def printable(name: str) -> str:
    """A name for messages: what a terminal cannot show, or would obey, is spelled out."""
    return name if name.isprintable() else repr(name)[1:-1]


def too_large(max_bytes: int) -> str:
    return f"it has more than {max_bytes >> 20:,} MB"
