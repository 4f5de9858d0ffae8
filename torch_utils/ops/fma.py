"""The official name of a * b + c."""

import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a * b + c in one pass, broadcast; the official name of `torch.addcmul`."""
    return torch.addcmul(c, a, b)
