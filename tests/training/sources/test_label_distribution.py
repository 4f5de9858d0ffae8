"""How often labels occurred travels with a snapshot, and is what they are drawn from."""

import json
import sys

import numpy as np
import pytest
import torch

import dnnlib.cli
import gen_images
from dnnlib.errors import UserError
from tests.helpers import tiny
from torch_utils.data_pickles import SnapshotError
from training.checkpoints.snapshot import load_snapshot, open_network_source, save_snapshot, save_tensors
from training.data.pixels import encode_png
from training.dataset import ImageFolderDataset
from training.sampling.generated_images import open_generated
from training.sampling.sampler import Look, open_sampler, replace_source, stage_labels
from training.sources.cascade import Cascade, stage_images, uniform_classes
from training.sources.label_distribution import LabelDistribution, labels_at
from training.sources.source import GaussianSource, ImageSource


def write_set(folder, labels):
    tiny.write_images(folder, len(labels))
    names = [f"{index:02d}.png" for index in range(len(labels))]
    (folder / "dataset.json").write_text(json.dumps({"labels": list(map(list, zip(names, labels, strict=True)))}))
    return folder


def classes(*counts):
    return LabelDistribution.from_values(torch.tensor(counts))


def save(path, G, labels=None, source=None, write=save_snapshot, **more):
    contents = {"G": None, "D": None, "G_ema": G, "source": source or GaussianSource(tiny.Z_DIM), "augment_pipe": None}
    write(path, {"training_set_kwargs": {}, "meta": {}, **contents, "labels": labels, **more})
    return str(path)


def test_counts_of_a_set(tmp_path):
    dataset = ImageFolderDataset(write_set(tmp_path / "set", [1, 2, 2, 1, 1]), use_labels=True, xflip=True)
    labels = LabelDistribution.of(dataset)
    assert labels.values.tolist() == [0, 6, 4] and labels.occurred() == [1, 2]
    assert len(labels) == 10 and labels[range(10)].argmax(dim=1).tolist() == [1] * 6 + [2] * 4
    assert LabelDistribution.of(ImageFolderDataset(tmp_path / "set")) is None


def test_rows_of_a_set_are_few(tmp_path, monkeypatch):
    vectors = [[float(i), 0.5] for i in range(9)]
    dataset = ImageFolderDataset(write_set(tmp_path / "set", vectors), use_labels=True)
    assert LabelDistribution.of(dataset).values.tolist() == vectors
    monkeypatch.setattr("training.sources.label_distribution.MAX_ROWS", 4)
    few = LabelDistribution.of(dataset)
    assert (
        not few.is_classes
        and few.values.shape == (4, 2)
        and set(map(tuple, few.values.tolist())) <= set(map(tuple, vectors))
    )


def test_draws_follow_the_counts():
    draws = classes(0, 60, 0, 4).draw(6400, torch.Generator().manual_seed(0)).sum(dim=0)
    assert draws[0] == draws[2] == 0
    assert abs(draws[3] / 6400 - 1 / 16) < 0.01


@pytest.mark.parametrize("write", [save_snapshot, save_tensors])
@pytest.mark.parametrize("labels", [classes(3, 0, 1), LabelDistribution.from_values(torch.rand([5, 3]))])
def test_it_travels(tmp_path, write, labels):
    path = save(tmp_path / "x.pkl", tiny.generator2(c_dim=3), labels, write=write)
    found = load_snapshot(path)["labels"]
    assert found.is_classes == labels.is_classes and torch.equal(found.values, labels.values)


def made_up(values, c_dim=2, is_classes=True):
    labels = LabelDistribution(c_dim, is_classes)
    labels.values = torch.as_tensor(values)
    return labels


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (made_up([3, -1]), "no numbers of images"),
        (made_up([0, 0]), "no numbers of images"),
        (made_up([2**60, 1]), "no numbers of images"),
        (made_up([0.5, 0.5]), "not int64"),
        (made_up([1, 2, 3]), "not int64"),
        (made_up([[1.0, float("nan")]], is_classes=False), "not finite"),
        (made_up(torch.zeros([0, 2]), is_classes=False), "label vectors are"),
        (made_up([1, 2, 3], c_dim=3), "labels are 3 numbers each, and G_ema takes 2"),
    ],
)
def test_files_that_lie_are_refused(tmp_path, labels, words):
    with pytest.raises(SnapshotError, match=words):
        load_snapshot(save(tmp_path / "x.pkl", tiny.generator2(c_dim=2), labels))


def test_a_cascade_that_lies_is_refused(tmp_path):
    G = tiny.generator2(seed=1, encoder={"kind": "flatten"})
    for values, words in (
        (torch.tensor([0, 0, 0]), "no numbers"),
        (torch.tensor([1, 1]), "asked for labels of 2 numbers"),
    ):
        path = save(tmp_path / "x.pkl", Cascade.chain(tiny.generator2(c_dim=3), G, values))
        with pytest.raises(UserError, match=words):
            load_snapshot(path)


def test_metrics_draw_as_in_training_wherever_the_set_lies(tmp_path, capsys):
    """60 images of class 0 and 4 of class 1: FID 14.23, and 24.59 after the set was moved."""
    G = tiny.generator2(c_dim=2)
    counts = open_generated(load_snapshot(save(tmp_path / "x.pkl", G, classes(60, 4))), "x.pkl", 0).latents(range(320))[
        1
    ]
    assert 8 <= counts.sum(dim=0)[1] <= 32  # 20 are expected; evenly 160 were drawn
    unknown = open_generated(load_snapshot(save(tmp_path / "old.pkl", G)), "old.pkl", 0)
    assert "its 2 classes are drawn evenly" in unknown.note


def test_a_snapshot_of_before_draws_from_the_set_that_it_names(tmp_path):
    data = write_set(tmp_path / "set", [1, 1, 2])
    path = save(tmp_path / "x.pkl", tiny.generator2(c_dim=3))
    contents = load_snapshot(path)
    contents["training_set_kwargs"] = {"class_name": "training.dataset.ImageFolderDataset", "path": str(data)}
    images = open_generated(contents, path, 0)
    assert images.note is None and images.labels.values.tolist() == [0, 2, 1]


def test_places_become_classes_that_occurred():
    position = torch.tensor([0.0, 0.2, 0.7499, 0.75, 1.0])
    assert labels_at(position, torch.tensor([0, 3, 0, 1, 0])).argmax(dim=1).tolist() == [1, 1, 1, 3, 3]
    rows = torch.arange(4.0).unsqueeze(1)
    assert labels_at(position, rows).flatten().tolist() == [0, 0, 2, 3, 3]


def test_a_later_stage_never_sees_a_class_without_images(tmp_path):
    """Labels 1 and 2 only: the untrained class 0 was drawn in a third of the cases."""
    stage = open_network_source(save(tmp_path / "one.pkl", tiny.generator2(c_dim=3), classes(0, 40, 24)))
    z = torch.randn([64, tiny.Z_DIM], generator=torch.Generator().manual_seed(0))
    assert uniform_classes(z, 3)[:, 0].sum() > 10
    c = labels_at(0.5 * (1 + torch.erf(z[:, 0] / 2**0.5)), stage.labels)
    assert c[:, 0].sum() == 0 and c[:, 1].sum() > c[:, 2].sum() > 10
    images = stage.network(z, c, noise_mode="const").clamp(-1, 1)
    assert torch.equal(stage_images(stage.network, z, stage.labels), images)
    second = Cascade.chain(stage.network, tiny.generator2(seed=1, encoder={"kind": "flatten"}), stage.labels)
    loaded = load_snapshot(save(tmp_path / "two.pkl", second))["G_ema"]
    assert torch.equal(loaded.first_images(z), images)
    assert torch.equal(loaded(z, None, noise_mode="const"), second(z, None, noise_mode="const"))


def test_stages_keep_their_labels_when_others_images_go_in(tmp_path):
    flatten = {"kind": "flatten", "norm": "none"}
    two = Cascade.chain(tiny.generator2(), tiny.generator2(1, c_dim=3, encoder=flatten))
    three = Cascade.chain(two, tiny.generator2(2, encoder=flatten), torch.tensor([0, 2, 1]))
    images = tiny.write_images(tmp_path / "images", 3)
    shorter, _ = replace_source(three, GaussianSource(tiny.Z_DIM), str(images))
    assert [None if one is None else one.tolist() for one in stage_labels(shorter)] == [[0, 2, 1]]


def generate(path, folder, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gen_images.py", f"--network={path}", f"--outdir={folder}", "--seeds=0-3", *args])
        with pytest.raises(SystemExit) as leaving:
            dnnlib.cli.run(gen_images.main)
    return leaving.value.code


def test_an_empty_class_is_a_warning(tmp_path, capsys):
    path = save(tmp_path / "x.pkl", tiny.generator2(c_dim=3), classes(0, 40, 24))
    assert generate(path, tmp_path / "out", "--class=0") == 0
    assert "Warning: --class=0: the network never saw an image of this class" in capsys.readouterr().err
    assert generate(path, tmp_path / "out", "--class=1") == 0
    assert "Warning" not in capsys.readouterr().err


def test_vectors_are_no_classes(tmp_path, capsys):
    """`--class=1` was the vector [0, 1, 0]."""
    rows = torch.tensor([[0.5, 0.25, 0.0], [2.0, -1.0, 3.0]])
    path = save(tmp_path / "x.pkl", tiny.generator2(c_dim=3), LabelDistribution.from_values(rows))
    assert generate(path, tmp_path / "out", "--class=1") == 2
    assert "--class=1: the network was trained with vectors of 3 numbers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert generate(path, tmp_path / "out") == 0 and len(list((tmp_path / "out").iterdir())) == 4
    sampler = open_sampler(path, device="cpu")
    c = sampler.latents(range(8), Look()).c
    assert {tuple(row) for row in c.tolist()} == {tuple(row) for row in rows.tolist()}


def test_a_source_of_paired_images_is_still_matched(tmp_path):
    folder = tmp_path / "source"
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.full([8, 8, 3], 10 * index + 100 * (name == "b"), np.uint8)
            (folder / name / f"{index}.png").write_bytes(encode_png(pixels))
    source = ImageSource.open(folder, pairs=[1, 0])
    G = tiny.generator2(c_dim=2, encoder={"kind": "flatten", "norm": "none"})
    images = open_generated(load_snapshot(save(tmp_path / "x.pkl", G, classes(0, 5), source)), "x.pkl", 0)
    assert images.latents(range(6))[1].argmax(dim=1).tolist() == [1] * 6
