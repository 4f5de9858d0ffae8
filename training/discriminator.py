"""What every discriminator has: its face, and hooks for those that change while training goes on."""

import torch


class ImageDiscriminator(torch.nn.Module):
    """Base: `D(img, c, update_emas=False, force_fp32=False) -> logits [n, 1]` float32.

    img: `[n, img_channels, h, w]` in [-1, 1]; c: labels `[n, c_dim]`. `update_emas` moves what D keeps of what it sees
    (statistics of batches, singular vectors); a call without it changes nothing.
    """

    def set_progress(self, cur_nimg: float) -> None:
        """Told before every step how many images training has seen."""

    def as_trained_on(self, images: torch.Tensor) -> torch.Tensor:
        """Real images as the present stage of training shows them."""
        return images
