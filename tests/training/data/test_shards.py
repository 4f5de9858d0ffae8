"""Sets of several zips: their names, their order, what they share, and their index on disk."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import calc_sid
import dnnlib.cli
import train
from dnnlib.errors import UserError
from tests.helpers.golden import ROOT
from tests.helpers.image_files import check_one_line, labels_json, pngs, write_folder, write_zip
from training.data import image_files, zip_index
from training.data.image_files import BadImage, ShardedFiles, content_fingerprint, open_files
from training.data.image_sets import ImageSet
from training.data.pixels import decode
from training.data.shards import part_paths, set_exists, set_name, split_list
from training.dataset import ImageFolderDataset
from training.sources.source import ImageSource


@pytest.fixture
def three(tmp_path) -> str:
    """Three zips of two images each, numbered on."""
    for k in range(3):
        write_zip(tmp_path / f"s-{k:03d}.zip", pngs([f"{2 * k:04d}.png", f"{2 * k + 1:04d}.png"], 16, 16))
    return str(tmp_path / "s-{000..002}.zip")


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.zip", ["a.zip"]),
        ("a.zip,b.zip", ["a.zip", "b.zip"]),
        (" a.zip , b.zip,", ["a.zip", "b.zip"]),
        ("s-{0..2}.zip", ["s-0.zip", "s-1.zip", "s-2.zip"]),
        ("s-{008..010}.zip", ["s-008.zip", "s-009.zip", "s-010.zip"]),
        ("s-{8..10}.zip", ["s-8.zip", "s-9.zip", "s-10.zip"]),
        ("{cat,dog}/{0..1}.zip,x.zip", ["cat/0.zip", "cat/1.zip", "dog/0.zip", "dog/1.zip", "x.zip"]),
        ("a{b}.zip", ["a{b}.zip"]),
        ("a{.zip", ["a{.zip"]),
    ],
)
def test_names_that_a_path_stands_for(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [path.as_posix() for path in part_paths(text)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s-{5..3}.zip", "empty range"),
        ("s-{0..99999999}.zip", "more than 10,000"),
        ("{0..999}{0..999}{0..999}{0..999}.zip", "more than 10,000"),
        ("a.zip,b.zip,a.zip", "a.zip twice"),
        ("a.zip,./a.zip", "twice"),
        (",", "names no zip"),
    ],
)
def test_names_that_stand_for_nothing(text, message):
    with pytest.raises(UserError, match=message) as caught:
        part_paths(text)
    check_one_line(caught.value)


def test_a_file_with_braces_or_commas_in_its_name_is_itself(tmp_path):
    for name in ("a,b.zip", "s-{0..2}.zip"):
        path = write_zip(tmp_path / name, pngs(["a.png"]))
        assert part_paths(path) == [path]
        assert len(ImageFolderDataset(path)) == 1


def test_commas_inside_of_braces_do_not_split():
    assert split_list("a-{1,2}.zip, b.zip,,noise") == ["a-{1,2}.zip", "b.zip", "noise"]


def test_short_names(three, tmp_path):
    assert set_name(three) == "s-000-and-2-more"
    assert set_name(tmp_path / "x.zip") == "x"
    assert set_exists(three)
    assert not set_exists(three.replace("002", "003"))


# As one set -----------------------------------------------------------------------------------------------------------


def test_images_come_zip_after_zip(three, tmp_path):
    dataset = ImageFolderDataset(three)
    assert (len(dataset), dataset.name) == (6, "s-000-and-2-more")
    for index in range(6):
        part = ImageFolderDataset(tmp_path / f"s-{index // 2:03d}.zip")
        assert np.array_equal(dataset[index][0], part[index % 2][0])
    assert list(open_files(three).names) == [f"{index:04d}.png" for index in range(6)]


def test_the_order_given_counts(tmp_path):
    a, b = write_zip(tmp_path / "a.zip", pngs(["1.png"])), write_zip(tmp_path / "b.zip", pngs(["0.png"]))
    assert list(open_files(f"{b},{a}").names) == ["0.png", "1.png"]
    assert list(open_files(f"{a},{b}").names) == ["1.png", "0.png"]


def test_zips_and_folders_can_be_mixed(tmp_path):
    a, b = write_zip(tmp_path / "a.zip", pngs(["1.png"])), write_folder(tmp_path / "b", pngs(["1.png", "x/2.png"]))
    files = open_files(f"{a},{b}")
    assert list(files.names) == ["a/1.png", "b/1.png", "b/x/2.png"]
    assert np.array_equal(files.decode(2), decode(pngs(["1.png", "x/2.png"])["x/2.png"]))


def test_names_in_common_get_the_zip_as_prefix(tmp_path):
    a, b = (write_zip(tmp_path / f"{k}.zip", pngs(["0.png", "1.png"])) for k in "ab")
    assert list(open_files(f"{a},{b}").names) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    (tmp_path / "other").mkdir()
    c = write_zip(tmp_path / "other" / "a.zip", pngs(["1.png"]))
    assert list(open_files(f"{a},{c}").names) == ["00000-a/0.png", "00000-a/1.png", "00001-a/1.png"]


def test_names_that_interleave_without_meeting_stay(tmp_path):
    a, b = write_zip(tmp_path / "a.zip", pngs(["0.png", "2.png"])), write_zip(tmp_path / "b.zip", pngs(["1.png"]))
    assert list(open_files(f"{a},{b}").names) == ["0.png", "2.png", "1.png"]


def test_fingerprints_follow_the_contents(three, tmp_path):
    prints = {content_fingerprint(open_files(three)), content_fingerprint(open_files(three.replace("002", "001")))}
    assert len(prints) == 2
    (tmp_path / "moved").mkdir()
    for k in range(3):
        os.rename(tmp_path / f"s-{k:03d}.zip", tmp_path / "moved" / f"s-{k:03d}.zip")
    moved = three.replace("s-{", "moved/s-{")
    assert content_fingerprint(open_files(moved)) in prints
    dataset = ImageFolderDataset(moved, max_size=4)
    assert (
        dataset.fingerprint
        == ImageFolderDataset(moved, max_size=4).fingerprint
        != ImageFolderDataset(moved).fingerprint
    )


def test_a_zip_by_itself_has_the_fingerprint_that_it_always_had(tmp_path):
    """Snapshots and caches hold them."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("b.png", "ä/a.png"):
            archive.writestr(zipfile.ZipInfo(name), pngs([name])[name])
    lines = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            info = archive.getinfo(name)
            lines.append(f"{name}\0{info.file_size} {info.CRC:08x}\n")
    assert content_fingerprint(open_files(path)) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_few_are_open_at_a_time(three, monkeypatch):
    monkeypatch.setattr(ShardedFiles, "MAX_OPEN", 2)
    files = open_files(three)
    assert not any(part._file for part in files.parts)
    for index in [0, 2, 4, 1, 3, 5] * 3:
        files.decode(index)
        assert sum(part._file is not None for part in files.parts) <= 2


def test_threads_read_while_zips_are_closed(three, monkeypatch):
    monkeypatch.setattr(ShardedFiles, "MAX_OPEN", 1)
    files, wrong = open_files(three), []
    expected = [files.decode(index) for index in range(6)]

    def work(seed):
        for index in np.random.default_rng(seed).integers(0, 6, 60).tolist():
            try:
                if not np.array_equal(files.decode(index), expected[index]):
                    wrong.append(index)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pickles_and_forks(three):
    dataset = ImageFolderDataset(three, cache_bytes=0)
    assert np.array_equal(pickle.loads(pickle.dumps(dataset))[5][0], dataset[5][0])
    if hasattr(os, "fork"):
        loader = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context="fork")
        images = torch.cat([images for images, _ in loader])
        assert all(np.array_equal(images[i], dataset[i][0]) for i in range(6))


def test_source_and_metrics_take_them(three):
    source = ImageSource.open(three)
    assert (source.num_images, source.images.shape) == (6, (6, 3, 16, 16))
    images = ImageSet(three)
    assert (len(images), images.name) == (6, "s-000-and-2-more")
    assert torch.equal(images.read([4]).images[0], source.images[4])
    source.load_state_dict({"images": source.images[:2]})
    assert len(source.reopened().images) == 6


# Labels ---------------------------------------------------------------------------------------------------------------


def labelled(path: Path, names: list[str], labels: list | None) -> Path:
    content = (
        {}
        if labels is None
        else {"dataset.json": labels_json([list(pair) for pair in zip(names, labels, strict=True)])}
    )
    return write_zip(path, {**pngs(names), **content})


def test_each_zip_has_its_labels(tmp_path):
    a, b = labelled(tmp_path / "a.zip", ["0.png", "1.png"], [3, 1]), labelled(tmp_path / "b.zip", ["0.png"], [0])
    dataset = ImageFolderDataset(f"{a},{b}", use_labels=True)
    assert (dataset.label_dim, dataset.label_source) == (4, "dataset.json")
    assert dataset.get_labels(np.arange(3)).argmax(1).tolist() == [3, 1, 0]


def test_labels_that_only_some_zips_have(tmp_path):
    a, b = labelled(tmp_path / "a.zip", ["0.png"], [3]), labelled(tmp_path / "b.zip", ["1.png"], None)
    assert len(ImageFolderDataset(f"{a},{b}")) == 2
    with pytest.raises(UserError, match=r"b\.zip has no labels, and .*a\.zip has"):
        ImageFolderDataset(f"{a},{b}", use_labels=True)


def test_labels_of_two_kinds(tmp_path):
    a, b = labelled(tmp_path / "a.zip", ["0.png"], [3]), labelled(tmp_path / "b.zip", ["1.png"], [[0.5, 1]])
    with pytest.raises(UserError, match=r"a\.zip has a class number .*b\.zip has a vector of 2"):
        ImageFolderDataset(f"{a},{b}", use_labels=True)


def test_subfolders_are_classes_of_the_whole(tmp_path):
    """A zip for each class, or classes spread over the zips, and never the zip as a class."""
    a, b = write_zip(tmp_path / "a.zip", pngs(["x/dog/0.png"])), write_zip(tmp_path / "b.zip", pngs(["x/cat/0.png"]))
    dataset = ImageFolderDataset(f"{a},{b}", use_labels=True)
    assert dataset.get_labels(np.arange(2)).argmax(1).tolist() == [1, 0]
    c = write_zip(tmp_path / "c.zip", pngs(["0.png"]))
    d = write_zip(tmp_path / "d.zip", pngs(["0.png"]))
    assert ImageFolderDataset(f"{c},{d}").label_source is None


# What is wrong --------------------------------------------------------------------------------------------------------


def test_a_missing_zip_is_named(three):
    with pytest.raises(UserError, match=r"s-003\.zip: no such file") as caught:
        ImageFolderDataset(three.replace("002", "004"))
    check_one_line(caught.value)


def test_zips_of_different_sizes(tmp_path):
    a, b = write_zip(tmp_path / "a.zip", pngs(["0.png"], 8, 8)), write_zip(tmp_path / "b.zip", pngs(["0.png"], 4, 8))
    with pytest.raises(
        UserError, match=r"a\.zip: 0\.png is 8x8 and 0\.png in .*b\.zip is 8x4; .*a-and-1-more-converted\.zip"
    ):
        ImageFolderDataset(f"{a},{b}")


def test_a_bad_image_is_named_with_its_zip(three, tmp_path):
    write_zip(tmp_path / "s-001.zip", {"0002.png": b"junk", **pngs(["0003.png"], 16, 16)})
    with pytest.raises(BadImage, match=r"s-001\.zip: 0002\.png cannot be read"):
        ImageFolderDataset(three)


def test_a_zip_that_changes_meanwhile_is_noticed(three, tmp_path):
    dataset = ImageFolderDataset(three, cache_bytes=0)
    dataset.close()
    write_zip(tmp_path / "s-001.zip", pngs(["0002.png", "0003.png", "9.png"], 16, 16))
    with pytest.raises(UserError, match=r"s-001\.zip: was changed"):
        dataset[2]


# The index on disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Zips of more than one file are cached, and the folder of the cache."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(image_files, "CACHE_FROM", 1)
    return tmp_path / "cache" / "indices"


def count_work(monkeypatch) -> list[str]:
    """Notes each reading of a directory and of a header."""
    notes, read, probe = [], zip_index.read_directory, image_files.probe
    monkeypatch.setattr(zip_index, "read_directory", lambda path: (notes.append("directory"), read(path))[1])
    monkeypatch.setattr(image_files, "probe", lambda file: (notes.append("header"), probe(file))[1])
    return notes


def test_the_second_time_nothing_is_looked_at(three, cached, monkeypatch):
    expected = ImageFolderDataset(three)
    notes = count_work(monkeypatch)
    again = ImageFolderDataset(three)
    assert notes == []
    assert again.describe() == expected.describe()
    assert all(np.array_equal(again[i][0], expected[i][0]) for i in range(6))
    assert len(list(cached.iterdir())) == 3


def test_a_zip_that_changed_is_indexed_again(three, cached, tmp_path, monkeypatch):
    ImageFolderDataset(three)
    path = tmp_path / "s-001.zip"
    status = path.stat()
    data = bytearray(path.read_bytes())
    other = pngs(["0003.png", "0002.png"], 16, 16)
    write_zip(path, {name: other[name] for name in sorted(other)})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size and time: the checksums differ
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (len(data), status.st_mtime_ns)
    notes = count_work(monkeypatch)
    assert np.array_equal(ImageFolderDataset(three)[2][0].transpose(1, 2, 0), decode(other["0002.png"]))
    assert notes.count("directory") == 1
    assert len(list(cached.iterdir())) == 3


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text", "folder", "pickle"])
def test_a_damaged_index_is_made_anew(three, cached, damage, monkeypatch):
    expected = ImageFolderDataset(three).fingerprint
    for path in cached.iterdir():
        data = bytearray(path.read_bytes())
        if damage == "truncate":
            path.write_bytes(data[: len(data) // 2])
        elif damage == "flip":
            data[data.index(b"entries.npy") + 200] ^= 255
            path.write_bytes(data)
        elif damage == "folder":
            path.unlink()
            path.mkdir()
        elif damage == "pickle":
            np.savez(path, key=np.array([{}], dtype=object), entries=np.array([{}], dtype=object))
        else:
            path.write_bytes(b"" if damage == "empty" else b"hello")
    notes = count_work(monkeypatch)
    assert ImageFolderDataset(three).fingerprint == expected
    assert notes.count("directory") == 3


def test_without_a_place_for_the_index(three, cached, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "file"))
    assert len(ImageFolderDataset(three)) == 6


def test_small_zips_leave_no_index_behind(three, monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    ImageFolderDataset(three)
    assert not (tmp_path / "cache").exists()


# On the command line --------------------------------------------------------------------------------------------------


def script(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / name), *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT
    )


def test_train_takes_them_for_data_and_source(three):
    result = script("train.py", f"--data={three}", f"--source={three}", "--cfg=stylegan2", "--cbase=1024", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert re.search(r"Data: +6 images 16x16", result.stdout)
    assert re.search(r"Source: +6 RGB images", result.stdout)
    config, _ = json.JSONDecoder().raw_decode(result.stdout[result.stdout.index("{\n") :])
    assert config["training_set_kwargs"]["path"] == three


def test_braces_that_the_shell_has_opened_are_not_lost(three, tmp_path, monkeypatch, capsys):
    zips = [f"--data={tmp_path}/s-{k:03d}.zip" for k in range(3)]
    monkeypatch.setattr(sys, "argv", ["train.py", *zips, "--cfg=stylegan2", "--dry-run"])
    with pytest.raises(SystemExit) as left:
        dnnlib.cli.run(train.main)
    assert left.value.code == 2
    assert "--data: is given 3 times" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["calc_sid.py", "--source=a", "--source=b", "--target=x"])  # which may be repeated
    dnnlib.cli.refuse_repeated(calc_sid.main, sys.argv)


def test_calc_sid_keeps_candidates_apart(three, tmp_path):
    other = write_zip(tmp_path / "other.zip", pngs(["a.png", "b.png", "c.png"], 16, 16))
    arguments = [f"--target={three}", f"--source={three},{other}", "--detector=tiny", f"--outdir={tmp_path / 'out'}"]
    result = CliRunner().invoke(calc_sid.main, [*arguments, "--device=cpu"], catch_exceptions=False)
    assert result.exit_code == 0
    ranking = json.loads((tmp_path / "out" / "sid.json").read_text())["rankings"][0]
    assert {one["path"] for one in ranking["sources"]} == {str(other)}


def test_dataset_tool_makes_one_of_them(three, tmp_path):
    dest = tmp_path / "one.zip"
    result = script("dataset_tool.py", f"--source={three}", f"--dest={dest}")
    assert result.returncode == 0, result.stderr
    one, many = ImageFolderDataset(dest), ImageFolderDataset(three)
    assert all(np.array_equal(one[i][0], many[i][0]) for i in range(6))
    result = script("dataset_tool.py", f"--source={three.replace('002', '003')}", f"--dest={tmp_path / 'x.zip'}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "s-003.zip: no such file" in result.stderr
