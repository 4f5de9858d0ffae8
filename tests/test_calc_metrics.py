"""calc_metrics.py at the command line."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest

import calc_metrics
import dnnlib.cli
from tests.helpers import tiny
from tests.helpers.golden import ROOT
from tests.helpers.tiny import write_images
from training.checkpoints.snapshot import load_snapshot, save_snapshot
from training.dataset import ImageFolderDataset
from training.sources.source import GaussianSource


def calc(*args):
    """(exit code, results, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["calc_metrics.py", *map(str, args)])
        with pytest.raises(SystemExit) as leaving:
            dnnlib.cli.run(calc_metrics.main)
    return leaving.value.code, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("metrics")
    data = write_images(root / "data", 40)
    path = tiny.save(root / "network-snapshot-000001.pkl", tiny.generator2(), GaussianSource(tiny.Z_DIM))
    meta = {"data": {"path": "data", "fingerprint": ImageFolderDataset(data).fingerprint}}
    save_snapshot(path, {**load_snapshot(path), "training_set_kwargs": {"path": str(data)}, "meta": meta})
    three = tiny.save(root / "three.pkl", tiny.generator3(), GaussianSource(tiny.Z_DIM))
    return {"data": data, "other": write_images(root / "other", 30, seed=1), "network": path, "three": three}


def test_a_snapshot_against_the_data_it_was_trained_on(files, tmp_path):
    path = tmp_path / "results.jsonl"
    status, results, err = calc(f"--network={files['network']}", "--metrics=fid1k_full,pr1k3_full", f"--json={path}")
    assert status == 0
    assert [result["metric"] for result in results] == ["fid1k_full", "pr1k3_full"]
    assert results[0]["num_real"] == 40 and results[0]["num_gen"] == 1000
    assert [json.loads(line) for line in path.read_text().splitlines()] == results
    assert "Warning: 40 real images" in err


def test_the_same_seed_gives_the_same_number_whatever_the_batch(files):
    args = [f"--network={files['network']}", "--metrics=fid1k_full", "--device=cpu"]  # a GPU rounds by the batch: 2e-4
    values = [calc(*args, *more)[1][0]["results"]["fid1k_full[tiny]"] for more in ([], ["--batch=7"], ["--seed=1"])]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert values[0] != pytest.approx(values[2], rel=1e-3)


def test_results_beside_a_run_are_of_its_own_data(files, tmp_path, monkeypatch):
    """Numbers against other data, or mirrored copies, went into the run's file of the metric, which did not say so."""
    path = tmp_path / "network-snapshot-000001.pkl"
    path.write_bytes(files["network"].read_bytes())
    options = {"training_set_kwargs": {"path": str(files["data"])}}
    (tmp_path / "training_options.json").write_text(json.dumps(options))
    args = [f"--network={path}", "--metrics=kid1k_full"]
    calc(*args, f"--data={files['other']}")
    calc(*args, "--mirror=1")
    kept = tmp_path / "metric-kid1k_full.jsonl"
    assert not kept.exists()
    kept.mkdir()  # which cannot be written: the result, computed for hours, was lost
    status, results, err = calc(*args)
    assert (status, len(results)) == (0, 1) and f"Warning: {kept}: cannot be written" in err


def test_json_is_appended_to_results_only(files, tmp_path):
    """It was appended to any file: a network was lost."""
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"\x10\0\0\0")
    status, _, err = calc(
        f"--network={files['other']}", f"--data={files['data']}", "--metrics=kid1k_full", f"--json={other}"
    )
    assert status == 2 and "holds something else than results" in err
    assert other.read_bytes() == b"\x10\0\0\0"


def test_a_folder_of_images_in_place_of_a_network(files):
    args = [f"--network={files['other']}", f"--data={files['data']}", "--metrics=kid1k_full"]
    _, (plain,), err = calc(*args)
    assert "other: 30 images were used, 1,000 were asked for" in err
    _, (mirrored,), _ = calc(*args, "--mirror=1")
    assert (plain["num_gen"], plain["num_real"], mirrored["num_real"]) == (30, 40, 80)
    _, (other,), _ = calc(*args, "--kid-subsets=7", "--kid-subset-size=12", "--kid-degree=1")
    assert (other["kid_subsets"], other["kid_subset_size"]) == (7, 12)
    assert {"kid1k_full_degree1[tiny]", "kid1k_full_degree1_std[tiny]"} == set(other["results"])


def test_processes_agree_with_one(files):
    args = [f"--network={files['network']}", "--metrics=fid1k_full", "--device=cpu"]
    (expected,) = calc(*args)[1]
    command = [sys.executable, "calc_metrics.py", *args, "--gpus=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    actual = json.loads(line)
    assert actual["num_gpus"] == 2
    assert actual["results"]["fid1k_full[tiny]"] == pytest.approx(expected["results"]["fid1k_full[tiny]"], rel=1e-4)


@pytest.mark.parametrize(
    ("network", "args", "words"),
    [
        ("nowhere.pkl", [], "--network: nowhere.pkl"),
        ("other", ["--metrics=fid5k"], "--data is needed"),
        ("other", ["--metrics=ppl2_wend", "--data=DATA"], "looks inside a generator"),
        ("network", ["--metrics=fid50k_fll"], "did you mean fid50k_full"),
        ("network", ["--metrics=is5k"], "needs classes"),
        ("network", ["--metrics=eqr50k"], "eqr50k needs a StyleGAN3 network"),
        ("network", ["--data=nowhere.zip"], "--data: nowhere.zip"),
        ("network", ["--detector=resnet"], "--detector"),
        ("network", ["--metrics=,"], "--metrics: names nothing"),
        ("other", ["--data=DATA", "--metrics=fid1k_full,dc1k30_full"], "dc1k30_full needs 31 images at least, not 30"),
        (
            "network",
            ["--metrics=ppl2_wend", "--detector=vgg16", "--detector-weights=no.pth"],
            "path lengths need VGG16",
        ),
        ("network", ["--metrics=fid1k", "--json=/nowhere/x.json"], "--json: /nowhere/x.json"),
    ],
)
def test_refusals(files, network, args, words):
    args = [arg.replace("DATA", str(files["data"])) for arg in args]
    status, results, err = calc(f"--network={files.get(network, network)}", *args)
    assert status == 2 and results == []
    assert words in err and len([line for line in err.splitlines() if not line.startswith("Detector")]) == 1


def test_a_metric_that_fails_leaves_the_others(files, tmp_path):
    """One broken image: density and coverage find too few, after the FID; the metrics behind were never computed."""
    folder = write_images(tmp_path / "some", 5)
    sorted(folder.iterdir())[0].write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    path = tmp_path / "results.jsonl"
    metrics = "fid1k_full,dc1k4_full,kid1k_full"
    status, results, err = calc(
        f"--network={folder}", f"--data={files['data']}", f"--metrics={metrics}", f"--json={path}"
    )
    assert status == 2 and "Warning: dc1k4_full could not be computed: generated images: at least 5 samples" in err
    assert err.endswith("Error: --metrics: 1 of 3 could not be computed: dc1k4_full\n")
    assert [result["metric"] for result in results] == ["fid1k_full", "kid1k_full"]
    assert [json.loads(line) for line in path.read_text().splitlines()] == results


@pytest.fixture(scope="module")
def classes(files, tmp_path_factory):
    """A conditional network, and two labelled sets: 12 images of class 0, 20 of class 2."""
    root = tmp_path_factory.mktemp("classes")
    G = tiny.generator2(c_dim=3)
    network = tiny.save(root / "conditional.pkl", G, GaussianSource(tiny.Z_DIM))
    sets = {}
    for name, seed in (("data", 0), ("other", 1)):
        sets[name] = write_images(root / name, 32, seed=seed)
        labels = [[f"{index:02d}.png", 0 if index < 12 else 2] for index in range(32)]
        (sets[name] / "dataset.json").write_text(json.dumps({"labels": labels}))
    return {"network": network, **sets}


def test_each_class_by_itself(classes, files):
    args = [f"--data={classes['data']}", "--metrics=fid1k_full", "--per-class"]
    status, results, err = calc(f"--network={classes['network']}", *args)
    assert status == 0 and [(one["class"], one["num_real"], one["num_gen"]) for one in results] == [
        (0, 12, 1000),
        (2, 20, 1000),
    ]
    values = [one["results"]["fid1k_full[tiny]"] for one in results]
    low, high = sorted(range(2), key=lambda index: values[index])
    assert f"fid1k_full[tiny] by class: {2 * low}: {values[low]:.4g}, {2 * high}: {values[high]:.4g}; mean" in err
    status, same, _ = calc(f"--network={classes['data']}", *args)
    assert status == 0 and all(one["results"]["fid1k_full[tiny]"] == pytest.approx(0, abs=1e-3) for one in same)
    status, sets, _ = calc(f"--network={classes['other']}", *args)
    assert status == 0 and [one["num_gen"] for one in sets] == [12, 20]


@pytest.mark.parametrize(
    ("network", "data", "words"),
    [
        ("plain", "data", "--per-class: the network is not conditional"),
        ("network", "plain", "--per-class: "),
        ("network", None, "--data is needed: --per-class"),
    ],
)
def test_what_has_no_classes_is_one_line(classes, files, network, data, words):
    paths = {**classes, "plain": files["network"]}
    args = [] if data is None else [f"--data={files['data'] if data == 'plain' else classes[data]}"]
    status, results, err = calc(f"--network={paths[network]}", *args, "--metrics=fid1k_full", "--per-class")
    assert status == 2 and not results and words in err.splitlines()[-1]


def test_equivariance_of_a_stylegan3(files, monkeypatch):
    monkeypatch.setattr("metrics.metric_main.EQUIVARIANCE_IMAGES", 6)
    status, (result,), _ = calc(f"--network={files['three']}", "--metrics=eqt50k_int")
    assert status == 0
    assert result["results"]["eqt50k_int"] > 10 and result["detector"] is None


def test_statistics_of_a_data_set_stand_for_its_images(files, tmp_path):
    data, stats, features = f"--data={files['data']}", tmp_path / "stats.npz", tmp_path / "features.npz"
    status, results, err = calc(data, f"--stats-out={stats}", f"--features-out={features}")
    assert (status, results) == (0, []) and f"Statistics of 40 images by tiny: {stats}" in err
    network = f"--network={files['other']}"
    _, direct, _ = calc(network, data, "--metrics=fid1k_full,kid1k_full")
    status, results, _ = calc(network, f"--stats={features}", "--metrics=fid1k_full,kid1k_full")
    assert status == 0
    for before, now in zip(direct, results, strict=False):
        assert now["results"] == pytest.approx(before["results"])
        assert (now["num_real"], now["num_gen"]) == (40, 30)
    expected = direct[0]["results"]["fid1k_full[tiny]"]
    _, (fid,), _ = calc(network, f"--stats={stats}", "--metrics=fid2k_full")
    assert fid["results"]["fid2k_full[tiny]"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--metrics=kid1k_full"], "kid1k_full needs features, and stats.npz holds mean and covariance only"),
        (["--metrics=fid1k"], "with --stats, use fid1k_full"),
        (["--metrics=fid1k_full", "--data=DATA"], "--stats stands in for --data, and --data is given, too"),
        (["--metrics=fid1k_full", "--features-out=a.npz"], "and --features-out is given, too"),
        (["--metrics=fid1k_full", "--mirror=1"], "--mirror=1 needs the images"),
        (["--stats=nowhere.npz"], "nowhere.npz cannot be read"),
        (
            ["--metrics=fid_inf1k_full"],
            "fid_inf1k_full needs 1,024 images with the 256 features of tiny; use fid_inf2k_full",
        ),
    ],
)
def test_what_statistics_cannot_do_is_one_line(files, tmp_path, args, words):
    calc(f"--data={files['data']}", f"--stats-out={tmp_path / 'stats.npz'}")
    args = [arg.replace("DATA", str(files["data"])) for arg in args]
    status, results, err = calc(f"--network={files['network']}", f"--stats={tmp_path / 'stats.npz'}", *args)
    assert (status, results) == (2, [])
    assert words in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "--network is missing"),
        (["--stats-out=a.npz"], "--data is missing"),
        (["--stats-out=a.pkl", "--data=DATA"], "--stats-out=a.pkl: the name must end in .npz"),
        (["--stats-out=nowhere/a.npz", "--data=DATA"], "nowhere"),
        (
            ["--data=DATA", "--network=DATA", "--detector=dino"],
            "--detector=dino: not known; choose from auto, inception",
        ),
        (["--data=DATA", "--network=DATA", "--detector=none.onnx"], "none.onnx: cannot be read"),
    ],
)
def test_what_is_missing_is_one_line(files, args, words):
    status, results, err = calc(*(arg.replace("DATA", str(files["data"])) for arg in args))
    assert (status, results) == (2, [])
    assert words in err.splitlines()[-1] and "Traceback" not in err
