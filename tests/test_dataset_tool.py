"""dataset_tool.py: every source, transform and pixel type, and what bad input gets."""

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import dataset_tool
from dnnlib.errors import UserError
from tests.helpers.golden import ROOT
from training.data import convert as dataset_convert
from training.data.pixels import clear_hidden, decode, encode_png
from training.data.transforms import (
    TooSmall,
    crop_center,
    letterbox,
    resample_to,
    shrink_by_halves,
    to_bits,
    to_channels,
    trim_border,
)
from training.dataset import ImageFolderDataset


def noise(*shape: int, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def pngs(names, height: int = 16, width: int = 16, channels: int = 3, dtype=np.uint8) -> dict[str, bytes]:
    return {name: encode_png(noise(height, width, channels, dtype=dtype, seed=i)) for i, name in enumerate(names)}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def run(source, dest, *options: str):
    """The command in this process; errors come out as exceptions."""
    arguments = [f"--source={source}", f"--dest={dest}", *options]
    return CliRunner().invoke(dataset_tool.main, arguments, catch_exceptions=False, standalone_mode=False)


def script(*arguments: str) -> subprocess.CompletedProcess:
    """The command as a user runs it."""
    command = [sys.executable, str(ROOT / "dataset_tool.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def pixels_of(dest: Path) -> list[np.ndarray]:
    dataset = ImageFolderDataset(dest)
    return [dataset[i][0].transpose(1, 2, 0) for i in range(len(dataset))]


def labels_of(dest: Path):
    if dest.is_dir():
        return json.loads((dest / "dataset.json").read_text())["labels"]
    with zipfile.ZipFile(dest) as archive:
        return json.loads(archive.read("dataset.json"))["labels"]


@pytest.fixture
def dest(tmp_path) -> Path:
    return tmp_path / "out" / "set.zip"


@pytest.fixture
def three(tmp_path) -> Path:
    return write_zip(tmp_path / "three.zip", {**pngs(["c.png", "a.png", "b.png"]), "LICENSE": b"text"})


# Output ---------------------------------------------------------------------------------------------------------------


def test_zip_has_the_layout_that_users_know(three, dest):
    result = run(three, dest)
    with zipfile.ZipFile(dest) as archive:
        names = [f"00000/img0000000{i}.png" for i in range(3)]
        assert archive.namelist() == [*names, "dataset.json"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert labels_of(dest) is None
    expected = [decode(data) for _, data in sorted(pngs(["c.png", "a.png", "b.png"]).items())]
    assert np.array_equal(pixels_of(dest), expected)
    line = f"Wrote 3 images of 16x16 (RGB, 8-bit, no labels) to {dest}; 0 skipped"
    assert line in result.output
    assert f"\nSome of them: {dest}.png\n" in result.output
    assert "1 without extension" in result.output  # LICENSE
    assert Image.open(f"{dest}.png").size == (8 * 64, 64)


def test_folder(three, tmp_path, dest):
    folder = tmp_path / "deep" / "folder"
    run(three, folder)
    run(three, dest)
    assert sorted(path.name for path in folder.iterdir()) == ["00000", "dataset.json"]
    assert np.array_equal(pixels_of(folder), pixels_of(dest))


def test_an_empty_folder_may_be_filled(three, tmp_path):
    (tmp_path / "empty").mkdir()
    run(three, tmp_path / "empty")
    assert len(pixels_of(tmp_path / "empty")) == 3


def test_same_source_same_bytes(three, tmp_path):
    run(three, tmp_path / "1.zip")
    run(three, tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_many_images_keep_their_order(tmp_path, dest):
    files = {f"{i:03d}.png": encode_png(np.full([16, 16, 1], i, np.uint8)) for i in range(100)}
    run(write_zip(tmp_path / "a.zip", files), dest)
    assert [int(pixels[0, 0, 0]) for pixels in pixels_of(dest)] == list(range(100))


def test_max_images_takes_the_first(three, dest):
    run(three, dest, "--max-images=2")
    assert np.array_equal(pixels_of(dest), [decode(pngs("xab")[name]) for name in "ab"])


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[["b.png", 1], ["a.png", 0]], [["b.png", [0.5, 2.0]], ["a.png", [1.5, -1.0]]]])
def test_labels_of_dataset_json(tmp_path, dest, labels):
    files = {**pngs(["a.png", "b.png"]), "dataset.json": json.dumps({"labels": labels}).encode()}
    result = run(write_zip(tmp_path / "a.zip", files), dest)
    assert labels_of(dest) == [["00000/img00000000.png", labels[1][1]], ["00000/img00000001.png", labels[0][1]]]
    assert ("labels of 2 classes" if labels[0][1] == 1 else "labels of 2 numbers") in result.output


def test_labels_of_subfolders(tmp_path, dest):
    run(write_zip(tmp_path / "a.zip", pngs(["dog/1.png", "cat/1.png", "cat/2.png"])), dest)
    assert [label for _, label in labels_of(dest)] == [0, 0, 1]
    assert ImageFolderDataset(dest, use_labels=True).label_dim == 2


def test_labels_stay_aligned_when_images_are_skipped(tmp_path, dest):
    files = pngs(["0/a.png", "1/b.png", "2/c.png"])
    run(write_zip(tmp_path / "a.zip", {**files, "1/b.png": b"broken"}), dest)
    assert labels_of(dest) == [["00000/img00000000.png", 0], ["00000/img00000001.png", 2]]


# Pixels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixel_types_are_kept(tmp_path, dest, channels, dtype):
    files = pngs(["a.png", "b.png"], channels=channels, dtype=dtype)
    run(write_zip(tmp_path / "a.zip", files), dest)
    assert np.array_equal(pixels_of(dest), [clear_hidden(decode(data)) for data in files.values()])
    run(write_zip(tmp_path / "b.zip", files), tmp_path / "small.zip", "--resolution=8x8")
    small = ImageFolderDataset(tmp_path / "small.zip")
    assert (small.image_shape, small.dtype) == ([channels, 8, 8], dtype)


def test_mixed_kinds_become_the_widest(tmp_path, dest):
    gray, color, clear = noise(16, 16, 1), noise(16, 16, 3), noise(16, 16, 4, dtype=np.uint16)
    files = {"1.png": encode_png(gray), "2.png": encode_png(color), "3.png": encode_png(clear)}
    result = run(write_zip(tmp_path / "a.zip", files), dest)
    assert "1 gray such as 1.png, 1 RGB such as 2.png, 1 16-bit RGBA such as 3.png" in result.output
    assert "1 of 3 images have 16 bits (3.png), so that all get them; --bits=8 writes 8" in result.output
    first, second, third = pixels_of(dest)
    assert np.array_equal(first[:, :, :3], np.repeat(gray.astype(np.uint16) * 257, 3, axis=2))
    assert np.array_equal(second[:, :, :3], color.astype(np.uint16) * 257)
    assert (second[:, :, 3] == 65535).all()
    assert np.array_equal(third, clear)


@pytest.mark.parametrize(("name", "channels"), [("gray", 1), ("rgb", 3), ("rgba", 4)])
@pytest.mark.parametrize("had", [1, 3, 4])
def test_channels(tmp_path, dest, name, channels, had):
    run(write_zip(tmp_path / "a.zip", pngs(["a.png"], channels=had)), dest, f"--channels={name}")
    assert pixels_of(dest)[0].shape == (16, 16, channels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_goes_onto_white(dtype):
    white = np.iinfo(dtype).max
    pixels = np.array([[[0, 0, 0, 0], [white, 0, 0, white], [0, 0, 0, white // 2]]], dtype=dtype)
    assert to_channels(pixels, 3).tolist() == [[[white] * 3, [white, 0, 0], [white - white // 2] * 3]]


def test_gray_is_luma():
    pixels = noise(5, 6, 3)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    assert abs(to_channels(pixels, 1)[:, :, 0].astype(int) - expected).max() <= 1


def test_to_bits():
    assert to_bits(np.array([0, 1, 255], np.uint8), 16).tolist() == [0, 257, 65535]
    assert to_bits(np.array([7], np.uint8), 8).dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparent_pixels_do_not_bleed(dtype):
    """Half red and opaque, half green and transparent: however it is resized, no green shows."""
    white = np.iinfo(dtype).max
    pixels = np.zeros([16, 16, 4], dtype=dtype)
    pixels[:, :7] = [white, 0, 0, white]
    pixels[:, 7:] = [0, white, 0, 0]
    small = resample_to(pixels, (8, 8))
    visible = small[:, :, 3] > white // 50
    assert (small[visible][:, 1] == 0).all()
    assert (small[visible][:, 0] > 0.98 * white).all()
    assert visible[:, :3].all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_resize_agrees_with_8_bit(channels):
    pixels = noise(20, 30, channels)
    pixels[:, :, 3:] |= 128
    eight, sixteen = resample_to(pixels, (12, 9)), resample_to(to_bits(pixels, 16), (12, 9))
    assert eight.shape == sixteen.shape == (9, 12, channels)
    assert abs(sixteen / 257 - eight).max() < 3  # Pillow rounds twice, and its alpha products


# Transforms -----------------------------------------------------------------------------------------------------------


def test_without_transform_images_are_stretched(tmp_path, dest):
    pixels = noise(32, 16, 3)
    run(write_zip(tmp_path / "a.zip", {"a.png": encode_png(pixels)}), dest, "--resolution=24x16")
    expected = np.asarray(Image.fromarray(pixels).resize((24, 16), Image.Resampling.LANCZOS))
    assert np.array_equal(pixels_of(dest)[0], expected)


@pytest.mark.parametrize("shape", [(20, 40), (40, 20), (21, 40)])
def test_center_crop(tmp_path, dest, shape):
    pixels = noise(*shape, 3)
    source = write_zip(tmp_path / "a.zip", {"a.png": encode_png(pixels)})
    run(source, dest, "--transform=center-crop", f"--resolution={min(shape)}x{min(shape)}")
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    assert np.array_equal(pixels_of(dest)[0], pixels[top : top + side, left : left + side])


def test_center_crop_wide(tmp_path, dest):
    """Other pixels than the official tool's (by up to 217), and other images: one of 33x31 was left out for 32x24."""
    y, x = np.mgrid[:40, :32]
    pixels = np.stack([(x * 7 + y * 3) % 256, (x * x + y) % 256, (y * y + 5 * x) % 256], axis=-1).astype(np.uint8)
    files = {"a.png": encode_png(pixels), "small.png": encode_png(noise(40, 31, 3))}
    result = run(write_zip(tmp_path / "a.zip", files), dest, "--transform=center-crop-wide", "--resolution=32x16")
    (written,) = pixels_of(dest)
    assert written.shape == (32, 32, 3)
    # Of StyleGAN3's dataset_tool.py.
    assert (written[10, 3].tolist(), written[16, 20].tolist()) == ([38, 15, 48], [202, 165, 116])
    assert written.sum() == 187097
    assert written[:8].max() == written[24:].max() == 0
    assert "Skipped small.png: smaller than 32x16" in result.output
    assert "images of 32x32" in result.output


def test_a_folder_inside_the_source_is_refused(tmp_path):
    """The next run on the source read the result with it."""
    source = tmp_path / "images"
    source.mkdir()
    Image.new("RGB", (8, 8)).save(source / "a.png")
    with pytest.raises(UserError, match=r"--dest=.*lies inside --source"):
        run(source, source / "sub")
    assert [path.name for path in source.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("shape", "size", "pixel", "total"),
    [
        ((40, 48), (32, 16), [62, 33, 119], 185626),
        ((48, 64), (32, 24), [87, 56, 228], 292200),
        ((31, 33), (32, 24), [30, 13, 22], 276329),
        ((30, 40), (32, 24), [42, 20, 44], 276298),
        ((23, 32), (32, 24), None, None),
    ],
)
def test_letterbox_is_the_official_one(shape, size, pixel, total):
    """Numbers of StyleGAN3's dataset_tool.py, None where it leaves the image out."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    pixels = np.stack([(x * 7 + y * 3) % 256, (x * x + y) % 256, (y * y + 5 * x) % 256], axis=-1).astype(np.uint8)
    if total is None:
        with pytest.raises(TooSmall):
            letterbox(pixels, size)
        return
    written = letterbox(pixels, size)
    assert written[(size[0] - size[1]) // 2 + 2, 3].tolist() == pixel
    assert written.sum() == pytest.approx(total, rel=1e-3)  # versions of Pillow differ by 6e-4


SPRITES = {"a.png": (24, 16), "b.png": (24, 24), "c.png": (31, 17)}


def sprites() -> dict[str, bytes]:
    """Red squares of 4x4 in the middle of transparent pink, which nobody sees."""
    files = {}
    for name, (height, width) in SPRITES.items():
        pixels = np.full([height, width, 4], (255, 0, 255, 0), np.uint8)
        pixels[height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2] = (255, 0, 0, 255)
        files[name] = encode_png(pixels)
    return files


def test_sprites_are_padded_by_whole_factors(tmp_path, dest):
    """Without pad they were stretched to 64x64 without a word; nearest keeps 0 % of partly transparent pixels."""
    source = write_zip(tmp_path / "a.zip", sprites())
    result = run(source, dest, "--transform=pad", "--resample=nearest", "--resolution=64x64")
    written = pixels_of(dest)
    assert set(np.unique(written)) == {0, 255}
    assert [int((pixels[:, :, 3] > 0).sum()) for pixels in written] == [64, 64, 64]
    assert "a.png and 2 more: has colours where it is transparent" in result.output
    run(source, tmp_path / "t.zip", "--trim", "--transform=pad", "--resample=nearest", "--resolution=64x64")
    assert all((pixels == (255, 0, 0, 255)).all() for pixels in pixels_of(tmp_path / "t.zip"))
    result = run(source, tmp_path / "s.zip", "--resolution=64x64")
    assert "a.png and 1 more: has not the shape of the result, and is stretched" in result.output
    assert all(pixels[pixels[:, :, 3] == 0].max() == 0 for pixels in pixels_of(tmp_path / "s.zip"))


@pytest.mark.parametrize(
    ("color", "expected"), [(None, [255, 255, 255]), ("black", [0, 0, 0]), ("#102030", [16, 32, 48])]
)
def test_pad_colors(tmp_path, dest, color, expected):
    source = write_zip(tmp_path / "a.zip", {"a.png": encode_png(np.full([8, 16, 3], 99, np.uint8))})
    run(source, dest, "--transform=pad", "--resolution=16x16", *([f"--pad-color={color}"] if color else []))
    (pixels,) = pixels_of(dest)
    assert (pixels[0, 0].tolist(), pixels[15, 15].tolist(), pixels[4, 0].tolist()) == (expected, expected, [99] * 3)


def test_trim_border():
    pixels = np.full([9, 7, 3], 5, np.uint8)
    assert trim_border(pixels).shape == (9, 7, 3)
    pixels[2:5, 3:6] = 9
    assert trim_border(pixels).shape == (3, 3, 3)
    pixels[0, 0] = 1
    assert trim_border(pixels).shape == (9, 7, 3)


def test_bits(tmp_path, dest):
    """One 16-bit file made all of a set 16-bit, and nothing wrote 8."""
    deep = np.array([0, 128, 129, 65535], np.uint16).reshape(1, 4, 1).repeat(16, axis=0).repeat(4, axis=1)
    files = {"1.png": encode_png(noise(16, 16, 1)), "2.png": encode_png(deep)}
    result = run(write_zip(tmp_path / "a.zip", files), dest, "--bits=8")
    assert pixels_of(dest)[1][0, ::4, 0].tolist() == [0, 0, 1, 255]
    assert "8-bit" in result.output
    run(tmp_path / "a.zip", tmp_path / "16.zip", "--bits=16")
    assert ImageFolderDataset(tmp_path / "16.zip").dtype == np.uint16


def test_flags_of_stylegan2_ada(tmp_path, dest):
    pixels = noise(16, 16, 3)
    source = write_zip(tmp_path / "a.zip", {"a.png": encode_png(pixels)})
    run(source, dest, "--width=8", "--resize-filter=box")
    assert np.array_equal(pixels_of(dest)[0], np.asarray(Image.fromarray(pixels).resize((8, 16), Image.Resampling.BOX)))
    run(source, tmp_path / "b.zip", "--width=8", "--height=4", "--transform=center-crop")
    assert pixels_of(tmp_path / "b.zip")[0].shape == (4, 8, 3)


def test_a_sample_instead_of_the_first(tmp_path, dest):
    files = {f"{i:03d}.png": encode_png(np.full([16, 16, 1], i, np.uint8)) for i in range(100)}
    run(write_zip(tmp_path / "a.zip", files), dest, "--max-images=30", "--sample-seed=3")
    taken = [int(pixels[0, 0, 0]) for pixels in pixels_of(dest)]
    assert (len(taken), taken) == (30, sorted(set(taken)))
    assert 30 < np.mean(taken) < 70
    run(tmp_path / "a.zip", tmp_path / "b.zip", "--max-images=30", "--sample-seed=3")
    assert dest.read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ["--sample-seed=1"], ["--pad-color=black"], ["--trim"], ["--resolution=8x8", "--width=8"],
        ["--transform=center-crop", "--width=8"], ["--transform=pad"],
        ["--transform=center-crop-dhariwal", "--resolution=8x8", "--resample=box"],
    ],
)  # fmt: skip
def test_options_that_would_do_nothing(three, dest, options):
    with pytest.raises(click.UsageError):
        run(three, dest, *options)
    assert not dest.parent.exists()


def test_a_sheet_that_stands_there_is_kept(three, dest):
    dest.parent.mkdir()
    sheet = dest.with_name("set.zip.png")
    sheet.write_bytes(b"mine")
    result = run(three, dest)
    assert sheet.read_bytes() == b"mine"
    assert "exists and is not overwritten" in result.output
    assert len(pixels_of(dest)) == 3


def test_a_sheet_that_cannot_be_written_is_a_warning(three, dest, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.data.grids.save_grid", full)
    assert "no picture of the images (No space left on device)" in run(three, dest).output
    assert len(pixels_of(dest)) == 3


def test_a_color_that_is_none(three, dest):
    with pytest.raises(UserError, match="--pad-color=blurple: is no colour"):
        run(three, dest, "--transform=pad", "--resolution=8x8", "--pad-color=blurple")


def test_letterbox_resizes():
    assert letterbox(noise(100, 80, 4), (32, 24)).shape == (32, 32, 4)


@pytest.mark.parametrize("shape", [(64, 200), (70, 64), (15, 20), (33, 32)])
def test_center_crop_dhariwal(tmp_path, dest, shape):
    source = write_zip(tmp_path / "a.zip", {"a.png": encode_png(noise(*shape, 3))})
    run(source, dest, "--transform=center-crop-dhariwal", "--resolution=16x16")
    assert pixels_of(dest)[0].shape == (16, 16, 3)


def test_halves_are_averages():
    pixels = noise(8, 8, 1)
    averages = pixels.reshape(4, 2, 4, 2).mean(axis=(1, 3))
    assert abs(shrink_by_halves(pixels, 4)[:, :, 0] - averages).max() <= 1  # Pillow rounds twice


def test_crop_center():
    assert crop_center(np.arange(12).reshape(3, 4, 1), 2, 1)[:, :, 0].tolist() == [[5, 6]]


def test_exif_and_formats_end_as_upright_pngs(tmp_path, dest):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 16), (9, 99, 199)).save(buffer, "JPEG", exif=exif)
    run(write_zip(tmp_path / "a.zip", {"a.jpg": buffer.getvalue()}), dest)
    assert pixels_of(dest)[0].shape == (32, 16, 3)


# Published archives ---------------------------------------------------------------------------------------------------


class AsNumpy1:
    """Pickles as numpy 1 under Python 2 did, which is how CIFAR-10 is published."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __reduce__(self):
        state = (1, self.array.shape, np.dtype(np.uint8), False, self.array.tobytes())
        return (np.core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state)


def cifar_batch(images: np.ndarray, labels: list[int], protocol: int = 2) -> bytes:
    data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return pickle.dumps({b"batch_label": b"x", b"labels": labels, b"data": data}, protocol)


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def old_module_names(data: bytes) -> bytes:
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.mark.parametrize("rename", [lambda data: data, old_module_names])
def test_cifar10(tmp_path, dest, rename):
    images = noise(6, 32, 32, 3)
    files = {
        "data_batch_2": rename(cifar_batch(images[3:], [7, 8, 9])),
        "data_batch_1": rename(cifar_batch(images[:3], [0, 1, 2])),
        "test_batch": rename(cifar_batch(images[:1], [5])),
        "readme.html": b"text",
    }
    result = run(write_tar(tmp_path / "cifar-10-python.tar.gz", files), dest)
    assert np.array_equal(pixels_of(dest), images)
    assert [label for _, label in labels_of(dest)] == [0, 1, 2, 7, 8, 9]
    assert "6 images of 32x32 (RGB, 8-bit, labels of 6 classes)" in result.output


class Command:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Getter:
    def __reduce__(self):
        return getattr, ("text", "upper")


@pytest.mark.parametrize("inside", [False, True])
def test_a_pickle_that_runs_commands_is_refused(tmp_path, dest, inside):
    touched = tmp_path / "touched"
    content = {b"data": Command(touched), b"labels": [0]} if inside else Command(touched)
    source = write_tar(tmp_path / "cifar-10-python.tar.gz", {"data_batch_1": pickle.dumps(content, 2)})
    with pytest.raises(UserError, match=r"^--source: .*refused, for its pickle asks for posix\.system"):
        run(source, dest)
    assert not touched.exists()
    assert not dest.parent.exists()


def test_a_pickle_that_asks_for_builtins_is_refused(tmp_path, dest):
    source = write_tar(tmp_path / "cifar-10-python.tar.gz", {"data_batch_1": pickle.dumps(Getter(), 2)})
    with pytest.raises(UserError, match="refused"):
        run(source, dest)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"test_batch": b""},
        {"data_batch_1": b"junk"},
        {"data_batch_1": pickle.dumps([1, 2], 2)},
        {"data_batch_1": pickle.dumps({b"data": 3, b"labels": [3]}, 2)},
        {"data_batch_1": pickle.dumps({b"data": np.zeros([1, 3072]), b"labels": [3]}, 2)},
        {"data_batch_1": cifar_batch(noise(2, 32, 32, 3), [1])},
        {"data_batch_1": cifar_batch(noise(2, 8, 8, 3), [1, 2])},
    ],
)
def test_other_tarballs(tmp_path, dest, files):
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz as published"):
        run(write_tar(tmp_path / "other.tar.gz", files), dest)


def test_a_truncated_tarball(tmp_path, dest):
    path = write_tar(tmp_path / "a.tar.gz", {"data_batch_1": cifar_batch(noise(20, 32, 32, 3), [1] * 20)})
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(UserError, match="CIFAR-10"):
        run(path, dest)


def write_mnist(folder: Path, images: np.ndarray, labels: list[int] | None, kind: str = "train") -> Path:
    path = folder / f"{kind}-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">4I", 2051, *images.shape) + images.tobytes()))
    if labels is not None:
        data = struct.pack(">2I", 2049, len(labels)) + bytes(labels)
        (folder / f"{kind}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(data))
    return path


def test_mnist(tmp_path, dest):
    images = noise(5, 28, 28)
    result = run(write_mnist(tmp_path, images, [3, 1, 4, 1, 5]), dest)
    written = np.stack(pixels_of(dest))
    assert written.shape == (5, 32, 32, 1)
    assert np.array_equal(written[:, 2:30, 2:30, 0], images)
    assert written.astype(int).sum() == images.astype(int).sum()  # the border is black
    assert [label for _, label in labels_of(dest)] == [3, 1, 4, 1, 5]
    assert "(gray, 8-bit, labels of 4 classes)" in result.output


def test_mnist_of_another_part_without_labels(tmp_path, dest):
    path = write_mnist(tmp_path, noise(2, 28, 28), None, "t10k")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(gzip.decompress(path.read_bytes()))
    run(tmp_path / "t10k-images-idx3-ubyte", dest)
    assert labels_of(dest) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: b"junk",
        lambda data: data[:-50],
        lambda data: gzip.compress(gzip.decompress(data)[:100]),
        lambda data: gzip.compress(b"\0\0\x09\x99" + gzip.decompress(data)[4:]),
        lambda data: gzip.compress(struct.pack(">4I", 2051, 2**31, 2**31, 2**31)),
        lambda data: gzip.compress(struct.pack(">4I", 2051, 0, 28, 28)),
    ],
)
def test_damaged_mnist(tmp_path, dest, change):
    path = write_mnist(tmp_path, noise(5, 28, 28), [0] * 5)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: .*; download it again"):
        run(path, dest)


def test_mnist_with_labels_of_something_else(tmp_path, dest):
    with pytest.raises(UserError, match="4 labels for 5 images"):
        run(write_mnist(tmp_path, noise(5, 28, 28), [0] * 4), dest)


def test_lsun(tmp_path, dest):
    lmdb = pytest.importorskip("lmdb", reason="the optional extra `lsun` is not installed")
    path = tmp_path / "church_train_lmdb"
    images = noise(5, 24, 20, 3)
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for i, image in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "WEBP", lossless=True)
            transaction.put(f"key{i}".encode(), buffer.getvalue() if i != 1 else b"broken")
    result = run(path, dest, "--max-images=4", "--transform=center-crop", "--resolution=20x20")
    assert np.array_equal(pixels_of(dest), images[[0, 2, 3], 2:22])
    assert "Skipped key1" in result.output
    (tmp_path / "bad_lmdb").mkdir()
    (tmp_path / "bad_lmdb" / "data.mdb").write_bytes(b"junk" * 5000)
    with pytest.raises(UserError, match="not a readable LMDB"):
        run(tmp_path / "bad_lmdb", tmp_path / "other.zip")


def test_lsun_without_its_package(tmp_path, dest, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    (tmp_path / "church_lmdb").mkdir()
    with pytest.raises(UserError, match="pip install lmdb"):
        run(tmp_path / "church_lmdb", dest)


# What bad input gets --------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Two good images, one that is none, one that ends too early."""
    files = pngs([f"{i}.png" for i in range(4)], 64, 64)
    return write_zip(tmp_path / "damaged.zip", {**files, "1.png": b"junk", "2.png": files["2.png"][:5000]})


def test_corrupt_images_are_named_and_skipped(damaged, dest):
    result = run(damaged, dest)
    assert "Skipped 1.png: not an image" in result.output
    assert "Skipped 2.png: " in result.output
    assert "; 2 skipped\n" in result.output
    assert len(pixels_of(dest)) == 2


@pytest.mark.parametrize("missing", ["1.png", "2.png"])
def test_strict_stops_and_writes_nothing(tmp_path, damaged, dest, missing):
    with zipfile.ZipFile(damaged) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != missing}
    bad = {"1.png": "2.png", "2.png": "1.png"}[missing]
    with pytest.raises(UserError, match=rf"^--source: .*{bad} cannot be read .*drop --strict"):
        run(write_zip(tmp_path / "a.zip", files), dest, "--strict")
    assert not dest.parent.exists()


def test_all_images_broken(tmp_path, dest):
    good = encode_png(noise(64, 64, 3))
    for data in (b"junk", good[:5000]):
        with pytest.raises(UserError, match="none of its images"):
            run(write_zip(tmp_path / "a.zip", {"a.png": data}), dest)
        assert not dest.parent.exists()


@pytest.mark.parametrize("name", ["full", "file.zip", "folder.zip", "empty.zip", "text"])
def test_nothing_is_overwritten(three, tmp_path, name):
    dest = tmp_path / name
    if name in ("full", "folder.zip"):
        dest.mkdir()
        (dest / "keep.txt").write_text("mine")
    else:
        dest.write_bytes(b"" if name == "empty.zip" else b"mine")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=rf"^--dest: .*{name}: exists and is not overwritten"):
        run(three, dest)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", ["a.tar.gz", "a.rar"])
def test_kinds_of_dest_that_cannot_be_written(three, tmp_path, name):
    with pytest.raises(UserError, match=r"^--dest: .*only folders and \.zip"):
        run(three, tmp_path / name)


def test_a_dest_below_a_file(three, tmp_path):
    with pytest.raises(UserError, match=r"^--dest: .*cannot be written"):
        run(three, three / "set.zip")


@pytest.mark.parametrize("name", ["set.zip", "set"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing_behind(tmp_path, name, error, monkeypatch):
    source = write_zip(tmp_path / "a.zip", pngs([f"{i}.png" for i in range(20)]))
    real_write, real_bytes = zipfile.ZipFile.writestr, Path.write_bytes
    writes = []

    def fail_at_the_fifth(original):
        def wrapper(*args):
            writes.append(1)
            if len(writes) == 5:
                raise error
            return original(*args)

        return wrapper

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail_at_the_fifth(real_write))
    monkeypatch.setattr(Path, "write_bytes", fail_at_the_fifth(real_bytes))
    expected = KeyboardInterrupt if error is KeyboardInterrupt else UserError
    with pytest.raises(expected) as caught:
        dataset_convert.convert(source, tmp_path / "out" / name)
    assert len(writes) == 5
    assert sorted(os.listdir(tmp_path)) == ["a.zip"]
    if expected is UserError:
        assert "No space left" in str(caught.value)


def test_mixed_sizes_without_resolution(tmp_path, dest):
    source = write_zip(tmp_path / "a.zip", pngs(["a.png"]) | pngs(["b.png"], 8, 16))
    with pytest.raises(UserError, match=r"a\.png is 16x16 and b\.png is 16x8; .*--resolution=WxH"):
        run(source, dest)
    run(source, dest, "--resolution=8x8")
    assert len(pixels_of(dest)) == 2


def test_bad_labels_of_the_source(tmp_path, dest):
    with pytest.raises(UserError, match=r"dataset\.json is not valid JSON"):
        run(write_zip(tmp_path / "a.zip", {**pngs(["a.png"]), "dataset.json": b"{"}), dest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resolution=32"], "'32' is not a size such as 256x256"),
        (["--resolution=0x32"], "'0x32' is not a size"),
        (["--resolution=99999x99999"], "is not a size"),
        (["--transform=center-crop"], "needs --resolution=WxH"),
        (["--transform=center-crop-wide", "--resolution=16x32"], "needs a wide --resolution"),
        (["--transform=center-crop-dhariwal", "--resolution=16x32"], "needs a square --resolution"),
        (["--transform=spin"], "spin"),
        (["--max-images=0"], "--max-images"),
        (["--channels=5"], "--channels"),
    ],
)
def test_bad_options(three, dest, options, message):
    with pytest.raises(click.UsageError) as caught:
        run(three, dest, *options)
    assert message in caught.value.format_message()
    assert not dest.parent.exists()


@pytest.mark.parametrize(
    ("size", "warning"),
    [
        ("32x32", ""),
        ("16x16", ""),
        ("48x32", "suits stylegan2 only"),
        ("24x24", "stylegan2 only"),
        ("33x32", "do not suit"),
    ],
)
def test_sizes_that_the_networks_cannot_have_are_warned_about(three, dest, size, warning):
    result = run(three, dest, f"--resolution={size}")
    assert warning in result.output
    assert ("Warning" in result.output) == bool(warning)
    assert dest.exists()


@pytest.mark.parametrize("name", ["none.zip", "text.zip", "bare.zip"])
def test_the_script_says_one_line_and_exits_with_2(tmp_path, name, dest):
    (tmp_path / "text.zip").write_text("hello")
    write_zip(tmp_path / "bare.zip", {"a.txt": b""})
    done = script(f"--source={tmp_path / name}", f"--dest={dest}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"Error: --source: {tmp_path / name}: ")
    assert done.stderr.count("\n") == 1
    assert not dest.parent.exists()


# Real images ----------------------------------------------------------------------------------------------------------


def test_real_emoji(shared_data, dest):
    done = script(
        f"--source={shared_data / 'emoji-rgba.zip'}", f"--dest={dest}", "--resolution=32x32", "--max-images=300"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Wrote 300 images of 32x32 (RGBA, 8-bit, no labels) to {dest}; 0 skipped\n")
    images = np.stack(pixels_of(dest)).astype(float)
    assert images.shape == (300, 32, 32, 4)
    assert images[..., 3].std() > 50


def test_real_photos(shared_data, dest):
    result = run(shared_data / "tinyimagenet.zip", dest, "--max-images=1000")
    assert "all are written as RGB" in result.output
    originals = ImageFolderDataset(shared_data / "tinyimagenet.zip", use_labels=True)
    written = ImageFolderDataset(dest, use_labels=True)
    for i in range(0, 1000, 97):
        assert np.array_equal(written[i][0], originals[i][0])
        assert written.get_label(i).argmax() == originals.get_label(i).argmax()
