"""What the convolutional networks share: w is z with the label behind it, and batch normalisation that says when it moves."""

from collections.abc import Sequence
from typing import Any

import torch

from training.generator import EncodedMapping, SourceGenerator

BN_MOMENTUM = 0.1  # of the running statistics


class LatentMapping(EncodedMapping):
    """z and label to w without a network: w is z, and behind it the label or its embedding.

    embed_dim: columns of a learned linear embedding of the label (Brock 2019, app. B); None puts the label itself there
    (Mirza & Osindero 2014). Truncation pulls z towards its mean and leaves the label alone.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        embed_dim: int | None = None,
        w_avg_beta: float | None = 0.998,
    ):
        super().__init__(z_dim, c_dim, w_dim, num_ws, w_avg_beta)
        has_embedding = c_dim > 0 and embed_dim is not None
        self.embed = torch.nn.Linear(c_dim, embed_dim, bias=False) if has_embedding else None

    def embed_latent(self, z: torch.Tensor | None, c: torch.Tensor | None) -> torch.Tensor:
        assert z is not None
        if self.c_dim == 0:
            return z
        assert c is not None
        c = c.to(torch.float32)
        return torch.cat([z, c if self.embed is None else self.embed(c)], dim=1)  # [n, w_dim]

    def truncate(self, ws: torch.Tensor, psi: float, cutoff: int | None) -> torch.Tensor:
        pulled = super().truncate(ws, psi, cutoff)
        return torch.cat([pulled[:, :, : self.z_dim], ws[:, :, self.z_dim :]], dim=2)


class ConvGenerator(SourceGenerator):
    """Base of generators that take w as it comes: z, with the label behind it.

    A subclass names its `synthesis_network`, whose constructor takes `(w_dim, img_resolution, img_channels, label_dim, …)`:
    the last `label_dim` columns of w are the label's.
    """

    mapping_network = LatentMapping

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        img_resolution: int | Sequence[int],
        img_channels: int,
        mapping_kwargs: dict[str, Any] = {},
        embed_dim: int | None = None,
        **synthesis_kwargs: Any,
    ):
        label_dim = 0 if c_dim == 0 else c_dim if embed_dim is None else embed_dim
        super().__init__(
            z_dim,
            c_dim,
            z_dim + label_dim,
            img_resolution,
            img_channels,
            {"embed_dim": embed_dim, **mapping_kwargs},
            label_dim=label_dim,
            **synthesis_kwargs,
        )


class BatchNorm(torch.nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) of `[n, C, h, w]`, with the gain and bias that the caller gives or its own.

    In training mode with the statistics of the micro-batch, otherwise with running ones, which move only where
    `update_emas` says so. gain, bias: `[n, C]`, around 0 each (conditional batch norm, de Vries 2017).
    """

    def __init__(self, num_channels: int, is_affine: bool = True, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones([num_channels])) if is_affine else None
        self.bias = torch.nn.Parameter(torch.zeros([num_channels])) if is_affine else None
        self.register_buffer("mean_ema", torch.zeros([num_channels]))
        self.register_buffer("var_ema", torch.ones([num_channels]))

    def forward(
        self,
        x: torch.Tensor,
        update_emas: bool = False,
        gain: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.training and update_emas:
            self.follow(x.detach())
        mean, var = (None, None) if self.training else (self.mean_ema, self.var_ema)
        y = torch.nn.functional.batch_norm(x, mean, var, self.weight, self.bias, self.training, 0.0, self.eps)
        if gain is None or bias is None:
            return y
        return torch.addcmul(bias[:, :, None, None], y, 1 + gain[:, :, None, None])

    @torch.no_grad()
    def follow(self, x: torch.Tensor) -> None:
        """The running statistics take in those of `[n, C, h, w]`."""
        var, mean = torch.var_mean(x, dim=[0, 2, 3])
        self.mean_ema.lerp_(mean, BN_MOMENTUM)
        self.var_ema.lerp_(var, BN_MOMENTUM)

    def extra_repr(self) -> str:
        return f"num_channels={len(self.mean_ema)}, is_affine={self.weight is not None}"


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


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps of a square resolution: inversely proportional to its side, at most `channel_max`."""
    return min(channel_base // resolution, channel_max)
