"""Zips and folders of small images and labels, and errors that are one line."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.pixels import encode_png

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}


def noise(*shape: int, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def encode(pixels: np.ndarray, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=FORMATS[kind], **options)
    return buffer.getvalue()


def save_image(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=FORMATS[kind], **options)
    return buffer.getvalue()


def pngs(names, height: int = 6, width: int = 8, channels: int = 3) -> dict[str, bytes]:
    return {name: encode_png(noise(height, width, channels, seed=i)) for i, name in enumerate(names)}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


def labels_json(labels: object) -> bytes:
    return json.dumps({"labels": labels}).encode()


def check_one_line(error: Exception, *words: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert all(word in message for word in words), message
