"""ImageFolderDataset, its labels and pixel types, and the order in which BatchLoader reads it."""

import io
import json
import os
import pickle
import shutil
import struct
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.errors import UserError
from tests.helpers.image_files import (
    check_one_line,
    encode,
    labels_json,
    noise,
    pngs,
    save_image,
    write_folder,
    write_zip,
)
from training import dataset as dataset_module
from training.data import image_files, image_names
from training.data import pixels as pixels_module
from training.data.image_files import BadImage, open_files
from training.data.image_tensors import to_float, to_uint8
from training.data.pixels import decode, encode_png, probe
from training.dataset import Dataset, ImageFolderDataset, sample_order
from training.run.loader import BatchLoader


@pytest.fixture(params=["zip", "folder"])
def store(request, tmp_path):
    """Writes files into a zip or a folder and gives its path."""
    write, path = (write_zip, "set.zip") if request.param == "zip" else (write_folder, "set")
    return lambda files, name=path: write(tmp_path / name, files)


@pytest.fixture
def ten(tmp_path) -> Path:
    return write_zip(tmp_path / "ten.zip", pngs([f"{i}.png" for i in range(10)]))


# What is read ---------------------------------------------------------------------------------------------------------


def test_images_come_sorted_by_name_from_every_folder(store):
    files = pngs(["b/x.png", "a/z.png", "c.png", "a/b/y.png"])
    dataset = ImageFolderDataset(store({**files, "LICENSE": b"text", "notes.txt": b"text", "a/.hidden.png": b"no"}))
    names = sorted(files)
    assert len(dataset) == 4
    for i, name in enumerate(names):
        assert np.array_equal(dataset[i][0].transpose(1, 2, 0), decode(files[name]))


def test_companions_of_macos_are_not_images(store):
    files = pngs(["a.png"])
    assert len(ImageFolderDataset(store({**files, "__MACOSX/._a.png": b"junk", "._a.png": b"junk"}))) == 1


def test_zip_and_folder_hold_the_same(tmp_path):
    files = pngs(["1.png", "2/3.png"])
    one, two = (
        ImageFolderDataset(write_zip(tmp_path / "a.zip", files)),
        ImageFolderDataset(write_folder(tmp_path / "a", files)),
    )
    assert all(np.array_equal(one[i][0], two[i][0]) for i in range(2))
    assert one.name == two.name == "a"


@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "tif"])
def test_lossless_formats(store, kind):
    pixels = noise(5, 7, 3)
    options = {"lossless": True} if kind == "webp" else {}
    image, _ = ImageFolderDataset(store({f"a.{kind.upper()}": encode(pixels, kind, **options)}))[0]
    assert image.dtype == np.uint8
    assert np.array_equal(image, pixels.transpose(2, 0, 1))


def test_jpeg(store):
    pixels = np.full([16, 8, 3], 100, dtype=np.uint8)
    image, _ = ImageFolderDataset(store({"a.jpeg": encode(pixels, "jpg")}))[0]
    assert image.shape == (3, 16, 8)
    assert abs(image.astype(int) - 100).max() <= 2


def test_attributes(store):
    dataset = ImageFolderDataset(store(pngs(["a.png", "b.png"], 8, 8)), resolution=8)
    image, label = dataset[1]
    assert (image.shape, image.dtype, label.shape, label.dtype) == ((3, 8, 8), np.uint8, (0,), np.float32)
    assert (dataset.name, dataset.image_shape, dataset.num_channels, dataset.resolution) == ("set", [3, 8, 8], 3, 8)
    assert (dataset.label_shape, dataset.label_dim, dataset.has_labels, dataset.has_onehot_labels) == (
        [0],
        0,
        False,
        False,
    )
    assert dataset.dtype == np.uint8
    assert dataset.get_details(1) == {"raw_idx": 1, "xflip": False, "raw_label": pytest.approx(np.zeros(0))}
    with pytest.raises(IndexError):
        dataset[2]


def test_rectangles_have_no_resolution(ten):
    dataset = ImageFolderDataset(ten)
    assert dataset.image_shape == [3, 6, 8]
    with pytest.raises(UserError, match="8x6"):
        _ = dataset.resolution


def test_describe_is_plain_data(ten):
    facts = ImageFolderDataset(ten, max_size=4, xflip=True).describe()
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["num_images"], facts["num_available"], facts["xflip"]) == (4, 10, True)
    assert (facts["width"], facts["height"], facts["channels"], facts["bits"]) == (8, 6, 3, 8)


# Pixel types ----------------------------------------------------------------------------------------------------------

GRAY, RGB, RGBA = noise(6, 8), noise(6, 8, 3), noise(6, 8, 4)


def with_palette() -> Image.Image:
    return Image.fromarray(RGB).quantize(16)


def with_transparent_palette() -> bytes:
    return save_image(with_palette(), transparency=3)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(GRAY), GRAY[:, :, None]),
        (encode(RGB), RGB),
        (encode(RGBA), RGBA),
        (save_image(Image.fromarray(GRAY > 99)), np.where(GRAY > 99, 255, 0)[:, :, None]),
        (save_image(with_palette()), np.asarray(with_palette().convert("RGB"))),
        (
            save_image(Image.fromarray(RGBA).convert("LA")),
            np.asarray(Image.fromarray(RGBA).convert("LA").convert("RGBA")),
        ),
        (encode(RGB, transparency=tuple(RGB[0, 0].tolist())), None),
        (with_transparent_palette(), None),
    ],
    ids=["L", "RGB", "RGBA", "1", "P", "LA", "RGB with a transparent colour", "P with a transparent colour"],
)
def test_modes(data, expected):
    pixels = decode(data)
    if expected is None:
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
        assert (expected[:, :, 3] == 0).any()
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected)
    assert probe(io.BytesIO(data)) == (8, 6, pixels.shape[2], 8, False)


def test_cmyk_jpeg_becomes_rgb():
    data = save_image(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "jpg")
    pixels = decode(data)
    assert pixels.shape == (6, 8, 3)
    assert pixels[0, 0, 0] > 240
    assert pixels[0, 0, 1:].max() < 15


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    """Pillow's own transposition is the reference."""
    image = Image.new("RGB", (16, 8))
    image.paste((255, 0, 0), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save_image(image, kind, exif=exif)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # 0 left-right, 1 top-bottom, 2 to 4 rotations, 5, 6 transposes
    expected = image.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else image
    pixels = decode(data)
    assert pixels.shape == np.asarray(expected).shape
    assert probe(io.BytesIO(data))[:2] == expected.size
    assert abs(pixels.astype(int) - np.asarray(expected)).mean() < 12  # of JPEG and WebP; a wrong turn costs 16


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored():
    data = encode(RGB, "jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12\0\x03\xff\xff")
    assert decode(data).shape == (6, 8, 3)
    assert probe(io.BytesIO(data)) == (8, 6, 3, 8, False)


def png_chunks(width, height, bits, color_type, scanlines: bytes, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlace)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(scanlines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def paeth_png_16(pixels: np.ndarray) -> bytes:
    """A 16-bit RGB PNG whose rows use the five filters in turn, written by the book (PNG specification, section 9)."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    step, above, out = 2 * channels, np.zeros(rows.shape[1], dtype=int), b""
    for y, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, dtype=int), row[:-step]])
        corner = np.concatenate([np.zeros(step, dtype=int), above[:-step]])
        guess = left + above - corner
        distance = np.abs(np.stack([guess - left, guess - above, guess - corner]))
        paeth = np.choose(distance.argmin(axis=0), [left, above, corner])
        predictor = [0, left, above, (left + above) // 2, paeth][y % 5]
        out += bytes([y % 5]) + ((row - predictor) % 256).astype(np.uint8).tobytes()
        above = row
    return png_chunks(width, height, 16, {3: 2, 4: 6}[channels], out)


def interlaced_png_16(pixels: np.ndarray) -> bytes:
    out = b""
    for x, y, dx, dy in [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]:
        for row in pixels[y::dy, x::dx] if x < pixels.shape[1] else []:
            out += b"\0" + row.astype(">u2").tobytes()
    return png_chunks(pixels.shape[1], pixels.shape[0], 16, 2, out, interlace=1)


def tiff_16(pixels: np.ndarray, order: str, compress: bool) -> bytes:
    """A baseline TIFF (TIFF 6.0), which Pillow cannot write for 16-bit colour."""
    height, width, channels = pixels.shape
    strip = pixels.astype(order + "u2").tobytes()
    strip = zlib.compress(strip) if compress else strip
    tags = {256: width, 257: height, 258: 16, 259: 8 if compress else 1, 262: 2 if channels > 1 else 1, 273: 0}
    tags |= {277: channels, 278: height, 279: len(strip)}
    tags |= {338: 2} if channels == 4 else {}
    bits_at = 8 + 2 + 12 * len(tags) + 4
    tags[273] = bits_at + 8
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    for tag, value in tags.items():
        if tag == 258 and channels > 1:
            out += struct.pack(order + "HHII", tag, 3, channels, bits_at)
        elif tag == 258 or tag in (262, 259, 277, 338):
            out += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
        else:
            out += struct.pack(order + "HHII", tag, 4, 1, value)
    return out + struct.pack(order + "I4H", 0, 16, 16, 16, 16) + strip


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "encoder",
    [
        encode_png,
        lambda pixels: tiff_16(pixels, "<", False),
        lambda pixels: tiff_16(pixels, ">", False),
        lambda pixels: tiff_16(pixels, "<", True),
        lambda pixels: tiff_16(pixels, ">", True),
    ],
    ids=["png", "tiff-le", "tiff-be", "tiff-le-deflate", "tiff-be-deflate"],
)
def test_16_bits_are_kept(store, channels, encoder):
    pixels = noise(7, 5, channels, dtype=np.uint16)
    data = encoder(pixels)
    dataset = ImageFolderDataset(store({"a.png" if encoder is encode_png else "a.tif": data}))
    assert dataset.dtype == np.uint16
    assert dataset.describe()["bits"] == 16
    assert np.array_equal(dataset[0][0], pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_png_with_every_filter(channels):
    pixels = noise(11, 6, channels, dtype=np.uint16)
    assert np.array_equal(decode(paeth_png_16(pixels)), pixels)


def test_16_bit_png_interlaced():
    pixels = noise(16, 16, 3, dtype=np.uint16)
    assert np.array_equal(decode(interlaced_png_16(pixels)), pixels)


def test_16_bit_gray_png_of_pillow():
    pixels = noise(6, 8, dtype=np.uint16)
    assert np.array_equal(decode(encode(pixels))[:, :, 0], pixels)


def test_16_bit_gray_with_alpha():
    pixels = noise(4, 5, 2, dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    decoded = decode(png_chunks(5, 4, 16, 4, rows))
    assert decoded.shape == (4, 5, 4)
    assert np.array_equal(decoded[:, :, [0, 1, 2, 3]], pixels[:, :, [0, 0, 0, 1]])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_8_bit_png_round_trip(channels):
    pixels = noise(7, 5, channels)
    assert np.array_equal(decode(encode_png(pixels)), pixels)


def test_gray_among_rgb_is_read_as_rgb(store):
    dataset = ImageFolderDataset(store({"a.png": encode(GRAY), "b.png": encode(RGB)}))
    assert dataset.image_shape == [3, 6, 8]
    assert np.array_equal(dataset[0][0], np.stack([GRAY] * 3))
    assert dataset.describe()["gray_read_as_rgb"] == 1


def test_colours_that_nobody_sees_are_black(store, capsys):
    """They were trained on: alpha 0 with (200, 100, 50) under it came out as such."""
    image_files._said_hidden.clear()
    pixels = np.full([2, 3, 4], (200, 100, 50, 255), np.uint8)
    pixels[0, :, 3] = 0
    dataset = ImageFolderDataset(store({"a.png": encode_png(pixels), "b.png": encode_png(pixels[::-1])}))
    image, other = dataset[0][0], dataset[1][0]
    assert image[:, 0].max() == other[:, 1].max() == 0
    assert image[:, 1, 0].tolist() == [200, 100, 50, 255]
    assert capsys.readouterr().err.count("has colours where it is transparent") == 1
    assert np.array_equal(dataset.files.decode_as_stored(0), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_clear_hidden(dtype):
    pixels = noise(4, 4, 4, dtype=dtype)
    pixels[:2, :, 3], pixels[2:, :, 3] = 0, 7
    cleared = pixels_module.clear_hidden(pixels)
    assert cleared.dtype == dtype
    assert cleared[:2].max() == 0
    assert np.array_equal(cleared[2:], pixels[2:])
    assert pixels_module.clear_hidden(cleared) is cleared
    assert not pixels_module.has_hidden(pixels[:, :, :3])


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "GIF"), ("RGB", "PPM"), ("L", "PPM"), ("1", "PPM"), ("RGB", "TGA"), ("RGBA", "TGA"), ("L", "TGA")],
)
def test_gif_ppm_and_tga(store, mode, kind):
    """They were left out without a word."""
    image = Image.fromarray(noise(6, 8, 3) // 64 * 64).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    pixels = ImageFolderDataset(store({f"a.{kind.lower()}": buffer.getvalue()}))[0][0].transpose(1, 2, 0)
    expected = np.asarray(Image.open(buffer).convert("RGB" if kind == "GIF" else "L" if mode == "1" else mode))
    assert np.array_equal(pixels.squeeze(), expected)


@pytest.mark.parametrize("data", [b"P6 2 1 65535\n" + bytes(12), b"P5 2 1 1000\n" + bytes(4)])
def test_ppm_of_more_than_8_bits_is_refused(store, data):
    with pytest.raises(BadImage, match="save it as PNG"):
        ImageFolderDataset(store({"a.ppm": data}))


def test_what_is_left_out_is_counted(store):
    names = ["b.heic", "c.HEIC", "d.txt", "README", ".hidden.png", "dataset.json", "png"]
    files = open_files(store({**pngs(["a.png"]), **dict.fromkeys(names, b"x")}))
    assert files.left_out() == {".heic": 2, ".txt": 1, "": 2}
    assert image_names.counted(files.left_out()) == "2 without extension, 2 .heic, 1 .txt"
    assert image_names.other_images(files.left_out()) == {".heic": 2}


# Mirroring, subsets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_bytes", [None, 0])
def test_xflip_doubles(ten, cache_bytes):
    dataset = ImageFolderDataset(ten, xflip=True, cache_bytes=cache_bytes)
    assert len(dataset) == 20
    for i in range(10):
        assert np.array_equal(dataset[i + 10][0], dataset[i][0][:, :, ::-1])
        assert (dataset.get_details(i + 10).raw_idx, dataset.get_details(i + 10).xflip) == (i, True)


def test_max_size_takes_a_random_subset(ten):
    def chosen(seed):
        dataset = ImageFolderDataset(ten, max_size=5, random_seed=seed, xflip=True)
        assert len(dataset) == 10
        return [dataset.get_details(i).raw_idx for i in range(5)]

    assert chosen(0) == chosen(0) == sorted(set(chosen(0)))
    assert len({tuple(chosen(seed)) for seed in range(5)}) > 1
    assert len(ImageFolderDataset(ten, max_size=99)) == 10
    with pytest.raises(UserError):
        ImageFolderDataset(ten, max_size=0)


# Labels ---------------------------------------------------------------------------------------------------------------


def test_class_labels(store):
    labels = [["b.png", 2], ["a.png", 0]]
    dataset = ImageFolderDataset(
        store({**pngs(["a.png", "b.png"]), "dataset.json": labels_json(labels)}), use_labels=True
    )
    assert (dataset.label_shape, dataset.has_onehot_labels, dataset.label_source) == ([3], True, "dataset.json")
    assert [dataset.get_label(i).tolist() for i in range(2)] == [[1, 0, 0], [0, 0, 1]]
    assert dataset.get_details(1).raw_label == 2


@pytest.mark.parametrize("form", [list, dict])
def test_vector_labels(store, form):
    labels = form([("a.png", [0.5, -1]), ("b.png", [2, 3])])
    content = labels_json(labels if form is dict else [list(pair) for pair in labels])
    dataset = ImageFolderDataset(
        store({**pngs(["a.png", "b.png"]), "dataset.json": content}), use_labels=True, xflip=True
    )
    assert (dataset.label_dim, dataset.has_onehot_labels) == (2, False)
    assert dataset.get_label(3).tolist() == [2, 3]
    assert dataset.get_label(0).dtype == np.float32


def test_subfolders_are_classes(store):
    dataset = ImageFolderDataset(store(pngs(["dog/x/1.png", "cat/1.png", "cat/2.png"])), use_labels=True)
    assert dataset.label_source == "subfolders"
    assert [int(dataset.get_label(i).argmax()) for i in range(3)] == [0, 0, 1]


def test_a_folder_around_everything_is_not_a_class(store):
    dataset = ImageFolderDataset(store(pngs(["all/dog/1.png", "all/cat/1.png"])), use_labels=True)
    assert dataset.label_dim == 2
    labels = labels_json([["dog/1.png", 4], ["cat/1.png", 0]])
    files = {**pngs(["all/dog/1.png", "all/cat/1.png"]), "all/dataset.json": labels}
    dataset = ImageFolderDataset(store(files, "more.zip"), use_labels=True)
    assert (dataset.label_dim, dataset.label_source) == (5, "dataset.json")


def test_labels_of_a_subset_keep_all_classes(tmp_path):
    files = pngs([f"{i}.png" for i in range(10)])
    path = write_zip(tmp_path / "a.zip", {**files, "dataset.json": labels_json([[f"{i}.png", i] for i in range(10)])})
    dataset = ImageFolderDataset(path, use_labels=True, max_size=2)
    assert dataset.label_dim == 10
    assert all(dataset.get_label(i).argmax() == dataset.get_details(i).raw_idx for i in range(2))


@pytest.mark.parametrize(
    "files",
    [pngs(["a.png"]), pngs(["x/a.png", "b.png"]), pngs(["x/a.png", "x/b.png"])]
    + [{**pngs(["x/a.png", "y/a.png"]), "dataset.json": labels_json(labels)} for labels in (None, [])],
    ids=["flat", "half in subfolders", "one subfolder", "null", "empty"],
)
def test_use_labels_without_labels(store, files):
    path = store(files)
    assert ImageFolderDataset(path).describe()["label_source"] is None
    dataset = ImageFolderDataset(path, use_labels=True)  # programs written for the official class ask has_labels
    assert not dataset.has_labels and dataset.label_dim == 0 and dataset.get_label(0).shape == (0,)
    with pytest.raises(UserError, match=r"has no labels: put a dataset\.json .* or drop --cond"):
        dataset.require_labels()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (labels_json(7), "not of the form"),
        (labels_json([["a.png", 1, 2]]), "not of the form"),
        (labels_json([["a.png", 1], ["b.png", 0], ["zz.png", 0], ["y.png", 0]]), r"labels for zz\.png and 1 more"),
        (labels_json([["a.png", 1]]), r"no label for b\.png"),
        (labels_json([["a.png", 1], ["b.png", [1.0]]]), "mixes labels: a.png has a class number, b.png has a vector"),
        (labels_json([["a.png", [1, 2]], ["b.png", [1.0]]]), "mixes labels"),
        (labels_json([["a.png", 1], ["b.png", "cat"]]), "the label of b.png is 'cat'"),
        (labels_json([["a.png", -1], ["b.png", 1]]), "the label of a.png"),
        (labels_json([["a.png", True], ["b.png", 1]]), "the label of a.png"),
        (labels_json([["a.png", 10**12], ["b.png", 1]]), "the label of a.png"),
        (labels_json([["a.png", [float("nan")]], ["b.png", [1]]]), "the label of a.png"),
        (labels_json([["a.png", [10**400]], ["b.png", [1]]]), "the label of a.png"),
        (labels_json([["a.png", []], ["b.png", [1]]]), "the label of a.png"),
    ],
)
def test_bad_dataset_json(store, content, message):
    path = store({**pngs(["a.png", "b.png"]), "dataset.json": content})
    ImageFolderDataset(path).describe()  # harmless as long as nobody asks for labels
    with pytest.raises(UserError, match=message) as caught:
        ImageFolderDataset(path, use_labels=True)
    check_one_line(caught.value, "dataset.json")


# What bad input gets --------------------------------------------------------------------------------------------------


def write_truncated_zip(path: Path) -> Path:
    write_zip(path, pngs([f"{i}.png" for i in range(5)]))
    path.write_bytes(path.read_bytes()[:-60])
    return path


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("none.zip", lambda path: None, ["no such file"]),
        ("empty.zip", lambda path: path.write_bytes(b""), ["empty"]),
        ("text.zip", lambda path: path.write_bytes(b"hello"), ["neither a folder nor a zip"]),
        ("net.pkl", lambda path: path.write_bytes(b"\x80\x04."), ["is a network, and images are needed here"]),
        ("bare.zip", lambda path: write_zip(path, {}), ["no images"]),
        ("text.zip", lambda path: write_zip(path, {"a.txt": b""}), ["no images"]),
        ("folder", lambda path: path.mkdir(), ["no images"]),
        ("cut.zip", write_truncated_zip, ["damaged or incomplete zip"]),
        ("sizes.zip", lambda path: write_zip(path, pngs(["a.png"]) | pngs(["b.png"], 6, 4)), ["8x6", "4x6", "--resolution=8x6"]),
        ("alpha.zip", lambda path: write_zip(path, {"a.png": encode(RGB), "b.png": encode(RGBA)}), ["RGB", "--channels"]),
        (
            "bits.zip",
            lambda path: write_zip(path, {"a.png": encode(RGB), "b.png": encode_png(RGB.astype(np.uint16))}),
            ["8-bit", "16-bit", "dataset_tool.py"],
        ),
        ("broken.zip", lambda path: write_zip(path, {**pngs(["a.png"]), "b.png": b"junk"}), ["b.png", "remove it"]),
        ("float.zip", lambda path: write_zip(path, {"b.tif": encode(np.zeros([4, 4], np.float32), "tif")}), ["b.tif"]),
    ],
)  # fmt: skip
def test_bad_paths(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises(UserError) as caught:
        ImageFolderDataset(tmp_path / name)
    check_one_line(caught.value, str(tmp_path / name), *words)


def test_mixed_sizes_name_the_first_two(store):
    with pytest.raises(UserError, match=r"a\.png is 8x6 and c\.png is 5x6"):
        ImageFolderDataset(store(pngs(["a.png", "b.png"]) | pngs(["c.png"], 6, 5) | pngs(["d.png"], 6, 4)))


def test_wrong_resolution(ten):
    with pytest.raises(UserError, match=r"8x6, not 16x16.*--resolution=16x16"):
        ImageFolderDataset(ten, resolution=16)


def test_decompression_bomb_is_refused(tmp_path):
    path = write_zip(tmp_path / "bomb.zip", {"a.png": png_chunks(60_000, 60_000, 8, 2, b"")})
    with pytest.raises(UserError, match=r"bomb\.zip: a\.png .*far more pixels"):
        ImageFolderDataset(path)


def test_a_file_that_unfolds_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 1 << 20)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", encode_png(noise(4, 4, 3)) + bytes(1 << 21))
    with pytest.raises(BadImage, match=r"a\.png .*more than 1 MB"):
        ImageFolderDataset(path)[0]


def test_encrypted_zip(tmp_path):
    path = write_zip(tmp_path / "a.zip", pngs(["a.png"]))
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the file's own header, and in the directory
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.png .*encrypted"):
        ImageFolderDataset(path)


@pytest.mark.parametrize("name", ["../secret.png", "a/../../b.png", "/etc/a.png", "C:\\a.png", "x\\..\\..\\a.png"])
def test_names_that_lead_out_of_a_zip_are_refused(tmp_path, name):
    write_folder(tmp_path, {"secret.png": encode(RGB)})
    path = write_zip(tmp_path / "evil.zip", {"a.png": encode(GRAY), name: encode(GRAY)})
    with pytest.raises(UserError, match="which leads out of it"):
        ImageFolderDataset(path)
    assert sorted(os.listdir(tmp_path)) == ["evil.zip", "secret.png"]


def test_dots_in_names_are_no_reason_to_refuse(tmp_path):
    path = write_zip(
        tmp_path / "a.zip", {"a..b.png": encode(GRAY), "...c/d.png": encode(GRAY), "a\\b.png": encode(GRAY)}
    )
    assert len(ImageFolderDataset(path)) == 3


# Order ----------------------------------------------------------------------------------------------------------------


def test_order_holds_every_item_once_per_epoch():
    order = sample_order(7, seed=3, start=0, count=21)
    epochs = order.reshape(3, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert not np.array_equal(order, sample_order(7, seed=4, start=0, count=21))


def test_order_is_a_function_of_position():
    whole = sample_order(7, seed=3, start=0, count=100)
    for start, count in [(0, 0), (5, 1), (6, 2), (7, 7), (13, 40), (99, 1)]:
        assert np.array_equal(sample_order(7, 3, start, count), whole[start : start + count])
    assert sample_order(7, 3, 10**12, 3).shape == (3,)


def test_order_is_the_same_in_every_release():
    assert sample_order(10, seed=0, start=0, count=10).tolist() == FIRST_EPOCH


FIRST_EPOCH = [3, 8, 7, 2, 5, 1, 6, 4, 0, 9]


# BatchLoader ----------------------------------------------------------------------------------------------------------


def take(dataset, count, **options):
    with BatchLoader(dataset, 6, **{"seed": 1, **options}) as loader:
        return [next(loader) for _ in range(count)]


def same(batches, others) -> bool:
    return len(batches) == len(others) and all(
        torch.equal(a, b) for pair in zip(batches, others, strict=True) for a, b in zip(*pair, strict=True)
    )


@pytest.fixture
def labelled(tmp_path) -> Path:
    return write_zip(tmp_path / "labelled.zip", pngs([f"{i % 3}/{i}.png" for i in range(10)]))


def test_batches_follow_the_order(labelled):
    dataset = ImageFolderDataset(labelled, use_labels=True, xflip=True)
    batches = take(dataset, 4)
    order = sample_order(20, seed=1, start=0, count=24)
    images, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == (
        (24, 3, 6, 8),
        torch.uint8,
        (24, 3),
        torch.float32,
    )
    for position, index in enumerate(order):
        assert np.array_equal(images[position], dataset[index][0])
        assert np.array_equal(labels[position], dataset.get_label(index))


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"num_workers": 5, "prefetch": 4}, {"prefetch": 0}])
@pytest.mark.parametrize("cache_bytes", [None, 0])
def test_workers_and_memory_change_nothing(labelled, options, cache_bytes):
    expected = take(ImageFolderDataset(labelled, use_labels=True), 5)
    assert same(take(ImageFolderDataset(labelled, use_labels=True, cache_bytes=cache_bytes), 5, **options), expected)


@pytest.mark.parametrize("rows_step", [2, 3, 6])
def test_processes_share_the_batches(labelled, rows_step):
    dataset = ImageFolderDataset(labelled, use_labels=True)
    parts = [take(dataset, 4, rows_start=start, rows_step=rows_step) for start in range(rows_step)]
    for k, (images, labels) in enumerate(take(dataset, 4)):
        for start in range(rows_step):
            assert torch.equal(parts[start][k][0], images[start::rows_step])
            assert torch.equal(parts[start][k][1], labels[start::rows_step])


def test_a_start_in_the_middle_continues(labelled):
    dataset = ImageFolderDataset(labelled)
    assert same(take(dataset, 3, start=12), take(dataset, 5)[2:])


def test_16_bit_batches(tmp_path):
    pixels = noise(4, 4, 3, dtype=np.uint16)
    dataset = ImageFolderDataset(write_zip(tmp_path / "a.zip", {"a.png": encode_png(pixels)}))
    ((images, _),) = take(dataset, 1)
    assert images.dtype == torch.uint16
    assert np.array_equal(images[5].numpy(), pixels.transpose(2, 0, 1))


def test_batches_do_not_share_memory_with_the_dataset(labelled):
    dataset = ImageFolderDataset(labelled)
    for images, _ in take(dataset, 4):
        images.zero_()
    assert dataset[0][0].any()


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_corrupt_image_is_named(tmp_path, num_workers):
    files = pngs([f"{i}.png" for i in range(8)], 64, 64)
    files["5.png"] = files["5.png"][:3000]
    dataset = ImageFolderDataset(write_zip(tmp_path / "a.zip", files))
    with BatchLoader(dataset, 8, num_workers=num_workers) as loader, pytest.raises(UserError) as caught:
        next(loader)
    check_one_line(caught.value, "a.zip", "5.png", "remove it", "dataset_tool.py")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_image_that_changed_since_is_named(tmp_path):
    folder = write_folder(tmp_path / "a", pngs(["a.png"]))
    dataset = ImageFolderDataset(folder)
    write_folder(folder, pngs(["a.png"], 3, 3))
    with pytest.raises(BadImage, match=r"a\.png"):
        dataset[0]


def test_damage_inside_of_a_zip_is_named(tmp_path):
    path = write_zip(tmp_path / "a.zip", pngs(["a.png", "b.png"], 300, 300))  # too large to be read with the header
    data = bytearray(path.read_bytes())
    data[data.rindex(b"IDAT") + 1000] ^= 255
    path.write_bytes(data)
    dataset = ImageFolderDataset(path)
    dataset[0]
    with pytest.raises(BadImage, match=r"b\.png .*CRC"):
        dataset[1]


def test_close_ends_the_threads(labelled):
    others = set(threading.enumerate())  # of loaders that other tests left to themselves
    loader = BatchLoader(ImageFolderDataset(labelled), 6, num_workers=2)
    next(loader)
    own = set(threading.enumerate()) - others
    assert any(thread.name.startswith("decode") for thread in own)
    loader.close()
    loader.close()
    assert not any(thread.is_alive() for thread in own if thread.name.startswith("decode"))


# Memory ---------------------------------------------------------------------------------------------------------------


def test_images_are_decoded_once(ten, monkeypatch):
    reads = []
    original = ImageFolderDataset._load_raw_image
    monkeypatch.setattr(ImageFolderDataset, "_load_raw_image", lambda self, i: (reads.append(i), original(self, i))[1])
    dataset = ImageFolderDataset(ten, xflip=True)
    assert dataset.fits_in_memory
    assert dataset.decoded_bytes == 10 * 6 * 8 * 3
    assert not dataset.is_in_memory(np.arange(20))
    for _ in range(2):
        for i in range(20):
            dataset[i]
    assert sorted(reads) == list(range(10))
    assert dataset.is_in_memory(np.arange(20))
    dataset.close()
    assert not dataset.is_in_memory(np.arange(20))
    assert dataset[3][0].shape == (3, 6, 8)


def test_what_does_not_fit_is_not_kept(ten):
    size = 10 * 6 * 8 * 3
    assert ImageFolderDataset(ten, cache_bytes=size).fits_in_memory
    dataset = ImageFolderDataset(ten, cache_bytes=size - 1)
    dataset[0]
    assert not dataset.fits_in_memory
    assert not dataset.is_in_memory(np.array([0]))


def test_threads_may_read_the_same_images(ten):
    dataset, expected = ImageFolderDataset(ten), ImageFolderDataset(ten)
    wrong = []

    def work():
        for i in range(10):
            if not np.array_equal(dataset[i][0], expected[i][0]):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_default_memory_is_found():
    assert dataset_module.default_cache_bytes() > 1 << 20


def test_pickling_leaves_the_images_behind(tmp_path):
    dataset = ImageFolderDataset(write_zip(tmp_path / "a.zip", pngs(["a.png"], 200, 200)))
    dataset[0]
    data = pickle.dumps(dataset)
    assert len(data) < 10_000
    assert np.array_equal(pickle.loads(data)[0][0], dataset[0][0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_torch_dataloader_with_processes(ten):
    dataset = ImageFolderDataset(ten, cache_bytes=0)
    loader = torch.utils.data.DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context="fork")
    images = torch.cat([images for images, _ in loader])
    assert all(np.array_equal(images[i], dataset[i][0]) for i in range(10))


def test_a_dataset_of_ones_own():
    class Ramp(Dataset):
        def __init__(self, **options):
            super().__init__(name="ramp", raw_shape=[4, 1, 2, 3], **options)

        def _load_raw_image(self, raw_idx):
            return np.full([1, 2, 3], raw_idx, dtype=np.uint8)

        def _load_raw_labels(self):
            return np.array([0, 1, 2, 1])

    dataset = Ramp(use_labels=True)
    assert (dataset.label_dim, dataset[2][0].max()) == (3, 2)
    assert sorted(torch.cat([images[:, 0, 0, 0] for images, _ in take(dataset, 2)]).tolist())[::3] == [0, 1, 2, 3]


# Fingerprint ----------------------------------------------------------------------------------------------------------


def test_fingerprint_knows_contents_not_places(store, tmp_path):
    files = pngs(["a.png", "b.png", "x/c.png"])
    path = store(files)
    fingerprint = ImageFolderDataset(path).fingerprint
    moved = tmp_path / "elsewhere.zip"
    shutil.move(path, moved)
    assert ImageFolderDataset(moved).fingerprint == fingerprint
    others = [
        {**files, "b.png": files["a.png"]},
        {**files, "d.png": files["a.png"]},
        pngs(["a.png", "b.png", "x/d.png"]),
    ]
    prints = {ImageFolderDataset(store(other, f"{i}.zip")).fingerprint for i, other in enumerate(others)}
    assert len(prints | {fingerprint}) == 4


def test_fingerprint_knows_subset_mirroring_and_labels(labelled):
    prints = [
        ImageFolderDataset(labelled, **options).fingerprint
        for options in ({}, {"xflip": True}, {"max_size": 5}, {"use_labels": True}, {"max_size": 10})
    ]
    assert len(set(prints)) == 4
    assert prints[0] == prints[4]


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "high"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_to_float(dtype, high):
    images = torch.from_numpy(np.array([0, high // 2, high // 2 + 1, high]).astype(f"uint{dtype.itemsize * 8}"))
    values = to_float(images)
    assert values.dtype == torch.float32
    assert values[[0, 3]].tolist() == [-1, 1]
    assert values[1].item() == pytest.approx(-values[2].item(), abs=1e-6)


def test_to_uint8_undoes_to_float():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


# Real images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("cifar10", [3, 32, 32], 10), ("tinyimagenet", [3, 64, 64], 200), ("emoji-rgba", [4, 64, 64], 0)],
)
def test_real_zips(shared_data, name, shape, classes):
    start = time.perf_counter()
    dataset = ImageFolderDataset(shared_data / f"{name}.zip", use_labels=classes > 0)
    assert time.perf_counter() - start < 10  # 1 to 2 s alone on a core
    assert (dataset.image_shape, dataset.label_dim) == (shape, classes)
    ((images, labels),) = take(dataset, 1)
    assert images.float().std() > 20
    assert labels.sum() == (6 if classes else 0)


def test_open_files_lists_what_lies_there(store):
    files = open_files(store({**pngs(["b.png", "a.png"]), "LICENSE": b""}))
    assert list(files.names) == ["a.png", "b.png"]
    assert list(files.all_names) == ["LICENSE", "a.png", "b.png"]
