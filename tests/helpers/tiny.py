"""Snapshots of tiny networks, for the tests of what uses snapshots."""

from pathlib import Path

import numpy as np
import torch

from training import networks_stylegan2, networks_stylegan3
from training.checkpoints.snapshot import save_snapshot
from training.data.pixels import encode_png
from training.sources.source import Source

SIDE = 16  # pixels
Z_DIM = 16


def generator2(seed: int = 0, c_dim: int = 0, channels: int = 3, encoder: dict | None = None) -> torch.nn.Module:
    """A StyleGAN2 generator whose images, latents and pixel noise differ visibly."""
    mapping_kwargs = {"num_layers": 2, **({"encoder": encoder} if encoder else {})}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        G = networks_stylegan2.Generator(
            Z_DIM, c_dim, 16, SIDE, channels, mapping_kwargs=mapping_kwargs, channel_base=256, channel_max=16
        )
        G.mapping.w_avg.normal_()
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.data.fill_(0.3)
    return G.eval().requires_grad_(False)


def generator3(seed: int = 0, radial: bool = False) -> torch.nn.Module:
    """A StyleGAN3 generator, of configuration R if `radial`."""
    layer_kwargs = {"conv_kernel": 1, "use_radial_filters": True} if radial else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        G = networks_stylegan3.Generator(
            Z_DIM, 0, 16, SIDE, 3, mapping_kwargs={"num_layers": 2}, channel_base=256, channel_max=16, num_layers=4,
            **layer_kwargs,
        )  # fmt: skip
    return G.eval().requires_grad_(False)


def save(path: Path, G_ema: torch.nn.Module, source: Source | None) -> Path:
    contents = {"G": G_ema, "D": None, "G_ema": G_ema, "source": source, "augment_pipe": None}
    save_snapshot(path, {**contents, "training_set_kwargs": {}, "meta": {"cfg": "tiny"}})
    return path


def write_images(folder: Path, num: int, channels: int = 3, side: int = SIDE, seed: int = 0) -> Path:
    """PNGs `00.png`, `01.png`, … of coarse random blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, [num, side // 4, side // 4, channels], dtype=np.uint8)
    for index, pixels in enumerate(blocks.repeat(4, axis=1).repeat(4, axis=2)):
        (folder / f"{index:02d}.png").write_bytes(encode_png(pixels))
    return folder
