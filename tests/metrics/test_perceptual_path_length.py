"""Perceptual path lengths of generators whose lengths are known."""

import math

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from metrics.perceptual_path_length import for_lpips, perceptual_path_length, slerp, summary
from torch_utils import seeding

DIM = 6


class Linear:
    """G whose w is z, and whose image is a linear function of w: steps in w have a length in closed form."""

    def __init__(self, gain: float):
        self.gain = gain

    def mapping(self, z, c):
        return z[:, None].expand(-1, 3, -1)

    def synthesis(self, ws, noise_mode, force_fp32):
        assert noise_mode == "random" and force_fp32
        return self.gain * ws[:, 0].reshape(len(ws), 1, 2, 3)


def latents(numbers):
    z = torch.stack([torch.randn(DIM, generator=torch.Generator().manual_seed(number)) for number in numbers])
    return z, None


def pixels(images):
    return images.flatten(1).double() / 127.5 / 3**0.5  # squared distance in units of [-1, 1], counted once


@pytest.mark.parametrize("sampling", ["end", "full"])
def test_a_linear_generator_has_the_length_of_the_straight_line(sampling):
    """|G(w0 + e d) - G(w0)|^2 / e^2 = gain^2 |d|^2, at every t."""
    result = perceptual_path_length(Linear(0.01), latents, pixels, 60, "w", sampling)
    lengths = []
    for sample in range(60):
        (z0, _), (z1, _) = latents([2 * sample]), latents([2 * sample + 1])
        lengths.append(float((0.01 * (z1 - z0)).square().sum()))
    assert result.mean == pytest.approx(summary(np.array(lengths)).mean, rel=0.02)


def test_a_linear_generator_on_the_great_circle():
    """In z the speed is the angle: |dz/dt| = angle on the unit sphere."""
    result = perceptual_path_length(Linear(0.01), latents, pixels, 60, "z", "full")
    lengths = []
    for sample in range(60):
        (z0, _), (z1, _) = latents([2 * sample]), latents([2 * sample + 1])
        cosine = float(torch.nn.functional.cosine_similarity(z0, z1))
        lengths.append((0.01 * math.acos(cosine)) ** 2)
    assert result.mean == pytest.approx(summary(np.array(lengths)).mean, rel=0.05)


def test_does_not_depend_on_the_batch_and_grows_with_the_square_of_the_gain():
    one = perceptual_path_length(Linear(0.01), latents, pixels, 40, batch_size=7)
    other = perceptual_path_length(Linear(0.01), latents, pixels, 40, batch_size=40)
    twice = perceptual_path_length(Linear(0.02), latents, pixels, 40)
    assert one.mean == pytest.approx(other.mean, rel=1e-3)
    assert twice.mean == pytest.approx(4 * one.mean, rel=0.05)


def test_slerp():
    a, b = torch.tensor([[3.0, 0, 0]]), torch.tensor([[0, 0.5, 0]])
    for t, expected in ((0, [1, 0, 0]), (1, [0, 1, 0]), (1 / 3, [math.cos(math.pi / 6), 0.5, 0])):
        torch.testing.assert_close(slerp(a, b, torch.tensor([[float(t)]])), torch.tensor([expected]).float())


def test_the_tails_are_left_out():
    distances = np.concatenate([np.arange(100.0), [1e9]])
    assert summary(distances).mean < 100 and summary(distances).num_kept < 101


def test_images_for_lpips():
    x = torch.rand(2, 1, 512, 512) * 2 - 1
    assert for_lpips(x, crop=False).shape == (2, 3, 256, 256)
    assert for_lpips(x, crop=True).shape == (2, 3, 256, 256)  # the middle is half as large
    assert for_lpips(torch.ones(1, 3, 16, 16), crop=False).unique().tolist() == [255]


def test_both_ends_of_a_step_meet_the_same_noise_and_each_path_another():
    class Noisy(Linear):
        def synthesis(self, ws, noise_mode, force_fp32):
            self.noise = seeding.randn([len(ws), 1, 1, 1])
            return super().synthesis(ws, noise_mode, force_fp32) * (1 + self.noise)

    G = Noisy(0.01)
    one = perceptual_path_length(G, latents, pixels, 6, batch_size=6)
    near, far = G.noise.flatten().chunk(2)
    assert torch.equal(near, far) and len(set(near.tolist())) == 6
    other = perceptual_path_length(G, latents, pixels, 6, batch_size=4)
    assert one.mean == pytest.approx(other.mean, rel=1e-3)


def test_a_diverged_network_has_no_length():
    with pytest.raises(UserError, match="8 of 8 are NaN or infinite"):
        perceptual_path_length(Linear(float("nan")), latents, pixels, 8)
