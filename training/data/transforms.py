"""What images are turned into: channels, bits, size, and how they are fitted into it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor

from dnnlib.errors import UserError
from training.data.pixels import clear_hidden, has_hidden, widen

CHANNELS = {"keep": 0, "gray": 1, "rgb": 3, "rgba": 4}
BITS = {"auto": 0, "8": 8, "16": 16}
TRANSFORMS = ("center-crop", "center-crop-wide", "center-crop-dhariwal", "pad")
RESAMPLE = {
    name.lower(): Image.Resampling[name] for name in ("NEAREST", "BOX", "BILINEAR", "HAMMING", "BICUBIC", "LANCZOS")
}
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
Size = tuple[int, int]  # width, height


class TooSmall(Exception):
    """An image that a transform would have to enlarge."""


@dataclass(frozen=True)
class Plan:
    """What every image is turned into."""

    channels: int
    bits: int
    size: Size
    transform: str | None
    resample: Image.Resampling = Image.Resampling.LANCZOS
    pad_color: str | None = None
    trim: bool = False

    def apply(self, pixels: np.ndarray) -> "tuple[np.ndarray, list[str]]":
        """`[H, W, C]` of any type -> of this plan's, and which of `CHANGES` were made. Raises `TooSmall`."""
        changes = ["hidden"] if self.channels == 4 and has_hidden(pixels) else []
        pixels = clear_hidden(to_bits(pixels, self.bits))
        if self.trim:
            trimmed = trim_border(pixels)
            changes += ["trimmed"] if trimmed.shape != pixels.shape else []
            pixels = trimmed
        pixels = to_channels(pixels, self.channels)
        if self.transform is None and pixels.shape[1] * self.size[1] != pixels.shape[0] * self.size[0]:
            changes.append("stretched")
        return clear_hidden(self._fit(pixels)), changes

    def _fit(self, pixels: np.ndarray) -> np.ndarray:
        width, height = self.size
        if self.transform == "center-crop":
            side = min(pixels.shape[:2])
            return resample_to(crop_center(pixels, side, side), self.size, self.resample)
        if self.transform == "center-crop-wide":
            return letterbox(pixels, self.size, self.resample)
        if self.transform == "center-crop-dhariwal":
            return crop_center(shrink_by_halves(pixels, width), width, height)
        if self.transform == "pad":
            return pad(pixels, self.size, self.resample, pad_values(self.pad_color, pixels.shape[2], pixels.dtype))
        return resample_to(pixels, self.size, self.resample)

    @property
    def output_size(self) -> Size:
        """The size of the files: a letterbox is square."""
        return (self.size[0], self.size[0]) if self.transform == "center-crop-wide" else self.size


def to_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    """8-bit pixels as 16-bit or the other way, rounded: 255 is 65,535."""
    if bits == 16 and pixels.dtype == np.uint8:
        return pixels.astype(np.uint16) * 257
    if bits == 8 and pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels


def trim_border(pixels: np.ndarray) -> np.ndarray:
    """Cut off what is transparent all around or, in an opaque image, the colour that all four corners have.

    An image of nothing else stays as it is.
    """
    if pixels.shape[2] == 4 and (pixels[:, :, 3] == 0).any():
        is_content = pixels[:, :, 3] > 0
    else:
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
        if (corners != corners[0]).any():
            return pixels
        is_content = (pixels != corners[0]).any(axis=2)
    rows, columns = np.flatnonzero(is_content.any(axis=1)), np.flatnonzero(is_content.any(axis=0))
    if len(rows) == 0:
        return pixels
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def pad_values(color: str | None, channels: int, dtype: np.dtype) -> np.ndarray:
    """A colour by its name or `#rrggbb` as `[channels]`; None: transparent, or white where there is no alpha.

    Raises `UserError`.
    """
    if color is None:
        return np.array([0, 0, 0, 0] if channels == 4 else [np.iinfo(dtype).max] * channels).astype(dtype)
    try:
        value = ImageColor.getcolor(color, "RGB")
    except ValueError as error:
        raise UserError(f"--pad-color={color}: is no colour; use a name such as black, or #rrggbb") from error
    pixel = to_bits(np.array(value, np.uint8).reshape(1, 1, 3), 8 * np.dtype(dtype).itemsize)
    return to_channels(pixel, channels)[0, 0]


def pad(pixels: np.ndarray, size: Size, resample: Image.Resampling, color: np.ndarray) -> np.ndarray:
    """Fit the image into the size, as large as it can be, its shape kept, in the middle of the colour `[C]`.

    With `NEAREST` images are enlarged by whole factors only, so that all pixels of a sprite stay alike.
    """
    height, width = pixels.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    if resample == Image.Resampling.NEAREST and scale > 1:
        scale = int(scale)
    inner = max(round(width * scale), 1), max(round(height * scale), 1)
    canvas = np.broadcast_to(color, [size[1], size[0], pixels.shape[2]]).copy()
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = resample_to(pixels, inner, resample)
    return canvas


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Gray, RGB and RGBA into each other; alpha is composited onto white, colour weighed as the eye does."""
    if pixels.shape[2] <= channels:
        return widen(pixels, channels)
    white = np.iinfo(pixels.dtype).max
    color = pixels[:, :, :3].astype(np.float64)
    if pixels.shape[2] == 4:
        color = white + (color - white) * (pixels[:, :, 3:] / white)
    color = color if channels == 3 else (color @ LUMA)[:, :, np.newaxis]
    return color.round().astype(pixels.dtype)


def resample_to(pixels: np.ndarray, size: Size, resample: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """`[H, W, C]` to (width, height). Colours count by their alpha: what is transparent does not bleed out."""
    if pixels.shape[1::-1] == size:
        return pixels
    if pixels.dtype == np.uint16:
        return _resize_16(pixels, size, resample)
    gray = pixels.shape[2] == 1
    resized = np.asarray(
        Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if gray else pixels)).resize(size, resample)
    )
    return resized[:, :, np.newaxis] if gray else resized


def _resize_16(pixels: np.ndarray, size: Size, resample: Image.Resampling) -> np.ndarray:
    white, values = 65535, pixels.astype(np.float32)
    if pixels.shape[2] == 4:
        values[:, :, :3] *= values[:, :, 3:] / white
    planes = [Image.fromarray(np.ascontiguousarray(values[:, :, i])) for i in range(pixels.shape[2])]
    values = np.stack([np.asarray(plane.resize(size, resample)) for plane in planes], axis=-1)
    if pixels.shape[2] == 4:
        alpha = values[:, :, 3:].clip(0, white)
        values[:, :, :3] *= np.divide(white, alpha, out=np.zeros_like(alpha), where=alpha >= 0.5)
    return values.clip(0, white).round().astype(np.uint16)


def crop_center(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def letterbox(pixels: np.ndarray, size: Size, resample: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """The middle rows at `size`, on a black (or transparent) square of its width: the official `center-crop-wide`.

    As many rows are taken as the whole image has at the new width. So images wider than that lose more and are squeezed,
    and those whose shape is wider than the size are too small.
    """
    width, height = size
    num_rows = round(width * pixels.shape[0] / pixels.shape[1])
    if pixels.shape[1] < width or num_rows < height:
        raise TooSmall
    strip = resample_to(crop_center(pixels, pixels.shape[1], num_rows), size, resample)
    canvas = np.zeros([width, width, pixels.shape[2]], dtype=pixels.dtype)
    top = (width - height) // 2
    canvas[top : top + height] = strip
    return canvas


def shrink_by_halves(pixels: np.ndarray, side: int) -> np.ndarray:
    """Shorter side = `side`: 2x2 averages while twice the size remains, then bicubic (Dhariwal & Nichol 2021)."""
    while min(pixels.shape[:2]) >= 2 * side:
        height, width = pixels.shape[:2]
        pixels = resample_to(pixels, (width // 2, height // 2), Image.Resampling.BOX)
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    return resample_to(pixels, (round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
