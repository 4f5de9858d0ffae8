"""Network pickles for other people's code: `legacy.load_network_pkl(file)["G_ema"]`."""

from typing import Any, BinaryIO

import torch

from torch_utils import persistence
from training.snapshot import read_snapshot


def load_network_pkl(f: BinaryIO, force_fp16: bool = False) -> dict[str, Any]:
    """The contents of a snapshot: `G`, `D`, `G_ema`, `source`, `augment_pipe`, `training_set_kwargs`, `meta`.

    Networks are in eval mode on the CPU. `force_fp16` makes the four highest resolutions run in float16 on a GPU.
    Raises `UserError` (a ValueError) for a file that is no snapshot of this project; never runs code found in it.
    """
    contents = read_snapshot(f)
    if force_fp16:
        for name in ("G", "D", "G_ema"):
            if contents.get(name) is not None:
                contents[name] = with_fp16(contents[name])
    return contents


def with_fp16(network: torch.nn.Module) -> torch.nn.Module:
    """The same network with mixed precision switched on."""
    kwargs = half_precision(network.init_kwargs)
    twin = persistence.construct(persistence.class_path(type(network)), **kwargs)
    twin.load_state_dict(network.state_dict())
    return twin.eval().requires_grad_(False)


def half_precision(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments with float16 switched on, in every stage of a cascade."""
    if "img_resolution" in kwargs:
        return {**kwargs, "num_fp16_res": 4, "conv_clamp": 256}
    return {name: half_precision(stage) if isinstance(stage, dict) else stage for name, stage in kwargs.items()}
