"""Generators whose w is z: of convolutional networks without a mapping network."""

from collections.abc import Sequence
from typing import Any

import torch

from torch_utils import misc
from training.generator import EncodedMapping, SourceGenerator


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


class ConvSynthesis(torch.nn.Module):
    """Base of the synthesis networks without noise, in float32 always: a subclass gives `images`."""

    num_ws = 1

    def forward(
        self, ws: torch.Tensor, update_emas: bool = False, noise_mode: str = "const", force_fp32: bool = False
    ) -> torch.Tensor:
        """`[n, num_ws, w_dim]` -> images `[n, img_channels, h, w]`."""
        misc.assert_shape(ws, [None, self.num_ws, None])
        return self.images(ws.to(torch.float32), update_emas)

    def images(self, ws: torch.Tensor, update_emas: bool) -> torch.Tensor:
        """The same for float32 ws."""
        raise NotImplementedError


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
