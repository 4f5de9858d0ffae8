"""Bias, activation, gain and clamp in one call."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from torch_utils.ops import dispatch, kernels


class Activation(NamedTuple):
    func: Callable[[torch.Tensor, float], torch.Tensor]  # (x, alpha) -> y
    def_alpha: float
    def_gain: float  # keeps the variance of a standard normal input about 1


# The gains of relu, lrelu and swish make up for the half of the signal that they remove (He et al. 2015).
ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, alpha: x, 0, 1),
    "relu": Activation(lambda x, alpha: F.relu(x), 0, math.sqrt(2)),
    "lrelu": Activation(F.leaky_relu, 0.2, math.sqrt(2)),
    "tanh": Activation(lambda x, alpha: torch.tanh(x), 0, 1),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x), 0, 1),
    "elu": Activation(lambda x, alpha: F.elu(x), 0, 1),
    "selu": Activation(lambda x, alpha: F.selu(x), 0, 1),
    "softplus": Activation(lambda x, alpha: F.softplus(x), 0, 1),
    "swish": Activation(lambda x, alpha: F.silu(x), 0, math.sqrt(2)),
}

activation_funcs = ACTIVATIONS  # the official name


# The activations that kernels run, as the slope below zero; None is the argument `alpha`.
PIECEWISE_LINEAR = {"linear": 1.0, "relu": 0.0, "lrelu": None}


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> torch.Tensor:
    """y = clamp(gain * act(x + b)), of the shape of `x` and the dtype of `x + b`.

    `x`: floating point, any shape. `b`: `[x.shape[dim]]`, real numbers, added along `dim`. `act`: a key of
    `ACTIVATIONS`. `alpha` is the negative slope of lrelu (the other activations ignore it); `alpha` and `gain` None are
    the activation's own. `clamp` bounds y to [-clamp, clamp]; the gradient outside is 0, None is no bound.
    Raises ValueError that names the argument.
    """
    _check_arguments(x, b, dim, act, clamp)
    if b is not None and b.dtype != x.dtype:
        dtype = torch.promote_types(x.dtype, b.dtype)
        x, b = x.to(dtype), b.to(dtype)
    spec = ACTIVATIONS[act]
    alpha = finite("alpha", spec.def_alpha if alpha is None else alpha)
    gain = finite("gain", spec.def_gain if gain is None else gain)
    return dispatch.select("bias_act", x, impl)(x, b, dim, act, alpha, gain, clamp)


def _bias_act_ref(x, b, dim, act, alpha, gain, clamp):
    if b is not None:
        x = x + b.reshape([-1 if axis == dim % x.ndim else 1 for axis in range(x.ndim)])
    x = ACTIVATIONS[act].func(x, alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else F.hardtanh(x, -clamp, clamp)  # its backward is 5 times as fast as clamp's


def _bias_act_kernel(x, b, dim, act, alpha, gain, clamp):
    if act not in PIECEWISE_LINEAR:
        return _bias_act_ref(x, b, dim, act, alpha, gain, clamp)
    slope = alpha if PIECEWISE_LINEAR[act] is None else PIECEWISE_LINEAR[act]
    clamp = float("inf") if clamp is None else clamp
    note_signs = kernels.wants_gradient(x, b) and not kernels.is_linear(slope, clamp)
    y, _ = kernels.ops.bias_act(x, b, dim, slope, gain, clamp, note_signs)
    return y


dispatch.register("bias_act", _bias_act_ref, _bias_act_kernel)


def finite(name: str, value: float) -> float:
    """`value` as a float; ValueError for NaN, infinity and what is no number."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise ValueError(f"{name} is {value!r}, must be a number")
    value = float(value)
    if not abs(value) < float("inf"):  # torch.compile does not see through math.isfinite
        raise ValueError(f"{name} is {value}, must be finite")
    return value


def _check_arguments(x, b, dim, act, clamp):
    if act not in ACTIVATIONS:
        raise ValueError(f"act is {act!r}, not one of: {', '.join(ACTIVATIONS)}")
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise ValueError("x must be a floating point tensor")
    check_clamp(clamp)
    check_bias(x, b, dim)


def check_clamp(clamp: float | None) -> None:
    if clamp is not None and (isinstance(clamp, str) or not clamp >= 0):
        raise ValueError(f"clamp is {clamp}, must be None or at least 0")


def check_bias(x: torch.Tensor, b: torch.Tensor | None, dim: int) -> None:
    """ValueError for a bias that does not fit dimension `dim` of `x`."""
    if b is None:
        return
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim is {dim}, but x has {x.ndim} dimensions")
    if not isinstance(b, torch.Tensor) or b.is_complex():
        raise ValueError("b must be a tensor of real numbers")
    if b.ndim != 1 or b.shape[0] != x.shape[dim]:
        raise ValueError(f"b has shape {list(b.shape)}, must be [{x.shape[dim]}] like dimension {dim} of x")
    if b.device != x.device:
        raise ValueError(f"b is on {b.device}, must be on {x.device} like x")
