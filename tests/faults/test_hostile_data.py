"""What is broken or meant ill: zips, images, labels and folders. One line names it, memory and disk stay as they are."""

import gzip
import io
import os
import socket
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataset_tool
import dnnlib.cli
import train
from dnnlib.errors import UserError
from tests.helpers.golden import ROOT
from tests.helpers.hostile import (
    animation,
    deflated_zeros,
    huge_images,
    png,
    png_with,
    raw_zip,
    with_little_memory,
    write_members,
)
from tests.helpers.image_files import check_one_line, labels_json, write_folder
from tests.helpers.reliability import record
from training.data import image_files, zip_index
from training.data import labels as dataset_labels
from training.data.convert import convert
from training.data.image_files import BadImage, open_files
from training.data.labels import find_labels
from training.data.pixels import decode, probe
from training.data.zip_index import read_directory
from training.dataset import ImageFolderDataset

TOPIC, OUTCOME = "Broken images and archives", "one line that names the file, memory bounded, nothing written"
COUNTS = {"tried": 0, "survived": 0}


@pytest.fixture(scope="module", autouse=True)
def row_of_the_table():
    yield
    what = "zips, images, labels and folders, sound and made to harm: bombs, lies, cuts, odd names, pipes"
    record(TOPIC, what, **COUNTS, outcome=OUTCOME)


@pytest.fixture(autouse=True)
def count(request, row_of_the_table):
    COUNTS["tried"] += 1
    failed_before = request.session.testsfailed
    yield
    COUNTS["survived"] += request.session.testsfailed == failed_before


def refused(path: Path, message: str, index: int = 0) -> str:
    """Opening the set and reading an image fails with a line that names the file; the line."""
    with pytest.raises(UserError, match=message) as caught:
        open_files(path).decode(index)
    check_one_line(caught.value, path.name)
    return str(caught.value)


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# Sound zips of all kinds ----------------------------------------------------------------------------------------------

FILES = {"b.png": png(seed=1), "ä/ö.png": png(seed=2), "a.txt": b"text" * 99, "x/": b"", "empty.txt": b""}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("variant", ["plain", "comment", "prefix", "streamed", "zip64", "appended"])
def test_the_directory_agrees_with_the_standard_library(tmp_path, method, variant):
    path = write_members(tmp_path / "a.zip", FILES, method)
    if variant == "comment":
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = b"PK\5\6 is only a comment" + bytes(99)
    elif variant == "prefix":
        save(path, b"#!/bin/sh\nexit\n" + path.read_bytes())
    elif variant == "streamed":
        write_streamed(path, method)
    elif variant == "zip64":
        write_zip64(path, method)
    elif variant == "appended":
        with zipfile.ZipFile(path, "a", method) as archive:
            archive.writestr("0.png", png(seed=3))
    if variant == "comment":
        with pytest.raises(zipfile.BadZipFile):  # a signature inside of the comment misleads the standard library, too
            zipfile.ZipFile(path)
        return
    names, entries = read_directory(path)
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        assert list(names) == sorted(infos)
        files = open_files(path)
        for name, entry in zip(names, entries, strict=True):
            info = infos[name]
            assert (entry["size"], entry["crc"], entry["packed"]) == (info.file_size, info.CRC, info.compress_size)
            assert files.parts[0].read_file(name, 1 << 20) == archive.read(name)


def write_streamed(path: Path, method: int) -> None:
    """Sizes behind the data, as of a writer that cannot go back."""

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", method) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    save(path, pipe.data)


def write_zip64(path: Path, method: int) -> None:
    """64-bit fields where they are not needed."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in FILES.items():
            if not name.endswith("/"):
                with archive.open(name, "w", force_zip64=True) as file:
                    file.write(data)


@pytest.mark.parametrize("limit", [1, 0])
def test_64_bit_ends_and_places(tmp_path, monkeypatch, limit):
    """As of zips beyond 4 GB: the limits of the writer are put down to nothing."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    path = write_members(tmp_path / "a.zip", FILES)
    monkeypatch.undo()
    assert b"PK\6\6" in path.read_bytes()
    assert list(open_files(path).names) == ["b.png", "ä/ö.png"]
    assert open_files(path).read(1) == FILES["ä/ö.png"]
    save(path, b"prefix" + path.read_bytes())
    assert open_files(path).read(1) == FILES["ä/ö.png"]


def test_a_comment_of_full_length(tmp_path):
    path = save(tmp_path / "a.zip", raw_zip([{"name": b"a.png", "data": png()}], comment=b"c" * 65_535))
    assert open_files(path).read(0) == png()


def test_names_in_the_old_code_page(tmp_path):
    path = save(tmp_path / "a.zip", raw_zip([{"name": "ä.png".encode("cp437"), "data": png()}]))
    assert list(open_files(path).names) == ["ä.png"]
    assert open_files(path).read(0) == png()


# Zips that lie --------------------------------------------------------------------------------------------------------


def test_a_file_with_more_in_it_than_its_zip_says(tmp_path):
    """A gigabyte of zeros, announced as 2,000 bytes: no more than these are unfolded."""
    member = {"name": b"a.png", "method": 8, "packed": deflated_zeros(1 << 30), "size": 2000}
    path = save(tmp_path / "bomb.zip", raw_zip([member]))
    code = """
try: training.data.image_files.open_files(sys.argv[1]).decode(0)
except UserError as error: print(error)
"""
    assert "unfolds into more than the 2,000 bytes" in with_little_memory(code, str(path))


def test_a_gigabyte_in_a_megabyte(tmp_path):
    """An honest bomb: ratio 1,000. As an image and as labels, in a zip that also holds something sound."""
    zeros = {"method": 8, "packed": deflated_zeros(900 << 20), "size": 900 << 20}
    members = [{"name": b"a.png", "data": png(16, 16)}]
    image = save(tmp_path / "image.zip", raw_zip([*members, {"name": b"b.png", **zeros}]))
    labels = save(tmp_path / "labels.zip", raw_zip([*members, {"name": b"dataset.json", **zeros}]))
    code = """
image, labels = sys.argv[1:]
for look in (
    lambda: training.data.image_files.open_files(image).headers(),
    lambda: training.data.convert.convert(image, image + ".out", num_workers=1, report=print),
    lambda: training.data.labels.find_labels(training.data.image_files.open_files(labels)),
):
    try: look()
    except UserError as error: print(error)
"""
    lines = with_little_memory(code, str(image), str(labels)).splitlines()
    assert len(lines) == 3
    assert "b.png cannot be read (its " in lines[0]
    assert "b.png: its " in lines[1]
    assert all("may be a decompression bomb" in line for line in lines[:2])
    assert "dataset.json cannot be read (it has more than 4 MB)" in lines[2]


@pytest.mark.parametrize("offset", [0, 31])
def test_files_upon_each_other(tmp_path, offset):
    """Fifield's bomb: each file of the directory unfolds the same data, or begins inside of the one before."""
    members = [{"name": b"a.png", "data": png()}, {"name": b"b.png", "data": png(), "offset": offset}]
    refused(save(tmp_path / "bomb.zip", raw_zip(members)), "upon each other, as in a decompression bomb")


def test_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_index, "MAX_ENTRIES", 3)
    path = write_members(tmp_path / "a.zip", {f"{i}.png": png() for i in range(4)})
    refused(path, "more than 3 files")


def test_a_million_files_take_little(tmp_path):
    """A directory of 60 MB, one empty file after the other: 60 bytes each are kept, and not an object."""
    count = 1_000_000
    records = np.zeros(count, [(name, zip_index.CENTRAL[name]) for name in zip_index.CENTRAL.names] + [("name", "S11")])
    records["signature"], records["name_bytes"], records["offset"] = b"PK\1\2", 11, np.arange(count) * 41
    records["name"] = [f"{i:07d}.png" for i in range(count)]
    end = zip_index.END.pack(b"PK\5\6", 0, 0, 0, 0, records.nbytes, count * 41, 0)
    with open(tmp_path / "a.zip", "wb") as file:
        file.seek(count * 41)
        file.write(records.tobytes() + end)
    code = "print(len(training.data.image_files.open_files(sys.argv[1])))"
    assert with_little_memory(code, str(tmp_path / "a.zip"), megabytes=300).strip() == "1000000"


def test_zips_in_zips_stay_closed(tmp_path):
    inner = write_members(tmp_path / "inner.zip", {"a.png": png()}).read_bytes()
    refused(write_members(tmp_path / "a.zip", {"inner.zip": inner, "b.zip": inner}), "holds no images")
    refused(write_members(tmp_path / "b.zip", {"c.png": inner}), "not an image of a known format")


@pytest.mark.parametrize(("method", "name"), [(9, "Deflate64"), (14, "LZMA"), (93, "Zstandard"), (77, "number 77")])
def test_other_compression(tmp_path, method, name):
    path = save(tmp_path / "a.zip", raw_zip([{"name": b"a.png", "data": png(), "packed": png(), "method": method}]))
    refused(path, rf"a\.png cannot be read \(its compression, {name}, is not supported; zip it anew")


@pytest.mark.parametrize("flag", [0x1, 0x41, 0x2001])
def test_encryption(tmp_path, flag):
    path = save(tmp_path / "a.zip", raw_zip([{"name": b"a.png", "data": png(), "flags": flag}]))
    refused(path, "it is encrypted; unpack the zip with its password first")


def test_two_files_of_one_name(tmp_path):
    """Which of them is meant? Readers differ, and what one checks another may not show."""
    members = [{"name": b"a.png", "data": png(seed=k)} for k in range(2)]
    refused(save(tmp_path / "a.zip", raw_zip(members)), r"two files named a\.png")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"crc": 5}, "CRC"),
        ({"size": 10}, "more than the 10 bytes"),
        ({"size": 10**6}, "less than the 1,000,000 bytes"),
        ({"packed_size": 10}, "less than"),
        ({"method": 8, "packed": b"\xff" * 99}, "packed data is damaged"),
        ({"method": 12, "packed": b"\xff" * 99}, "packed data is damaged"),
        ({"method": 8, "packed": b""}, "less than"),
    ],
)
def test_members_that_lie(tmp_path, member, message):
    path = save(
        tmp_path / "a.zip",
        raw_zip([{"name": b"a.png", "data": png(), **member}, {"name": b"z.txt", "data": bytes(999)}]),
    )
    refused(path, message)


@pytest.mark.parametrize(
    "members",
    [
        [{"name": b"a.png", "data": png(), "offset": 10**6}],
        [{"name": b"a.png", "data": png(), "packed_size": 10**6}],
        [{"name": b"a.png", "data": png(), "offset": 0xFFFFFFFF}],
        [{"name": b"a.png", "data": png(), "offset": 0xFFFFFFFF, "extra": struct.pack("<2HQ", 1, 8, 2**64 - 20)}],
        [{"name": b"a.png", "data": png(), "offset": 0xFFFFFFFF, "extra": struct.pack("<2HI", 1, 8, 0)}],
        [{"name": b"a.png", "data": png(), "offset": 0xFFFFFFFF, "extra": struct.pack("<2H", 7, 60_000)}],
        [{"name": b"\xff.png", "data": png(), "flags": 0x800}],
    ],
)
def test_places_outside_of_the_zip(tmp_path, members):
    refused(save(tmp_path / "a.zip", raw_zip(members)), "damaged")


def test_another_name_at_the_place(tmp_path):
    data = raw_zip([{"name": b"a.png", "data": png()}])
    refused(save(tmp_path / "a.zip", data.replace(b"a.png", b"b.png", 1)), "another name stands where it should be")
    refused(save(tmp_path / "b.zip", data.replace(b"PK\3\4", b"PK\3\5", 1)), "damaged where it should be")


def test_every_truncation(tmp_path):
    data = write_members(tmp_path / "whole.zip", {"a.png": png(), "b.png": png()}).read_bytes()
    for length in range(0, len(data), 7):
        refused(save(tmp_path / "a.zip", data[:length]), "damaged or incomplete|is empty|neither a folder nor a zip")


@pytest.mark.parametrize(
    "field", ["disk", "first disk", "zip64 disks", "zip64 place", "zip64 signature", "size", "place"]
)
def test_ends_that_lie(tmp_path, monkeypatch, field):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 0)
    path = write_members(tmp_path / "a.zip", {"a.png": png()})
    monkeypatch.undo()
    data = bytearray(path.read_bytes())
    locator, end_64 = data.rindex(b"PK\6\7"), data.rindex(b"PK\6\6")
    change = {
        "disk": (end_64 + 16, b"\1"),
        "first disk": (end_64 + 20, b"\1"),
        "zip64 disks": (locator + 16, b"\2"),
        "zip64 place": (locator + 8, b"\xff" * 8),
        "zip64 signature": (end_64, b"XX"),
        "size": (end_64 + 40, b"\xff" * 8),
        "place": (end_64 + 48, b"\xff" * 8),
    }
    place, value = change[field]
    data[place : place + len(value)] = value
    save(path, bytes(data))
    if field == "zip64 place":
        assert open_files(path).read(0) == png()  # the record is found right before
    else:
        refused(path, "incomplete zip|one part of a zip in several parts")


CLIMBING = [
    "../up.png", "../../up.png", "/tmp/absolute.png", "//server/share.png", "C:\\drive.png", "C:/drive.png", "x\\..\\up.png",
    "a/../../up.png", ".png/../x.png",
]  # fmt: skip
NAMES = ["dir\\a.png", "nul.png", "a\x1b[31m.png", "line\nbreak.png", "\u202egnp.png"]


@pytest.mark.parametrize("name", CLIMBING)
def test_names_that_climb_out_are_refused(tmp_path, name):
    source = tmp_path / "a.zip"
    write_members(source, {"good.png": png(16, 16), name: png(16, 16, seed=1)})
    with pytest.raises(UserError, match="which leads out of it") as caught:
        convert(source, tmp_path / "out", report=print)
    check_one_line(caught.value)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_odd_names_are_never_written(tmp_path, kind):
    files = {name: png(16, 16, seed=k) for k, name in enumerate(NAMES)}
    labels = labels_json([[name, k] for k, name in enumerate(NAMES)])
    inside = tmp_path / "in" / "deep"
    inside.mkdir(parents=True)
    source = inside / "a.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for name, data in [*files.items(), ("dataset.json", labels.replace(b"\\\\", b"/"))]:
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, data)
    before = set(tmp_path.rglob("*"))
    dest = inside / ("out.zip" if kind == "zip" else "out")
    result = convert(source, dest, report=print)
    assert result.num_images == len(NAMES)
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert all(path == dest or path.is_relative_to(dest) for path in new)
    if kind == "folder":
        assert {path.name for path in new} == {*(f"img{k:08d}.png" for k in range(len(NAMES))), "dataset.json"}


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_in_messages_take_one_line(tmp_path, name):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, b"junk")
    message = refused(path, "not an image")
    assert message.isprintable()


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(huge_images()))
def test_ten_thousand_million_pixels(tmp_path, name):
    """Refused by the header, and again by whoever decodes without looking at it."""
    path = write_members(tmp_path / "a.zip", {name: huge_images()[name]})
    code = """
files = training.data.image_files.open_files(sys.argv[1])
for look in (files.headers, lambda: files.decode(0)):
    try: look()
    except UserError as error: print(error)
"""
    lines = with_little_memory(code, str(path), megabytes=64).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert f"{name} cannot be read (it has far more pixels than an image for training" in line


def test_animations_on_a_large_canvas_are_refused():
    """A few bytes for two gigabytes and a minute: found by the fuzz."""
    data = bytearray(animation("WEBP"))
    assert decode(bytes(data)).shape == (16, 16, 3)
    data[24:30] = (5000).to_bytes(3, "little") * 2
    with pytest.raises(Image.DecompressionBombError):
        decode(bytes(data))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "tif"])
def test_truncated_images(kind):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, [40, 40, 3], dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()))
    data = buffer.getvalue()
    for length in range(0, len(data) - 20, len(data) // 40):
        with pytest.raises(Exception):  # noqa: B017 - made into BadImage by the files
            decode(data[:length])


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_bombs_in_text_and_profiles(tmp_path, kind):
    packed = zlib.compress(bytes(300 << 20), 9)
    body = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0", b"iCCP": b"icc\0\0"}[kind] + packed
    path = write_members(tmp_path / "a.zip", {"a.png": png_with(kind, body)})
    code = """
files = training.data.image_files.open_files(sys.argv[1])
try: print(files.probe(0)[:2], files.decode(0).shape)
except UserError as error: print(error)
"""
    said = with_little_memory(code, str(path), megabytes=128)
    assert "a.png cannot be read (its text or colour profile unfolds into more than 1 MB)" in said


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_large_profiles_and_exif_are_carried(tmp_path):
    """Megabytes of what nobody looks at are no harm."""
    files = {}
    for name, kind, options in [
        ("icc.jpg", "JPEG", {"icc_profile": os.urandom(2 << 20)}),
        ("icc.png", "PNG", {"icc_profile": os.urandom(900_000)}),
        ("icc.webp", "WEBP", {"icc_profile": os.urandom(2 << 20)}),
        ("exif.jpg", "JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08" + os.urandom(60_000)}),
        ("comment.jpg", "JPEG", {"comment": bytes(65_000)}),
    ]:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 6), (9, 9, 9)).save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    opened = open_files(write_members(tmp_path / "a.zip", files))
    for index in range(len(opened)):
        assert opened.probe(index)[:4] == (8, 6, 3, 8)
        assert opened.decode(index).shape == (6, 8, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_the_first_picture_of_an_animation_is_taken_and_said_to_be(tmp_path, kind):
    files = {f"a.{kind.lower()}": animation(kind), "b.png": png(16, 16)}
    path = write_members(tmp_path / "a.zip", files)
    dataset = ImageFolderDataset(path)
    assert dataset.describe()["animated"] == 1
    assert dataset[0][0].max() == 0
    said = []
    convert(path, tmp_path / "out.zip", report=said.append)
    assert said == [f"a.{kind.lower()}: several pictures in one file, of which the first is taken"]


def test_a_phones_jpeg_of_two_pictures_is_one(tmp_path):
    images = [Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (8, 8))]
    buffer = io.BytesIO()
    images[0].save(buffer, "MPO", save_all=True, append_images=images[1:])
    files = open_files(write_members(tmp_path / "a.zip", {"a.jpg": buffer.getvalue()}))
    assert files.probe(0) == (16, 16, 3, 8, False)
    assert files.decode(0)[0, 0, 0] > 190


def test_tiffs_that_go_round_in_circles():
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    struct.pack_into("<I", data, start + 2 + 12 * count, start)  # the next picture is this one
    assert probe(io.BytesIO(bytes(data)))[:2] == (4, 4)
    assert decode(bytes(data)).shape == (4, 4, 1)


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr", "F", "I"])
def test_pixel_types_of_tiff(mode):
    buffer = io.BytesIO()
    try:
        Image.new(mode, (4, 4)).save(buffer, "TIFF")
    except (OSError, ValueError):
        pytest.skip(f"this Pillow writes no {mode}")
    if mode in ("F", "I"):
        with pytest.raises(ValueError, match="pixel type"):
            decode(buffer.getvalue())
    else:
        assert decode(buffer.getvalue()).shape == (4, 4, 3)


def test_the_start_of_a_large_file_tells_the_same(tmp_path):
    """Headers are read from the first 32 kB where these are enough, whatever stands before the pixels."""
    noise = np.random.default_rng(0).integers(0, 256, [300, 200, 3], dtype=np.uint8)
    files = {}
    for name, kind, options in [
        ("0.png", "PNG", {}),
        ("1.png", "PNG", {"icc_profile": os.urandom(100_000)}),
        ("2.jpg", "JPEG", {"quality": 99}),
        ("3.jpg", "JPEG", {"quality": 99, "icc_profile": os.urandom(200_000)}),
        ("4.webp", "WEBP", {"lossless": True}),
        ("5.tif", "TIFF", {}),
        ("6.bmp", "BMP", {}),
        ("7.png", "PNG", {"transparency": (1, 2, 3)}),
    ]:
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(noise).save(buffer, kind, **({"exif": exif} if kind in ("JPEG", "WEBP") else {}), **options)
        files[name] = buffer.getvalue()
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        opened = open_files(write_members(tmp_path / f"{method}.zip", files, method))
        for index, name in enumerate(opened.names):
            assert opened.probe(index) == probe(io.BytesIO(files[name])), name
            height, width = opened.decode(index).shape[:2]
            assert opened.probe(index)[:2] == (width, height), name


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"labels": [["a.png", 1], ["a.png", 2]]}', r"two labels for a\.png"),
        (b'{"labels": {"a.png": 1, "a.png": 2}}', None),  # JSON itself keeps the last one
        (b"[" * 200_000 + b"]" * 200_000, "not valid JSON"),
        (b'{"labels": [["a.png", ' + b"[" * 900 + b"]" * 900 + b"]]}", "the label of a.png is"),
        (b'{"labels": [["\\ud800.png", 1]]}', "labels for"),
        (b'{"labels": [["\\u001b[2J.png", 1]]}', "labels for"),
        (b'{"labels": [["../a.png", 1]]}', "do not exist"),
        (b'{"labels": [["a.png", 1' + b"0" * 5000 + b"]]}", "not valid JSON"),
        (b'{"labels": "a.png"}', "not of the form"),
        (b'{"labels": [[1, 2]]}', "not of the form"),
        (b"7", "not of the form"),
        (b'{"labels": [["a.png", {"x": 1}]]}', "the label of a.png"),
        (b'{"labels": [["a.png", null]]}', "the label of a.png"),
        (b'{"labels": [["a.png", 1.5]]}', "the label of a.png"),
        (b'{"labels": [["a.png", Infinity]]}', "the label of a.png"),
        (b'{"labels": [["a.png", [[1]]]]}', "the label of a.png"),
    ],
)
def test_dataset_json_that_is_not_right(tmp_path, content, message):
    path = write_members(tmp_path / "a.zip", {"a.png": png(), "dataset.json": content})
    ImageFolderDataset(path).describe()
    if message is None:
        assert ImageFolderDataset(path, use_labels=True).label_dim == 3
        return
    with pytest.raises(UserError, match=message) as caught:
        ImageFolderDataset(path, use_labels=True)
    check_one_line(caught.value, "dataset.json")
    assert str(caught.value).isprintable()


def test_dataset_json_of_many_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_labels, "LABEL_FILE_BYTES", 1 << 20)
    path = write_members(tmp_path / "a.zip", {"a.png": png(), "dataset.json": b" " * (2 << 20)})
    with pytest.raises(UserError, match=r"dataset\.json cannot be read \(it has more than 1 MB\)"):
        ImageFolderDataset(path, use_labels=True)


# Folders --------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders on this system")
def test_pipes_devices_and_sockets_in_a_folder(tmp_path):
    folder = write_folder(tmp_path / "a", {"ok.png": png(16, 16)})
    os.mkfifo(folder / "pipe.png")
    os.symlink("/dev/zero", folder / "zero.png")
    os.symlink("gone.png", folder / "dangling.png")
    os.symlink("circle.png", folder / "circle.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.png"))
        said = []
        result = convert(folder, tmp_path / "out.zip", report=said.append)
    assert (result.num_images, len(result.skipped)) == (1, 5)
    assert sum("it is a pipe, a device or the like" in line for line in said) == 2
    with pytest.raises(BadImage, match=r"circle\.png"):
        ImageFolderDataset(folder)


def test_links_are_followed_and_circles_end(tmp_path):
    """A class of ten that `dogs -> elsewhere` leads to was dropped without a word: 10 images and no labels."""
    folder = write_folder(tmp_path / "a", {"cats/1.png": png(), "cats/2.png": png()})
    elsewhere = write_folder(tmp_path / "elsewhere", {"deep/3.png": png()})
    os.symlink(elsewhere, folder / "dogs")
    os.symlink(elsewhere, folder / "wolves")
    os.symlink(folder, folder / "cats" / "circle")
    os.symlink(folder / "cats", elsewhere / "deep" / "back")
    os.symlink(folder / "cats" / "1.png", folder / "cats" / "0.png")
    files = open_files(folder)
    assert list(files.names) == ["cats/0.png", "cats/1.png", "cats/2.png", "dogs/deep/3.png"]
    assert files.remarks() == [
        "cats/circle and 2 more: leads to a folder that is read already, and is not followed",
    ]
    assert files.decode(0).shape == files.decode(3).shape == (4, 4, 3)
    assert find_labels(files)[1].tolist() == [0, 0, 0, 1]


def test_a_link_to_what_surrounds_the_set(tmp_path):
    folder = write_folder(tmp_path / "outside" / "set", {"1.png": png()})
    write_folder(tmp_path / "outside", {"2.png": png()})
    os.symlink("..", folder / "up")
    assert list(open_files(folder).names) == ["1.png", "up/2.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders on this system")
def test_a_pipe_as_a_data_set(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    command = [
        sys.executable,
        str(ROOT / "dataset_tool.py"),
        f"--source={tmp_path / 'a.zip'}",
        f"--dest={tmp_path / 'x'}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "neither a file nor a folder" in result.stderr


def test_a_folder_that_may_not_be_looked_into(tmp_path, monkeypatch):
    """The tests may run as root, who may look anywhere."""
    folder = write_folder(tmp_path / "a", {"1.png": png(), "secret/2.png": png()})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"secret: cannot be looked into \(Permission denied\)"):
        open_files(folder)


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "a", {"1.png": png()})
    monkeypatch.setattr(
        image_files, "_open_regular", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    refused(folder, r"1\.png cannot be read \(Permission denied\)")


def test_a_zip_that_may_not_be_read(tmp_path, monkeypatch):
    path = write_members(tmp_path / "a.zip", {"a.png": png()})
    opening = os.open
    refuse = PermissionError(13, "Permission denied", str(path))

    def limited(name, *arguments):
        if str(name) == str(path):
            raise refuse
        return opening(name, *arguments)

    monkeypatch.setattr(os, "open", limited)
    refused(path, r"a\.zip: cannot be opened \(Permission denied\)")


def test_a_large_file_with_a_hole_is_not_read(tmp_path):
    folder = write_folder(tmp_path / "a", {"1.png": png()})
    with open(folder / "1.png", "ab") as file:
        file.truncate(1 << 40)
    code = """
files = training.data.image_files.open_files(sys.argv[1])
print(files.probe(0)[:2])
try: files.decode(0)
except UserError as error: print(error)
"""
    assert "it has more than 1,024 MB" in with_little_memory(code, str(folder))


def test_a_tarball_that_unpacks_into_much_more(tmp_path):
    """A terabyte is announced first; nobody waits for it to go by."""
    info = tarfile.TarInfo("cifar-10-batches-py/readme.html")
    info.size = 1 << 40
    with gzip.open(tmp_path / "cifar-10-python.tar.gz", "wb") as file:
        file.write(info.tobuf() + bytes(1 << 20))
    with pytest.raises(UserError, match="unpacks into far more than CIFAR-10") as caught:
        convert(tmp_path / "cifar-10-python.tar.gz", tmp_path / "out.zip", report=print)
    check_one_line(caught.value)
    assert not (tmp_path / "out.zip").exists()


# At the command line --------------------------------------------------------------------------------------------------


SCRIPTS = {"dataset_tool": dataset_tool.main, "train": train.main}


@pytest.mark.parametrize("script", list(SCRIPTS))
@pytest.mark.parametrize("what", ["overlap", "duplicate", "huge", "truncated", "tiff"])
def test_one_line_exit_code_2_and_nothing_written(tmp_path, what, script, monkeypatch, capsys):
    members = {
        "overlap": [{"name": b"a.png", "data": png(16, 16)}, {"name": b"b.png", "data": png(16, 16), "offset": 0}],
        "duplicate": [{"name": b"a.png", "data": png(16, 16)}] * 2,
        "huge": [{"name": b"a.png", "data": huge_images()["huge.png"]}],
        "truncated": [{"name": b"a.png", "data": png(16, 16)[:30]}],
        "tiff": [
            {"name": b"a.tif", "data": huge_images(4)["huge.tif"][:100]}
        ],  # of which Pillow says more than one line
    }
    save(tmp_path / "a.zip", raw_zip(members[what]))
    arguments = {
        "dataset_tool": [f"--source={tmp_path / 'a.zip'}", f"--dest={tmp_path / 'out' / 'x.zip'}", "--strict"],
        "train": [f"--data={tmp_path / 'a.zip'}", "--cfg=stylegan2", f"--outdir={tmp_path / 'runs'}"],
    }
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments[script]])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(SystemExit) as left:
            dnnlib.cli.run(SCRIPTS[script])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith("Error: --")
    assert said.count("\n") == 1
    assert "a.zip" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
