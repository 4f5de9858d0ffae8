"""Parquet files as Hugging Face stores images, and WebDataset tars, through dataset_tool.py."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

import dataset_tool
from tests.test_project import call
from training.dataset import ImageFolderDataset

pyarrow = pytest.importorskip("pyarrow", reason="the optional extra `parquet` is not installed")
parquet = pytest.importorskip("pyarrow.parquet")


def encoded(value, kind="PNG"):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 255 - value)).save(data, kind)
    return data.getvalue()


def write_parquet(path, values, labels=None, name="image", **more):
    columns = {name: [{"bytes": encoded(value), "path": f"{value}.png"} for value in values]}
    if labels is not None:
        columns["label"] = labels
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({**columns, **more}), path, row_group_size=3)
    return path


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def converted(source, dest):
    """First pixels' red, and the classes (None without)."""
    assert call(dataset_tool, f"--source={source}", f"--dest={dest}") == 0
    dataset = ImageFolderDataset(str(dest), use_labels=True)
    images = dataset.read_images(np.arange(len(dataset)))
    classes = dataset.get_classes().tolist() if dataset.has_own_labels else None
    dataset.close()
    return images[:, 0, 0, 0].tolist(), classes


def test_a_file(tmp_path):
    path = write_parquet(tmp_path / "data.parquet", range(0, 80, 10), [1, 0, 2, 0, 1, 2, 2, 0])
    assert converted(path, tmp_path / "a.zip") == (list(range(0, 80, 10)), [1, 0, 2, 0, 1, 2, 2, 0])


def test_a_folder_of_shards_takes_the_training_split(tmp_path, capsys):
    folder = tmp_path / "data"
    write_parquet(folder / "train-00000-of-00002.parquet", [10, 20, 30, 40], [0, 1, 0, 1])
    write_parquet(folder / "train-00001-of-00002.parquet", [50], [1])
    write_parquet(folder / "test-00000-of-00001.parquet", [90], [0])
    assert converted(folder, tmp_path / "a.zip") == ([10, 20, 30, 40, 50], [0, 1, 0, 1, 1])
    assert "no training images" in (said := capsys.readouterr()).out + said.err
    assert converted(folder / "test-00000-of-00001.parquet", tmp_path / "b.zip") == ([90], [0])


def test_plain_bytes_and_no_labels(tmp_path):
    table = pyarrow.table({"text": ["a", "b"], "jpg": [encoded(10), encoded(20)]})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert converted(tmp_path / "x.parquet", tmp_path / "a.zip") == ([10, 20], None)
    hidden = write_parquet(tmp_path / "test.parquet", [10, 20], [-1, -1])
    assert converted(hidden, tmp_path / "b.zip") == ([10, 20], None)


def test_what_cannot_be_read_of_a_file_is_skipped(tmp_path, capsys):
    rows = [
        {"bytes": encoded(10), "path": None},
        {"bytes": None, "path": "x.png"},
        {"bytes": b"no image", "path": None},
    ]
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "x.parquet")
    assert converted(tmp_path / "x.parquet", tmp_path / "a.zip") == ([10], None)
    said = capsys.readouterr()
    assert "row 1" in (text := said.out + said.err) and "holds the name of a file" in text and "row 2" in text


@pytest.mark.parametrize(
    ("name", "files", "classes"),
    [
        ("classes", {"0.png": 10, "0.cls": b"1", "1.png": 20, "1.cls": b"0"}, [1, 0]),
        ("objects", {"a/0.png": 10, "a/0.json": b'{"label": 2}', "a/1.png": 20, "a/1.json": b'{"label": 0}'}, [2, 0]),
        ("some", {"0.png": 10, "0.cls": b"1", "1.png": 20}, None),
        ("none", {"0.png": 10, "1.png": 20, "1.txt": b"a cat"}, None),
    ],
)
def test_a_tar_of_samples(tmp_path, name, files, classes):
    files = {key: encoded(value) if isinstance(value, int) else value for key, value in files.items()}
    path = write_tar(tmp_path / f"{name}.tar", files)
    assert converted(path, tmp_path / "a.zip") == ([10, 20], classes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b"no parquet"), "is no readable Parquet file"),
        (
            lambda path: parquet.write_table(pyarrow.table({"text": ["a"]}), path),
            "has no column of images; its columns are text",
        ),
        (lambda path: write_parquet(path, []), "has no column of images"),
        (
            lambda path: parquet.write_table(pyarrow.table({"jpg": pyarrow.array([], pyarrow.binary())}), path),
            "holds no images",
        ),
    ],
)
def test_other_files_are_one_line(tmp_path, capsys, make, words):
    make(tmp_path / "x.parquet")
    assert call(dataset_tool, f"--source={tmp_path / 'x.parquet'}", f"--dest={tmp_path / 'a.zip'}") == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1 and not (tmp_path / "a.zip").exists()


def test_without_the_package(tmp_path, capsys, monkeypatch):
    path = write_parquet(tmp_path / "x.parquet", [1, 2])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert call(dataset_tool, f"--source={path}", f"--dest={tmp_path / 'a.zip'}") == 2
    assert 'pip install -e ".[parquet]"' in capsys.readouterr().err


def test_a_number_is_a_class_and_nothing_else():
    from training.data.hub_collections import class_in

    assert [class_in(data) for data in (b"3", b'{"label": 4}', b"-1", b"true", b"[1]", b"x", json.dumps({"x": 1}).encode())] == [
        3, 4, None, None, None, None, None,
    ]  # fmt: skip
