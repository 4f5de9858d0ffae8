"""Names of files: one spelling, whoever packed the archive."""

import struct
import sys
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from dnnlib.errors import UserError
from tests.helpers.hostile import raw_zip
from tests.helpers.image_files import labels_json, pngs, write_folder, write_zip
from training.data.file_names import canonical, member_name
from training.data.image_files import open_files
from training.dataset import ImageFolderDataset

NFC, NFD = "tür/ä.png", unicodedata.normalize("NFD", "tür/ä.png")
PIXELS = pngs(["x.png"])["x.png"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.png", "a/b.png"), ("a\\b.png", "a/b.png"), ("./a//b/./c.png", "a/b/c.png"), (NFD, NFC), ("a/", "a/"),
        ("a\\", "a/"), ("/a/../b", "/a/../b"), ("", ""), ("./", ""), ("a..png", "a..png"),
    ],
)  # fmt: skip
def test_canonical(name, expected):
    assert canonical(name) == expected
    assert canonical(expected) == expected


def members(label_names: list[str], raw_names: list[bytes], flags: int = 0, extra: bytes = b"") -> list[dict]:
    labels = labels_json([[name, k] for k, name in enumerate(label_names)])
    images = [{"name": name, "data": PIXELS, "flags": flags} for name in raw_names]
    return [*images, {"name": b"dataset.json", "data": labels}]


@pytest.mark.parametrize(
    ("raw", "flags"),
    [
        (NFC.encode(), 0),  # Debian's zip -r, under every locale
        (NFC.encode(), 0x800),
        (NFD.encode(), 0),  # macOS
        (NFD.encode(), 0x800),
        (NFC.encode("cp437"), 0),  # Windows' explorer
        (NFC.replace("/", "\\").encode("cp437"), 0),  # .NET before 4.6.1
        (b"./" + NFC.encode(), 0),
    ],
)
@pytest.mark.parametrize("label_name", [NFC, NFD, NFC.replace("/", "\\"), "./" + NFC])
def test_labels_find_their_images(tmp_path, raw, flags, label_name):
    """Labels of Debian's zips "do not exist": their names were read as gr├╝n, those of dataset.json as grün."""
    (tmp_path / "a.zip").write_bytes(raw_zip(members([label_name], [raw], flags)))
    dataset = ImageFolderDataset(tmp_path / "a.zip", use_labels=True)
    assert (dataset._image_fnames, dataset.label_source) == ([NFC], "dataset.json")
    assert dataset[0][0].shape == (3, 6, 8)


def test_the_field_for_unicode_names_counts_where_it_fits():
    raw, name = "ä.png".encode("cp1252"), "ä.png".encode()

    def field(checksum):
        body = struct.pack("<BI", 1, checksum) + name
        return struct.pack("<2HB", 0x5455, 1, 0) + struct.pack("<2H", 0x7075, len(body)) + body

    assert member_name(raw, 0, field(zlib.crc32(raw))) == "ä.png"
    assert member_name(raw, 0, field(5)) == raw.decode("cp437")


def test_subfolders_of_windows_are_classes(tmp_path):
    """Backslashes: `cats\\\\1.png` and `dogs\\\\2.png` were two files without labels."""
    raw = raw_zip([{"name": name, "data": PIXELS} for name in (b"cats\\1.png", b"dogs\\2.png")])
    (tmp_path / "a.zip").write_bytes(raw)
    dataset = ImageFolderDataset(tmp_path / "a.zip", use_labels=True)
    assert (dataset.label_source, dataset.get_classes().tolist()) == ("subfolders", [0, 1])


@pytest.mark.parametrize("names", [(NFC, NFD), ("a/b.png", "a\\b.png"), ("a.png", "./a.png")])
def test_two_names_that_become_one_are_refused(tmp_path, names):
    path = tmp_path / "a.zip"
    path.write_bytes(raw_zip([{"name": name.encode(), "data": PIXELS} for name in names]))
    with pytest.raises(UserError, match="two files named"):
        open_files(path)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere folders take both spellings for one")
def test_names_in_folders(tmp_path):
    labels = {"dataset.json": labels_json([[NFC, 1]])}
    folder = write_folder(tmp_path / "a", {NFD: PIXELS, **labels})
    dataset = ImageFolderDataset(folder, use_labels=True)
    assert (dataset._image_fnames, dataset.get_classes().tolist()) == ([NFC], [1])
    assert dataset[0][0].shape == (3, 6, 8)
    other = ImageFolderDataset(write_folder(tmp_path / "b", {NFC: PIXELS, **labels}), use_labels=True)
    assert dataset.fingerprint == other.fingerprint
    write_folder(folder, {NFC: PIXELS})
    with pytest.raises(UserError, match="are one name"):
        open_files(folder)


# Names of the official class ------------------------------------------------------------------------------------------


def test_the_subset_is_that_of_the_official_class(tmp_path):
    """Another generator chose other images. These are the official ImageFolderDataset's (run), of 10 images."""
    path = write_zip(tmp_path / "a.zip", pngs([f"{i}.png" for i in range(10)]))
    for seed, expected in OFFICIAL_SUBSETS.items():
        dataset = ImageFolderDataset(path, max_size=4, random_seed=seed)
        assert [dataset.get_details(i).raw_idx for i in range(4)] == expected


OFFICIAL_SUBSETS = {0: [2, 4, 8, 9], 1: [2, 4, 6, 9], 7: [0, 2, 5, 8]}


class Shades(ImageFolderDataset):
    """A subclass as those of the official class are written."""

    def _load_raw_image(self, raw_idx):
        name = self._image_fnames[raw_idx]
        assert self._file_ext(name) == ".png"
        with self._open_file(name) as file:
            return 255 - np.asarray(Image.open(file)).transpose(2, 0, 1)

    def _load_raw_labels(self):
        assert {"notes.txt", *self._image_fnames} <= self._all_fnames
        return np.arange(len(self._image_fnames))


@pytest.mark.parametrize("kind", ["zip", "dir"])
def test_subclasses_of_the_official_class(tmp_path, kind):
    write = write_zip if kind == "zip" else write_folder
    path = write(tmp_path / ("a.zip" if kind == "zip" else "a"), {**pngs(["B/1.PNG", "2.png"]), "notes.txt": b"text"})
    dataset, plain = Shades(path, use_labels=True), ImageFolderDataset(path)
    assert dataset._type == kind
    assert np.array_equal(dataset[0][0], 255 - plain[0][0])
    assert dataset.label_dim == 2
    if kind == "zip":
        assert isinstance(dataset._get_zipfile(), zipfile.ZipFile)
    with pytest.raises(IOError, match=r"no file named 3\.png"):
        dataset._open_file("3.png")


def test_errors_are_those_that_programs_catch(tmp_path):
    """The official class raises IOError for a path that is no set, for one without images and for another size."""
    write_folder(tmp_path / "texts", {"a.txt": b"text"})
    path = write_zip(tmp_path / "a.zip", pngs(["a.png"]))
    for arguments in ({"path": tmp_path / "gone"}, {"path": tmp_path / "texts"}, {"path": path, "resolution": 16}):
        with pytest.raises(OSError) as caught:
            ImageFolderDataset(**arguments)
        assert isinstance(caught.value, UserError)
        assert "\n" not in str(caught.value)
