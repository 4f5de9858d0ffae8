"""The watch over diversity, and the link to the best snapshot."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.own_detectors import detector_of_function
from tests.helpers.tiny import Z_DIM, generator2, write_images
from training.data.image_sets import ImageSet
from training.run import evaluation
from training.run.evaluation import DiversityWatch, Evaluation, coverage_so_far
from training.sources.feed import LatentFeed
from training.sources.source import GaussianSource


@pytest.fixture
def parts(tmp_path):
    G = generator2()
    config = SimpleNamespace(training_set_kwargs={"path": str(write_images(tmp_path / "data", 40))}, seed=0, metrics=[])
    config.detector, config.detector_weights, config.metrics_data = "auto", None, None
    state = SimpleNamespace(
        G_ema=G, feed=LatentFeed(GaussianSource(Z_DIM), G.mapping.encoder), device=torch.device("cpu"), cur_nimg=1000
    )
    return config, state, ImageSet(tmp_path / "data")


def test_a_lasting_fall_of_coverage_is_a_warning_once(parts, monkeypatch, capsys):
    watch = DiversityWatch(*parts, labels=torch.zeros(40, 0))
    values = iter([0.05, 0.6, 0.7, 0.2, 0.6, 0.2, 0.1, 0.1])
    monkeypatch.setattr(evaluation, "density_coverage", lambda *args: (1.0, next(values)))
    warned = []
    for _ in range(8):
        watch.tick(1000)
        warned.append("may be collapsing" in capsys.readouterr().out)
    assert warned == [False] * 6 + [True, False]


def test_a_run_that_never_rises_is_a_warning_once(parts, monkeypatch, capsys):
    """Coloured fog for an hour went unannounced: only a fall was."""
    config, state, images = parts
    watch = DiversityWatch(config, state, images, torch.zeros(40, 0))
    monkeypatch.setattr(evaluation, "density_coverage", lambda *args: (0.0, 0.01))
    said = []
    for state.cur_nimg in (10_000, 19_000, 20_000, 30_000):
        watch.tick(1000)
        said.append("has not begun" in capsys.readouterr().out)
    assert said == [False, False, True, False]
    again = DiversityWatch(config, state, images, torch.zeros(40, 0))
    again.load_state_dict(watch.state_dict())
    again.tick(1000)
    assert "has not begun" not in capsys.readouterr().out


def test_coverage_is_in_the_picture_of_metrics(tmp_path):
    lines = [{"Progress/kimg": {"mean": k}, "Diversity/coverage": {"mean": 0.1 * k}} for k in (1.0, 2.0)]
    (tmp_path / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (points,) = coverage_so_far(tmp_path).values()
    assert points == [(1.0, 0.1, 0.0), (2.0, 0.2, 0.0)]
    assert coverage_so_far(tmp_path / "nowhere") == {}


def test_neighbours_show_a_copied_image_first(parts, tmp_path, monkeypatch):
    watch = DiversityWatch(*parts, labels=torch.zeros(40, 0))
    copies = SimpleNamespace(read=lambda indices: watch.images.read(list(indices)))
    monkeypatch.setattr(evaluation, "samples_of", lambda *args: copies)
    watch.save_neighbours(tmp_path / "neighbors.png")
    picture = Image.open(tmp_path / "neighbors.png").convert("RGB")
    assert picture.size == (16 * 7, 16 * 8)
    for row in range(8):
        box = (0, 16 * row, 16, 16 * row + 16)
        assert picture.crop(box).tobytes() == picture.crop((16, box[1], 32, box[3])).tobytes()


def test_the_best_snapshot_is_linked(parts, tmp_path):
    config, state, images = parts
    judged = Evaluation(tmp_path, config, state, images, torch.zeros(40, 0), keep_going=lambda: True)
    for index, value in enumerate([5.0, 3.0, 4.0, float("nan")]):
        snapshot = tmp_path / f"network-snapshot-{index:06d}.pkl"
        snapshot.write_bytes(bytes([index]))
        judged.link_best({"metric": "fid5k", "results": {"fid5k[tiny]": value}}, snapshot)
    assert (tmp_path / "network-best.pkl").read_bytes() == bytes([1])


def test_a_stopped_evaluation_leaves_nothing(parts, tmp_path, capsys):
    config, state, images = parts
    config.metrics = ["fid1k_full"]
    judged = Evaluation(tmp_path / "run", config, state, images, torch.zeros(40, 0), keep_going=lambda: False)
    judged.run(tmp_path / "network-snapshot-000001.pkl", events=None)
    assert "left out" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_metric_that_fails_loses_no_other(parts, tmp_path, monkeypatch, capsys):
    """Four images: the second metric ended the run with exit code 2, and the FID before it was lost, again after a resume."""
    config, state, images = parts
    images = ImageSet(write_images(tmp_path / "four", 4))
    config.metrics = ["dc1k5_full", "fid1k_full"]
    snapshot = tmp_path / "network-snapshot-000001.pkl"
    snapshot.write_bytes(b"1")
    events = SimpleNamespace(add_scalar=lambda *args, **kwargs: None)
    judged = Evaluation(tmp_path, config, state, images, torch.zeros(4, 0), keep_going=lambda: True)
    assert judged.run(snapshot, events)
    assert "Warning: dc1k5_full could not be computed: real images: at least 6" in capsys.readouterr().out
    assert (tmp_path / "metric-fid1k_full.jsonl").read_text().count("\n") == 1
    assert not (tmp_path / "network-best.pkl").exists()  # which the first metric chooses
    config.metrics.reverse()
    assert judged.run(snapshot, events)
    assert (tmp_path / "metric-fid1k_full.jsonl").read_text().count("\n") == 2
    assert (tmp_path / "network-best.pkl").exists()


def test_neighbours_are_seen_as_the_metrics_see(parts, tmp_path, monkeypatch):
    """By the brightness of one pixel, the nearest are others than by the features of `tiny`."""
    config, _, images = parts
    config.detector, config.metrics = "pixel", ["fid1k_full"]
    pixel = detector_of_function(lambda x: x[:, :1, 0, 0], "pixel")
    original = evaluation.open_detector
    monkeypatch.setattr(
        evaluation, "open_detector", lambda name, *args, **kw: original(name) if name == "tiny" else pixel
    )
    watch = DiversityWatch(*parts, labels=torch.zeros(40, 0))
    values = torch.cat([image[0, :1, :1] for image in images.read(range(40)).images]).flatten().float()
    sample = torch.zeros(3, 16, 16, dtype=torch.uint8)
    monkeypatch.setattr(
        evaluation, "samples_of", lambda *args: SimpleNamespace(read=lambda _: SimpleNamespace(images=[sample]))
    )
    watch.save_neighbours(tmp_path / "neighbors.png")
    picture = np.asarray(Image.open(tmp_path / "neighbors.png").convert("RGB"))
    shown = picture[0, 16::16, 0]
    assert sorted(shown.tolist()) == sorted(values.sort().values[:6].int().tolist())


def test_a_diverged_network_is_not_watched(parts, tmp_path):
    """What is wrong with it is said by training and by the metrics; the watch must not end a run."""
    watch = DiversityWatch(*parts, labels=torch.zeros(40, 0))
    next(parts[1].G_ema.synthesis.parameters()).fill_(float("nan"))
    watch.tick(1000)
    watch.save_neighbours(tmp_path / "neighbors.png")
    assert watch.best_coverage == 0 and not (tmp_path / "neighbors.png").exists()
