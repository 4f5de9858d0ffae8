"""train.py --cascade: three stages from one command, stopped and continued to the bit, judged, shown, refused."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.golden import ROOT
from tests.helpers.runs import assert_same_run, run_inside, snapshot_of
from tests.helpers.sources import write_images
from torch_utils.launcher import STOPPED
from training.cascades import cascade_run
from training.checkpoints.snapshot import load_snapshot
from training.sampling.sampler import open_sampler
from training.sources import network_source
from training.sources.cascade import Cascade
from training.sources.source import GaussianSource

DEFAULTS = (
    "defaults: {cfg: stylegan2, batch: 8, cbase: 64, cmax: 8, z-dim: 16, w-dim: 16, map-depth: 2, kimg: 0.032, "
    "tick: 0.016, source-noise: 0.1, stage-cache: 12}\n"
)
STAGES = """stages:
  - {name: one, data: a}
  - {name: two, source: one, data: b, resume: one, source-encoder: conv}
  - {name: three, source: two, data: c, cfg: stylegan3-t}
"""
TABLE = "table: [fid1k, csid1k]\n"
NAMES = ("one", "two", "three")
# Names of the runs; those fed by others were called network-snapshot-to-b-…, whatever the stage.
RUNS = {"one": "stylegan2-a", "two": "stylegan2-one-to-b", "three": "stylegan3-t-two-to-c"}


@pytest.fixture(scope="module", autouse=True)
def few_samples():
    """For the statistics of encoders, to save time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_source, "FIT_SAMPLES", 256)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with data sets and a recipe."""
    root = tmp_path_factory.mktemp("cascade")
    write_images(root / "a", size=(16, 16), count=20)
    write_images(root / "b", size=(32, 32), count=20, seed=1)
    write_images(root / "c", size=(16, 16), count=20, seed=2, mode="L")
    (root / "recipe.yaml").write_text(DEFAULTS + STAGES + TABLE)
    return root


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """The whole cascade and what it printed."""
    outdir = tmp_path_factory.mktemp("finished")
    status, out, err = cascade(root / "recipe.yaml", outdir)
    assert status == 0, out + err
    return outdir / "cascade-recipe", out


def cascade(recipe, outdir, *args):
    return run_inside(f"--cascade={recipe}", f"--outdir={outdir}", "--device=cpu", *args)


def run_of(folder, stage):
    (run_dir,) = (folder / stage).iterdir()
    return run_dir


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_command_trains_judges_and_shows_three_stages(finished):
    folder, out = finished
    for number, name in enumerate(NAMES, 1):
        assert f"Stage {number} of 3, {name}:" in out
        assert run_of(folder, name).name.startswith(f"00000-{RUNS[name]}-gpus1-batch8-gamma")
        assert run_of(folder, name).name.endswith(f"-{name}")
        assert json.loads((run_of(folder, name) / "training_options.json").read_text())["finished_kimg"] == 0.032
    assert "steps draw from 12 outputs of the stages before, 2 of them new" in out
    assert "Resume: D:" in out
    table = json.loads((folder / "cascade.json").read_text())
    assert table["is_complete"]
    assert [row["name"] for row in table["stages"]] == list(NAMES)
    assert [row["source"] for row in table["stages"]] == ["noise", "one", "two"]
    for row in table["stages"]:
        assert set(row["results"]) == {"fid1k[tiny]", "csid1k[tiny]"}
        assert all(np.isfinite(r["value"]) and r["detector"] == "tiny" for r in row["results"].values())
    lines = (folder / "cascade.md").read_text().splitlines()
    assert lines[0] == "| stage | cfg | source | data | kimg | fid1k[tiny] | csid1k[tiny] |"
    assert len(lines) == 5 and lines[4].startswith("| three | stylegan3-t | two | c | 0.032 | ")
    assert "three  stylegan3-t  two     c     0.032" in out


def test_the_last_snapshot_generates_from_noise(finished):
    folder, _ = finished
    contents = load_snapshot(folder / "cascade.pkl")
    G = contents["G_ema"]
    assert isinstance(contents["source"], GaussianSource) and isinstance(G.first, Cascade)
    images = G(torch.randn(2, G.z_dim), None)
    assert images.shape == (2, 1, 16, 16) and images.isfinite().all()
    assert (folder / "cascade.pkl").read_bytes() == snapshot_of(run_of(folder, "three")).read_bytes()


def test_the_picture_shows_every_seed_in_every_stage(finished):
    folder, _ = finished
    picture = np.asarray(Image.open(folder / "cascade.png"))
    cell, step, header = 96, 102, 22  # 16 pixels, 6 times as large
    assert picture.shape == (8 * step + 6 + header, 4 * step + 6, 3)
    sampler = open_sampler(str(folder / "cascade.pkl"), device="cpu")
    first, second = sampler.pictures_before([5])
    assert first.shape[2:] == (16, 16) and second.shape[2:] == (32, 32)
    top, left = header + 6 + 5 * step, 6 + step
    shown = picture[top : top + cell : 6, left : left + cell : 6].astype(float)
    expected = (first[0] * 127.5 + 128).clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(shown - expected).max() <= 1.5


def test_what_is_finished_is_left_alone(finished, root):
    folder, first_output = finished
    before = files_of(folder)
    status, out, err = cascade(root / "recipe.yaml", folder.parent, "--resume=latest", "--workers=1")
    assert status == 0, err
    assert out.count(": complete, ") == 3 and "Loading data" not in out and "Detector" not in out
    assert out.splitlines()[-6:-4] == first_output.splitlines()[-6:-4]  # the table's last rows
    assert files_of(folder) == before


def test_stopped_in_stage_two_it_goes_on_to_the_same_bits(finished, root, tmp_path):
    """A signal arrives in the middle of stage two; the same command makes the same cascade, in the same place."""
    folder, whole = finished[0], tmp_path / "whole"
    folder.rename(whole)
    script = tmp_path / "stopping.py"
    script.write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import torch; torch.set_num_threads(1)\n"
        "import dnnlib.cli, train, training.sources.network_source\n"
        "training.sources.network_source.FIT_SAMPLES = 256\n"
        "from training.run.step import TrainingStep\n"
        "honest = TrainingStep.run_phase\n"
        "def run_phase(self, phase, batches):\n"
        "    if self.config.stage_cache.size and self.state.batch_idx == 2 and phase.name == 'Dmain':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    honest(self, phase, batches)\n"
        "TrainingStep.run_phase = run_phase\n"
        "dnnlib.cli.run(train.main)\n"
    )
    command = [f"--cascade={root / 'recipe.yaml'}", f"--outdir={folder.parent}", "--device=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, script, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == STOPPED, process.stdout + process.stderr
    assert f"Stopped; the same command (--cascade={root / 'recipe.yaml'}) goes on in stage 2, two." in process.stdout
    assert process.stdout.count("the same command") == 1 and "--resume" not in process.stdout.split("Stopped;")[1]
    assert not (folder / "three").exists() and not (folder / "cascade.pkl").exists()
    assert [row["name"] for row in json.loads((folder / "cascade.json").read_text())["stages"]] == ["one"]

    status, out, err = run_inside(*command)
    assert status == 0, out + err
    assert "Stage 1 of 3, one: complete" in out and "goes on from training-state-000000.024.pt" in out
    for name in NAMES:
        assert_same_run(run_of(whole, name), run_of(folder, name))
    for name in ("cascade.pkl", "cascade.png", "cascade.md"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    # Between two processes the last digit of an eigenvalue may differ: libraries choose their ways by the place in memory.
    assert rounded(json.loads((folder / "cascade.json").read_text())) == rounded(
        json.loads((whole / "cascade.json").read_text())
    )


def rounded(tree):
    """Nested dicts and lists with numbers to nine digits."""
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return float(f"{tree:.9g}") if isinstance(tree, float) else tree


def test_a_signal_while_a_stage_is_judged_leaves_that_to_the_next_time(root, tmp_path, monkeypatch):
    from metrics import metric_main

    recipe = root / "short.yaml"
    recipe.write_text(DEFAULTS + "stages: [{name: one, data: a, kimg: 0.008}]\n" + "table: fid1k\n")
    honest = metric_main.calc_metric

    def interrupted(name, opts):
        os.kill(os.getpid(), signal.SIGINT)
        return honest(name, opts)

    monkeypatch.setattr(metric_main, "calc_metric", interrupted)
    status, out, err = cascade(recipe, tmp_path)
    assert status == STOPPED, out + err
    assert f"Stopped; the same command (--cascade={recipe}) goes on after the training of stage one." in out
    assert out.count("the same command") == 1
    monkeypatch.undo()
    status, out, _ = cascade(recipe, tmp_path)
    assert status == 0 and "one: complete" in out and "fid1k[tiny]" in out


@pytest.fixture
def twin(finished, tmp_path):
    """A copy of the finished cascade, to be tampered with."""
    shutil.copytree(finished[0], tmp_path / "cascade-recipe")
    return tmp_path


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("batch: 8", "batch: 16", "stage one: has --batch=16 now, and was trained with 8: put that back, or move"),
        ("kimg: 0.032", "kimg: 0.016", "stage one: has --kimg=0.016 now, and was trained with 0.032"),
        ("kimg: 0.032", "kimg: 0.048", "stage two: started from"),  # one would grow, and two stands on it
        ("name: one, data: a", "name: one, data: c", "stage one: --data: does not hold the images"),
        (
            "name: one, data: a",
            "name: one, data: a, gamma: 3",
            "stage one: has --gamma=3.0 now, and was trained with None",
        ),
        (", resume: one", "", "stage two: started from"),
        ("source: two", "source: one", "stage three: was fed by something else than what one is now"),
        ("source: two, ", "", "stage three: has --source-noise=0.0 now, and was trained with 0.1"),
        ("source: two, ", "source: a, stage-cache: 12, ", "stage three: was fed by something else than what"),
        ("stage-cache: 12", "stage-cache: 16", "stage two: has --stage-cache=16 now"),
    ],
)
def test_stages_that_changed_are_refused(twin, root, before, after, words):
    changed = root / "changed" / "recipe.yaml"
    changed.parent.mkdir(exist_ok=True)
    for name in "abc":
        (changed.parent / name).unlink(missing_ok=True)
        (changed.parent / name).symlink_to(root / name)
    changed.write_text((DEFAULTS + STAGES + TABLE).replace(before, after))
    files = files_of(twin)
    status, _, err = cascade(changed, twin)
    assert status == 2
    assert words in err and len(err.splitlines()) == 1, err
    assert files_of(twin) == files


def test_a_stage_that_was_moved_away_is_trained_anew_and_may_be_longer(twin, root):
    folder = twin / "cascade-recipe"
    shutil.rmtree(folder / "three")
    longer = root / "longer" / "recipe.yaml"
    longer.parent.mkdir()
    for name in "abc":
        (longer.parent / name).symlink_to(root / name)
    longer.write_text((DEFAULTS + STAGES + "table: none\n").replace("cfg: stylegan3-t", "kimg: 0.008"))
    status, out, err = cascade(longer, twin, "--dry-run")
    assert status == 0, err
    assert "Stage 2, two: complete" in out and "Stage 3, three: not begun" in out and not (folder / "three").exists()
    kept = {name: run_of(folder, name).stat().st_mtime_ns for name in NAMES[:2]}
    status, out, err = cascade(longer, twin)
    assert status == 0, err
    assert out.count(": complete, ") == 2
    longer.write_text(longer.read_text().replace("kimg: 0.008", "kimg: 0.016"))
    status, out, err = cascade(longer, twin)
    assert status == 0, err
    assert "three goes on" in out.replace(str(run_of(folder, "three")), "three")
    assert "| three | stylegan2 | two | c | 0.016 |" in (folder / "cascade.md").read_text()
    assert {name: run_of(folder, name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.parametrize(
    ("stages", "args", "words"),
    [
        ("[{name: one, data: nowhere.zip}]", [], "stage one: --data: "),
        ("[{name: one, data: a}, {name: two, source: one, data: nowhere}]", [], "stage two: --data: "),
        ("[{name: one, data: a, batch: many}]", [], "stage one: Invalid value for '--batch': 'many' is not a valid int"),
        ("[{name: one, data: a, cfg: stylegan4}]", [], "stage one: Invalid value for '--cfg'"),
        ("[{name: one, data: a}, {name: two, source: one, data: b, kimg: -1}]", [], "stage two: --kimg=-1.0 must be pos"),
        ("[{name: one, data: a, stage-cache: 99}]", [], "stage one: --stage-cache=99: needs --source=SNAPSHOT.pkl"),
        ("[{name: one, data: a}, {name: two, source: one, data: b, z-dim: 17}]", [], "stage two: --z-dim=17 is no sens"),
        (
            "[{name: one, data: a}, {name: two, source: one, data: c, resume: one, w-dim: 32, z-dim: 64, cfg: stylegan3-t}]", [],
            "/one/network-snapshot.pkl: nothing that its generator has learned fits into that of --cfg=stylegan3-t",
        ),
        ("[{name: one, data: b}, {name: two, source: one, data: b, resume: a/000.png}]", [], "stage two: --resume: "),
        ("[{name: one, data: a}]", ["--batch=4"], "--batch: belongs into the recipe of --cascade"),
        ("[{name: one, data: a}]", ["--resume=x.pkl"], "--resume: belongs into the recipe"),
        ("[{name: one, data: a}]", ["--gpus=3"], "stage one: --batch=8 is not a multiple of --gpus=3"),
    ],
)  # fmt: skip
def test_wrong_stages_are_found_before_the_first_starts(root, tmp_path, stages, args, words):
    recipe = root / "wrong.yaml"
    recipe.write_text(f"{DEFAULTS}stages: {stages}\n{TABLE}")
    status, _, err = cascade(recipe, tmp_path, *args)
    assert status == 2
    assert words in err and len(err.splitlines()) == 1, err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "args", "words"),
    [
        ("[is1k]", [], "stage one: table: is1k needs classes"),
        ("[fid1k, dc1k500_full]", [], "stage one: table: dc1k500_full needs 501 images at least, not"),
        ("[fid1k]", ["--detector=inception", "--detector-weights=no.pth"], "stage one: --detector-weights: no.pth"),
    ],
)
def test_a_table_that_cannot_be_computed_is_found_before_the_first_stage_starts(root, tmp_path, table, args, words):
    recipe = root / "wrong.yaml"
    recipe.write_text(f"{DEFAULTS}{STAGES}table: {table}\n")
    status, _, err = cascade(recipe, tmp_path, *args)
    assert status == 2
    assert words in err and len(err.splitlines()) == 1, err
    assert list(tmp_path.iterdir()) == []


def test_torchrun_is_refused(root, tmp_path, monkeypatch):
    monkeypatch.setattr(cascade_run.distributed, "is_launched", lambda: True)
    monkeypatch.setattr(cascade_run.distributed, "get_world_size", lambda: 2)
    status, _, err = cascade(root / "recipe.yaml", tmp_path)
    assert status == 2 and "does not run under torchrun yet" in err


def test_several_processes_train_one_stage_after_the_other(root, tmp_path):
    recipe = root / "two.yaml"
    stages = "stages: [{name: one, data: a, kimg: 0.008}, {name: two, source: one, data: a, kimg: 0.008}]\n"
    recipe.write_text(DEFAULTS + stages + "table: none\n")
    status, out, err = cascade(recipe, tmp_path, "--gpus=2")
    assert status == 0, out + err
    assert (tmp_path / "cascade-two" / "cascade.pkl").is_file()
    assert json.loads((tmp_path / "cascade-two" / "cascade.json").read_text())["stages"][0]["results"] == {}
