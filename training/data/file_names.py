"""One spelling for the name of a file, whoever wrote it: archives of Windows, macOS and Debian, `dataset.json`, folders.

Whatever is looked up by name (files of an archive, labels, classes by subfolder) is looked up in this spelling.
"""

import struct
import unicodedata
import zlib

IS_UTF8 = 0x800  # flag of a file in a zip
UNICODE_PATH = 0x7075  # extra field of a file in a zip


def canonical(name: str) -> str:
    """Forward slashes, accents as one character with their letter (NFC), no `./` and no empty folders.

    A slash at the beginning or the end, and `..`, stay: they mean something.
    """
    if name.isascii() and not ("\\" in name or "./" in name or "//" in name):  # as nearly always
        return name
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    parts = [part for part in name.split("/") if part not in ("", ".")]
    start, end = "/" if name.startswith("/") else "", "/" if parts and name.endswith("/") else ""
    return start + "/".join(parts) + end


def member_name(raw: bytes, flags: int, extra: bytes) -> str:
    """The canonical name of a file in a zip. Raises `UnicodeDecodeError`.

    Without the flag for UTF-8 the standard says code page 437, but Info-ZIP (`zip` of Debian) and macOS write UTF-8.
    Text of another code page hardly ever happens to be valid UTF-8.
    """
    return canonical(_decoded(raw, flags, extra).split("\0", 1)[0])


def _decoded(raw: bytes, flags: int, extra: bytes) -> str:
    if raw.isascii():
        return raw.decode("ascii")
    if flags & IS_UTF8:
        return raw.decode("utf-8")
    candidates = [_unicode_path(raw, extra), raw]
    for candidate in candidates:
        if candidate is not None:
            try:
                return candidate.decode("utf-8")
            except UnicodeDecodeError:
                continue
    return raw.decode("cp437")


def _unicode_path(raw: bytes, extra: bytes) -> bytes | None:
    """The name in the field that Info-ZIP and others add for it, where it belongs to the name as it is."""
    while len(extra) >= 4:
        kind, count = struct.unpack_from("<2H", extra)
        field = extra[4 : 4 + count]
        if kind == UNICODE_PATH and count > 5 and struct.unpack_from("<BI", field) == (1, zlib.crc32(raw)):
            return field[5:]
        extra = extra[4 + count :]
    return None
