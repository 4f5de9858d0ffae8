"""train.py at the command line: the stages, what a run leaves behind, refusals, processes, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.errors import UserError
from metrics.detectors import PUBLIC
from tests.helpers.golden import ROOT
from tests.helpers.runs import TINY, run, run_inside, snapshot_of, stats_of, train
from tests.helpers.sources import write_images
from torch_utils.launcher import STOPPED
from training import settings
from training.augment import AUGPIPES
from training.checkpoints.snapshot import feed_of, load_snapshot
from training.checkpoints.state_file import read_state
from training.config.options import TrainingOptions
from training.config.resolve import resolve
from training.dataset import ImageFolderDataset
from training.losses import LOSSES
from training.run.progress import make_run_dir
from training.sources.cascade import Cascade
from training.sources.encoders import ENCODERS
from training.sources.source import GaussianSource, ImageSource


def test_flags_offer_all_rows_of_their_tables():
    assert (tuple(ENCODERS), tuple(LOSSES), tuple(AUGPIPES)) == (settings.ENCODERS, settings.LOSSES, settings.AUGPIPES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return {
        "target": write_images(root / "target", size=(16, 16), count=20),
        "source": write_images(root / "source", size=(16, 16), count=20, seed=1, mode="RGBA"),
    }


@pytest.fixture(scope="module")
def spider_run(folders, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("spider")
    run_dir, output = train(tmp_path, f"--source={folders['source']}", f"--data={folders['target']}", "--snap=1")
    return run_dir, output


def test_a_run_leaves_everything_behind(spider_run):
    run_dir, output = spider_run
    names = {path.name for path in run_dir.iterdir()}
    expected = {"training_options.json", "log.txt", "stats.jsonl", "reals.png", "sources.png", "fakes_init.png"}
    expected |= {"pairs_init.png", "fakes000000.032.png", "pairs000000.032.png", "network-snapshot-000000.032.pkl"}
    assert expected <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".part") for name in names)
    assert re.search(r"tick 2 +kimg 0\.0", output)
    assert "Done." in (run_dir / "log.txt").read_text()
    stats = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert len(stats) == 2
    assert {"Loss/G/loss", "Loss/D/loss", "Loss/r1_penalty", "Loss/signs/real", "timestamp"} <= set(stats[0])
    options = json.loads((run_dir / "training_options.json").read_text())
    assert options["source"]["kind"] == "images"
    assert options["run"]["source"]["num_images"] == 20


def test_tensorboard_shows_the_pictures(spider_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(spider_run[0]))
    events.Reload()
    *_, picture = events.Images("fakes")
    assert picture.step == 32 and (picture.width, picture.height) == (8 * 16, 5 * 16)


def test_pictures_have_the_size_of_their_cells(spider_run):
    run_dir, _ = spider_run
    assert Image.open(run_dir / "reals.png").size == (8 * 16, 5 * 16)
    assert Image.open(run_dir / "fakes000000.032.png").size == (8 * 16, 5 * 16)
    assert Image.open(run_dir / "pairs000000.032.png").size == (8 * 16, 5 * (16 + 16 + 2))
    assert np.asarray(Image.open(run_dir / "reals.png")).std() > 50


def test_a_spider_snapshot_generates_from_its_own_source(spider_run):
    contents = load_snapshot(snapshot_of(spider_run[0]))
    assert isinstance(contents["source"], ImageSource)
    feed = feed_of(contents)
    draw = feed.draw(3, torch.Generator().manual_seed(0))
    z = feed.latents(draw)
    images = contents["G_ema"](z, None, noise_mode="const")
    assert images.shape == (3, 3, 16, 16)
    assert torch.allclose(contents["G_ema"](feed.images(draw), None, noise_mode="const"), images, atol=1e-5)
    assert contents["G"].mapping.encoder.mean.abs().sum() > 0


def test_an_existing_run_folder_is_left_alone(spider_run, folders):
    run_dir, _ = spider_run
    before = {path.name: path.stat().st_mtime_ns for path in run_dir.iterdir()}
    new_dir, _ = train(run_dir.parent.parent, f"--data={folders['target']}")
    assert new_dir.name.startswith("00001-stylegan2-target-")
    assert not (new_dir / "sources.png").exists()
    assert {path.name: path.stat().st_mtime_ns for path in run_dir.iterdir()} == before


@pytest.mark.parametrize("cfg", ["stylegan3-t", "stylegan3-r"])
def test_stylegan3(tmp_path, folders, cfg):
    run_dir, _ = train(
        tmp_path, f"--source={folders['source']}", f"--data={folders['target']}", "--kimg=0.016", cfg=cfg
    )
    G = load_snapshot(snapshot_of(run_dir))["G_ema"]
    assert G(torch.randn(2, 16), None).shape == (2, 3, 16, 16)


def test_three_stages_and_resume_together(tmp_path, folders):
    """Stage one on the source alone; two and three take both its images and, where they fit, its weights."""
    run_dir, output = train(tmp_path, f"--source={folders['target']}")
    assert "stage one" in output
    assert isinstance(load_snapshot(snapshot_of(run_dir))["source"], GaussianSource)
    for _ in range(2):
        previous = snapshot_of(run_dir)
        new_dir, output = train(tmp_path, f"--source={previous}", f"--resume={previous}", f"--data={folders['target']}")
        assert "Resume: G:" in output
        assert (new_dir / "sources.png").exists()
        run_dir = new_dir
    contents = load_snapshot(snapshot_of(run_dir))
    cascade = contents["G_ema"]
    assert isinstance(cascade, Cascade)
    assert isinstance(cascade.first, Cascade)
    for path in (tmp_path / "runs").glob("0000[01]*/*.pkl"):
        path.unlink()
    assert cascade(torch.randn(2, 16), None).shape == (2, 3, 16, 16)


def test_resume_lists_what_did_not_fit(tmp_path, spider_run, folders):
    wide = write_images(tmp_path / "wide", size=(16, 32), mode="L", count=12)
    _, output = train(tmp_path, f"--data={wide}", f"--resume={snapshot_of(spider_run[0])}", "--kimg=0.008")
    assert re.search(r"Resume: G: \d+ of \d+ tensors taken over, \d+ start afresh", output)
    assert re.search(r"G\.synthesis\.b4x8\.const: not in the snapshot", output)
    assert "mapping.fc0" not in output


def test_resume_lists_what_the_file_has_and_the_network_has_not(tmp_path, spider_run, folders):
    """`56 of 56 tensors taken over`, and two layers of a deeper mapping network were dropped without a word."""
    data = [f"--source={folders['source']}", f"--data={folders['target']}"]
    _, output = train(tmp_path, *data, f"--resume={snapshot_of(spider_run[0])}", "--kimg=0.008", "--map-depth=1")
    assert re.search(r"Resume: G: (\d+) of \1 tensors taken over; 2 of the snapshot's have no place here\n", output)
    for name in ("weight", "bias"):
        assert f"  G.mapping.fc1.{name}: in the snapshot, and not in this network\n" in output
    assert re.search(r"Resume: D: (\d+) of \1 tensors taken over\n", output)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_resume_refuses_weights_that_fit_nowhere(tmp_path, spider_run, folders, more):
    """`0 of 13 tensors taken over`, and the run went on with the schedule of one that need not start carefully."""
    args = [f"--data={folders['target']}", f"--resume={snapshot_of(spider_run[0])}", f"--outdir={tmp_path / 'runs'}"]
    status, _, err = run_inside("--cfg=dcgan", "--batch=8", "--cbase=64", "--cmax=8", "--device=cpu", *args, *more)
    assert status == 2
    assert ".pkl: nothing that its generator has learned fits into that of --cfg=dcgan; give" in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_classes(tmp_path):
    for name in ("a", "b"):
        write_images(tmp_path / "data" / name, size=(16, 16), count=8)
    run_dir, output = train(tmp_path, f"--data={tmp_path / 'data'}", "--cond=1", "--kimg=0.016")
    assert "2 classes from" in output
    contents = load_snapshot(snapshot_of(run_dir))
    assert contents["G_ema"].c_dim == contents["D"].c_dim == 2


def test_two_processes_equal_one(tmp_path, folders):
    args = (
        f"--source={folders['source']}",
        f"--data={folders['target']}",
        "--source-noise=0.1",
        "--p=0.3",
        "--aug=fixed",
        "--fp32=1",
    )
    one, _ = train(tmp_path, *args, "--source-encoder=conv")
    two, _ = train(tmp_path, *args, "--source-encoder=conv", "--gpus=2")
    a, b = (load_snapshot(snapshot_of(run_dir)) for run_dir in (one, two))
    for name in ("G", "D", "G_ema"):
        for (key, x), (_, y) in zip(a[name].state_dict().items(), b[name].state_dict().items(), strict=True):
            assert torch.allclose(x, y, rtol=1e-5, atol=1e-5), f"{name}.{key}"


def test_torchrun(tmp_path, folders):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py", *TINY]
    result = run(*command, f"--outdir={tmp_path / 'runs'}", "--cfg=stylegan2", f"--data={folders['target']}")
    assert result.returncode == 0, result.stderr
    assert "2 processes" in result.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize(("num_processes", "sent"), [(1, "SIGINT"), (2, "SIGINT"), (1, "SIGTERM"), (2, "SIGUSR1")])
def test_a_signal_saves_and_leaves(tmp_path, folders, num_processes, sent):
    command = [sys.executable, "train.py", *TINY, "--kimg=1000", "--cfg=stylegan2", f"--data={folders['target']}"]
    command += [f"--outdir={tmp_path / 'runs'}", f"--gpus={num_processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("tick 1"):
            if sent == "SIGINT":
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            else:
                os.kill(process.pid, getattr(signal, sent))  # as a scheduler does
            break
    start = time.time()
    output = "".join(lines) + process.communicate(timeout=60)[0]
    assert process.returncode == STOPPED, output
    assert time.time() - start < 30
    assert "Traceback" not in output
    assert "Stopped; the same command with --resume=latest continues." in output
    (run_dir,) = (tmp_path / "runs").iterdir()
    nimg = load_snapshot(snapshot_of(run_dir))["meta"]["cur_nimg"]
    assert read_state(next(run_dir.glob("training-state-*.pt")))["training"]["counters"]["cur_nimg"] == nimg > 0


@pytest.mark.parametrize(("num_processes", "sent"), [(1, "SIGTERM"), (1, "SIGUSR1"), (2, "SIGUSR1")])
def test_a_signal_during_the_start_leaves_nothing(tmp_path, folders, num_processes, sent):
    command = [sys.executable, "-u", "train.py", *TINY, "--cfg=stylegan2", f"--data={folders['target']}"]
    command += [f"--outdir={tmp_path / 'runs'}", f"--gpus={num_processes}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Loading data"):
            process.send_signal(getattr(signal, sent))
            break
    output = "".join(lines) + process.communicate(timeout=60)[0]
    assert process.returncode == STOPPED, output
    assert "Traceback" not in output
    assert list((tmp_path / "runs").iterdir()) == []


def test_dry_run_prints_the_configuration_and_writes_nothing(tmp_path, folders):
    outdir = tmp_path / "runs"
    status, out, _ = run_inside(f"--outdir={outdir}", "--cfg=stylegan3-t", f"--data={folders['target']}", "--dry-run")
    assert status == 0
    start = out.index("{")
    config, end = json.JSONDecoder().raw_decode(out[start:])
    assert config["cfg"] == "stylegan3-t"
    assert "Kernels:" in out[start + end :]  # the summary stays on the screen
    assert not outdir.exists()


OFFICIAL_FLAGS = (
    "outdir cfg data gpus batch gamma cond mirror aug resume freezed p target batch-gpu cbase cmax glr dlr "
    "map-depth mbstd-group desc metrics kimg tick snap seed fp32 nobench workers dry-run"
).split()


def test_help_lists_every_official_flag():
    _, text, _ = run_inside("--help")
    ours = [
        "source",
        "source-encoder",
        "source-norm",
        "source-noise",
        "device",
        "augpipe",
        "cuda-graphs",
        "deterministic",
        "keep",
        "nan-patience",
        "coreset",
        "coreset-factor",
        "resume-augment",
        "resume-optimizer",
    ]
    missing = [flag for flag in OFFICIAL_FLAGS + ours if not re.search(rf"--{flag}\b", text)]
    assert missing == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data=nowhere.zip"], "--data: nowhere.zip: no such file"),
        (["--data=TARGET", "--cuda-graphs=1"], "--cuda-graphs=1 needs a GPU"),
        (["--data=TARGET", "--source=nowhere.pkl"], "--source: nowhere.pkl: no such file"),
        (["--data=TARGET", "--resume=http://127.0.0.1:9/x.pkl"], "--resume: http://127.0.0.1:9/x.pkl"),
        (["--data=TARGET", "--batch=9", "--gpus=2"], "--batch=9"),
        (["--data=TARGET", "--cond=1"], "--cond"),
        (["--data=TARGET", "--cfg=stylegan9"], "--cfg"),
        (["--data=TARGET", "--batch=many"], "--batch"),
        (["--data=TARGET", "--batch-gpu=many"], "neither a number nor auto"),
        (["--data=TARGET", "--source=PICKLE"], "which a snapshot has no business with"),
        (["--data=TARGET", "--gamma=inf"], "--gamma=inf must be a finite number"),
        (["--data=TARGET", "--desc=a/b"], "--desc=a/b"),
        (["--data=TARGET", "--cbase=8"], "--cbase=8"),
        (["--data="], "--data= is empty"),
        (
            ["--data=TARGET", "--metrics=fid1k", "--metrics-data=a.zip", "--metrics-data=b.zip"],
            "--metrics-data: is given 2",
        ),
        (["--data=TARGET", "--metrics=fid1k", "--metrics-data=no.zip"], "--metrics-data: no.zip"),
        ([], "nothing to train on"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, folders, args, words):
    (tmp_path / "evil.pkl").write_bytes(b"\x80\x04cposix\nsystem\nX\x05\x00\x00\x00falsetR.")
    args = [arg.replace("TARGET", str(folders["target"])).replace("PICKLE", str(tmp_path / "evil.pkl")) for arg in args]
    status, out, err = run_inside("--cfg=stylegan2", f"--outdir={tmp_path / 'runs'}", *args)
    assert status == 2, out + err
    assert words.replace("TARGET", str(folders["target"])) in err
    assert len(err.strip().splitlines()) == 1, err
    assert out == ""
    assert not (tmp_path / "runs").exists()


def test_a_broken_source_image_leaves_no_run_folder(tmp_path, folders):
    source = write_images(tmp_path / "source", size=(16, 16))
    data = (source / "003.png").read_bytes()
    (source / "003.png").write_bytes(data[: len(data) // 2])
    args = [f"--source={source}", f"--data={folders['target']}", f"--outdir={tmp_path / 'runs'}"]
    status, _, err = run_inside("--cfg=stylegan2", *TINY, *args)
    assert status == 2
    assert "003.png" in err and "--source" in err
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_broken_image_among_those_looked_at_before_training_leaves_no_run_folder(tmp_path):
    data = write_images(tmp_path / "data", size=(16, 16), count=80)
    whole = (data / "007.png").read_bytes()
    (data / "007.png").write_bytes(whole[: len(whole) * 3 // 4])
    status, _, err = run_inside("--cfg=stylegan2", *TINY, f"--data={data}", f"--outdir={tmp_path / 'runs'}")
    assert status == 2
    assert err.startswith("Error: --data") and "007.png" in err
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_broken_image_met_while_training_saves_the_run(tmp_path, monkeypatch):
    data = write_images(tmp_path / "data", size=(16, 16), count=80)
    whole = (data / "007.png").read_bytes()
    (data / "007.png").write_bytes(whole[: len(whole) * 3 // 4])
    monkeypatch.setattr("training.run.pictures.grid_size", lambda *size: (2, 1))  # pictures at the start without it
    monkeypatch.setattr("training.run.evaluation.REFERENCE_IMAGES", 3)  # and the watch over diversity, too
    outdir = tmp_path / "runs"
    status, _, err = run_inside(
        "--cfg=stylegan2", *TINY, "--kimg=0.1", f"--data={data}", f"--outdir={outdir}", "--workers=0"
    )
    assert status == 2
    assert err.startswith("Error: --data")
    assert "007.png" in err
    (run_dir,) = outdir.iterdir()
    assert load_snapshot(snapshot_of(run_dir))["meta"]["cur_nimg"] > 0


def test_the_watch_sees_the_subset_alone(tmp_path):
    """It judged a run by images that the run was not given."""
    data = write_images(tmp_path / "data", size=(16, 16), count=40)
    config = resolve(TrainingOptions(cfg="stylegan2", data=str(data), batch=8, subset=30)).config
    used = ImageFolderDataset(**config.training_set_kwargs).raw_indices
    for index in sorted(set(range(40)) - set(used.tolist())):
        whole = (data / f"{index:03d}.png").read_bytes()
        (data / f"{index:03d}.png").write_bytes(whole[: len(whole) * 3 // 4])
    run_dir, _ = train(tmp_path, f"--data={data}", "--subset=30", "--metrics=none")
    assert all(0 <= line["Diversity/coverage"]["mean"] <= 1 for line in stats_of(run_dir))
    assert Image.open(run_dir / "neighbors.png").size == (16 * 7, 16 * 8)


def test_metrics_at_snapshots(tmp_path, folders):
    run_dir, _ = train(tmp_path, f"--data={folders['target']}", "--metrics=fid1k_full,kid1k_full,dc1k5", "--snap=1")
    lines = [json.loads(line) for line in (run_dir / "metric-fid1k_full.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [0.016, 0.032]
    assert all(line["results"]["fid1k_full[tiny]"] > 0 for line in lines)
    best = min(lines, key=lambda line: line["results"]["fid1k_full[tiny]"])
    assert [line["snapshot_pkl"] for line in lines] == [f"network-snapshot-000000.0{n}.pkl" for n in (16, 32)]
    assert (run_dir / "network-best.pkl").read_bytes() == (run_dir / best["snapshot_pkl"]).read_bytes()
    assert load_snapshot(run_dir / "network-best.pkl")["meta"]["cur_nimg"] == round(best["kimg"] * 1000)
    assert Image.open(run_dir / "metrics.png").size[0] > 300
    stats = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert 0 <= stats[-1]["Diversity/coverage"]["mean"] <= 1
    timing = {name: value["mean"] for name, value in stats[-1].items() if name.startswith("Timing/")}
    assert timing["Timing/maintenance_sec"] > 0
    assert timing["Timing/sec_per_tick"] + timing["Timing/maintenance_sec"] <= timing["Timing/total_sec"] + 1e-3
    assert Image.open(run_dir / "neighbors.png").size == (16 * 7, 16 * 8)


def test_metrics_may_compare_with_another_set_than_the_training_data(tmp_path, folders):
    args = [f"--data={folders['target']}", "--metrics=fid1k_full", "--kimg=0.016"]
    own, _ = train(tmp_path / "a", *args)
    other, output = train(tmp_path / "b", *args, f"--metrics-data={folders['source']}")
    assert f"against [{folders['source']}]" in output
    a, b = (json.loads((run_dir / "metric-fid1k_full.jsonl").read_text()) for run_dir in (own, other))
    assert a["results"]["fid1k_full[tiny]"] != b["results"]["fid1k_full[tiny]"]
    assert b["metrics_data"] == str(folders["source"]) and "metrics_data" not in a
    on = ["--resume=latest", f"--outdir={other.parent}", "--dry-run"]
    status, out, _ = run_inside(*on, f"--metrics-data={folders['target']}", "--kimg=0.024")
    assert status == 0 and f"--metrics-data: {folders['target']} from here on (so far: {folders['source']})" in out
    status, out, err = run_inside(*on, "--metrics=none", "--kimg=0.024")
    assert status == 0 and "--metrics-data is not used" in out, err


def test_measuring_does_not_change_training(tmp_path, folders):
    args = [f"--data={folders['target']}", "--fp32=1"]
    plain, _ = train(tmp_path / "a", *args)
    measured, _ = train(tmp_path / "b", *args, "--metrics=fid1k", "--snap=1")
    a, b = (load_snapshot(snapshot_of(run_dir))["G_ema"].state_dict() for run_dir in (plain, measured))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("is_dry", [False, True])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--metrics=fid1k_ful"], "did you mean fid"),
        (["--metrics=is1k"], "needs classes"),
        (["--metrics=eqt50k_int"], "needs a StyleGAN3 network"),
        (["--metrics=fid1k", "--detector=inception", "--detector-weights=no.pth"], "--detector-weights: no.pth"),
    ],
)
def test_metrics_that_cannot_be_computed_are_refused_before_training(tmp_path, folders, given, message, is_dry):
    args = [f"--data={folders['target']}", *given, f"--outdir={tmp_path / 'runs'}", *(["--dry-run"] if is_dry else [])]
    status, out, err = run_inside("--cfg=stylegan2", *TINY, *args)
    assert status == 2
    assert message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists() and "Run folder" not in out


def test_a_dry_run_downloads_what_the_run_would_and_no_more(tmp_path, folders, monkeypatch):
    asked = []

    def refuse(url, **_):
        asked.append(str(url))
        raise UserError(f"{url}: cannot be reached")

    monkeypatch.setattr("metrics.detectors.open_url", refuse)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    dry = ["--cfg=stylegan2", f"--data={folders['target']}", "--metrics=fid1k", "--device=cpu", "--dry-run"]
    assert run_inside(*dry)[0] == 0 and asked == []  # auto takes what is at hand
    assert run_inside(*dry, "--detector=tiny")[0] == 0 and asked == []
    status, _, err = run_inside(*dry, "--detector=inception")
    assert status == 2 and asked == [PUBLIC["inception"].url]
    assert err.startswith("Error: --detector=inception: no weights") and len(err.splitlines()) == 1


def test_run_folders_of_runs_that_start_together(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_run_dir(str(tmp_path), "x"), range(40)))
    assert len(set(made)) == 40


def test_dataset_to_images_end_to_end(tmp_path, folders):
    zip_path, outdir = tmp_path / "target.zip", tmp_path / "out"
    assert (
        run("dataset_tool.py", f"--source={folders['target']}", f"--dest={zip_path}", "--resolution=16x16").returncode
        == 0
    )
    run_dir, _ = train(tmp_path, f"--source={folders['source']}", f"--data={zip_path}", cfg="stylegan3-t")
    result = run("gen_images.py", f"--network={snapshot_of(run_dir)}", "--seeds=0-3", f"--outdir={outdir}")
    assert result.returncode == 0, result.stderr
    assert {"seed0000.png", "seed0003.png"} <= {path.name for path in outdir.iterdir()}
