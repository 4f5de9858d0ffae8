"""What every discriminator has: its face, and hooks for those that change while training goes on."""

from collections.abc import Sequence

import torch

from torch_utils import persistence


class ImageDiscriminator(torch.nn.Module):
    """Base: `D(img, c, update_emas=False, force_fp32=False) -> logits [n, 1]` float32.

    img: `[n, img_channels, h, w]` in [-1, 1]; c: labels `[n, c_dim]`. `update_emas` moves what D keeps of what it sees
    (statistics of batches, singular vectors); a call without it changes nothing. A subclass gives `logits`, or a `forward`
    of its own.
    """

    def __init__(self, c_dim: int, img_resolution: int | Sequence[int], img_channels: int):
        super().__init__()
        self.c_dim = c_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels

    def forward(
        self, img: torch.Tensor, c: torch.Tensor | None, update_emas: bool = False, force_fp32: bool = False
    ) -> torch.Tensor:
        return self.logits(img.to(torch.float32), c, update_emas)

    def logits(self, img: torch.Tensor, c: torch.Tensor | None, update_emas: bool) -> torch.Tensor:
        """float32 images `[n, img_channels, h, w]`, labels `[n, c_dim]` -> `[n, 1]`."""
        raise NotImplementedError

    def set_progress(self, cur_nimg: float) -> None:
        """Told before every step how many images training has seen."""

    def preprocess_real(self, images: torch.Tensor) -> torch.Tensor:
        """Real images as the present stage of training shows them."""
        return images


class Projection(torch.nn.Module):
    """Features and label to a logit: `out(h) + <embed(c), h>` (Miyato & Koyama 2018); the first part only without labels."""

    def __init__(self, num_features: int, c_dim: int):
        super().__init__()
        self.out = torch.nn.Linear(num_features, 1)
        self.embed = torch.nn.Linear(c_dim, num_features, bias=False) if c_dim > 0 else None

    def forward(self, h: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """`[n, num_features]`, `[n, c_dim]` -> `[n, 1]`."""
        logits = self.out(h)
        if self.embed is None:
            return logits
        assert c is not None
        return logits + (self.embed(c.to(torch.float32)) * h).sum(dim=1, keepdim=True)


@persistence.remembers_arguments
class MinibatchStdLayer(torch.nn.Module):
    """Append the standard deviation over a group of samples as feature maps (Karras 2018, sec. 3)."""

    def __init__(self, group_size: int | None, num_channels: int = 1):
        super().__init__()
        self.group_size = group_size
        self.num_channels = num_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, C, h, w] -> [n, C + num_channels, h, w]`. A group is every (n / group)-th sample."""
        n, channels, height, width = x.shape
        group = n if self.group_size is None else min(self.group_size, n)
        assert n % group == 0, f"batch {n} is not a multiple of the minibatch-std group {group}"
        y = x.reshape(group, n // group, self.num_channels, channels // self.num_channels, height, width)
        y = y - y.mean(dim=0)
        y = (y.square().mean(dim=0) + 1e-8).sqrt()  # [n / group, F, C / F, h, w]
        y = y.mean(dim=[2, 3, 4])  # [n / group, F]
        y = y.repeat(group, 1)[:, :, None, None].expand(-1, -1, height, width)
        return torch.cat([x, y], dim=1)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"
