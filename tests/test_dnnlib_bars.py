"""Progress bars leave multiprocessing alone."""

import io
import re
import subprocess
import sys
import threading

from dnnlib import bars
from tests.helpers.golden import ROOT


def test_bars_do_not_fix_the_start_method():
    """A bar fixed it to fork, so that `set_start_method("spawn")` raised "context has already been set" afterwards."""
    code = (
        "import multiprocessing, dnnlib.bars\n"
        "for disable in (True, False): dnnlib.bars.tqdm(range(2), disable=disable).close()\n"
        "dnnlib.bars.tqdm.write('')\n"
        "print(multiprocessing.get_start_method(allow_none=True))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["None"]


def test_every_bar_is_of_this_kind():
    assert isinstance(bars.tqdm.get_lock(), type(threading.RLock()))
    folders = [ROOT, *(ROOT / name for name in ("dnnlib", "metrics", "torch_utils", "training", "demo"))]
    files = [path for folder in folders for path in folder.glob("*.py") if path.name != "bars.py"]
    assert len(files) > 50
    assert [path.name for path in files if re.search(r"^\s*(from|import) tqdm", path.read_text(), re.MULTILINE)] == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_log_a_bar_is_a_line_now_and_then(monkeypatch):
    """calc_sid.py into a file was silent for minutes: no bar took long enough; pre-training's were glued with `\\r`."""
    log, now = io.StringIO(), [1000.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(bars.Lines, "said_at", 1000.0)
    for _ in range(3):  # short computations, one after the other
        with bars.tqdm(total=10, desc="tiny of cats", unit="img", disable=None, file=log) as bar:
            for _ in range(10):
                now[0] += 1
                bar.n += 1
                bar.refresh()
    lines = log.getvalue().splitlines()
    assert len(lines) == 2 and "\r" not in log.getvalue()
    assert re.fullmatch(r"tiny of cats:  50% 5/10 \[00:00<.*\]", lines[0])


def test_on_a_terminal_a_bar_is_a_bar():
    terminal = Terminal()
    with bars.tqdm(total=2, desc="tiny of cats", disable=None, file=terminal, mininterval=0) as bar:
        bar.update(2)
    assert "\rtiny of cats: 100%|" in terminal.getvalue()
