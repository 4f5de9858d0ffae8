"""Differentiable augmentation of every image (Zhao 2020, "Differentiable Augmentation for Data-Efficient GAN Training")."""

import torch
from torch.nn.functional import pad

from torch_utils import persistence, seeding

MAX_SHIFT = 1 / 8  # of the side
CUTOUT = 1 / 2  # of the side


@persistence.persistent_class
class DiffAugment(torch.nn.Module):
    """Colour, translation and cutout, in this order, of each image by numbers of its own.

    Brightness moves by up to 0.5 of [-1, 1], saturation is multiplied by 0 to 2, contrast by 0.5 to 1.5; images are shifted
    by up to an eighth, and a square of half the side is made grey. An alpha channel only moves and is cut out. `p` is how
    often, for those who ask: always.
    """

    p: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("p", torch.ones([]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[n, C, h, w]` in [-1, 1] -> the same; random numbers come from `torch_utils.seeding`."""
        if len(images) == 0:
            return images
        colour = recolor(images[:, :3])
        images = colour if images.shape[1] <= 3 else torch.cat([colour, images[:, 3:]], dim=1)
        return cut_out(shift(images))


def recolor(x: torch.Tensor) -> torch.Tensor:
    """Brightness, saturation, contrast."""
    brightness, saturation, contrast = seeding.rand([len(x), 3], x.device, x.dtype)[:, :, None, None, None].unbind(1)
    x = x + (brightness - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = torch.lerp(grey, x, saturation * 2)
    mean = x.mean(dim=[1, 2, 3], keepdim=True)
    return torch.lerp(mean, x, contrast + 0.5)


def shift(x: torch.Tensor) -> torch.Tensor:
    """By whole pixels, zeros behind."""
    n, _, height, width = x.shape
    margin = [int(side * MAX_SHIFT + 0.5) for side in (height, width)]
    down, across = (seeding.randint(2 * most + 1, [n], device=x.device) for most in margin)
    x = pad(x, [margin[1], margin[1], margin[0], margin[0]])
    rows = down[:, None] + torch.arange(height, device=x.device)  # [n, height]
    columns = across[:, None] + torch.arange(width, device=x.device)
    x = x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
    return x.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], height, -1))


def cut_out(x: torch.Tensor) -> torch.Tensor:
    """A square made grey, wherever its centre falls."""
    n, _, height, width = x.shape
    hides = []
    for side in (height, width):
        size = int(side * CUTOUT + 0.5)
        first = seeding.randint(side + (1 - size % 2), [n], device=x.device)[:, None] - size // 2
        place = torch.arange(side, device=x.device)
        hides.append((place >= first) & (place < first + size))  # [n, side]
    return x * ~(hides[0][:, None, :, None] & hides[1][:, None, None, :])
