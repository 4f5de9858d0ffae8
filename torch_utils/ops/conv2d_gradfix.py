"""The official names of convolutions whose gradient for the weights can be left out. PyTorch does the rest today."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

enabled = False  # programs set it; second derivatives are PyTorch's own since 1.11, whatever it is
weight_gradients_disabled = False


@contextlib.contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Within the block, backward passes through the convolutions of this module give their weights no gradient."""
    global weight_gradients_disabled
    before = weight_gradients_disabled
    weight_gradients_disabled = before or disable
    try:
        yield
    finally:
        weight_gradients_disabled = before


def conv2d(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *args: Any, **kwargs: Any):
    """The official name of `torch.nn.functional.conv2d`; see `no_weight_gradients`."""
    return F.conv2d(input, _Gate.apply(weight), bias, *args, **kwargs)


def conv_transpose2d(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *args: Any, **kwargs: Any
):
    """The official name of `torch.nn.functional.conv_transpose2d`; see `no_weight_gradients`."""
    return F.conv_transpose2d(input, _Gate.apply(weight), bias, *args, **kwargs)


class _Gate(torch.autograd.Function):
    """The identity; its gradient is asked for at the time of the backward pass."""

    @staticmethod
    def forward(ctx, weight):
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, dw):
        return None if weight_gradients_disabled else dw
