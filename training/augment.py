"""Adaptive discriminator augmentation: the pipeline of "Training GANs with Limited Data" (Karras et al. 2020).

Both real and generated images pass through it before the discriminator sees them. Every transformation is applied with
probability `p` to each image on its own, so that at p < 1 the generator cannot learn the augmentations. `p` is a
buffer, 1 at first: the ADA heuristic writes it during training, a snapshot carries it.
"""

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from torch_utils import misc, persistence, seeding
from torch_utils.ops import grid_sample_gradfix, upfirdn2d

_BLIT = {"xflip": 1, "rotate90": 1, "xint": 1}
_GEOM = {"scale": 1, "rotate": 1, "aniso": 1, "xfrac": 1}
_COLOR = {"brightness": 1, "contrast": 1, "lumaflip": 1, "hue": 1, "saturation": 1}
_FILTER, _NOISE, _CUTOUT = {"imgfilter": 1}, {"noise": 1}, {"cutout": 1}

# The named combinations of the paper (its figure 4 compares them): arguments of `AugmentPipe`.
AUGPIPES: dict[str, dict[str, int]] = {
    "blit": _BLIT,
    "geom": _GEOM,
    "color": _COLOR,
    "filter": _FILTER,
    "noise": _NOISE,
    "cutout": _CUTOUT,
    "bg": _BLIT | _GEOM,
    "bgc": _BLIT | _GEOM | _COLOR,
    "bgcf": _BLIT | _GEOM | _COLOR | _FILTER,
    "bgcfn": _BLIT | _GEOM | _COLOR | _FILTER | _NOISE,
    "bgcfnc": _BLIT | _GEOM | _COLOR | _FILTER | _NOISE | _CUTOUT,
}

# Low-pass filters of orthogonal wavelets: symlets with 2 and 6 vanishing moments (Daubechies 1992, ch. 6 and 8).
_SYM2 = [(1 - math.sqrt(3)) / 8, (3 - math.sqrt(3)) / 8, (3 + math.sqrt(3)) / 8, (1 + math.sqrt(3)) / 8]
_SYM6 = [
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
]  # fmt: skip
_BAND_POWER = [10 / 13, 1 / 13, 1 / 13, 1 / 13]  # of natural images (power ~ 1 / f): the low band has most


@persistence.persistent_class
class AugmentPipe(nn.Module):
    """Random transformations of a batch of images.

    Arguments without an ending are the relative probability of a transformation (times `p`; 0 switches it off); `*_std` is
    its strength as that of a normal distribution, `*_max` as the largest value.
    """

    p: torch.Tensor
    Hz_geom: torch.Tensor
    Hz_fbank: torch.Tensor

    def __init__(
        self,
        xflip: float = 0,  # mirroring, left to right
        rotate90: float = 0,  # by a multiple of 90 degrees
        xint: float = 0,  # shifting by whole pixels
        xint_max: float = 0.125,  # at most, as a part of the image size
        scale: float = 0,  # the same in both directions
        rotate: float = 0,  # by any angle
        aniso: float = 0,  # stretching
        xfrac: float = 0,  # shifting by any distance
        scale_std: float = 0.2,  # of log2 of the factor
        rotate_max: float = 1,  # half turns
        aniso_std: float = 0.2,  # of log2 of the factor
        xfrac_std: float = 0.125,  # as a part of the image size
        brightness: float = 0,
        contrast: float = 0,
        lumaflip: float = 0,  # bright for dark, colours kept
        hue: float = 0,
        saturation: float = 0,
        brightness_std: float = 0.2,
        contrast_std: float = 0.5,  # of log2
        hue_max: float = 1,  # half turns
        saturation_std: float = 1,  # of log2
        imgfilter: float = 0,  # amplifying bands of frequencies
        imgfilter_bands: list[float] = [1, 1, 1, 1],  # relative probabilities, from low to high
        imgfilter_std: float = 1,  # of log2 of the gain
        noise: float = 0,
        cutout: float = 0,  # a grey square
        noise_std: float = 0.1,
        cutout_size: float = 0.5,  # as a part of the image size
    ) -> None:
        strengths = {
            name: value for name, value in locals().items() if name not in ("self", "imgfilter_bands", "__class__")
        }
        super().__init__()
        self.register_buffer("p", torch.ones([]))
        for name, value in strengths.items():
            setattr(self, name, float(value))
        self.imgfilter_bands = list(imgfilter_bands)
        if len(self.imgfilter_bands) != len(_BAND_POWER):
            raise ValueError(f"imgfilter_bands is {imgfilter_bands}, must hold {len(_BAND_POWER)} numbers")
        self.register_buffer("Hz_geom", upfirdn2d.setup_filter(_SYM6))
        self.register_buffer("Hz_fbank", torch.as_tensor(band_filters(_SYM2), dtype=torch.float32))

    def forward(self, images: torch.Tensor, debug_percentile: float | None = None) -> torch.Tensor:
        """Augment `images` `[N, C, H, W]` in [-1, 1], C 1, 3 or 4 (the fourth is alpha: it only moves and is cut out).

        Random numbers come from `torch_utils.seeding`. `debug_percentile` in (0, 1) puts that quantile in place of
        every random number (of a normal distribution, the quantile / sqrt(2)), whatever `p` is; only noise is random.
        Differentiable twice with respect to `images`. ValueError for another number of channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
            raise ValueError(f"images has shape {list(images.shape)}, must be [N, C, H, W] with C 1, 3 or 4")
        if len(images) == 0 or (debug_percentile is None and self.p == 0):
            return images
        draw = _Draw(images, self.p, debug_percentile)
        images = self._move(images, draw)
        if images.shape[1] == 4:
            images, alpha = images.split([3, 1], dim=1)
            images = torch.cat([self._recolor_and_filter(images, draw), alpha], dim=1)
        else:
            images = self._recolor_and_filter(images, draw)
        return self._cut_out(images, draw)

    def _move(self, images, draw):
        """Pixel blitting and general geometric transformations: one affine map per image."""
        inverse = self._inverse_map(images, draw)
        return images if inverse is None else warp(images, inverse, self.Hz_geom)

    def _inverse_map(self, images, draw):
        """`[N, 3, 3]`: where an output pixel comes from, in pixels (x to the right, y down) from the image's centre.

        The inverses of the single maps multiply from the right, in the order in which the maps are applied. None where
        every map is off.
        """
        height, width = images.shape[2:]
        maps = self._blitting_maps(draw, width, height) + self._geometric_maps(draw, width, height)
        return functools.reduce(torch.matmul, maps) if maps else None

    def _blitting_maps(self, draw, width, height):
        maps = []
        if self.xflip > 0:
            maps.append(_scale_2d(1 - 2 * draw.sometimes(self.xflip, draw.choice(2), 0), 1))
        if self.rotate90 > 0:
            maps.append(_rotate_2d(math.pi / 2 * draw.sometimes(self.rotate90, draw.choice(4), 0)))
        if self.xint > 0:
            shift = draw.sometimes(self.xint, draw.symmetric(2) * self.xint_max, 0)
            maps.append(_translate_2d(-(shift[:, 0] * width).round(), -(shift[:, 1] * height).round()))
        return maps

    def _geometric_maps(self, draw, width, height):
        maps = []
        if self.scale > 0:
            factor = draw.sometimes(self.scale, draw.lognormal() ** self.scale_std, 1)
            maps.append(_scale_2d(1 / factor, 1 / factor))
        if self.rotate > 0:
            maps.append(_rotate_2d(self._angle(draw)))
        if self.aniso > 0:
            factor = draw.sometimes(self.aniso, draw.lognormal() ** self.aniso_std, 1)
            maps.append(_scale_2d(1 / factor, factor))
        if self.rotate > 0 and draw.quantile is None:
            maps.append(_rotate_2d(self._angle(draw)))
        if self.xfrac > 0:
            shift = draw.sometimes(self.xfrac, draw.normal(2) * self.xfrac_std, 0)
            maps.append(_translate_2d(-shift[:, 0] * width, -shift[:, 1] * height))
        return maps

    def _angle(self, draw):
        """The angle of the rotation before, or after, the anisotropic scaling: one of them, with the probability asked for."""
        probability = 1 - (1 - (self.rotate * draw.p).clamp(0, 1)).sqrt()
        return draw.sometimes_at(probability, draw.symmetric() * math.pi * self.rotate_max, 0)

    def _recolor_and_filter(self, images, draw):
        images = self._recolor(images, draw)
        images = self._filter(images, draw)
        return self._add_noise(images, draw)

    def _recolor(self, images, draw):
        """One affine map of the colour space per image; `[N, 4, 4]` matrices that multiply from the left."""
        channels = images.shape[1]
        maps = []
        grey = torch.tensor([1.0, 1.0, 1.0, 0.0], device=images.device) / math.sqrt(3)  # the luma axis
        along_grey, eye = torch.outer(grey, grey), torch.eye(4, device=images.device)
        if self.brightness > 0:
            shift = draw.sometimes(self.brightness, draw.normal() * self.brightness_std, 0)
            maps.append(_matrix([[1, 0, 0, shift], [0, 1, 0, shift], [0, 0, 1, shift], [0, 0, 0, 1]]))
        if self.contrast > 0:
            factor = draw.sometimes(self.contrast, draw.lognormal() ** self.contrast_std, 1)
            maps.append(_matrix([[factor, 0, 0, 0], [0, factor, 0, 0], [0, 0, factor, 0], [0, 0, 0, 1]]))
        if self.lumaflip > 0:
            is_flipped = draw.sometimes(self.lumaflip, draw.choice(2), 0).reshape(-1, 1, 1)
            maps.append(eye - 2 * along_grey * is_flipped)  # Householder
        if self.hue > 0 and channels > 1:
            angle = draw.sometimes(self.hue, draw.symmetric() * math.pi * self.hue_max, 0)
            maps.append(_rotate_about_grey(angle))
        if self.saturation > 0 and channels > 1:
            factor = draw.sometimes(self.saturation, draw.lognormal() ** self.saturation_std, 1).reshape(-1, 1, 1)
            maps.append(along_grey + (eye - along_grey) * factor)
        if not maps:
            return images
        matrix = functools.reduce(lambda total, new: new @ total, maps)
        return recolor(images, matrix.to(images.dtype))

    def _filter(self, images, draw):
        """Amplify or suppress frequency bands, at constant expected power."""
        if self.imgfilter == 0:
            return images
        power = torch.tensor(_BAND_POWER, device=images.device)
        gains = torch.ones([images.shape[0], len(_BAND_POWER)], device=images.device)
        for band, rate in enumerate(self.imgfilter_bands):
            gain = draw.sometimes(self.imgfilter * rate, draw.lognormal() ** self.imgfilter_std, 1)
            band_gains = torch.ones_like(gains)
            band_gains[:, band] = gain
            gains = gains * band_gains / (power * band_gains.square()).sum(dim=1, keepdim=True).sqrt()
        return filter_rows_and_columns(images, (gains @ self.Hz_fbank).to(images.dtype))

    def _add_noise(self, images, draw):
        if self.noise == 0:
            return images
        sigma = draw.sometimes(self.noise, draw.half_normal() * self.noise_std, 0)
        noise = seeding.randn(images.shape, images.device) * sigma.reshape(-1, 1, 1, 1)
        return images + noise.to(images.dtype)

    def _cut_out(self, images, draw):
        """Zero a rectangle round a random centre."""
        if self.cutout == 0:
            return images
        size = draw.sometimes(self.cutout, torch.full([images.shape[0]], self.cutout_size, device=images.device), 0)
        center = draw.uniform(2)
        columns, rows = (
            (_pixel_centers(length, images) - center[:, [axis]]).abs() >= size[:, None] / 2  # [N, length]
            for axis, length in enumerate((images.shape[3], images.shape[2]))
        )
        return images * (columns[:, None, None, :] | rows[:, None, :, None])


class _Draw:
    """Random numbers, one (or a few) for each image of a batch, and the decision which images they are for."""

    def __init__(self, images: torch.Tensor, p: torch.Tensor, quantile: float | None) -> None:
        self.count, self.device, self.p, self.quantile = images.shape[0], images.device, p, quantile

    def uniform(self, *shape: int) -> torch.Tensor:
        """[0, 1)"""
        if self.quantile is not None:
            return torch.full([self.count, *shape], self.quantile, device=self.device)
        return seeding.rand([self.count, *shape], self.device)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal, or its quantile / sqrt(2)."""
        if self.quantile is not None:
            return torch.erfinv(2 * self.uniform(*shape) - 1)
        return seeding.randn([self.count, *shape], self.device)

    def symmetric(self, *shape: int) -> torch.Tensor:
        """Uniform in [-1, 1)."""
        return 2 * self.uniform(*shape) - 1

    def choice(self, count: int) -> torch.Tensor:
        """0, 1, ... count - 1, equally likely, as floating point numbers."""
        return (self.uniform() * count).floor()

    def half_normal(self) -> torch.Tensor:
        """The magnitude of a standard normal number, or its quantile / sqrt(2)."""
        return self.normal().abs() if self.quantile is None else torch.erfinv(self.uniform())

    def lognormal(self) -> torch.Tensor:
        """2 to the power of a standard normal number."""
        return torch.exp2(self.normal())

    def sometimes(self, rate: float, value: torch.Tensor, otherwise: float) -> torch.Tensor:
        """`value` `[N, ...]` for each image with probability `rate * p`, else `otherwise`.

        What never happens does not happen where `value` is a quantile, either.
        """
        if rate == 0 and self.quantile is not None:
            return torch.full_like(value, otherwise)
        return self.sometimes_at(rate * self.p, value, otherwise)

    def sometimes_at(self, probability: torch.Tensor, value: torch.Tensor, otherwise: float) -> torch.Tensor:
        """`value` for each image with `probability`, else `otherwise`; always `value` where it is a quantile."""
        if self.quantile is not None:
            return value
        is_on = seeding.rand([self.count], self.device) < probability
        return torch.where(is_on.reshape([-1] + [1] * (value.ndim - 1)), value, otherwise)


def warp(images: torch.Tensor, inverse: torch.Tensor, filt: torch.Tensor) -> torch.Tensor:
    """Move `images` `[N, C, H, W]` by affine maps, interpolating with the orthogonal low-pass filter `filt` `[taps]`.

    `inverse` `[N, 3, 3]` takes output to input coordinates, in pixels from the centre. Outside the image lies its
    reflection, one image size deep. The sampling is bilinear at twice the resolution (Karras 2020, appendix B).
    """
    height, width = images.shape[2:]
    border = len(filt) // 4  # what the filter needs round the output, in pixels
    wanted = inverse.new_tensor([width / 2 + border, height / 2 + border, 1])
    reach = (inverse.abs() @ wanted).amax(dim=0)[:2]  # of the output's corners, from the image's centre
    size = inverse.new_tensor([width, height])
    margin_x, margin_y = torch.minimum((reach - size / 2 + border).ceil().clamp(min=0), size - 1).int().tolist()
    padded = inverse.new_tensor([[width / 2 + margin_x], [height / 2 + margin_y]])

    images = F.pad(images, [margin_x, margin_x, margin_y, margin_y], mode="reflect")
    images = upfirdn2d.upsample2d(images, filt)
    # The weight of the filter lies half a fine pixel off its middle, so that a quarter of a pixel shifts the grid.
    shift = inverse.new_full([len(inverse)], 0.25)
    inverse = _translate_2d(-shift, -shift) @ inverse @ _translate_2d(shift, shift)
    theta = (inverse[:, :2] * wanted / padded).to(images.dtype)  # [N, 2, 3], in units of half the image
    shape = [*images.shape[:2], 2 * (height + 2 * border), 2 * (width + 2 * border)]
    images = grid_sample_gradfix.grid_sample(images, F.affine_grid(theta, shape, align_corners=False))
    return upfirdn2d.downsample2d(images, filt, padding=-2 * border, flip_filter=True)


def recolor(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Apply `[N, 4, 4]` homogeneous colour maps to `[N, C, H, W]`; C 1 counts as grey and gives the mean over RGB."""
    linear, shift = matrix[:, :3, :3], matrix[:, :3, 3:]  # [N, 3, 3], [N, 3, 1]
    pixels = images.flatten(2)  # [N, C, H * W]
    if images.shape[1] == 1:
        linear, shift = linear.sum(dim=2, keepdim=True).mean(dim=1, keepdim=True), shift.mean(dim=1, keepdim=True)
    return (linear @ pixels + shift).reshape(images.shape)


def filter_rows_and_columns(images: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Filter each image of `[N, C, H, W]` with its own symmetric filter, `taps` `[N, odd]`; reflects at the edges."""
    n, c, h, w = images.shape
    pad = taps.shape[1] // 2
    weight = taps.repeat_interleave(c, dim=0)[:, None, None, :]  # [N * C, 1, 1, taps]
    images = reflect_pad(images, pad).reshape(1, n * c, h + 2 * pad, w + 2 * pad)
    images = F.conv2d(images, weight, groups=n * c)
    images = F.conv2d(images, weight.transpose(2, 3), groups=n * c)
    return images.reshape(n, c, h, w)


def reflect_pad(images: torch.Tensor, pad: int) -> torch.Tensor:
    """Reflect `[N, C, H, W]` at the edges, more than once where the image is smaller than `pad`."""
    height, width = images.shape[2:]
    columns, rows = _reflected(width, pad, images.device), _reflected(height, pad, images.device)
    return images.index_select(3, columns).index_select(2, rows)


def band_filters(lowpass: list[float]) -> np.ndarray:
    """Four symmetric filters for the frequency bands [0, 1/8], [1/8, 1/4], [1/4, 1/2], [1/2, 1] of Nyquist.

    `lowpass` belongs to an orthogonal wavelet and sums to 1; its autocorrelation is a half-band filter. The bands are a
    pyramid of it: A(z) A(z^2) A(z^4), A(z) A(z^2) B(z^4), A(z) B(z^2) and B(z) with B = 1 - A; they sum to the identity
    (Karras 2020, appendix B). Returns `[4, 43]` for four taps.
    """
    low = np.convolve(lowpass, lowpass[::-1])
    high = -low
    high[len(low) // 2] += 1
    low2, low4 = _stretch(low, 2), _stretch(low, 4)
    bands = [
        np.convolve(np.convolve(low, low2), low4),
        np.convolve(np.convolve(low, low2), _stretch(high, 4)),
        np.convolve(low, _stretch(high, 2)),
        high,
    ]
    taps = len(bands[0])
    return np.stack([np.pad(band, (taps - len(band)) // 2) for band in bands])


def _stretch(taps, factor):
    """H(z) -> H(z^factor)."""
    stretched = np.zeros((len(taps) - 1) * factor + 1)
    stretched[::factor] = taps
    return stretched


def _reflected(length, pad, device):
    """Indices of a row that is reflected at both ends until it is `pad` longer on either side."""
    period = max(2 * (length - 1), 1)
    position = torch.arange(-pad, length + pad, device=device) % period
    return torch.minimum(position, period - position)


def _pixel_centers(length, like):
    return (torch.arange(length, device=like.device) + 0.5) / length


# Batches of small matrices, `[N, rows, columns]`.


def _matrix(rows):
    """Build matrices from rows of numbers and `[N]` tensors."""
    return matrix(*rows)


def _translate_2d(x, y):
    return _matrix([[1, 0, x], [0, 1, y], [0, 0, 1]])


def _scale_2d(x, y):
    return _matrix([[x, 0, 0], [0, y, 0], [0, 0, 1]])


def _rotate_2d(angle):
    cos, sin = angle.cos(), angle.sin()
    return _matrix([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _rotate_about_grey(angle):
    """Rotate the colours about the axis R = G = B: Rodrigues' formula for the axis (1, 1, 1) / sqrt(3)."""
    cos, sin = angle.cos(), angle.sin() / math.sqrt(3)
    keep, mix = (1 + 2 * cos) / 3, (1 - cos) / 3
    ahead, behind = mix + sin, mix - sin
    return _matrix([[keep, behind, ahead, 0], [ahead, keep, behind, 0], [behind, ahead, keep, 0], [0, 0, 0, 1]])


# Official names of these matrices, of numbers or `[N]` tensors, and of the filters.


def matrix(*rows, device=None):
    """A matrix of rows of numbers `[rows, columns]`, or with tensors `[N]` among them `[N, rows, columns]`."""
    tensors = [value for row in rows for value in row if isinstance(value, torch.Tensor)]
    like = tensors[0] if tensors else torch.zeros([], device=device)
    values = [torch.as_tensor(v, dtype=like.dtype, device=device or like.device) for row in rows for v in row]
    return torch.stack(torch.broadcast_tensors(*values), dim=-1).unflatten(-1, (len(rows), -1))


def translate2d(tx, ty, **kwargs):
    return matrix([1, 0, tx], [0, 1, ty], [0, 0, 1], **kwargs)


def translate3d(tx, ty, tz, **kwargs):
    return matrix([1, 0, 0, tx], [0, 1, 0, ty], [0, 0, 1, tz], [0, 0, 0, 1], **kwargs)


def scale2d(sx, sy, **kwargs):
    return matrix([sx, 0, 0], [0, sy, 0], [0, 0, 1], **kwargs)


def scale3d(sx, sy, sz, **kwargs):
    return matrix([sx, 0, 0, 0], [0, sy, 0, 0], [0, 0, sz, 0], [0, 0, 0, 1], **kwargs)


def rotate2d(theta, **kwargs):
    theta = theta if isinstance(theta, torch.Tensor) else torch.tensor(float(theta))
    cos, sin = theta.cos(), theta.sin()
    return matrix([cos, -sin, 0], [sin, cos, 0], [0, 0, 1], **kwargs)


def rotate3d(v, theta, **kwargs):
    """About the axis v, a row of three numbers (Rodrigues' formula)."""
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    theta = theta if isinstance(theta, torch.Tensor) else torch.tensor(float(theta))
    cos, sin = theta.cos(), theta.sin()
    mix = 1 - cos
    return matrix(
        [x * x * mix + cos, x * y * mix - z * sin, x * z * mix + y * sin, 0],
        [y * x * mix + z * sin, y * y * mix + cos, y * z * mix - x * sin, 0],
        [z * x * mix - y * sin, z * y * mix + x * sin, z * z * mix + cos, 0],
        [0, 0, 0, 1],
        **kwargs,
    )


def translate2d_inv(tx, ty, **kwargs):
    return translate2d(-tx, -ty, **kwargs)


def scale2d_inv(sx, sy, **kwargs):
    return scale2d(1 / sx, 1 / sy, **kwargs)


def rotate2d_inv(theta, **kwargs):
    return rotate2d(-theta, **kwargs)


# Of unit energy; the other wavelets of the official table are not used by its pipeline, and not here.
wavelets = {
    "haar": [math.sqrt(0.5)] * 2,
    "sym2": [math.sqrt(2) * tap for tap in _SYM2],
    "sym6": list(_SYM6),
}
wavelets |= {"db1": wavelets["haar"], "db2": wavelets["sym2"][::-1]}


def build_augmentation(kwargs: dict[str, Any] | None) -> misc.Network | None:
    """The pipe, or the class that its arguments name; None for no augmentation."""
    return None if kwargs is None else persistence.construct(**{"class_name": "training.augment.AugmentPipe", **kwargs})
