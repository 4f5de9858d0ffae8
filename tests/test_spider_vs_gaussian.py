"""bench/spider_vs_gaussian.py: what is run, what is run again, and the numbers that come out."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest

import dnnlib.cli
from bench import spider_vs_gaussian as evidence
from torch_utils.launcher import STOPPED


def main(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["spider_vs_gaussian.py", *map(str, args)])
    with pytest.raises(SystemExit) as leaving:
        dnnlib.cli.run(evidence.main)
    return leaving.value.code, *capsys.readouterr()


@pytest.fixture
def trainings(monkeypatch):
    """train.py replaced by one that writes FIDs 100 / kimg (half of that, with a source) and its arguments."""
    calls, status = [], SimpleNamespace(code=0)

    def fake(command, **_):
        calls.append(command[2:])
        flags = dict(argument[2:].split("=", 1) for argument in command[2:])
        folder = evidence.Path(flags["outdir"])
        if status.code == 0 and flags.get("resume") != "latest":
            run_dir = folder / "00000-run"
            run_dir.mkdir()
            (run_dir / "network-snapshot-000001.pkl").touch()
            kimg, better = float(flags["kimg"]), 2 if "source" in flags else 1
            lines = [
                {"metric": "fid1k_full", "results": {"fid1k_full[tiny]": 100 / better / step}, "kimg": step * kimg / 4}
                for step in (1, 2, 3, 4)
            ]
            (run_dir / "metric-fid1k_full.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if status.code == 0:
            (folder / "00000-run" / "training_options.json").write_text(
                json.dumps({"finished_kimg": float(flags["kimg"])})
            )
        return SimpleNamespace(returncode=status.code)

    monkeypatch.setattr(subprocess, "run", fake)
    return SimpleNamespace(calls=calls, status=status)


def arguments(tmp_path, *more):
    return [f"--outdir={tmp_path}", "--kimg=8", "--snapshots=4", "--metrics=fid1k_full", "--seeds=0,1", *more]


def test_a_curve_reaches_a_level_between_its_points():
    curve = [(1.0, 30.0), (2.0, 20.0), (3.0, 25.0), (4.0, 5.0)]
    assert evidence.first_reach(curve, 20) == 2
    assert evidence.first_reach(curve, 25) == 1.5
    assert evidence.first_reach(curve, 15) == 3.5
    assert evidence.first_reach(curve, 40) == 1  # not before it was measured
    assert evidence.first_reach(curve, 4) == math.inf
    assert evidence.first_reach([(1.0, math.inf), (2.0, 3.0)], 4) == 2


def test_the_share_to_reach():
    baseline = [(2.0, 40.0), (4.0, 20.0), (6.0, 10.0), (8.0, 12.0)]
    assert evidence.share_to_reach(baseline, baseline) == 1
    assert evidence.share_to_reach(baseline, [(2.0, 20.0), (4.0, 0.0)]) == 0.5
    assert evidence.share_to_reach(baseline, [(2.0, 20.0), (4.0, 11.0)]) == math.inf


def test_pairs_are_trained_once_and_compared(tmp_path, monkeypatch, capsys, trainings):
    args = arguments(tmp_path, "--challenger=images: --source=a.zip", "--", "--cfg=stylegan2", "--data=b.zip")
    status, out, err = main(monkeypatch, capsys, *args)
    assert status == 0, err
    seeds = [next(flag for flag in call if flag.startswith("--seed=")) for call in trainings.calls]
    assert seeds == ["--seed=0", "--seed=0", "--seed=1", "--seed=1"]
    assert [("--source=a.zip" in call) for call in trainings.calls] == [False, True] * 2
    without = [[flag for flag in call if not flag.startswith(("--outdir", "--source"))] for call in trainings.calls]
    assert without[0] == without[1]
    result = json.loads((tmp_path / "results.json").read_text())
    shares = result["summaries"]["fid1k_full"]["images"]["iterations"]
    assert shares == {"0": 0.5, "1": 0.5}  # 25 = 50 / 2 at half of the way
    assert "median 0.50, 0.50 to 0.50" in out
    assert (tmp_path / "curves.png").stat().st_size > 1000
    status, out, _ = main(monkeypatch, capsys, *args)
    assert status == 0 and out.count("finished already") == 4 and len(trainings.calls) == 4
    longer = [arg.replace("--kimg=8", "--kimg=16") for arg in args]
    assert main(monkeypatch, capsys, *longer)[0] == 0
    assert trainings.calls[-1] == ["--resume=latest", f"--outdir={tmp_path / 'images' / '1'}", "--kimg=16"]


def test_what_never_gets_there_is_said(tmp_path, monkeypatch, capsys, trainings):
    args = arguments(tmp_path, "--baseline=--source=a.zip", "--challenger=noise:", "--", "--cfg=stylegan2")
    status, out, _ = main(monkeypatch, capsys, *args)
    assert status == 0
    assert "median never, never to never (2 of 2)" in out
    assert json.loads((tmp_path / "results.json").read_text())["summaries"]["fid1k_full"]["noise"]["iterations"] == {
        "0": None, "1": None
    }  # fmt: skip


def test_stage_one_is_trained_before_and_handed_on(tmp_path, monkeypatch, capsys, trainings):
    more = ["--stage-one=--data=a.zip --kimg=3", "--challenger=both: --source={stage1} --resume={stage1}"]
    args = arguments(tmp_path, *more, "--seeds=5", "--", "--cfg=stylegan2", "--data=b.zip")
    status, _, err = main(monkeypatch, capsys, *args)
    assert status == 0, err
    first, _, both = trainings.calls
    assert "--data=a.zip" in first and "--data=b.zip" not in first and first[-1] == "--kimg=3"
    snapshot = tmp_path / "stage one" / "5" / "00000-run" / "network-snapshot-000001.pkl"
    assert {f"--source={snapshot}", f"--resume={snapshot}", "--data=b.zip"} <= set(both)
    assert main(monkeypatch, capsys, *args)[1].count("finished already") == 3


def test_only_some(tmp_path, monkeypatch, capsys, trainings):
    args = ["--challenger=a: --source=a.zip", "--challenger=b: --source=b.zip", "--only=a", "--only=baseline/1"]
    assert main(monkeypatch, capsys, *arguments(tmp_path, *args), "--", "--cfg=stylegan2")[0] == 0
    assert [call[0].removeprefix(f"--outdir={tmp_path}/") for call in trainings.calls] == ["a/0", "baseline/1", "a/1"]


def test_a_training_that_stops_or_fails_ends_it_in_one_line(tmp_path, monkeypatch, capsys, trainings):
    args = arguments(tmp_path, "--", "--cfg=stylegan2")
    for code, words in ((STOPPED, "stopped; the same command continues"), (2, "baseline, seed 0 failed")):
        trainings.status.code = code
        status, _, err = main(monkeypatch, capsys, *args)
        assert status == 2 and words in err and len(err.splitlines()) == 1
    trainings.status.code = 0
    assert main(monkeypatch, capsys, *args)[0] == 0
    status, _, err = main(monkeypatch, capsys, *args[:-1], "--cfg=stylegan3-t")
    assert status == 2 and "holds a training with other flags" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--challenger=--source=a.zip"], "is no 'NAME: FLAGS'"),
        (["--challenger=baseline: --source=a.zip"], "with a name of its own"),
        (["--challenger=a: --source={stage1}"], "give that, too"),
        (["--seeds=a"], "is no list of numbers"),
        (["--kimg=0"], "--kimg"),
        (["--", "--cfg", "stylegan2"], "each as --flag=value"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, trainings, args, words):
    status, _, err = main(monkeypatch, capsys, *arguments(tmp_path, *args))
    assert status == 2 and words in err and len(err.splitlines()) == 1, err
    assert trainings.calls == []
