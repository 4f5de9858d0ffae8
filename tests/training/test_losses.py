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


def test_hinge_is_zero_where_d_is_sure():
    logits = torch.tensor([[-2.0], [0.0], [2.0]])
    assert losses.hinge_fake_loss(logits).flatten().tolist() == [0, 1, 3]
    assert losses.hinge_real_loss(logits).flatten().tolist() == [3, 1, 0]


def test_relativistic_losses_are_of_differences():
    fake, real = torch.randn(5, 1), torch.randn(5, 1)
    for loss in (losses.relativistic_generator_loss, losses.relativistic_discriminator_loss):
        assert torch.allclose(loss(fake + 3, real + 3), loss(fake, real), atol=1e-6)
    swapped = losses.relativistic_discriminator_loss(real, fake)
    assert torch.equal(losses.relativistic_generator_loss(fake, real), swapped)


def test_the_slope_penalty_is_zero_at_slope_one():
    images = torch.randn(3, 2, 4, 4, requires_grad=True)
    for slope in (1.0, 3.0):
        weight = torch.full([2, 4, 4], slope / 32**0.5)
        penalty = losses.slope_penalty((images * weight).sum(dim=[1, 2, 3]), images)
        assert torch.allclose(penalty, torch.full([3], (slope - 1) ** 2), atol=1e-5)
