"""Which files are images, by their names; and the others, counted for people."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from training.data.zip_index import printable

EXTENSIONS = frozenset(
    {"png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "tif", "tiff", "gif", "ppm", "pgm", "pbm", "pnm", "tga"}
)
# What people take for images, too. What is not here (texts, metadata) is expected beside them.
OTHER_IMAGES = frozenset(
    {
        "avif", "avifs", "heic", "heif", "jxl", "jp2", "j2k", "jpx", "jpf", "psd", "psb", "xcf", "kra", "svg", "svgz",
        "eps", "ai", "pdf", "ico", "cur", "icns", "pcx", "dds", "exr", "hdr", "pfm", "qoi", "raw", "dng", "cr2", "cr3",
        "nef", "arw", "orf", "rw2", "apng", "mng", "ras", "sgi", "rgb", "bw", "xbm", "xpm", "npy", "npz", "mp4", "webm",
    }
)  # fmt: skip


def is_image_name(name: str) -> bool:
    """An image by its extension, and not one of the hidden companions that macOS puts into zips."""
    return extension_of(name)[1:] in EXTENSIONS and not is_companion(name)


def extension_of(name: str) -> str:
    """`.png`, in small letters; empty where there is none."""
    _, dot, extension = name.rpartition("/")[2].rpartition(".")
    return dot + extension.lower() if dot else ""


def is_companion(name: str) -> bool:
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
    """The extensions among `left_out` that people take for images."""
    return Counter({kind: count for kind, count in extensions.items() if kind[1:] in OTHER_IMAGES})


def distinct_stems(names: Sequence[str]) -> list[str]:
    """Names without folders and endings. Files of several folders may share one; the second is called `name-2`, unless that is
    the name of another."""
    stems = [PurePosixPath(name).stem for name in names]
    taken, seen, result = set(stems), set(), []
    for stem in stems:
        name = stem
        if stem in seen:
            name = next(one for one in (f"{stem}-{number}" for number in itertools.count(2)) if one not in taken)
            taken.add(name)
        seen.add(name)
        result.append(name)
    return result
