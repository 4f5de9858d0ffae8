"""Several processes speak with one voice, before they have imported torch."""

import os
import sys

from dnnlib import interrupts


def say_once(message: str) -> None:
    """`distributed.say_once`, which needs torch only where torchrun's processes could all say the same."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        print(message, file=sys.stderr, flush=True)
        return
    with interrupts.importing():
        from torch_utils import distributed
    distributed.say_once(message)
