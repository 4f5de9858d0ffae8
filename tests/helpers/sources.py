"""Sources and generators of tests, and snapshots of them."""

import numpy as np
import torch
from PIL import Image

from torch_utils import seeding
from training import networks_stylegan2
from training.checkpoints import snapshot
from training.sources.cascade import last_generator

SMALL = dict(z_dim=16, c_dim=0, w_dim=16, img_resolution=16, img_channels=3, channel_base=64, channel_max=8)


def write_images(folder, count=12, size=(20, 30), mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    folder.mkdir(exist_ok=True, parents=True)
    for index in range(count):
        pixels = rng.integers(0, 256, [*size, channels], dtype=np.uint8)
        Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels).save(folder / f"{index:03d}.png")
    return folder


def generator(encoder=None, **kwargs):
    torch.manual_seed(kwargs.pop("seed", 0))
    mapping = {"num_layers": 2} | ({} if encoder is None else {"encoder": encoder})
    return networks_stylegan2.Generator(**{**SMALL, **kwargs}, mapping_kwargs=mapping).eval().requires_grad_(False)


def save(path, G_ema, source):
    contents = dict(G=last_generator(G_ema), D=None, G_ema=G_ema, source=source, augment_pipe=None)
    snapshot.save_snapshot(path, {**contents, "training_set_kwargs": {}, "meta": {}})
    return path


def gen(seed=0):
    return seeding.generator("test", seed)
