"""Ctrl-C before a script has begun."""

import os
import signal
import subprocess
import sys

import pytest

from dnnlib import interrupts
from tests.conftest import ROOT


def test_all_scripts_are_known():
    armed = {path.stem for path in ROOT.glob("*.py") if "import dnnlib.interrupts" in path.read_text()}
    assert armed == set(interrupts.SCRIPTS)


@pytest.mark.parametrize(("script", "rank"), [*((script, "0") for script in interrupts.SCRIPTS), ("train", "1")])
def test_ctrl_c_while_a_script_imports_is_one_line(tmp_path, script, rank):
    (tmp_path / "click.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, f"{script}.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "RANK": rank},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with Ctrl-C ignored, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (interrupts.EXIT_CODE, "Interrupted.\n" if rank == "0" else "")


def test_other_programs_keep_their_handler(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for program in (ROOT / "my_script.py", ROOT.parent / "train.py"):
            monkeypatch.setattr(sys.modules["__main__"], "__file__", str(program), raising=False)
            monkeypatch.setattr(sys, "orig_argv", ["python", "--multiprocessing-fork"])
            interrupts.begin()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        monkeypatch.setattr(sys.modules["__main__"], "__file__", str(ROOT / "train.py"), raising=False)
        interrupts.begin()
        assert signal.getsignal(signal.SIGINT) is interrupts.leave
        interrupts.end()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
