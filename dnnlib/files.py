"""Files that are whole or not there: written under another name and renamed; sealed with a hash of what was written."""

import contextlib
import hashlib
import os
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dnnlib.errors import UserError

SHEET_TEXT = {"Spider-StyleGAN": "sheet"}  # in the PNGs of pictures that are no samples (see training/data/sheets.py)
PART = ".part"  # ending of a file that is being written
SEAL_MARK = b"\nsha256:"
SEAL_BYTES = len(SEAL_MARK) + 64 + 1


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, sealed: bool = False) -> Iterator[BinaryIO]:
    """`whole_file`, with `UserError` where it cannot be written.

    sealed: end the file with a line that holds the sha256 of what precedes it; pickles and zips (those of `torch.save`) are
    read as if it was not there.
    """
    try:
        with whole_file(path) as file:
            yield file
            if sealed:
                append_seal(file)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); mend that, what was there is kept"
        ) from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8, whole or not at all. Raises `UserError`."""
    with atomic_write(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` once the block has ended well and its bytes are on the disk.

    Until then, and after an error, whatever was there stays.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{PART}")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename == os.fspath(temporary):  # which nobody has asked for
            error.filename = os.fspath(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Where a full or read-only disk is no reason to end hours of work: a line says what was not written, and why."""
    try:
        yield
    except OSError as error:
        print(f"Warning: {what} could not be written ({error.strerror or error}); the work goes on", flush=True)


def append_seal(file: BinaryIO) -> None:
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0, os.SEEK_END)
    file.write(SEAL_MARK + digest.encode() + b"\n")


def check_seal(file: BinaryIO, name: str, required: bool = False) -> None:
    """Raise `UserError` if the file, read from its start, is not what was sealed. Leaves it at its start.

    A file without a seal passes unless one is required: other programs do not seal theirs.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - SEAL_BYTES, 0))
    seal = file.read()
    file.seek(0)
    if not seal.startswith(SEAL_MARK) or not seal.endswith(b"\n"):
        if required:
            raise UserError(f"{name}: is damaged or incomplete: its end is missing")
        return
    digest, left = hashlib.sha256(), size - SEAL_BYTES
    while left > 0 and (chunk := file.read(min(left, 1 << 20))):
        digest.update(chunk)
        left -= len(chunk)
    file.seek(0)
    if digest.hexdigest().encode() != seal[len(SEAL_MARK) : -1]:
        raise UserError(f"{name}: is damaged: its contents do not match the hash at its end")


@contextlib.contextmanager
def only_one(folder: Path, patience_sec: float = 5.0) -> Iterator[bool]:
    """Whether no other process is in this block for the folder. The lock ends with the process, also with one that was
    killed; the system gets patience_sec to bury it. True where the system or the file system knows no locks.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows
        yield True
        return
    try:
        deadline = time.monotonic() + patience_sec
        while (is_alone := _try_to_lock(fcntl, descriptor)) is False and time.monotonic() < deadline:
            time.sleep(0.1)
        yield is_alone
    finally:
        os.close(descriptor)


def _try_to_lock(fcntl: Any, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return True
    return True


def remove_parts(folder: Path) -> None:
    """Delete what a process that was killed left half-written in a folder of its own."""
    for part in folder.glob(f"*{PART}"):
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last; not every system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def prepare_folder(folder: Path, flag: str) -> None:
    """Make the folder that pictures go to, and see that it can be written. Raises `UserError` that names the flag."""
    with writing(flag):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextlib.contextmanager
def writing(flag: str) -> Iterator[None]:
    """What the storage refuses inside the block becomes a `UserError` that names the flag and the file."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        raise UserError(f"{flag}: {where}cannot be written ({reason}); choose another place") from error


UNREADABLE = (  # what damaged and strange files of arrays raise
    OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, EOFError, MemoryError, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


@contextlib.contextmanager
def reading_arrays(path: str | os.PathLike, instead: str) -> Iterator[None]:
    """Whatever goes wrong in the block, which reads arrays from a file, is a `UserError`. instead: what should be given."""
    try:
        yield
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if "pickle" in reason or isinstance(error, TypeError | LookupError):  # NumPy speaks to programmers
            reason = "it holds something else"
        raise UserError(f"{path} cannot be read ({reason}); give {instead}") from error
