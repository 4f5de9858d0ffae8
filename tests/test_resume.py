"""train.py --resume=latest: to the bit, with what may differ and what may not, from damaged states, over processes."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from dnnlib.files import only_one
from tests.helpers.golden import ROOT
from tests.helpers.runs import (
    TINY,
    assert_same_run,
    resume,
    run_inside,
    snapshot_of,
    snapshots_in,
    state_of,
    stats_of,
    train,
)
from tests.helpers.sources import write_images
from torch_utils.launcher import STOPPED
from training.checkpoints.snapshot import load_snapshot
from training.checkpoints.state_file import (
    SNAPSHOT_PATTERN,
    STATE_PATTERN,
    file_number,
    keep_as_best,
    newest_intact_state,
    numbered,
    read_state,
    write_state,
)
from training.config.resume import rewind_files


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return {
        "target": write_images(root / "target", size=(16, 16), count=20),
        "source": write_images(root / "source", size=(16, 16), count=20, seed=1, mode="RGBA"),
    }


def spider(folders, aug="--target=0.1"):
    return [f"--source={folders['source']}", f"--data={folders['target']}", "--source-noise=0.1", *aug.split()]


def best_of(run_dir, metric="fid1k"):
    """Images seen at the line with the least value."""
    lines = [json.loads(line) for line in (run_dir / f"metric-{metric}.jsonl").read_text().splitlines()]
    return round(1000 * min(lines, key=lambda line: line["results"][f"{metric}[tiny]"])["kimg"])


@pytest.mark.parametrize("cfg", ["stylegan2", "stylegan3-t"])
@pytest.mark.parametrize("stop_at", [0.016, 0.024])  # at the end of a tick of 16 images, and in the middle of one
def test_stopping_and_going_on_is_the_undisturbed_run_to_the_bit(tmp_path, folders, cfg, stop_at):
    args = [*spider(folders), "--snap=1", "--kimg=0.048"]
    whole, _ = train(tmp_path / "whole", *args, cfg=cfg)
    parts, _ = train(tmp_path / "parts", *args, f"--kimg={stop_at}", cfg=cfg)
    output = resume(parts, "--kimg=0.048")
    assert f"goes on from training-state-000000.0{stop_at * 1000:.0f}.pt" in output
    assert "exactly where the run was left" in output
    assert_same_run(whole, parts)
    assert state_of(whole)[".training.counters.cur_nimg"] == 48
    assert snapshots_in(whole) == [16, 32, 48]
    assert snapshots_in(parts) == sorted({16, 32, 48, round(stop_at * 1000)})
    assert any(name.startswith(".training.optimizers.G") for name in state_of(whole))


def test_ticks_and_snapshots_may_come_at_other_times(tmp_path, folders):
    """Another --tick was another run. Networks, optimizers, ADA and position do not depend on it, before or behind."""
    args = [*spider(folders), "--kimg=0.064"]
    whole, _ = train(tmp_path / "whole", *args, "--snap=1")
    parts, _ = train(tmp_path / "parts", *args, "--kimg=0.024", "--snap=1")
    output = resume(parts, "--kimg=0.064", "--tick=0.032", "--snap=1")
    assert "--tick: 0.032 from here on (so far: 0.016): statistics are over other spans" in output
    first, second = state_of(whole), state_of(parts)
    of_networks = [name for name in first if name.startswith((".training", ".step")) and not name.endswith(".cur_tick")]
    assert len(of_networks) > 100
    for name in of_networks:
        value = first[name]
        assert torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name], name
    ticks = [round(1000 * line["Progress/kimg"]["mean"]) for line in stats_of(parts)]
    assert ticks == [16, 32, 64]  # the tick that was under way ends at the next multiple
    assert snapshots_in(parts) == [16, 24, 32, 64]
    assert [snapshots_in(whole)[-1], state_of(parts)[".training.counters.cur_tick"]] == [64, 3]
    output = resume(parts, "--kimg=0.08", "--tick=0.008", "--snap=2")
    assert [round(1000 * line["Progress/kimg"]["mean"]) for line in stats_of(parts)] == [16, 32, 64, 72, 80]
    assert snapshots_in(parts) == [16, 24, 32, 64, 72, 80]


def test_a_third_stage_on_top_of_a_spider_goes_on_to_the_bit(tmp_path, folders):
    """Image source -> stage one -> stage two -> stage three, which is stopped."""
    data = f"--data={folders['target']}"
    first, _ = train(tmp_path / "1", f"--source={folders['source']}", data, "--kimg=0.016")
    second, _ = train(tmp_path / "2", f"--source={snapshot_of(first)}", data, "--kimg=0.016")
    args = [f"--source={snapshot_of(second)}", data, "--source-encoder=conv"]
    whole, _ = train(tmp_path / "whole", *args, "--kimg=0.032")
    parts, _ = train(tmp_path / "parts", *args, "--kimg=0.008")
    resume(parts, "--kimg=0.032")
    assert_same_run(whole, parts)


def stop_in_the_middle(command, sent=signal.SIGTERM):
    """Start a run that would take long, stop it by a signal after its first tick; its output."""
    process = subprocess.Popen(
        [sys.executable, "-u", "train.py", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("tick 1"):
            process.send_signal(sent)
            break
    output = "".join(lines) + process.communicate(timeout=60)[0]
    assert process.returncode == STOPPED, output
    return output


def test_a_signal_in_the_middle_of_anything_changes_nothing(tmp_path, folders):
    command = ["--cfg=stylegan2", *TINY, *spider(folders), f"--outdir={tmp_path / 'parts'}", "--kimg=1000"]
    stop_in_the_middle(command)
    (parts,) = (tmp_path / "parts").iterdir()
    stopped_at = read_state(newest_intact_state(parts)[0])["training"]["counters"]["cur_nimg"]
    kimg = (stopped_at // 16 + 2) * 0.016
    resume(parts, f"--kimg={kimg}")
    whole, _ = train(tmp_path / "whole", *spider(folders), f"--kimg={kimg}")
    for name, value in state_of(whole).items():
        other = state_of(parts)[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    assert stats_of(whole) == stats_of(parts)


def test_another_number_of_processes_goes_on_with_the_same_batches(tmp_path, folders):
    args = [*spider(folders, "--aug=fixed --p=0.3"), "--fp32=1"]
    whole, _ = train(tmp_path / "whole", *args, "--kimg=0.032")
    parts, _ = train(tmp_path / "parts", *args, "--kimg=0.016")
    command = ["--resume=latest", f"--outdir={parts.parent}", "--kimg=0.032", "--gpus=2"]
    output = subprocess.run(
        [sys.executable, "train.py", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert output.returncode == 0, output.stdout + output.stderr
    assert "on 2 processes instead of 1" in output.stdout
    assert "--gpus: 2 instead of None: equal up to rounding" in output.stdout
    first, second = (read_state(newest_intact_state(run_dir)[0])["training"]["networks"] for run_dir in (whole, parts))
    for network, tensors in first.items():
        for name, tensor in tensors.items():
            assert torch.allclose(tensor, second[network][name], rtol=1e-5, atol=1e-5), f"{network}.{name}"


def test_two_processes_go_on_to_the_bit(tmp_path, folders):
    args = [*spider(folders), "--gpus=2", "--snap=1"]
    whole, _ = train(tmp_path / "whole", *args, "--kimg=0.032")
    parts, _ = train(tmp_path / "parts", *args, "--kimg=0.024")
    resume(parts, "--kimg=0.032")
    assert_same_run(whole, parts)


def test_metrics_and_the_best_snapshot_go_on(tmp_path, folders):
    args = [f"--data={folders['target']}", "--metrics=fid1k", "--snap=1"]
    whole, _ = train(tmp_path / "whole", *args, "--kimg=0.048")
    parts, _ = train(tmp_path / "parts", *args, "--kimg=0.032")
    resume(parts, "--kimg=0.048")

    def values(run_dir):
        lines = [json.loads(line) for line in (run_dir / "metric-fid1k.jsonl").read_text().splitlines()]
        return [(line["kimg"], line["results"]) for line in lines]

    assert [kimg for kimg, _ in values(whole)] == [0.016, 0.032, 0.048]
    assert values(whole) == values(parts)
    assert_same_run(whole, parts)


@pytest.mark.parametrize(("place", "snapshots"), [("after a step", [16, 24]), ("within a step", [16])])
def test_a_signal_replaces_no_snapshot(tmp_path, folders, monkeypatch, place, snapshots):
    """All snapshots below a thousand images had one name: the best became another, or what was trained since was not kept.

    After a step there is a new one, with pictures. Within a step there is not: its number is that of the step's beginning.
    """
    from training.run.progress import Progress
    from training.run.step import TrainingStep

    def signalled(progress):
        if place == "after a step" and progress.state.cur_nimg == 24:
            os.kill(os.getpid(), signal.SIGTERM)

    honest = TrainingStep.run_phase

    def run_phase(step, phase, batches):
        if place == "within a step" and step.state.cur_nimg == 16 and phase.name == "Gmain":
            os.kill(os.getpid(), signal.SIGTERM)
        honest(step, phase, batches)

    monkeypatch.setattr(Progress, "step", signalled)
    monkeypatch.setattr(TrainingStep, "run_phase", run_phase)
    args = [f"--data={folders['target']}", "--metrics=fid1k", "--snap=1", "--kimg=0.1"]
    status, out, err = run_inside(f"--outdir={tmp_path}", "--cfg=stylegan2", *TINY, *args)
    assert status == STOPPED, err
    (run_dir,) = tmp_path.iterdir()
    assert ("is from the beginning of this step and stays" in out) == (place == "within a step")
    assert snapshots_in(run_dir) == snapshots
    numbers = [file_number(cur_nimg) for cur_nimg in snapshots]
    assert sorted(path.name for path in run_dir.glob("fakes0*.png")) == [f"fakes{number}.png" for number in numbers]
    first = run_dir / "network-snapshot-000000.016.pkl"
    assert (run_dir / "network-best.pkl").read_bytes() == first.read_bytes()
    counters = read_state(newest_intact_state(run_dir)[0])["training"]["counters"]
    assert (counters["cur_nimg"], counters["phases_done"]) == ((24, 0) if place == "after a step" else (16, 1))


@pytest.fixture(scope="module")
def judged_run(folders, tmp_path_factory):
    args = [f"--data={folders['target']}", "--metrics=fid1k", "--snap=1", "--kimg=0.032"]
    run_dir, _ = train(tmp_path_factory.mktemp("judged"), *args)
    return run_dir


def test_what_a_lost_state_takes_back_is_set_aside(tmp_path, judged_run):
    """The newest state is gone and the pace is another one: the snapshot of 32 images is made anew, and is another network."""
    twin = copy_of(judged_run, tmp_path)
    old = twin / "network-snapshot-000000.032.pkl"
    before = old.read_bytes()
    (twin / "training-state-000000.032.pt").unlink()
    pretend_values(twin, [2.0, 1.0])
    keep_as_best(twin / "network-best.pkl", old)
    unfinished(twin)
    output = resume(twin, "--glr=0.1", "--keep=2")
    assert "network-snapshot-000000.032.pkl is of the time after the state that is continued" in output
    assert (twin / "earlier-network-snapshot-000000.032.pkl").read_bytes() == before
    assert (twin / "earlier-network-best.pkl").read_bytes() == before != old.read_bytes()
    lines = [json.loads(line) for line in (twin / "metric-fid1k.jsonl").read_text().splitlines()]
    best = min(
        lines[-2:], key=lambda line: line["results"]["fid1k[tiny]"]
    )  # which one is a matter of the processor's rounding
    assert (twin / "network-best.pkl").read_bytes() == (twin / best["snapshot_pkl"]).read_bytes()
    assert snapshots_in(twin) == [16, 32]


def pretend_values(run_dir, values):
    """Write others into the lines of the metric."""
    path = run_dir / "metric-fid1k.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, value in zip(lines, values, strict=True):
        line["results"]["fid1k[tiny]"] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def unfinished(run_dir):
    """As if the run had been killed before its end."""
    options = json.loads((run_dir / "training_options.json").read_text())
    del options["finished_kimg"]
    (run_dir / "training_options.json").write_text(json.dumps(options))


def test_a_run_of_an_earlier_version_goes_on(tmp_path, judged_run):
    """Its files have six digits, whatever the rest, and its best is a link; --keep does not take that away."""
    twin = copy_of(judged_run, tmp_path)
    (twin / "network-snapshot-000000.016.pkl").unlink()
    (twin / "training-state-000000.016.pt").unlink()
    (twin / "network-snapshot-000000.032.pkl").rename(twin / "network-snapshot-000000.pkl")
    (twin / "training-state-000000.032.pt").rename(twin / "training-state-000000.pt")
    (twin / "network-best.pkl").unlink()
    (twin / "network-best.pkl").symlink_to("network-snapshot-000000.pkl")
    pretend_values(twin, [2.0, 1.0])
    before = (twin / "network-best.pkl").read_bytes()
    output = resume(twin, "--kimg=0.064", "--keep=1")
    assert "goes on from training-state-000000.pt" in output
    assert [path.name for path in numbered(twin, SNAPSHOT_PATTERN)] == ["network-snapshot-000000.064.pkl"]
    assert not (twin / "network-best.pkl").is_symlink()
    assert (twin / "network-best.pkl").read_bytes() == before


def test_an_evaluation_that_is_made_up_for_names_a_file_that_is_there(tmp_path, judged_run):
    """An earlier version called it 000000; a full disk may have kept it from being written."""
    twin = copy_of(judged_run, tmp_path)
    path = twin / "training-state-000000.032.pt"
    write_state(path, {**read_state(path), "evaluation_due": True})
    (twin / "network-snapshot-000000.032.pkl").unlink()
    unfinished(twin)
    resume(twin)
    lines = [json.loads(line) for line in (twin / "metric-fid1k.jsonl").read_text().splitlines()]
    assert [line["snapshot_pkl"] for line in lines] == [f"network-snapshot-000000.0{n}.pkl" for n in (16, 32)]
    assert snapshots_in(twin) == [16, 32]


def test_tensorboard_counts_images_everywhere(judged_run):
    """Losses were floored and metrics rounded to whole kimg: those of one snapshot stood at different steps."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(judged_run))
    events.Reload()
    for name in ("Loss/G/loss", "Metrics/fid1k[tiny]"):
        assert [event.step for event in events.Scalars(name)] == [16, 32]


@pytest.fixture(scope="module")
def stopped_run(folders, tmp_path_factory):
    run_dir, _ = train(tmp_path_factory.mktemp("stopped"), *spider(folders), "--kimg=0.016")
    return run_dir


def copy_of(run_dir, tmp_path):
    twin = tmp_path / "runs" / run_dir.name
    twin.mkdir(parents=True)
    for path in run_dir.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    return twin


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--batch=16"], "--batch=16: the run in"),
        (["--cfg=stylegan3-t"], "--cfg=stylegan3-t: the run in"),
        (["--source-encoder=conv"], "leave the flag out to continue it"),
        (["--data=nowhere.zip"], "--data: nowhere.zip: no such file"),
        (["--data=SOURCE"], "--data: does not hold the images"),
        (["--data=OTHER"], "--data: does not hold the images"),
        (["--source=OTHER"], "--source"),
    ],
)
def test_another_run_is_not_continued(tmp_path, stopped_run, folders, args, words):
    twin = copy_of(stopped_run, tmp_path)
    other = write_images(tmp_path / "other", size=(16, 16), count=20, seed=5)
    before = {path.name: path.read_bytes() for path in twin.iterdir()}
    args = [arg.replace("SOURCE", str(folders["source"])).replace("OTHER", str(other)) for arg in args]
    status, _, err = run_inside("--resume=latest", f"--outdir={twin.parent}", "--kimg=0.032", *args)
    assert status == 2
    assert words in err and len(err.splitlines()) == 1
    after = {path.name: path.read_bytes() for path in twin.iterdir()}
    after.pop("log.txt"), before.pop("log.txt")
    assert after == before
    assert len(list(twin.parent.iterdir())) == 1


def test_what_may_differ_is_noted(tmp_path, stopped_run):
    twin = copy_of(stopped_run, tmp_path)
    output = resume(twin, "--kimg=0.024", "--gamma=3", "--workers=1", "--batch-gpu=4")
    assert "--gamma: 3.0 from here on (so far: None)" in output
    assert "--batch_gpu" not in output
    assert "--batch-gpu: 4 instead of None: equal up to rounding" in output
    options = json.loads((twin / "training_options.json").read_text())
    assert (options["r1_gamma"], options["options"]["gamma"], options["batch_gpu_chosen"]) == (3, 3, 4)
    assert "from here on" not in resume(twin, "--kimg=0.032")  # it is the run's own now


def test_the_run_may_be_named_and_moved(tmp_path, stopped_run, folders):
    twin = copy_of(stopped_run, tmp_path)
    moved = tmp_path / "elsewhere"
    folders["target"].rename(moved)
    try:
        status, out, err = run_inside(f"--resume={twin}", "--kimg=0.024", f"--data={moved}")
    finally:
        moved.rename(folders["target"])
    assert status == 0, out + err
    assert state_of(twin)[".training.counters.cur_nimg"] == 24
    status, _, err = run_inside(f"--resume={tmp_path}", "--cfg=stylegan2")
    assert status == 2
    assert "is no run folder" in err


def test_a_complete_run_is_left_as_it_is(tmp_path, stopped_run):
    twin = copy_of(stopped_run, tmp_path)
    before = {path.name: path.read_bytes() for path in twin.iterdir()}
    assert "is complete (0.016 kimg)" in resume(twin)
    assert {path.name: path.read_bytes() for path in twin.iterdir()} == before


def test_latest_begins_where_there_is_nothing_yet(tmp_path, folders):
    run_dir, output = train(tmp_path, *spider(folders), "--resume=latest", "--kimg=0.016")
    assert "there is no run in" in output
    assert run_dir.name.startswith("00000-")
    status, _, err = run_inside(f"--outdir={tmp_path / 'empty'}", "--resume=latest")
    assert status == 2
    assert "--cfg is missing" in err


def test_a_run_without_a_state_begins_again_in_its_folder(tmp_path, stopped_run):
    twin = copy_of(stopped_run, tmp_path)
    for path in [*numbered(twin, STATE_PATTERN), snapshot_of(twin)]:
        path.unlink()
    options = json.loads((twin / "training_options.json").read_text())
    del options["finished_kimg"]
    (twin / "training_options.json").write_text(json.dumps(options))
    output = resume(twin)
    assert "from its beginning" in output
    assert_same_run(stopped_run, twin)
    assert len(list(twin.parent.iterdir())) == 1


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, folders):
    args = [*spider(folders), "--tick=1", "--batch=500", "--mbstd-group=1", "--snap=1"]
    run_dir, _ = train(tmp_path, *args, "--kimg=2")
    newest, older = numbered(run_dir, STATE_PATTERN)
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    status, out, err = run_inside("--resume=latest", f"--outdir={run_dir.parent}", "--kimg=3", "--dry-run")
    assert status == 0, err
    assert f"{newest}: is damaged" in out
    assert older.name in out
    older.write_bytes(b"x" + older.read_bytes()[1:])
    status, _, err = run_inside("--resume=latest", f"--outdir={run_dir.parent}", "--kimg=3", "--dry-run")
    assert status == 2
    assert "no older state is left" in err and len(err.splitlines()) == 1


def test_old_files_go_and_the_best_and_last_stay(tmp_path, folders):
    args = [f"--data={folders['target']}", "--tick=1", "--batch=500", "--mbstd-group=1", "--snap=1", "--kimg=4"]
    run_dir, _ = train(tmp_path, *args, "--keep=1", "--metrics=fid1k")
    assert [path.name for path in run_dir.glob("network-snapshot-*.pkl")] == ["network-snapshot-000004.pkl"]
    assert load_snapshot(run_dir / "network-best.pkl")["meta"]["cur_nimg"] == best_of(run_dir)
    assert [path.name for path in run_dir.glob("training-state-*")] == ["training-state-000004.pt"]


def test_transfer_takes_over_what_is_asked_for(tmp_path, folders):
    first, _ = train(tmp_path / "a", *spider(folders, "--aug=fixed --p=0.4"), "--kimg=0.032")
    args = [*spider(folders), f"--resume={snapshot_of(first)}", "--kimg=0.008"]
    plain, _ = train(tmp_path / "b", *args)
    taken, output = train(tmp_path / "c", *args, "--resume-augment=1", "--resume-optimizer=1")
    assert "augmentation probability 0.400" in output
    assert "G: the optimizer's moments of" in output
    steps = {
        name: state_of(run_dir)[".training.optimizers.G.mapping.fc0.weight.step"] for name, run_dir in
        (("first", first), ("plain", plain), ("taken", taken))
    }  # fmt: skip
    assert steps["taken"] == steps["first"] + steps["plain"]
    assert float(state_of(plain)[".training.augment_pipe.p"]) < 0.01
    assert float(state_of(taken)[".training.augment_pipe.p"]) > 0.39
    for path in numbered(first, STATE_PATTERN):
        path.unlink()
    status, _, err = run_inside("--cfg=stylegan2", *TINY, *args, "--resume-optimizer=1", f"--outdir={tmp_path / 'd'}")
    assert status == 2
    assert "--resume-optimizer=1: there is no training-state-000000.032.pt" in err


def test_nan_ends_the_run_with_the_state_before_it(tmp_path, folders, monkeypatch):
    from training import losses

    row, calls = losses.LOSSES["logistic"], []

    def breaks_later(logits, real_logits):
        calls.append(None)
        return row.generator(logits, real_logits) * (float("nan") if len(calls) > 2 else 1)

    monkeypatch.setitem(losses.LOSSES, "logistic", dataclasses.replace(row, generator=breaks_later))
    args = [f"--outdir={tmp_path}", "--cfg=stylegan2", *TINY, *spider(folders), "--nan-patience=2", "--kimg=0.1"]
    status, out, err = run_inside(*args)
    assert status == 2
    assert "losses or gradients of Gmain were not finite in 3 steps in a row" in err
    assert "training-state-000000.016.pt" in err.splitlines()[-1] and "Traceback" not in err
    assert "2 more in a row are allowed" not in out and "1 more in a row are allowed (--nan-patience)" in out
    (run_dir,) = tmp_path.iterdir()
    counters = read_state(newest_intact_state(run_dir)[0])["training"]["counters"]
    assert (counters["batch_idx"], counters["phases_done"]) == (2, 0)
    monkeypatch.undo()
    output = resume(run_dir, "--kimg=0.04", "--gamma=1")
    assert "Done." in output
    assert np.isfinite([line["Loss/G/loss"]["mean"] for line in stats_of(run_dir)]).all()


def test_a_signal_during_an_evaluation_leaves_it_to_the_resumed_run(tmp_path, folders, monkeypatch):
    from metrics import metric_main
    from metrics.stopping import Stopped

    args = [f"--data={folders['target']}", "--metrics=fid1k", "--snap=1", "--kimg=0.016"]
    honest, calls = metric_main.calc_metric, []

    def interrupted(name, opts):
        calls.append(name)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not opts.keep_going()
        raise Stopped

    monkeypatch.setattr(metric_main, "calc_metric", interrupted)
    status, out, err = run_inside(f"--outdir={tmp_path / 'parts'}", "--cfg=stylegan2", *TINY, *args)
    assert status == STOPPED, out + err
    assert "left out" in out and len(calls) == 1
    monkeypatch.setattr(metric_main, "calc_metric", honest)
    (parts,) = (tmp_path / "parts").iterdir()
    assert not (parts / "metric-fid1k.jsonl").exists()
    resume(parts)
    whole, _ = train(tmp_path / "whole", *args)
    assert_same_run(whole, parts)
    (line,) = (parts / "metric-fid1k.jsonl").read_text().splitlines()
    assert json.loads(line)["kimg"] == 0.016
    assert len(stats_of(parts)) == 1


def test_a_run_whose_states_are_gone_does_not_start_from_zero(tmp_path, folders):
    """It did, in its old folder, over the pictures and metrics of its first life."""
    run_dir, _ = train(tmp_path, *spider(folders), "--kimg=0.016")
    for path in numbered(run_dir, STATE_PATTERN):
        path.unlink()
    before = {path.name: path.stat().st_mtime_ns for path in run_dir.iterdir()}
    status, _, err = run_inside(f"--resume={run_dir}", "--kimg=0.032")
    assert status == 2 and "has snapshots and no training state" in err and f"--resume={snapshot_of(run_dir)}" in err
    assert {path.name: path.stat().st_mtime_ns for path in run_dir.iterdir()} == before
    status, out, _ = run_inside(f"--resume={run_dir}")
    assert status == 0 and "is complete" in out


def test_a_damaged_newer_state_does_not_outlive_good_ones(tmp_path, folders):
    args = [*spider(folders), "--tick=1", "--batch=500", "--mbstd-group=1", "--snap=1"]
    run_dir, _ = train(tmp_path, *args, "--kimg=3")
    newest, _ = numbered(run_dir, STATE_PATTERN)
    newest.write_bytes(newest.read_bytes()[:1000])
    options = run_dir / "training_options.json"
    options.write_text(
        options.read_text().replace('"finished_kimg": 3.0', '"finished_kimg": 0')
    )  # as if it had been killed
    resume(run_dir, "--kimg=2.5", "--keep=1")
    assert [path.name for path in numbered(run_dir, STATE_PATTERN)] == ["training-state-000002.500.pt"]
    assert (run_dir / f"{newest.name}.damaged").stat().st_size == 1000
    assert "Resume: 2.5 kimg" in resume(run_dir, "--kimg=3")


def test_a_run_that_cannot_go_on_keeps_its_folder(tmp_path, stopped_run, monkeypatch):
    from training import training_loop

    twin = copy_of(stopped_run, tmp_path)
    (twin / "stats.jsonl").unlink()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_loop, "training_loop", interrupted)
    status, _, _ = run_inside(f"--resume={twin}", "--kimg=0.04")
    assert status == 130
    assert snapshot_of(twin).is_file()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", "x"), ("metrics", 5), ("metrics", ["fid1k", 3]), ("data", 7), ("workers", "3"), ("mirror", "yes"),
        ("seed", True), ("kimg", None), ("unknown", 1), ("cfg", ["stylegan2"]),
    ],
)  # fmt: skip
def test_options_of_other_types_are_refused(tmp_path, stopped_run, name, value):
    path = copy_of(stopped_run, tmp_path) / "training_options.json"
    saved = json.loads(path.read_text())
    saved["options"][name] = value
    path.write_text(json.dumps(saved))
    assert_not_ours(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("desc", 3),
        ("source", {"kind": "images"}),
        ("source", {"kind": "images", "path": 5}),
        ("source", []),
        ("source", {"kind": "else"}),
        ("source", {"kind": "images", "path": "a", "match": {"kind": "label", "pairs": "a"}}),
        ("prior", {"dim": 3}),
        ("prior", 3),
        ("finished_kimg", "a"),
    ],
)
def test_a_configuration_of_other_types_is_refused(tmp_path, stopped_run, name, value):
    path = copy_of(stopped_run, tmp_path) / "training_options.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert_not_ours(path)


def assert_not_ours(path):
    status, _, err = run_inside(f"--resume={path.parent}", "--kimg=0.04")
    assert status == 2
    assert err.startswith(f"Error: --resume: {path}") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("training"),
        lambda state: state["training"].pop("networks"),
        lambda state: state["training"]["networks"]["G"].popitem(),
        lambda state: state["training"].update(counters={"cur_nimg": 0}),
        lambda state: state["training"].update(precision=3),
        lambda state: state.update(progress=None),
        lambda state: state.update(random=[]),
        lambda state: state["step"].clear(),
    ],
)
def test_a_state_that_somebody_changed_is_one_line(tmp_path, stopped_run, change):
    twin = copy_of(stopped_run, tmp_path)
    (path,) = numbered(twin, STATE_PATTERN)
    state = read_state(path)
    change(state)
    write_state(path, state)
    status, _, err = run_inside(f"--resume={twin}", "--kimg=0.04")
    assert status == 2
    assert err.startswith("Error: ") and "training state" in err and len(err.splitlines()) == 1
    assert snapshot_of(twin).is_file()


def test_taking_lines_back_needs_no_room_where_none_is_to_be_taken(tmp_path, monkeypatch):
    path = tmp_path / "stats.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(UserError, match="No space left"):
            rewind_files(tmp_path, 1, 1.0, metrics_due=[])
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a"'
    rewind_files(tmp_path, 1, 1.0, metrics_due=[])
    monkeypatch.setattr("os.fsync", full_disk)
    rewind_files(tmp_path, 1, 1.0, metrics_due=[])
    assert path.read_text() == '{"a": 1}\n'


def full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_two_runs_do_not_share_a_folder(tmp_path, stopped_run):
    twin = copy_of(stopped_run, tmp_path)
    before = {path.name: path.read_bytes() for path in twin.iterdir()}
    with only_one(twin) as is_alone:
        assert is_alone
        status, _, err = run_inside(f"--resume={twin}", "--kimg=0.04")
    assert status == 2
    assert f"another run goes on in {twin}" in err and len(err.splitlines()) == 1
    assert before == {path.name: path.read_bytes() for path in twin.iterdir()}
    assert "Done." in resume(twin, "--kimg=0.04")
