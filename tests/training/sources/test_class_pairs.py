"""--source-match: which source images a class gets, everywhere that images are drawn, and what travels of it."""

import dataclasses
import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.errors import UserError
from metrics.class_distances import csid_between_classes
from metrics.signed_inception_distance import signed_inception_distance
from tests.helpers.golden import relative_error
from tests.helpers.runs import assert_same_run, resume, run_inside, snapshot_of, train
from tests.helpers.steps import run_on, step_of
from tests.helpers.tiny import generator2, save
from torch_utils import persistence, seeding
from training.checkpoints import snapshot
from training.config.options import TrainingOptions
from training.config.resolve import resolve
from training.config.source_specs import from_data
from training.dataset import sample_order
from training.run.loader import BatchLoader
from training.run.pictures import Pictures
from training.sampling.generated_images import open_generated
from training.sampling.sampler import Look, Sampler, open_sampler
from training.sources.class_pairs import ClassPairs
from training.sources.feed import LatentFeed
from training.sources.label_distribution import LabelDistribution
from training.sources.source import Draw, ImageSource

COLORS = (20, 120, 220)  # red of the images of a class: a look at an image tells its class
CLASSES = ("a", "b", "c")


def write_classes(folder, order=(0, 1, 2), count=12, seed=0, names=CLASSES):
    """A subfolder for each class; class i has the colour `order[i]`."""
    rng = np.random.default_rng(seed)
    for name, color in zip(names, order, strict=False):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, [16, 16, 3], dtype=np.uint8)
            pixels[:, :, 0] = COLORS[color]
            Image.fromarray(pixels).save(folder / name / f"{index:02d}.png")
    return folder


def colors_of(images):
    """The colour's number of each image `[n, 3, h, w]` in [-1, 1]."""
    red = (images[:, 0].mean(dim=(1, 2)) + 1) * 127.5
    return (red[:, None] - torch.tensor(COLORS)).abs().argmin(dim=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    return {
        "target": write_classes(root / "target"),
        "turned": write_classes(root / "turned", order=(1, 2, 0), seed=1),
        "two": write_classes(root / "two", names=CLASSES[:2]),
        "few": write_classes(root / "few", count=4),
        "plain": write_classes(root / "plain", names=("a",)),
    }


def options(folders, match="csid", **kwargs):
    named = {"data": str(folders["target"]), "source": str(folders["turned"]), "detector": "tiny", **kwargs}
    small = dict(cbase=128, cmax=16, z_dim=16, w_dim=16, map_depth=2, aug="noaug", batch=8, device="cpu")
    return TrainingOptions(**{**small, "cfg": "stylegan2", "cond": True, "source_match": match, **named})


# The arithmetic of pairs.


def test_every_image_of_the_paired_class_is_drawn_alike():
    pairs = ClassPairs([2, 0], torch.tensor([0, 2, 2, 0, 2, 1, 0, 0]))
    c = torch.eye(2)[torch.arange(40_000) % 2]
    index = pairs.choose(torch.rand(40_000, dtype=torch.float64, generator=seeding.generator("t")), c)
    for label, members in ((0, [1, 2, 4]), (1, [0, 3, 6, 7])):
        drawn = index[label::2]
        assert set(drawn.tolist()) == set(members)
        expected = 20_000 / len(members)
        # Binomial counts: five standard deviations.
        assert all(abs(int((drawn == m).sum()) - expected) < 5 * expected**0.5 for m in members)


def test_places_at_the_edge_stay_inside():
    pairs = ClassPairs([0], torch.tensor([0, 0, 0]))
    places = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert pairs.choose(places, torch.ones(2, 1)).tolist() == [0, 2]


@pytest.mark.parametrize(("limit", "counts"), [(6, [3, 3]), (1, [1, 1]), (100, [5, 30])])
def test_a_stored_subset_has_every_paired_class(limit, counts):
    classes = torch.tensor([0] * 5 + [1] * 30 + [2] * 30)
    index = ClassPairs([0, 1, 0], classes).spread(limit)
    assert classes[index].bincount().tolist() == counts
    assert index.tolist() == sorted(index.tolist())


def test_a_paired_class_without_images_is_named():
    with pytest.raises(UserError, match="class 1 has no images"):
        ClassPairs([0, 1], torch.tensor([0, 2]))


# Distances between classes.


def test_the_table_is_the_distance_of_each_pair():
    gen = seeding.generator("table")
    source, target = torch.randn([60, 12], generator=gen) + 0.5, torch.randn([50, 12], generator=gen)
    source_classes, target_classes = np.arange(60) % 3, np.arange(50) % 2
    table = csid_between_classes(source, source_classes, target, target_classes, probes=64)
    for t in range(2):
        for s in range(3):
            pair = source[source_classes == s], target[target_classes == t]
            assert table[t, s] == pytest.approx(signed_inception_distance(*pair, probes=64).csid, rel=1e-9)


def test_equal_classes_are_nearest():
    gen = seeding.generator("nearest")
    centres = 3 * torch.randn([4, 16], generator=gen)
    classes = np.arange(200) % 4
    order = np.array([2, 0, 3, 1])
    target = centres[classes] + torch.randn([200, 16], generator=gen)
    source = centres[order[classes]] + torch.randn([200, 16], generator=gen)
    table = csid_between_classes(source, classes, target, classes, probes=128)
    assert np.abs(table).argmin(axis=1).tolist() == np.argsort(order).tolist()


def test_csid_finds_the_obvious_pairs(folders):
    """Class i of the target has the colour of class (i - 1) mod 3 of the source."""
    resolved = resolve(options(folders))
    match = resolved.config.source.match
    assert match.pairs == [2, 0, 1]
    assert (match.kind, match.detector, len(match.csid)) == ("csid", "tiny", 3)
    assert from_data(json.loads(json.dumps(resolved.config.source.as_data()))) == resolved.config.source
    assert "nearest by CSID[tiny] (3 used)" in dict(resolved.summary)["Classes"]


# Training.


@pytest.mark.parametrize(("match", "expected"), [("label", [1, 2, 0]), ("csid", [0, 1, 2])])
def test_all_phases_draw_from_the_paired_class(folders, match, expected):
    """expected: the colour that each label gets."""
    step, _ = step_of(resolve(options(folders, match)).config)
    feed = step.state.feed
    assert {phase.name for phase in step.phases} == {"Gmain", "Greg", "Dmain", "Dreg"}
    for start in (0, 800):
        step.state.cur_nimg = start
        (batch,) = step.batches.rounds(
            [phase.name for phase in step.phases], torch.zeros([8, 3, 16, 16], dtype=torch.uint8), torch.zeros(8, 3)
        )
        for name, c in batch.labels.items():
            for draws in (batch.draws, batch.mixing_draws):
                shown = colors_of(feed.images(draws[name]))
                assert shown.tolist() == [expected[label] for label in c.argmax(dim=1)]
                z = feed.encoder(feed.images(draws[name]))
                assert torch.allclose(feed.latents(draws[name]), z, atol=1e-5)


def test_a_coreset_of_real_images_leaves_the_pairs_alone(folders):
    """expected as above; the chosen real images keep their labels."""
    config = resolve(options(folders, "label", coreset=("target",), coreset_factor=2)).config
    step, dataset = step_of(config)
    order = step.batches.order
    with BatchLoader(dataset, 8, num_workers=1, order=order) as loader:
        images, labels = next(loader)
    assert not np.array_equal(order.order(0, 8), sample_order(len(dataset), 0, 0, 8))
    (batch,) = step.batches.rounds([phase.name for phase in step.phases], images, labels)
    assert torch.equal(colors_of(batch.real_images), batch.real_labels.argmax(dim=1))
    expected = torch.tensor([1, 2, 0])
    for name, c in batch.labels.items():
        assert torch.equal(colors_of(step.state.feed.images(batch.draws[name])), expected[c.argmax(dim=1)])
    step.run(images, labels)
    assert step.state.cur_nimg == 8


def test_random_stays_as_it_was(folders):
    """No pairs: any image for any label, the numbers that they always were."""
    step, _ = step_of(resolve(options(folders, "random")).config)
    assert step.config.source.match is None
    (batch,) = step.batches.rounds(["Gmain"], torch.zeros([8, 3, 16, 16], dtype=torch.uint8), torch.zeros(8, 3))
    gen = seeding.generator(0, 0, "Gmain", "latents")
    assert torch.equal(batch.draws["Gmain"].index, torch.randint(36, [8], generator=gen))


def test_pictures_and_metrics_use_the_same_rule(folders, tmp_path):
    step, dataset = step_of(resolve(options(folders, "label")).config)
    state, expected = step.state, torch.tensor([1, 2, 0])
    pictures = Pictures(tmp_path, dataset, state, step.config, step.batches.labels, 8)
    assert torch.equal(colors_of(state.feed.images(pictures.draw)), expected[pictures.labels.argmax(dim=1)])
    contents = {"G_ema": state.G_ema, "source": state.feed.source, "labels": LabelDistribution.of(dataset)}
    images = open_generated(contents, "x.pkl", 10)
    z, c = images.latents(range(10))
    table = state.feed.table
    nearest = torch.cdist(z, table).argmin(dim=1)
    shown = colors_of(state.feed.source.materialize(Draw(index=nearest)))
    assert torch.equal(shown, expected[c.argmax(dim=1)])


def test_two_rounds_are_one(folders):
    config = dataclasses.replace(resolve(options(folders, "label", fp32=True)).config)
    assert relative_error(*(run_on(*step_of(config, batch_gpu)) for batch_gpu in (8, 4))) < 1e-5


# What travels.


@pytest.fixture(scope="module")
def run_dir(folders, tmp_path_factory):
    args = [f"--source={folders['turned']}", f"--data={folders['target']}", "--cond=1", "--source-match=csid"]
    run_dir, output = train(tmp_path_factory.mktemp("run"), *args, "--detector=tiny", "--metrics=fid1k", "--snap=1")
    assert "Class    0 <- source class    2  CSID[tiny]" in output
    assert "Class    0 <- source class    2" in (run_dir / "log.txt").read_text()
    return run_dir


def test_the_stored_subset_has_pairs_and_every_class(folders, monkeypatch):
    source = ImageSource.open(folders["turned"], pairs=[2, 0, 2])
    assert len(source.images) == 24  # class 1 feeds nobody
    monkeypatch.setattr("training.sources.source.STORED_IMAGES", 6)
    twin = persistence.load(io.BytesIO(pickle.dumps(source)))
    assert twin.pairs.sources.tolist() == [2, 0, 2]
    assert twin.pairs.classes.bincount().tolist() == [3, 0, 3]
    c = torch.eye(3)[torch.arange(30) % 3]
    shown = colors_of(twin.sample(30, seeding.generator("t"), c))
    assert shown.tolist() == [0, 1, 0] * 10
    whole = twin.reopened()
    assert len(whole.images) == 24
    draws = [one.match(one.draw(5, seeding.generator("d")), c[:5]) for one in (source, whole)]
    assert torch.equal(draws[0].index, draws[1].index)
    assert twin.describe() == {**source.describe(), "images_used": 6}


def test_a_damaged_stored_subset_is_refused(folders):
    source = ImageSource.open(folders["turned"], pairs=[2, 0, 2])
    good = source.state_dict()
    for broken in ({"classes": good["classes"][:-1]}, {"class_pairs": torch.tensor([-1, 0, 2])},
                   {"class_pairs": torch.tensor([1, 0, 2])}, {"classes": good["classes"].float()}):  # fmt: skip
        with pytest.raises(UserError):
            ImageSource("x", 36, [3, 16, 16], "").load_state_dict({**good, **broken})


def test_seeds_of_a_class_take_its_images(run_dir):
    sampler = open_sampler(str(snapshot_of(run_dir)), device="cpu")
    for label in range(3):
        look = Look(class_idx=label)
        (shown,) = sampler.pictures_before(range(8), look)
        assert colors_of(shown).tolist() == [label] * 8  # csid: the same colour
        assert torch.allclose(sampler.latents(range(8), look).z, sampler.feed.encoder(shown), atol=1e-5)
    options = json.loads((run_dir / "training_options.json").read_text())
    assert options["source"]["match"]["pairs"] == [2, 0, 1]


def test_pairs_that_do_not_fit_the_generator_are_refused(folders, tmp_path):
    path = save(tmp_path / "x.pkl", generator2(c_dim=3), ImageSource.open(folders["turned"], pairs=[0, 1]))
    with pytest.raises(UserError, match="pairs 2 classes, and G_ema has 3"):
        snapshot.load_snapshot(path)


def test_a_generator_with_pairs_is_no_earlier_stage(run_dir, folders):
    args = [f"--source={snapshot_of(run_dir)}", f"--data={folders['target']}", "--cfg=stylegan2"]
    status, _, err = run_inside(*args)
    assert status == 2
    assert "--source: " in err and "--source-match=random" in err and err.count("\n") == 1


def test_chosen_images_replace_the_pairs(run_dir, folders):
    sampler = open_sampler(str(snapshot_of(run_dir)), str(folders["target"]), "cpu")
    assert isinstance(sampler, Sampler) and isinstance(sampler.feed, LatentFeed)
    (shown,) = sampler.pictures_before([0, 35], Look(class_idx=1))
    assert colors_of(shown).tolist() == [0, 2]


def test_going_on_is_the_undisturbed_run_to_the_bit(folders, tmp_path, run_dir, monkeypatch):
    args = [f"--source={folders['turned']}", f"--data={folders['target']}", "--cond=1", "--source-match=csid"]
    args += ["--detector=tiny", "--metrics=fid1k", "--snap=1"]
    parts, _ = train(tmp_path / "parts", *args, "--kimg=0.016")
    monkeypatch.setattr("training.config.source_match.csid_between_classes", None)  # not measured again
    resume(parts, "--kimg=0.032")
    assert_same_run(run_dir, parts)


# Bad input.


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"match": "label", "source": "plain"}, r"--source-match=label: --source: .*plain has no labels"),
        ({"match": "label", "data": "plain"}, r"--data: .*plain has no labels"),
        ({"match": "label", "source": "two"}, r"two has 2 classes and --data=.*target has 3"),
        ({"match": "csid", "source": "few"}, r"few: its class 0 has 4 images, and csid needs 10"),
        ({"match": "csid", "data": "few"}, r"--data: .*few: its class 0 has 4 images"),
        ({"match": "csid", "cond": False}, r"--source-match=csid: needs --cond=1"),
        ({"match": "label", "source": None}, r"--source-match=label: needs --source=.*, and --data"),
        (
            {"match": "label", "coreset": ("prior",), "coreset_factor": 2},
            r"--coreset=prior chooses among source images, and so does --source-match",
        ),
        ({"match": "label", "stage_cache": 64}, r"--stage-cache=64 needs --source=SNAPSHOT.pkl"),
        ({"match": "nearest"}, r"--source-match=nearest: choose from random, label, csid"),
    ],
)
def test_bad_input(folders, kwargs, words):
    kwargs = {key: str(folders[value]) if value in folders else value for key, value in kwargs.items()}
    with pytest.raises(UserError, match=words) as caught:
        resolve(options(folders, **kwargs))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("match", ["label", "csid"])
def test_a_snapshot_has_no_classes_to_pair_not_even_in_a_pool(folders, tmp_path, match):
    path = save(tmp_path / "one.pkl", generator2(), None)
    with pytest.raises(UserError, match=rf"--source-match={match}: .*one.pkl is a snapshot, .*; use random$"):
        resolve(options(folders, match, source=str(path), stage_cache=64))


def test_a_coreset_of_latents_is_refused_before_distances_are_measured(folders, monkeypatch):
    monkeypatch.setattr("training.config.source_match.compute_features", None)
    with pytest.raises(UserError, match="--coreset=prior chooses among source images"):
        resolve(options(folders, "csid", coreset=("prior", "target")))
