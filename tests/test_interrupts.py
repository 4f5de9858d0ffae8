"""Ctrl-C before a script has begun, and what it imports by then."""

import os
import signal
import subprocess
import sys

import pytest

from dnnlib import interrupts
from tests.helpers.golden import ROOT


def test_all_scripts_are_known():
    armed = {path.stem for path in ROOT.glob("*.py") if "import dnnlib.interrupts" in path.read_text()}
    assert armed == set(interrupts.SCRIPTS)


# What each script must be given before it imports torch; dataset_tool.py never does.
ENOUGH = {
    "calc_metrics": ["--network=a.pkl"],
    "calc_sid": ["--target=a.zip", "--source=b.zip"],
    "gen_images": ["--network=a.pkl", "--seeds=0"],
    "gen_video": ["--network=a.pkl", "--output=a.gif"],
    "legacy": ["--source=a.pkl", "--dest=b.pkl"],
    "train": ["--cfg=stylegan2", "--data=a.zip"],
}


def test_scripts_import_torch_when_they_begin():
    """`--help` of each took 2.5 to 3.8 seconds of a processor, of which torch and scipy were nine tenths."""
    text = f"import sys, {', '.join(interrupts.SCRIPTS)}\nassert not sys.modules.keys() & {{'torch', 'scipy', 'matplotlib'}}"
    subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("script", "module", "rank"),
    [
        *((script, "click", "0") for script in interrupts.SCRIPTS),
        *((script, "torch", "0") for script in ENOUGH),
        ("train", "torch", "1"),
    ],
)
def test_ctrl_c_while_a_script_imports_is_one_line(tmp_path, script, module, rank):
    (tmp_path / f"{module}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, f"{script}.py", *ENOUGH.get(script, [])],
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
