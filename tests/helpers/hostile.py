"""Archives and images that lie: what the tests on hostile data and the fuzz share."""

import io
import os
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.golden import ROOT
from training.data.pixels import encode_png
from training.data.zip_index import CENTRAL, END, LOCAL


def png(width: int = 4, height: int = 4, channels: int = 3, seed: int = 0) -> bytes:
    shape = [height, width, channels]
    return encode_png(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def png_with(kind: bytes, body: bytes, width: int = 4, height: int = 4) -> bytes:
    """A sound gray PNG with one more chunk before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * height))
    return png_of([(b"IHDR", header), (kind, body), (b"IDAT", pixels), (b"IEND", b"")])


def animation(kind: str, frames: int = 3) -> bytes:
    """Black, then redder and redder."""
    images = [Image.new("RGB", (16, 16), (80 * k, 0, 0)) for k in range(frames)]
    buffer = io.BytesIO()
    images[0].save(
        buffer, kind, save_all=True, append_images=images[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    return buffer.getvalue()


def huge_images(side: int = 100_000) -> dict[str, bytes]:
    """Small files that announce images of `side` x `side` pixels, as far as their format knows such numbers."""
    sound = {kind: io.BytesIO() for kind in ("png", "jpg", "bmp", "tif")}
    image = Image.new("RGB", (8, 8))
    for kind, file in sound.items():
        image.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()))
    jpg, bmp, tif = (sound[kind].getvalue() for kind in ("jpg", "bmp", "tif"))
    place = jpg.index(b"\xff\xc0") + 5
    short = min(side, 65_500)
    huge = {
        "huge.png": png_of(
            [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
        ),
        "huge.jpg": jpg[:place] + struct.pack(">2H", short, short) + jpg[place + 4 :],
        "huge.bmp": bmp[:18] + struct.pack("<2i", side, side) + bmp[26:],
    }
    for tag in (256, 257):
        entry = struct.pack("<HHI", tag, 4, 1)
        entry = entry if entry in tif else struct.pack("<HHI", tag, 3, 1)
        place = tif.index(entry)
        tif = tif[:place] + struct.pack("<HHII", tag, 4, 1, side) + tif[place + 12 :]
    canvas = (side - 1).to_bytes(3, "little") * 2
    for flags in (0, 2):
        body = b"WEBPVP8X" + struct.pack("<II", 10, flags) + canvas + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
        huge[f"huge{flags}.webp"] = b"RIFF" + struct.pack("<I", len(body)) + body
    return huge | {"huge.tif": tif}


def raw_zip(members: list[dict], comment: bytes = b"", count: int | None = None) -> bytes:
    """A zip written by the book; every field of a member can be wrong.

    A member has `name` and `data`, and may have `method`, `packed` (the bytes), `flags`, `offset`, `extra`, and what the
    directory says: `size`, `packed_size`, `crc`.
    """
    out, directory = b"", b""
    for member in members:
        data, method = member.get("data", b""), member.get("method", 0)
        packed = member.get("packed", deflate(data) if method == 8 else data)
        name, flags, extra = member["name"], member.get("flags", 0), member.get("extra", b"")
        crc, size = member.get("crc", zlib.crc32(data)), member.get("size", len(data))
        packed_size, offset = member.get("packed_size", len(packed)), member.get("offset", len(out))
        if "offset" not in member:
            out += (
                LOCAL.pack(b"PK\3\4", 20, flags, method, 0, 0, crc, len(packed), len(data), len(name), 0)
                + name
                + packed
            )
        record = np.zeros(1, CENTRAL)
        for field, value in {
            "signature": b"PK\1\2", "flags": flags, "method": method, "crc": crc, "packed": packed_size, "size": size,
            "name_bytes": len(name), "extra_bytes": len(extra), "offset": offset,
        }.items():  # fmt: skip
            record[field] = value
        directory += record.tobytes() + name + extra
    count = len(members) if count is None else count
    end = END.pack(b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), len(out), len(comment))
    return out + directory + end + comment


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def deflated_zeros(num_bytes: int) -> bytes:
    """Packed zeros: the same packed megabyte again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * (num_bytes >> 20) + packer.flush()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of the accidents and tricks that befall files."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        if not data:
            break
        place, kind = rng.randrange(len(data)), rng.randrange(7)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            width = rng.choice([2, 4, 8])
            value = rng.choice([0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, rng.getrandbits(64)])
            data[place : place + width] = (value & ((1 << 8 * width) - 1)).to_bytes(
                width, rng.choice(["little", "big"])
            )
        elif kind == 3:
            del data[place : place + rng.choice([1, 4, 30, 1000])]
        elif kind == 4:
            start = rng.randrange(len(data))
            data[place:place] = data[start : start + rng.choice([1, 8, 46, 500])]
        elif kind == 5:
            del data[place:]
        else:
            data[place : place + 4] = rng.choice([b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"IDAT", b"\xff\xd8"])
    return bytes(data)


def with_little_memory(code: str, *arguments: str, megabytes: int = 256, timeout: float = 60) -> str:
    """What the code prints in a process that may take so much more memory than the imports took."""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits the memory as Linux does")
    script = f"""
import io, os, resource, sys
import dnnlib.errors, training.data.image_files, training.data.labels, training.data.convert
from dnnlib.errors import UserError
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * os.sysconf("SC_PAGE_SIZE") + ({megabytes} << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
{code}
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def write_members(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
