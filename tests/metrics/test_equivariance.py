"""Equivariance of generators that draw plane waves: perfect ones, and ones that cheat by a known amount."""

import math

import pytest
import torch

from dnnlib.errors import UserError
from metrics.equivariance import equivariance, lanczos, round_kernel, translate, turn
from metrics.stopping import Stopped

SIDE = 48


class Waves:
    """Draws cosines whose phase follows the input's transform: equivariant to moving and turning by construction."""

    def __init__(self, noise: float = 0.0):
        self.noise = noise
        self.synthesis = Synthesis(noise)

    def mapping(self, z, c):
        return z[:, None]


class Synthesis:
    def __init__(self, noise: float):
        self.input = torch.nn.Module()
        self.input.transform = torch.eye(3)
        self.noise, self.calls = noise, 0

    def __call__(self, ws, noise_mode, force_fp32):
        grid = (torch.arange(SIDE) + 0.5) / SIDE - 0.5
        y, x = torch.meshgrid(grid, grid, indexing="ij")
        points = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ self.input.transform.T  # where the input is asked
        frequency = 2 * math.pi * 5 * torch.nn.functional.normalize(ws[:, 0, :2], dim=1)  # five waves across
        phase = torch.einsum("hwk,nk->nhw", points[..., :2], frequency)
        self.calls += 1
        error = self.noise * torch.randn(phase.shape, generator=torch.Generator().manual_seed(self.calls))
        return (0.8 * torch.cos(phase + ws[:, 0, 2, None, None]) + error)[:, None]


def latents(numbers):
    return torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(n)) for n in numbers]), None


@pytest.mark.parametrize(("kind", "at_least"), [("eqt_int", 100), ("eqt_frac", 35), ("eqr", 45)])
def test_waves_are_equivariant(kind, at_least):
    assert equivariance(Waves(), latents, kind, 6).psnr > at_least


@pytest.mark.parametrize("kind", ["eqt_int", "eqt_frac"])
def test_noise_of_known_strength(kind):
    """Both images carry it (after resampling one of them somewhat less): 10 log10(4 / (2 * 0.1^2)) = 23.0 dB."""
    result = equivariance(Waves(noise=0.1), latents, kind, 20)
    assert 22.5 < result.psnr < 24.5
    assert 0 < result.error < 0.5


def test_the_input_is_put_back_and_the_batch_does_not_matter():
    G = Waves()
    one = equivariance(G, latents, "eqr", 4, batch_size=1)
    many = equivariance(G, latents, "eqr", 4, batch_size=4)
    assert torch.equal(G.synthesis.input.transform, torch.eye(3))
    assert one.psnr == pytest.approx(many.psnr, abs=0.01)


def test_translation_by_pixels_is_exact():
    x = torch.randn(1, 2, 9, 9)
    moved, known = translate(x, (2, -3))
    assert torch.equal(moved[:, :, :6, 2:], x[:, :, 3:, :7])
    assert known.sum() == 6 * 7 and known[0, 0, :6, 2:].all()


def test_turning_by_a_quarter_is_a_permutation_of_pixels():
    """Filtered alike, a picture turned by 90 degrees is the turned filtered picture."""
    x = torch.randn(1, 1, 40, 40)
    quarter = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    turned, known = turn(x, quarter)
    plain, known_plain = turn(x, torch.eye(3))
    expected = torch.rot90(plain, 1, dims=(2, 3))  # against the clock: y points down
    both = (known * torch.rot90(known_plain, 1, dims=(2, 3))).bool()
    torch.testing.assert_close(turned[both], expected[both], rtol=1e-4, atol=1e-4)
    assert both.float().mean() > 0.4


def test_kernels():
    assert lanczos(0) == 1 and lanczos(1) == pytest.approx(0, abs=1e-12) and lanczos(3.5) == 0
    r = torch.tensor([0.0, 6.0, 7.0], dtype=torch.float64)
    assert round_kernel(r)[0] == pytest.approx(1) and round_kernel(r)[1:].abs().max() < 1e-12


def test_can_be_stopped():
    answers = iter([True, False])
    with pytest.raises(Stopped):
        equivariance(Waves(), latents, "eqt_int", 20, batch_size=4, keep_going=lambda: next(answers))


def test_a_diverged_network_is_not_perfect():
    """An error that is NaN was no error above 0, and so an infinite number of decibels."""
    with pytest.raises(UserError, match="4 of 4 are NaN or infinite"):
        equivariance(Waves(float("nan")), latents, "eqt_int", 4)
