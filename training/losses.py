"""Losses of the adversarial game: plain functions of tensors, one value per sample. Logging and backward are the caller's."""

import torch
from torch.nn.functional import softplus


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Non-saturating logistic loss -log(sigmoid(D(fake))) (Goodfellow 2014), `[n, 1]`."""
    return softplus(-fake_logits)


def discriminator_fake_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-log(1 - sigmoid(D(fake))), `[n, 1]`."""
    return softplus(fake_logits)


def discriminator_real_loss(real_logits: torch.Tensor) -> torch.Tensor:
    """-log(sigmoid(D(real))), `[n, 1]`."""
    return softplus(-real_logits)


def r1_penalty(real_logits: torch.Tensor, real_images: torch.Tensor) -> torch.Tensor:
    """Squared gradient norm of D at the real images (Mescheder 2018, eq. 9), `[n]`; times gamma / 2 it is R1."""
    (grads,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return grads.square().sum(dim=[1, 2, 3])


def path_lengths(fake_images: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """|J^T y| of the synthesis at ws for random images y = `noise` (Karras 2020, eq. 4), `[n]`.

    noise: standard normal, of the images' shape; it is scaled by 1 / sqrt(number of pixels).
    """
    num_pixels = fake_images.shape[2] * fake_images.shape[3]
    (grads,) = torch.autograd.grad((fake_images * noise).sum() / num_pixels**0.5, ws, create_graph=True)
    return grads.square().sum(dim=2).mean(dim=1).sqrt()  # [n, num_ws, w_dim] -> [n]
