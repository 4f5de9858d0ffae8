"""Images as tensors: the range of their values, their size."""

import torch

SMALL_SIDE = 8  # pixels


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 or uint16 images as float32 in [-1, 1]."""
    half = {torch.uint8: 127.5, torch.uint16: 32767.5}[images.dtype]
    return images.to(torch.float32) / half - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as uint8, rounded, values outside clamped; the inverse of `to_float`."""
    return ((images.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Antialiased bilinear resize of `[n, C, H, W]` to `(h, w)`."""
    if tuple(images.shape[2:]) == size:
        return images
    return torch.nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def resize_gray(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return resize(images.mean(dim=1, keepdim=True), size)


def small(images: torch.Tensor) -> torch.Tensor:
    """`[n, C, h, w]` -> `[n, C * 8 * 8]`: what images are compared by where details do not count."""
    return resize(images, (SMALL_SIDE, SMALL_SIDE)).flatten(1)
