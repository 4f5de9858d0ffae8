"""What feeds w: the encoder in front of the mapping network, the running mean of w, truncation (Karras 2019)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from training.sources.encoders import IdentityEncoder, build_encoder


class EncodedMapping(torch.nn.Module):
    """Base of the mapping networks: image or z in, z through `encoder`, w broadcast over the layers and truncated.

    A subclass implements `embed_latent(z, c) -> w [n, w_dim]`.
    """

    w_avg: torch.Tensor

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, num_ws: int | None, w_avg_beta: float | None):
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.num_ws = num_ws
        self.w_avg_beta = w_avg_beta
        self.encoder: torch.nn.Module = IdentityEncoder(z_dim)
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros([w_dim]))

    def embed_latent(self, z: torch.Tensor | None, c: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError

    def forward(
        self,
        z: torch.Tensor | None,
        c: torch.Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
        skip_w_avg_update: bool | None = None,
    ) -> torch.Tensor:
        """Latents `[n, z_dim]` or source images `[n, C, H, W]`, labels `[n, c_dim]` -> ws `[n, num_ws, w_dim]`.

        skip_w_avg_update: name in StyleGAN2-ADA, where the mean w follows every call in training mode that does not skip it.
        """
        if skip_w_avg_update is not None:
            update_emas = self.training and not skip_w_avg_update
        if self.z_dim > 0:
            z = self.encoder(z)  # [n, z_dim]
        if self.c_dim > 0 and (c is None or c.ndim != 2 or c.shape[1] != self.c_dim):
            raise ValueError(f"this network is conditional: c must be labels [n, {self.c_dim}]")
        w = self.embed_latent(z, c)  # [n, w_dim]
        if update_emas and self.w_avg_beta is not None:
            self.w_avg.copy_(w.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        if self.num_ws is None:
            return w
        ws = w.unsqueeze(1).repeat([1, self.num_ws, 1])  # [n, num_ws, w_dim]
        return ws if truncation_psi == 1 else self.truncate(ws, truncation_psi, truncation_cutoff)

    def truncate(self, ws: torch.Tensor, psi: float, cutoff: int | None) -> torch.Tensor:
        """Pull the first `cutoff` layers (all for None) towards the mean w."""
        assert self.w_avg_beta is not None, "truncation needs the mean w, which this network does not track"
        end = self.num_ws if cutoff is None else cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :end], psi), ws[:, end:]], dim=1)

    def extra_repr(self) -> str:
        return f"z_dim={self.z_dim}, c_dim={self.c_dim}, w_dim={self.w_dim}, num_ws={self.num_ws}"


def normalize_2nd_moment(x: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Scale each row to unit mean square."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


class SourceGenerator(torch.nn.Module):
    """`G(x, c) -> images`: mapping, with the encoder of the source in front of it, then synthesis.

    A subclass names its two networks. `mapping_kwargs["encoder"]` holds the arguments of `build_encoder`; without it the
    generator takes z. The other `mapping_kwargs` and the `synthesis_kwargs` are those of the networks.
    """

    mapping_network: ClassVar[type]
    synthesis_network: ClassVar[type]

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int | Sequence[int],
        img_channels: int,
        mapping_kwargs: dict[str, Any] = {},
        **synthesis_kwargs: Any,
    ):
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        mapping_kwargs = dict(mapping_kwargs)
        encoder_kwargs = mapping_kwargs.pop("encoder", None)
        self.synthesis = self.synthesis_network(w_dim, img_resolution, img_channels, **synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        self.mapping = self.mapping_network(z_dim, c_dim, w_dim, num_ws=self.num_ws, **mapping_kwargs)
        if encoder_kwargs is not None:
            self.mapping.encoder = build_encoder(z_dim=z_dim, **encoder_kwargs)

    def set_progress(self, cur_nimg: float) -> None:
        """Told before every step how many images training has seen; for generators that change on the way."""

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
        **synthesis_kwargs: Any,
    ) -> torch.Tensor:
        """z `[n, z_dim]` or source images `[n, C, h, w]`, labels `[n, c_dim]` -> images `[n, img_channels, h, w]`."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas=update_emas)
        return self.synthesis(ws, update_emas=update_emas, **synthesis_kwargs)
