"""Paths stay at home: snapshots carry names, and readers find the files by the run's folder, the name, the fingerprint."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from tests.helpers import tiny
from training.checkpoints import whereabouts
from training.checkpoints.snapshot import load_snapshot, open_network_source, save_snapshot, save_tensors
from training.checkpoints.whereabouts import training_data, travelling_name
from training.config.option_paths import absolute_set
from training.config.resume import merge
from training.config.run_config import TrainingConfig
from training.config.source_specs import NetworkSpec
from training.dataset import ImageFolderDataset
from training.run.saving import with_absolute_paths
from training.sampling.generated_images import open_generated
from training.sources.source import GaussianSource, ImageSource

FLATTEN = {"kind": "flatten", "norm": "none"}


def save(path, source, data=None, write=save_snapshot, **kwargs):
    G = tiny.generator2(encoder=None if isinstance(source, GaussianSource) else FLATTEN)
    meta = {}
    if data is not None:
        kwargs = {"class_name": "training.dataset.ImageFolderDataset", "path": str(data), **kwargs}
        meta = {"data": {"path": str(data), "fingerprint": ImageFolderDataset(data).fingerprint}}
    meta["source"] = source.describe()
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {"G": None, "D": None, "G_ema": G, "source": source, "augment_pipe": None}
    write(path, {**contents, "training_set_kwargs": kwargs, "meta": meta})
    return path


def write_options(folder, data=None, source=None):
    options = {"training_set_kwargs": {"path": data}, "source": source}
    (folder / "training_options.json").write_text(json.dumps(options))


@pytest.mark.parametrize("write", [save_snapshot, save_tensors])
def test_no_folder_of_the_users_disk_travels(tmp_path, write):
    """`training_set_kwargs.path` and the source's were absolute paths."""
    source = ImageSource.open(tiny.write_images(tmp_path / "home" / "friends", 3))
    path = save(tmp_path / "x.pkl", source, tiny.write_images(tmp_path / "home" / "data", 3), write)
    assert str(tmp_path).encode() not in path.read_bytes()
    contents = load_snapshot(path)
    assert contents["source"].path == "friends" and contents["training_set_kwargs"]["path"] == "data"
    assert source.path == str(tmp_path / "home" / "friends")  # of the run itself


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/a.zip", "a.zip"),
        ("a/folder/", "folder"),
        ("/x/a.zip,/y/b.zip", "a.zip,b.zip"),
        ("/x/train-{000..127}.zip", "train-{000..127}.zip"),
        ("{/x/a,/y/b}.zip", "a.zip,b.zip"),
        ("https://host/stage.pkl?token=secret", "stage.pkl"),
    ],
)
def test_names(path, name):
    assert travelling_name(path) == name


def config_from(options, **fields):
    """A configuration of which nothing else is known."""
    required = [one.name for one in dataclasses.fields(TrainingConfig) if one.default is one.default_factory]
    return TrainingConfig(**dict.fromkeys(required, 1) | fields, options=options)


def test_absolute_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_set("a.zip,b-{0..3}.zip") == f"{tmp_path}/a.zip,{tmp_path}/b-{{0..3}}.zip"
    assert absolute_set("noise") == "noise" and absolute_set(None) is None
    assert absolute_set("https://host/x.pkl") == "https://host/x.pkl"
    options = {"data": "a.zip", "source": "one.pkl", "source_pool": ["b.zip"], "resume": "latest", "kimg": 3}
    config = config_from(options, training_set_kwargs={"path": "a.zip"}, source=NetworkSpec("one.pkl"))
    whole = with_absolute_paths(config)
    assert whole["training_set_kwargs"]["path"] == whole["options"]["data"] == f"{tmp_path}/a.zip"
    assert whole["source"]["path"] == f"{tmp_path}/one.pkl" and whole["options"]["source_pool"] == [f"{tmp_path}/b.zip"]
    assert whole["options"]["resume"] == "latest" and config.options["data"] == "a.zip"


def test_the_same_file_by_another_path_is_no_other_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = {"cfg": "dcgan", "metrics_data": str(tmp_path / "all.zip"), "kimg": 3}
    merged, notes = merge(saved, {"metrics_data": "all.zip", "kimg": 3}, {"metrics_data", "kimg"}, tmp_path)
    assert merged == saved and notes == []


def test_a_metrics_set_that_moved_stops_no_run(tmp_path):
    """It had to agree, and a run whose metrics set had moved could not go on, not even with --metrics=none."""
    saved = {"cfg": "dcgan", "metrics_data": str(tmp_path / "all.zip")}
    merged, (note,) = merge(saved, {"metrics_data": str(tmp_path / "moved.zip")}, {"metrics_data"}, tmp_path)
    assert merged["metrics_data"] == str(tmp_path / "moved.zip")
    assert note.startswith(f"--metrics-data: {tmp_path / 'moved.zip'} from here on") and "do not compare" in note


def test_data_are_found_by_the_run_then_by_name(tmp_path, monkeypatch):
    """A relative path was that of the folder one stands in."""
    data = tiny.write_images(tmp_path / "home" / "data", 3)
    path = save(tmp_path / "run" / "x.pkl", GaussianSource(tiny.Z_DIM), data)
    contents = load_snapshot(path)
    monkeypatch.chdir(tmp_path)
    assert training_data(contents, path) is None
    write_options(path.parent, str(data))
    assert training_data(contents, path) == str(data)
    data.rename(path.parent / "data")
    assert training_data(contents, path) == str(path.parent / "data")
    tiny.write_images(tmp_path / "data", 3, seed=1)  # of the same name
    assert training_data(contents, path) == str(path.parent / "data")
    shutil.rmtree(path.parent / "data")
    assert training_data(contents, path) is None


def test_a_cascades_snapshot_finds_the_run_of_its_last_stage(tmp_path):
    data = tiny.write_images(tmp_path / "home" / "data", 3)
    path = save(tmp_path / "cascade.pkl", GaussianSource(tiny.Z_DIM), data)
    run = tmp_path / "last" / "00000-run"
    run.mkdir(parents=True)
    write_options(run, str(data))
    (tmp_path / "cascade.json").write_text(json.dumps({"stages": [{"snapshot": "last/00000-run/x.pkl"}]}))
    assert training_data(load_snapshot(path), path) == str(data)


@pytest.mark.parametrize("text", ["[]", "{", '{"source": 3, "training_set_kwargs": 5}', '{"source": {"path": 3}}'])
def test_options_that_lie_are_no_options(tmp_path, text):
    path = save(tmp_path / "x.pkl", GaussianSource(tiny.Z_DIM), tiny.write_images(tmp_path / "home" / "data", 3))
    (tmp_path / "training_options.json").write_text(text)
    (tmp_path / "cascade.json").write_text(text)
    assert training_data(load_snapshot(path), path) is None
    assert whereabouts.source_places("s", path) == ["s", str(tmp_path / "s")]


def kept(path, monkeypatch):
    """A snapshot that carries two of its source's images."""
    monkeypatch.setattr("training.sources.source.STORED_IMAGES", 2)
    folder = tiny.write_images(Path(path).parent.parent / "home" / "friends", 5)
    return save(path, ImageSource.open(folder)), folder


def test_source_images_are_found_by_the_run_then_by_name(tmp_path, monkeypatch):
    path, folder = kept(tmp_path / "run" / "x.pkl", monkeypatch)
    assert "friends is not there" in open_generated(load_snapshot(path), str(path), 0).note
    write_options(path.parent, source={"kind": "images", "path": str(folder)})
    assert len(open_network_source(str(path)).root.images) == 5
    folder.rename(tmp_path / "friends")
    monkeypatch.chdir(tmp_path)
    images = open_generated(load_snapshot(path), str(path), 0)
    assert images.note is None and len(images.feed.source.images) == 5


def test_a_later_stage_asks_the_runs_of_all_stages_before(tmp_path, monkeypatch):
    first, folder = kept(tmp_path / "one" / "x.pkl", monkeypatch)
    write_options(first.parent, source={"kind": "images", "path": str(folder)})
    second = save(tmp_path / "two" / "y.pkl", ImageSource.open(folder))
    write_options(second.parent, source={"kind": "network", "path": str(first)})
    assert whereabouts.source_places("friends", second)[0] == str(folder)
    write_options(first.parent, source={"kind": "network", "path": str(first)})  # a circle ends
    assert whereabouts.source_places("friends", second)[0] == "friends"
