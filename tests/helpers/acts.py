"""What the tests of the launcher run in two processes: python -m tests.helpers.acts NAME [ARGUMENT ...]"""

import os
import signal
import sys
import time
from datetime import timedelta

import torch

from dnnlib.errors import UserError
from torch_utils import distributed, launcher


def share(device):
    distributed.print0(f"sum {distributed.all_sum(torch.ones(1)).item():g}")
    return 0


def make_the_same_mistake(device):
    raise UserError("--data=x: nothing\nthere")


def crash_on_rank_1(device):
    if distributed.get_rank() == 1:
        raise ZeroDivisionError("on purpose")
    distributed.barrier()
    return 0


def be_killed_on_rank_1(device):
    distributed.barrier()  # they have met
    if distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()
    return 0


def hang_on_rank_1(device):
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=3), torch.distributed.group.WORLD)
    if distributed.get_rank() == 1:
        time.sleep(300)
    distributed.barrier()
    return 0


def stop_when_asked(folder, device):
    asked = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: asked.append(number))
    open(os.path.join(folder, f"{distributed.get_rank()}-{os.getpid()}"), "w").close()
    deadline = time.time() + 60
    while not asked and time.time() < deadline:
        time.sleep(0.05)
    return launcher.STOPPED if asked else 1


if __name__ == "__main__":
    launcher.GRACE_SEC = 3.0
    from tests.helpers import acts  # processes import the functions by this name

    sys.exit(launcher.launch(getattr(acts, sys.argv[1]), 2, "cpu", *sys.argv[2:]))
