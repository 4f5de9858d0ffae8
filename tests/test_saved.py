"""Snapshots that earlier versions wrote are read, and make the images that they made then."""

import numpy as np
import pytest
import torch

from tests.helpers.golden import SHARED
from training.checkpoints.snapshot import load_snapshot, save_snapshot

SAVED = SHARED / "golden" / "saved-0.1"
NAMES = ("dcgan_cond", "stylegan2_images", "stylegan3t_cascade")


@pytest.mark.parametrize("name", NAMES)
def test_snapshots_of_version_0_1_make_the_images_that_they_made(name, tmp_path):
    """By name and state, wherever their classes live today; written again, they are read again."""
    if not SAVED.is_dir():
        pytest.skip("the snapshots of version 0.1 are not at hand")
    with np.load(SAVED / f"{name}.npz") as archive:
        z, c, images = (torch.from_numpy(archive[key]) for key in ("z", "c", "images"))
    contents = load_snapshot(SAVED / f"{name}.pkl")
    save_snapshot(tmp_path / "again.pkl", contents)
    for network in (contents["G_ema"], load_snapshot(tmp_path / "again.pkl")["G_ema"]):
        made = network(z, c, noise_mode="const", force_fp32=True)
        assert (made - images).abs().max() < 1e-5
