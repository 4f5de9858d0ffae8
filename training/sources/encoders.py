"""Image to latent: the one place where a source image becomes z (Asokan & Seelamantula 2023, sec. 3).

The encoder is a part of the generator (`G.mapping.encoder`), saved with it, and used by training, sampling, metrics
and video alike. A 2-D input is always taken as z and passes through.
"""

import itertools
import math
from collections.abc import Iterable

import torch

from dnnlib.errors import UserError
from training.data.image_tensors import resize, resize_gray
from training.layers.equalized import EqualizedConv2d, EqualizedLinear
from training.settings import NORMS


class Encoder(torch.nn.Module):
    """Base: features of the image, then a normalisation whose statistics over the source are buffers.

    norm: `none` leaves the features as they are (the paper, literally); `standardize` centres and scales every
    dimension; `whiten` decorrelates them. noise_std: standard deviation of the Gaussian noise that whoever draws
    latents adds to z (`training.sources.feed.LatentFeed`); a call of the encoder itself is deterministic.
    """

    is_trainable = False
    mean: torch.Tensor
    scale: torch.Tensor
    whitener: torch.Tensor

    def __init__(self, z_dim: int, norm: str = "standardize", noise_std: float = 0.0):
        super().__init__()
        if norm not in NORMS:
            raise UserError(f"--source-norm={norm}: choose from {', '.join(NORMS)}")
        self.z_dim = z_dim
        self.norm = norm
        self.noise_std = noise_std
        if norm != "none":
            self.register_buffer("mean", torch.zeros([z_dim]))
        if norm == "standardize":
            self.register_buffer("scale", torch.ones([z_dim]))
        if norm == "whiten":
            self.register_buffer("whitener", torch.eye(z_dim))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Images `[n, C, H, W]` in [-1, 1] -> `[n, z_dim]`, before the normalisation."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[n, C, H, W]` in [-1, 1], or z `[n, z_dim]` -> z `[n, z_dim]` float32."""
        if x.ndim == 2:
            return check_latent(x, self.z_dim)
        if x.ndim != 4:
            raise ValueError(f"x must be z [n, {self.z_dim}] or images [n, C, H, W], not {list(x.shape)}")
        return self.normalize(self.features(x.to(torch.float32)))

    def normalize(self, z: torch.Tensor) -> torch.Tensor:
        if self.norm == "standardize":
            return (z - self.mean) * self.scale
        if self.norm == "whiten":
            return (z - self.mean) @ self.whitener
        return z

    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Set the statistics from batches of source images. Call once, before training."""
        if self.norm == "none":
            return
        z = torch.cat([self.features(images.to(torch.float32)) for images in batches]).double()  # [N, z_dim]
        if z.shape[0] < 2:
            raise UserError(f"--source-norm={self.norm} needs at least two source images; use --source-norm=none")
        self.mean.copy_(z.mean(dim=0))
        if self.norm == "standardize":
            self.scale.copy_(standardizing_scale(z))
        else:
            self.whitener.copy_(whitening_matrix(z))


class IdentityEncoder(Encoder):
    """z is z."""

    def __init__(self, z_dim: int):
        super().__init__(z_dim, norm="none")

    def features(self, images: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"this generator takes z [n, {self.z_dim}], not images {list(images.shape)}")


class FlattenEncoder(Encoder):
    """The paper's: mean over channels, antialiased resize to `h x w` with `h * w == z_dim`, row-major flatten."""

    def __init__(self, z_dim: int, norm: str = "standardize", noise_std: float = 0.0):
        super().__init__(z_dim, norm, noise_std)
        self.grid = grid_for(z_dim)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return resize_gray(images, self.grid).flatten(1)


class FlattenCropEncoder(Encoder):
    """The authors' later variant: resize to the smallest square of at least `z_dim` pixels, keep the first `z_dim`."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        side = math.isqrt(self.z_dim - 1) + 1
        return resize_gray(images, (side, side)).flatten(1)[:, : self.z_dim]


class ConvEncoder(Encoder):
    """A small trainable encoder: three strided convolutions on a 32x32 image, then a linear layer."""

    is_trainable = True
    side, width = 32, 32

    def __init__(self, z_dim: int, norm: str = "standardize", noise_std: float = 0.0, img_channels: int = 3):
        super().__init__(z_dim, norm, noise_std)
        self.img_channels = img_channels
        channels = [img_channels, self.width, 2 * self.width, 4 * self.width]
        convs = [EqualizedConv2d(*pair, kernel_size=4, stride=2) for pair in itertools.pairwise(channels)]
        self.layers = torch.nn.Sequential(*convs, torch.nn.Flatten(), EqualizedLinear(channels[-1] * 4 * 4, z_dim))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] != self.img_channels:
            raise ValueError(f"this encoder was built for {self.img_channels} channels, not {images.shape[1]}")
        return self.layers(resize(images, (self.side, self.side)))


ENCODERS: dict[str, type[Encoder]] = {
    "flatten": FlattenEncoder,
    "flatten-crop": FlattenCropEncoder,
    "conv": ConvEncoder,
    "identity": IdentityEncoder,
}


def build_encoder(kind: str, z_dim: int, **kwargs) -> Encoder:
    """The encoder called `kind`; `UserError` with the choices for any other name."""
    if kind not in ENCODERS:
        raise UserError(f"--source-encoder={kind}: choose from {', '.join(ENCODERS)}")
    return ENCODERS[kind](z_dim, **kwargs)


def check_latent(z: torch.Tensor, z_dim: int) -> torch.Tensor:
    if z.shape[1] != z_dim:
        raise ValueError(f"z must have {z_dim} columns, not {z.shape[1]}")
    return z.to(torch.float32)


def grid_for(z_dim: int) -> tuple[int, int]:
    """`(h, w)` with `h * w == z_dim`, `h <= w`, as square as can be and at most 4:1 (16x32 for 512)."""
    height = next(h for h in range(math.isqrt(z_dim), 0, -1) if z_dim % h == 0)
    width = z_dim // height
    if width > 4 * height:
        raise UserError(
            f"--z-dim={z_dim} is no sensible grid of pixels ({height}x{width}); "
            "choose 64, 256 or 512, or --source-encoder=flatten-crop"
        )
    return height, width


def standardizing_scale(z: torch.Tensor) -> torch.Tensor:
    """1 / standard deviation of each column of `[N, d]`.

    A column that hardly moves (the black border of digits) is not blown up: deviations count as at least 1 % of their
    root mean square.
    """
    std = z.std(dim=0)
    floor = 0.01 * std.square().mean().sqrt()
    return 1 / std.clamp(min=max(floor.item(), 1e-12))


def whitening_matrix(z: torch.Tensor) -> torch.Tensor:
    """Symmetric W `[d, d]` such that `(z - mean) @ W` is decorrelated with unit variance (ZCA).

    The eigenvalues are shrunk towards their mean by the rule of Ledoit & Wolf (2004), so that the directions that the
    source hardly uses are not filled with amplified noise.
    """
    centred = z - z.mean(dim=0)  # [N, d]
    num, dim = centred.shape
    covariance = centred.t() @ centred / num
    average = covariance.diagonal().mean()
    spread = (covariance - average * torch.eye(dim, dtype=z.dtype, device=z.device)).square().sum()
    error = (centred.square().sum(dim=1).square().mean() - covariance.square().sum()) / num
    shrinkage = float((error / spread.clamp(min=1e-300)).clamp(0, 1))
    values, vectors = torch.linalg.eigh(covariance)
    values = (1 - shrinkage) * values + shrinkage * average
    floor = 1e-6 * average.clamp(min=1e-18)
    return (vectors * values.clamp(min=float(floor)).rsqrt()) @ vectors.t()
