"""Flags of StyleGAN2-ADA whose values are rules or addresses: `--cfg=auto`, `--resume=ffhq256`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.config.options import TrainingOptions

PUBLISHED = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/transfer-learning-source-nets"
NOTHING = "noresume"

# Names that --resume takes, as the official documentation has them. The files are not part of this project.
PUBLISHED_NETWORKS = {
    "ffhq256": f"{PUBLISHED}/ffhq-res256-mirror-paper256-noaug.pkl",
    "ffhq512": f"{PUBLISHED}/ffhq-res512-mirror-stylegan2-noaug.pkl",
    "ffhq1024": f"{PUBLISHED}/ffhq-res1024-mirror-stylegan2-noaug.pkl",
    "celebahq256": f"{PUBLISHED}/celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
    "lsundog256": f"{PUBLISHED}/lsundog-res256-paper256-kimg100000-noaug.pkl",
}


def resume_address(name: str | None) -> str | None:
    """What a value of --resume stands for: the address of a published network, nothing, or itself."""
    return None if name == NOTHING else PUBLISHED_NETWORKS.get(str(name), name)


def auto_batch(side: int, gpus: int) -> int:
    """Images of a step: about 4096 pixels of a side on each GPU, at most 32 images there and 64 in all."""
    return max(min(gpus * min(4096 // side, 32), 64), gpus)


def adapted(options: TrainingOptions, side: int, gpus: int, batch: int) -> TrainingOptions:
    """`--cfg=auto`: what is open follows from the resolution, gamma as for stylegan2 (Karras 2020b, appendix C)."""
    rate = 0.002 if side >= 1024 else 0.0025
    values = {
        "mbstd_group": min(batch // gpus, 4),
        "cbase": 32768 if side >= 512 else 16384,
        "glr": rate,
        "dlr": rate,
    }
    open_ones = {name: value for name, value in values.items() if getattr(options, name) is None}
    return dataclasses.replace(options, **open_ones)
