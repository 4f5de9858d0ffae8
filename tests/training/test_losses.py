"""Losses in closed form."""

import math

import pytest
import torch

from training import losses


@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.0])
def test_logistic_losses(logit):
    x = torch.tensor([[logit]])
    sigmoid = 1 / (1 + math.exp(-logit))
    assert losses.generator_loss(x).item() == pytest.approx(-math.log(sigmoid), rel=1e-5)
    assert losses.discriminator_real_loss(x).item() == pytest.approx(-math.log(sigmoid), rel=1e-5)
    assert losses.discriminator_fake_loss(x).item() == pytest.approx(-math.log(1 - sigmoid), rel=1e-5)


def test_r1_of_a_linear_discriminator_is_its_weight_norm():
    weight = torch.randn(3, 4, 4, requires_grad=True)
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    penalty = losses.r1_penalty((images * weight).sum(dim=[1, 2, 3]), images)
    assert torch.allclose(penalty, weight.square().sum().expand(5))
    (grad,) = torch.autograd.grad(penalty.sum(), weight)
    assert torch.allclose(grad, 10 * weight)


def test_path_length_of_a_linear_synthesis():
    """x = A w in every layer: the gradient of x . y is A^T y / sqrt(pixels), in each of the layers."""
    torch.manual_seed(0)
    matrix, noise = torch.randn(48, 6), torch.randn(5, 3, 4, 4)
    ws = torch.randn(5, 2, 6, requires_grad=True)
    images = (ws.sum(dim=1) @ matrix.t()).reshape(5, 3, 4, 4)
    expected = (noise.reshape(5, 48) @ matrix).norm(dim=1) / 4
    assert torch.allclose(losses.path_lengths(images, ws, noise), expected, rtol=1e-5)
