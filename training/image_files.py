"""Image files in folders and zips: list them, look at their headers, decode them, encode PNGs.

Files are read where they lie (a zip is never unpacked to disk). What is wrong with a path, an archive or an image
becomes a `UserError` that names it.
"""

import hashlib
import io
import os
import struct
import sys
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from dnnlib.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff"})
MAX_FILE_BYTES = 1 << 30  # a small zip can unfold into more than the memory holds
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")

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


class ImageFiles(ABC):
    """The files below a folder or in a zip. `names` are the images, sorted, with forward slashes."""

    def __init__(self, path: Path, all_names: Iterable[str]):
        self.path = path
        self.all_names = frozenset(all_names)
        self.names = sorted(name for name in self.all_names if is_image_name(name))

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """A seekable binary file."""

    def open_header(self, name: str) -> IO[bytes]:
        """As `open`, for a reader of a few bytes here and there."""
        return self.open(name)

    @abstractmethod
    def _identity(self, name: str) -> str: ...

    def identity(self, name: str) -> str:
        """Changes when the file's contents do: size and checksum, or size and sampled bytes. Raises `BadImage`."""
        try:
            return self._identity(name)
        except _STORAGE_ERRORS as error:
            raise BadImage(str(self.path), name, reason_for(error)) from error

    def read(self, name: str) -> bytes:
        """The whole file. Raises `BadImage` where the storage is damaged."""
        try:
            with self.open(name) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except _STORAGE_ERRORS as error:
            raise BadImage(str(self.path), name, reason_for(error)) from error
        if len(data) > MAX_FILE_BYTES:
            raise BadImage(str(self.path), name, f"it has more than {MAX_FILE_BYTES >> 20:,} MB")
        return data

    def probe(self, name: str) -> Header:
        """The header of an image. Raises `BadImage`."""
        try:
            with self.open_header(name) as file:
                return probe(file)
        except Exception as error:  # a damaged file can raise nearly anything inside an image library
            raise BadImage(str(self.path), name, reason_for(error)) from error

    def decode(self, name: str) -> np.ndarray:
        """The pixels of an image, uint8 or uint16 `[H, W, C]`. Raises `BadImage`."""
        data = self.read(name)
        try:
            return decode(data)
        except Exception as error:  # as above
            raise BadImage(str(self.path), name, reason_for(error)) from error

    def close(self) -> None:
        """Close what is open. A later read opens it again."""
        return


class FolderFiles(ImageFiles):
    """A folder and everything below it; links to folders are not followed (they can form circles)."""

    SAMPLE_BYTES = 4096

    def __init__(self, path: Path):
        names = []
        for folder, _, file_names in os.walk(path):
            parent = Path(folder).relative_to(path)
            names += [(parent / name).as_posix() for name in file_names]
        super().__init__(path, names)

    def open(self, name: str) -> IO[bytes]:
        return open(self.path / name, "rb")

    def _identity(self, name: str) -> str:
        with self.open(name) as file:
            size = os.fstat(file.fileno()).st_size
            sample = file.read(self.SAMPLE_BYTES)
            file.seek(max(size - self.SAMPLE_BYTES, 0))
            sample += file.read(self.SAMPLE_BYTES)
        return f"{size} {hashlib.sha256(sample).hexdigest()}"


class ZipFiles(ImageFiles):
    """A zip archive. Readable from several threads, and again in the child of a fork."""

    SMALL_FILE = 1 << 15

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._archive: zipfile.ZipFile | None = None
        self._pid = 0
        self.path = path
        super().__init__(path, (info.filename for info in self._opened().infolist() if not info.is_dir()))

    def _opened(self) -> zipfile.ZipFile:
        with self._lock:
            # A forked child shares the parent's file position and needs a file of its own.
            if self._archive is None or self._pid != os.getpid():
                self._archive, self._pid = _open_zip(self.path), os.getpid()
            return self._archive

    def open(self, name: str) -> IO[bytes]:
        return self._opened().open(name)

    def open_header(self, name: str) -> IO[bytes]:
        # Each read from inside a zip is slow, so that a small file is sooner read whole (and its checksum checked).
        info = self._opened().getinfo(name)
        return io.BytesIO(self._opened().read(info)) if info.file_size <= self.SMALL_FILE else self.open(name)

    def _identity(self, name: str) -> str:
        info = self._opened().getinfo(name)
        return f"{info.file_size} {info.CRC:08x}"

    def close(self) -> None:
        with self._lock:
            if self._archive is not None:
                self._archive.close()
                self._archive = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_archive": None, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


_STORAGE_ERRORS = (OSError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error)


def open_files(path: str | os.PathLike) -> ImageFiles:
    """The image files of a folder or zip. Raises `UserError` where there is none."""
    path = Path(path)
    if path.is_dir():
        files: ImageFiles = FolderFiles(path)
    elif path.is_file():
        files = ZipFiles(path)
    else:
        raise UserError(f"{path}: no such file or folder; give a folder of images or a zip")
    if not files.names:
        kinds = "PNG, JPEG, WebP, BMP or TIFF"
        files.close()
        raise UserError(f"{path}: holds no images; put {kinds} files into it, or check the path")
    return files


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
        raise UserError(_zip_complaint(path)) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({reason_for(error)})") from error


def _zip_complaint(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(2)
    if not start:
        return f"{path}: is empty (0 bytes); copy or download it again"
    if start == b"PK":
        return f"{path}: is a damaged or incomplete zip; copy or download it again"
    return f"{path}: is neither a folder nor a zip; convert it with dataset_tool.py, or check the path"


def is_image_name(name: str) -> bool:
    """An image by its extension, and not one of the hidden companions that macOS puts into zips."""
    path = PurePosixPath(name)
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return path.suffix.lower() in EXTENSIONS and not hidden


def reason_for(error: Exception) -> str:
    """What went wrong with a file, in a few words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return "it has far more pixels than an image for training, which may be a decompression bomb"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def probe(file: IO[bytes]) -> Header:
    """The header of an image file; the pixels are not decoded."""
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        orientation = _orientation(image)
        if image.format == "TIFF":
            # Pillow's own size is turned already or not, depending on its version.
            tags = image.tag_v2  # type: ignore[attr-defined]
            width, height, orientation = tags[256], tags[257], tags.get(274, 1)
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        return Header(width, height, *_channels_bits(image))


def decode(data: bytes) -> np.ndarray:
    """Pixels of an image file, uint8 or uint16 `[H, W, C]` with C 1 (gray), 3 (RGB) or 4 (RGBA), turned upright."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        orientation = _orientation(image)
        channels, bits = _channels_bits(image)
        raw_mode = _raw_mode(image)
        image.load()  # numpy would swallow some of the errors
        pixels = _decode_16(data, image, raw_mode) if bits == 16 else _decode_8(image, channels)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return np.ascontiguousarray(_turn(pixels, orientation))


def _channels_bits(image: ImageFile.ImageFile) -> tuple[int, int]:
    raw_mode = _raw_mode(image)
    if raw_mode == GRAY_ALPHA_16:
        return 4, 16
    if raw_mode in GRAY_16:
        return 1, 16
    if raw_mode in SWAPPED_16:
        return (4 if raw_mode.startswith("RGBA") else 3), 16
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
