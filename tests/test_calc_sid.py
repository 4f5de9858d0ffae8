"""calc_sid.py at the command line."""

import contextlib
import io
import json
import re
import sys

import pytest

import calc_sid
import dnnlib.cli
from tests.helpers import tiny
from tests.helpers.tiny import write_images
from training.sources.source import GaussianSource


def calc(*args):
    """(exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["calc_sid.py", *map(str, args)])
        with pytest.raises(SystemExit) as leaving:
            dnnlib.cli.run(calc_sid.main)
    return leaving.value.code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("sid")
    return {
        "target": write_images(root / "target", 40),
        "near": write_images(root / "near", 40, seed=1),
        "far": write_images(root / "far", 40, channels=1, seed=2, side=32),
        "single": write_images(root / "single", 1),
        "network": tiny.save(root / "network-snapshot-000001.pkl", tiny.generator2(), GaussianSource(tiny.Z_DIM)),
    }


def test_ranking(files, tmp_path):
    sources = f"{files['far']},{files['near']}"
    args = [f"--target={files['target']}", f"--source={sources}", "--source=noise", "--probes=50"]
    status, out, err = calc(*args, f"--outdir={tmp_path}")
    assert status == 0
    lines = out.splitlines()
    assert lines[2].split()[:2] == ["1", "near"]
    assert "CSID[tiny]" in lines[1] and "its numbers are no FIDs" in err
    assert re.search(r"detector tiny \(weights [0-9a-f]{16}, resize area\)$", lines[0])
    ranking = json.loads((tmp_path / "sid.json").read_text())["rankings"][0]
    assert ranking["detector_hash"] in lines[0] and ranking["resize"] == "area"
    assert {path.name for path in tmp_path.iterdir()} == {"sid.json", "sid.csv", "sid.png"}
    again = calc(*args, f"--outdir={tmp_path}")
    assert again[1] == out


def test_best_prints_a_path_and_nothing_else(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = calc(
        f"--target={files['target']}", f"--source={files['far']}", f"--source={files['near']}", "--best", "--probes=50"
    )
    assert (status, out) == (0, f"{files['near']}\n")
    assert list(tmp_path.iterdir()) == []


def test_all_pairs_and_snapshots(files, tmp_path):
    sources = f"{files['near']},{files['target']},{files['network']}"
    status, out, _ = calc(f"--source={sources}", "--matrix", f"--outdir={tmp_path}", "--probes=50", "--num-gen=30")
    assert status == 0
    assert out.count("rank") == 3 and "network-snapshot-000001" in out
    rankings = json.loads((tmp_path / "sid.json").read_text())["rankings"]
    assert [len(ranking["sources"]) for ranking in rankings] == [2, 2, 2]
    assert (tmp_path / "sid-matrix.png").exists()


@pytest.mark.parametrize("order", ["0", "-1", "3"])
def test_orders(files, tmp_path, order):
    args = [f"--target={files['target']}", f"--source={files['near']}", f"--order={order}", "--probes=50"]
    assert calc(*args, f"--outdir={tmp_path}")[0] == 0
    (ranking,) = json.loads((tmp_path / "sid.json").read_text())["rankings"]
    assert ranking["sources"][0]["curve"]["order"] == int(order)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--source=NEAR"], "--target is needed"),
        (["--target=TARGET", "--source=nowhere.zip"], "--source: nowhere.zip"),
        (["--target=nowhere.zip", "--source=NEAR"], "--target: nowhere.zip"),
        (["--target=TARGET", "--source=,"], "--source: names nothing"),
        (["--target=TARGET", "--source=NEAR", "--matrix", "--best"], "--best names one"),
        (["--source=NEAR", "--matrix"], "--matrix: needs two"),
        (["--target=TARGET", "--source=NEAR", "--order=7"], "--order"),
        (["--target=TARGET", "--source=NEAR", "--detector-weights=x.pth"], "--detector-weights: x.pth"),
        (["--target=TARGET"], "--source"),
        (["--target=TARGET", "--source=SINGLE"], "single: at least 2 samples are needed"),
        (["--target=", "--source=NEAR"], "--target= is empty; give a path"),
    ],
)
def test_refusals(files, tmp_path, args, words):
    for name in ("near", "target", "single"):
        args = [arg.replace(name.upper(), str(files[name])) for arg in args]
    status, out, err = calc(*args, f"--outdir={tmp_path / 'out'}")
    assert status == 2 and out == ""
    assert not (tmp_path / "out").exists() or words.startswith(("--detector", "single"))
    assert words in err and len([line for line in err.splitlines() if not line.startswith("Detector")]) == 1


def test_broken_images_are_named_counted_and_left_out(tmp_path, files):
    broken = write_images(tmp_path / "broken", 12)
    (broken / "05.png").write_bytes(b"no image")
    args = [f"--target={files['target']}", f"--source={broken}", "--probes=50", f"--outdir={tmp_path / 'out'}"]
    status, out, err = calc(*args)
    assert status == 0
    assert "1 of 12 images cannot be read (05.png" in err
    assert out.splitlines()[2].split()[2] == "11"
    status, _, err = calc(*args, "--strict")
    assert status == 2 and "05.png" in err and "leave --strict out" in err


def test_nothing_is_left_where_the_detector_cannot_be_opened(tmp_path, files):
    """An empty --outdir was."""
    args = [f"--target={files['target']}", f"--source={files['target']}", f"--outdir={tmp_path / 'out'}"]
    status, _, err = calc(*args, "--detector=nowhere.onnx")
    assert status == 2 and "nowhere.onnx" in err and not (tmp_path / "out").exists()
