"""Progress bars leave multiprocessing alone."""

import re
import subprocess
import sys
import threading

from dnnlib import bars
from tests.conftest import ROOT


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
