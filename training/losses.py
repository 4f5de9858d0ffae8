"""Losses of the adversarial game: plain functions of tensors, one value per sample. Logging and backward are the caller's.

`LOSSES` is the table behind `--loss`: what G and D minimise, and where which gradient penalty keeps D smooth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import relu, softplus

DRIFT = 0.001  # Karras 2018, app. A.1
TINY = 1e-12  # under a square root: its derivative at 0 is infinite


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Non-saturating logistic loss -log(sigmoid(D(fake))) (Goodfellow 2014), `[n, 1]`."""
    return softplus(-fake_logits)


def discriminator_fake_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-log(1 - sigmoid(D(fake))), `[n, 1]`."""
    return softplus(fake_logits)


def discriminator_real_loss(real_logits: torch.Tensor) -> torch.Tensor:
    """-log(sigmoid(D(real))), `[n, 1]`."""
    return softplus(-real_logits)


def hinge_fake_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """max(0, 1 + D(fake)) (Miyato 2018, eq. 16), `[n, 1]`."""
    return relu(1 + fake_logits)


def hinge_real_loss(real_logits: torch.Tensor) -> torch.Tensor:
    """max(0, 1 - D(real)) (Miyato 2018, eq. 16), `[n, 1]`."""
    return relu(1 - real_logits)


def critic_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-D(fake): what G minimises with the hinge (Miyato 2018, eq. 17) and with Wasserstein's distance, `[n, 1]`."""
    return -fake_logits


def wasserstein_fake_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """D(fake) (Gulrajani 2017, eq. 3), `[n, 1]`."""
    return fake_logits


def wasserstein_real_loss(real_logits: torch.Tensor) -> torch.Tensor:
    """-D(real), and DRIFT * D(real)^2 against a score that wanders off (Karras 2018, app. A.1), `[n, 1]`."""
    return DRIFT * real_logits.square() - real_logits


def relativistic_generator_loss(fake_logits: torch.Tensor, real_logits: torch.Tensor | None) -> torch.Tensor:
    """log(1 + exp(D(real) - D(fake))) (Huang 2024, eq. 2), `[n, 1]`: the fake of a pair shall score higher."""
    assert real_logits is not None
    return softplus(real_logits - fake_logits)


def relativistic_discriminator_loss(fake_logits: torch.Tensor, real_logits: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(D(fake) - D(real))) (Huang 2024, eq. 2), `[n, 1]`: the real image of a pair shall score higher."""
    return softplus(fake_logits - real_logits)


def r1_penalty(real_logits: torch.Tensor, real_images: torch.Tensor) -> torch.Tensor:
    """Squared gradient norm of D at the real images (Mescheder 2018, eq. 9), `[n]`; times gamma / 2 it is R1."""
    (grads,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return grads.square().sum(dim=[1, 2, 3])


def slope_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """(|gradient of D| - 1)^2 at the images (Gulrajani 2017, eq. 3), `[n]`; times lambda it is that of WGAN-GP."""
    (grads,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    slopes = (grads.square().sum(dim=[1, 2, 3]) + TINY).sqrt()
    return (slopes - 1).square()


def path_lengths(fake_images: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """|J^T y| of the synthesis at ws for random images y = `noise` (Karras 2020, eq. 4), `[n]`.

    noise: standard normal, of the images' shape; it is scaled by 1 / sqrt(number of pixels).
    """
    num_pixels = fake_images.shape[2] * fake_images.shape[3]
    (grads,) = torch.autograd.grad((fake_images * noise).sum() / num_pixels**0.5, ws, create_graph=True)
    return grads.square().sum(dim=2).mean(dim=1).sqrt()  # [n, num_ws, w_dim] -> [n]


@dataclass(frozen=True)
class AdversarialLoss:
    """A row of the table: what `--loss` names. The functions take the logits of fake and of real images, `[n, 1]` each."""

    generator: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    """G's loss; it looks at real images only if `is_paired`."""
    discriminator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """D's loss, or what it adds to `on_fakes`."""
    on_fakes: Callable[[torch.Tensor], torch.Tensor] | None = None
    """The part of D's loss that needs the fake logits alone; None for a loss of pairs."""
    penalty: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = r1_penalty
    """Of logits and the images that they are of."""
    penalty_share: float = 0.5
    """Of --gamma, by which the penalty is multiplied."""
    penalty_at: tuple[str, ...] = ("real",)
    """Where: at `real` images, at `fake` ones, `between` the two."""
    gamma: float | None = None
    """Usual weight; None: by the configuration's rule."""
    needs_penalty: bool = False
    """Whether it comes with its penalty whatever the configuration says."""
    has_zero: bool = True
    """Whether a logit of 0 means undecided; otherwise only differences mean something, to ADA, too."""

    @property
    def is_paired(self) -> bool:
        return self.on_fakes is None

    @property
    def may_be_lazy(self) -> bool:
        """Whether the penalty can have steps of its own, every now and then (Karras 2020, app. B)."""
        return self.penalty_at == ("real",)


def separate(
    generator: Callable[[torch.Tensor], torch.Tensor],
    on_fakes: Callable[[torch.Tensor], torch.Tensor],
    on_reals: Callable[[torch.Tensor], torch.Tensor],
    **known: Any,
) -> AdversarialLoss:
    """A row whose losses look at fake or real logits, never at both. known: the other fields of the row."""
    return AdversarialLoss(
        generator=lambda fake_logits, real_logits: generator(fake_logits),
        discriminator=lambda fake_logits, real_logits: on_reals(real_logits),
        on_fakes=on_fakes,
        **known,
    )


LOSSES = {
    "logistic": separate(generator_loss, discriminator_fake_loss, discriminator_real_loss),
    "hinge": separate(critic_loss, hinge_fake_loss, hinge_real_loss),
    "wgan-gp": separate(
        critic_loss,
        wasserstein_fake_loss,
        wasserstein_real_loss,
        penalty=slope_penalty,
        penalty_share=1.0,
        penalty_at=("between",),
        gamma=10.0,
        needs_penalty=True,
        has_zero=False,
    ),
    "relativistic": AdversarialLoss(
        relativistic_generator_loss,
        relativistic_discriminator_loss,
        penalty_at=("real", "fake"),
        needs_penalty=True,
        has_zero=False,
    ),
}
