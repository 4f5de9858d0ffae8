"""Pixels of image files: look at headers, decode, clear what nobody sees, encode PNGs. NumPy and Pillow only."""

import io
import struct
import sys
import zlib
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

WEBP_START, MAX_ANIMATED_PIXELS = 30, 1 << 24
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "TGA")  # TGA last: its files begin with no signature
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


class Header(NamedTuple):
    """What an image will decode to, known without decoding it."""

    width: int
    height: int
    channels: int  # 1 gray, 3 RGB, 4 RGBA
    bits: int  # 8 or 16
    animated: bool = False  # several pictures, of which the first is taken


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


def _channels_bits(image: ImageFile.ImageFile) -> tuple[int, int]:
    raw_mode = _raw_mode(image)
    if raw_mode == GRAY_ALPHA_16:
        return 4, 16
    if raw_mode in GRAY_16:
        return 1, 16
    if raw_mode in SWAPPED_16:
        return (4 if raw_mode.startswith("RGBA") else 3), 16
    if image.format == "PPM" and image.tile[0][0].startswith("ppm") and image.tile[0][3][-1] > 255:  # type: ignore[operator, index]
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


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 as it is, uint16 without its lower half."""
    return (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels


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
