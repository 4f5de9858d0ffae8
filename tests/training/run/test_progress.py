"""Times and speeds of a run, by a clock that the test turns."""

from types import SimpleNamespace

import pytest
import torch

from training.run import progress as progress_module
from training.run.progress import Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def time(self):
        return self.now


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of 100 images a second, whose steps are a second."""
    clock = Clock()
    monkeypatch.setattr(progress_module.time, "time", clock.time)
    events = SimpleNamespace(add_scalar=lambda *args, **kwargs: None, flush=lambda: None, close=lambda: None)
    monkeypatch.setattr(Progress, "_open_events", lambda self: events)
    state = SimpleNamespace(cur_nimg=0, cur_tick=0, augment_pipe=None)
    progress = Progress(tmp_path, state, 100, torch.device("cpu"))
    reported = {}
    monkeypatch.setattr(progress_module.training_stats, "report0", lambda name, value: reported.update({name: value}))

    def steps(num):
        for _ in range(num):
            clock.now += 1
            state.cur_nimg += 100
            progress.step()

    def tick(maintenance_sec=0.0):
        state.cur_tick += 1
        progress.tick()
        if maintenance_sec:
            clock.now += maintenance_sec
            progress.resume_clock()
        return reported

    yield SimpleNamespace(progress=progress, clock=clock, steps=steps, tick=tick)
    progress.close()


def test_how_long_it_takes_is_said_once(run, capsys):
    run.steps(16)
    assert "About" not in capsys.readouterr().out
    run.steps(40)
    said = capsys.readouterr().out
    assert said.count("About ") == 1 and "About 16m 23s to 100 kimg, at 100 img/s so far." in said
    assert "Warning" not in said


def test_a_run_of_weeks_is_a_warning(run, capsys):
    run.progress.total_kimg = 25_000_000
    run.steps(17)
    assert "Warning: that is long." in capsys.readouterr().out


def test_a_short_run_says_nothing(run, capsys):
    run.progress.total_kimg = 3
    run.steps(20)
    assert capsys.readouterr().out == ""


def test_the_speed_is_that_of_training_whatever_ticks_and_snapshots_take(run, capsys):
    """260.0 img/s were printed: a snapshot set the beat's clock to 0 and left its images."""
    for maintenance_sec in (20, 20, 0, 20, 0, 0, 0):  # ticks of 12 s, snapshots after 1, 2 and 4
        run.steps(12)
        run.tick(maintenance_sec)
    lines = [line for line in capsys.readouterr().out.splitlines() if "img/s," in line]
    assert len(lines) == 2 and all(" 100.0 img/s" in line for line in lines)


def test_time_for_snapshots_is_reported_once(run):
    """Ticks without a snapshot repeated the seconds of the last one."""
    seconds = []
    for maintenance_sec in (20, 0, 0):
        run.steps(10)
        seconds.append(run.tick(maintenance_sec)["Timing/maintenance_sec"])
    assert seconds == [0, 20, 0]


def test_a_resumed_run_that_evaluates_first_keeps_the_time_of_its_tick(run):
    """10 ms per image are 10 s per kimg; 5 s were reported: the tick's clock was set to 0, not its images."""
    run.progress.load_state_dict(run.progress.state_dict() | {"tick_nimg": -1000, "tick_sec": 10.0, "total_sec": 10.0})
    run.clock.now += 50
    run.progress.resume_clock()
    run.steps(10)
    timing = run.tick()
    assert timing["Timing/sec_per_kimg"] == pytest.approx(10)
    assert timing["Timing/total_sec"] == pytest.approx(70)
