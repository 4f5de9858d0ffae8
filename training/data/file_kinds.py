"""What kind of file somebody gave where a snapshot is expected, by its first bytes, and the way out."""

import os
import re
from pathlib import Path

from dnnlib.files import SEAL_BYTES, SEAL_MARK

START_BYTES = 512
GIVE = "give a network-snapshot-*.pkl"
GIVE_IMAGES = (
    "give a folder or zip of images (dataset_tool.py makes one), or where a network goes its network-snapshot-*.pkl"
)

SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", f"a PNG, a single picture; {GIVE}"),
    (b"\xff\xd8\xff", f"a JPEG, a single picture; {GIVE}"),
    (b"GIF8", f"a GIF, a picture; {GIVE}"),
    (b"RIFF", f"a WebP, a video or a sound; {GIVE}"),
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file (weights of Keras, or a data set), which is not read; {GIVE}"),
    (b"\x1f\x8b", "packed by gzip; unpack it first (gunzip, or tar -xzf for .tar.gz)"),
    (b"BZh", "packed by bzip2; unpack it first (bunzip2, or tar -xjf for .tar.bz2)"),
    (b"\xfd7zXZ\x00", "packed by xz; unpack it first (unxz, or tar -xJf for .tar.xz)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself; fetch that with git lfs pull"),
    (b"\x93NUMPY", f"an array of NumPy; {GIVE}"),
    (b"\x08\x01\x12", f"a model of TensorFlow, which is not read (pickles of TensorFlow StyleGAN2 are); {GIVE}"),
)
ONNX = re.compile(rb"\x08[\x02-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", re.DOTALL)
ONNX_WAY_OUT = "an ONNX model, which nothing here reads; give the network-snapshot-*.pkl that it was made of"
OLD_PYTORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before version 1.6
CHECKPOINT = (
    f"a checkpoint of PyTorch (torch.save), which says what tensors there are and not of which network; {GIVE}, or an official "
    "pickle that holds G_ema"
)
STATE = (
    "a training state; to continue its run, name its folder with --resume, or take the network-snapshot-*.pkl beside it"
)
SET_OF_IMAGES = f"a zip; a set of images is for --data, --source or --source-images; {GIVE} here"


def describe_file(path: str | os.PathLike) -> str | None:
    """What a file is, with the way out, where it is neither a snapshot nor a zip; None for these, and where nobody knows.

    Of a zip it is known whether PyTorch wrote it.
    """
    path = Path(path)
    if path.is_dir() and (path / "saved_model.pb").is_file():
        return f"a model of TensorFlow, which is not read; {GIVE}"
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        start = file.read(START_BYTES)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - SEAL_BYTES, 0))
        is_sealed = file.read().startswith(SEAL_MARK)
    return describe_start(start, size, path.suffix.lower(), is_sealed)


def describe_start(start: bytes, size: int, ending: str = "", is_sealed: bool = False) -> str | None:
    """The same from the first bytes of a file, its size, its ending (a help where the bytes do not tell) and whether our
    hash is at its end."""
    if size == 0:
        return "empty (0 bytes); copy or download it again"
    for signature, what in SIGNATURES:
        if start.startswith(signature):
            return what
    if start.startswith(OLD_PYTORCH):
        return CHECKPOINT
    if start.startswith(b"PK"):
        return (STATE if is_sealed else CHECKPOINT) if is_of_pytorch(start) else None
    if ONNX.match(start):
        return ONNX_WAY_OUT
    if start[:1] == b"\x80":
        return None
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return None  # safetensors, of which the header says whose they are
    if start[8:9] == b"{" and ending == ".safetensors":
        return "a safetensors file that was cut short; copy or download it again"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it first (tar -xf)"
    if ending in (".pb", ".index", ".meta") or ".ckpt" in ending or ending.startswith(".data-"):
        return f"a part of a TensorFlow model, which is not read (pickles of TensorFlow StyleGAN2 are); {GIVE}"
    return describe_text(start)


def is_of_pytorch(start: bytes) -> bool:
    """Whether the first file in a zip is what torch.save and torch.jit.save begin with."""
    length = int.from_bytes(start[26:28], "little")
    name = start[30 : 30 + length]
    return name.endswith((b"/data.pkl", b"/version", b"/byteorder", b"/constants.pkl", b"/.format_version"))


def describe_text(start: bytes) -> str | None:
    """Describe a page or a text."""
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "a web page and not a snapshot: the download led to a page (to log in, to confirm, or an error); open the address "
            "in a browser and save the file itself"
        )
    text = start[:-4] if len(start) == START_BYTES else start  # which may end in the middle of a character
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if all(character.isprintable() or character in "\t\r\n" for character in decoded):
        return f"a text that begins with {decoded.strip()[:30]!r}; {GIVE}"
    return None
