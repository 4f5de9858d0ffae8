"""Convolution whose weights are scaled per sample by a style, and normalised (Karras 2020, eq. 1 to 3)."""

import torch

from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import check_image

EPS = 1e-8


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    demodulate: bool = True,
    input_gain: torch.Tensor | None = None,
    grouped: bool = False,
    **conv_kwargs,
) -> torch.Tensor:
    """Scale input channels by `styles`, convolve, scale output channels so that they keep unit variance.

    x: `[n, in, h, w]`; weight: `[out, in, kh, kw]`; styles: `[n, in]`; input_gain: scalar, `[in]` or `[n, in]`, applied
    to x and not undone by the demodulation; conv_kwargs: as of `conv2d_resample`. `grouped` scales the weights and runs
    one grouped convolution instead of scaling the activations around one dense convolution: the same numbers.
    Raises ValueError that names the argument.
    """
    _check_arguments(x, weight, styles, input_gain)
    scale_out = demodulation(weight, styles) if demodulate else None  # [n, out]
    scale_in = styles if input_gain is None else styles * input_gain  # [n, in]
    if grouped and not torch.jit.is_tracing():  # which would keep the batch size as the number of groups
        return _grouped(x, weight, scale_in, scale_out, **conv_kwargs)
    x = x * scale_in.to(x.dtype)[:, :, None, None]
    x = conv2d_resample(x, weight.to(x.dtype), **conv_kwargs)
    return x if scale_out is None else x * scale_out.to(x.dtype)[:, :, None, None]


def demodulation(weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """1 / norm of each sample's modulated filters, `[n, out]`: the norms follow from the squares alone."""
    energy = weight.square().sum(dim=[2, 3])  # [out, in]
    return (styles.square() @ energy.t() + EPS).rsqrt()


def _grouped(x, weight, scale_in, scale_out, **conv_kwargs):
    n, _, height, width = x.shape
    weights = weight * scale_in[:, None, :, None, None]  # [n, out, in, kh, kw]
    if scale_out is not None:
        weights = weights * scale_out[:, :, None, None, None]
    x = x.reshape(1, -1, height, width)
    x = conv2d_resample(x, weights.flatten(0, 1).to(x.dtype), groups=n, **conv_kwargs)
    return x.reshape(n, -1, *x.shape[2:])


def _check_arguments(x, weight, styles, input_gain):
    check_image(x)
    n, channels = x.shape[:2]
    if weight.ndim != 4 or weight.shape[1] != channels:
        raise ValueError(f"weight has shape {list(weight.shape)}, must be [out, {channels}, kh, kw] like x")
    if styles.shape != (n, channels):
        raise ValueError(f"styles has shape {list(styles.shape)}, must be [{n}, {channels}] like x")
    if input_gain is not None and input_gain.shape not in ((), (channels,), (n, channels), (n, 1), (1, channels)):
        raise ValueError(
            f"input_gain has shape {list(input_gain.shape)}, must be [], [{channels}] or [{n}, {channels}]"
        )
    for name, tensor in (("weight", weight), ("styles", styles), ("input_gain", input_gain)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, must be on {x.device} like x")
