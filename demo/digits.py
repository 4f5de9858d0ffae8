"""The demo's two data sets, made from what is installed anyway: handwritten digits, and printed ones.

The target is scikit-learn's test set of handwritten digits (UCI "Optical Recognition of Handwritten Digits", 1,797
images of 8x8 pixels). The friendly source is drawn from the fonts that matplotlib ships: the same ten shapes, but
nothing links a printed image to a handwritten one.
"""

import json
import zipfile
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dnnlib.errors import UserError
from training.data.pixels import encode_png

SIDE = 16  # pixels of an image of either set
SUPERSAMPLING = 4  # printed digits are drawn this much larger, then reduced
DIGIT_HEIGHT = 13.5  # pixels of a printed digit: the handwritten ones nearly fill the height, too

# The fonts of matplotlib in which ten plain digits lie where ASCII has them.
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmss10", "cmtt10",
)  # fmt: skip


def handwritten_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, white on black: images uint8 `[1797, 16, 16]`, classes `[1797]`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the demo's handwritten digits come with scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    return np.stack([enlarge(image) for image in digits.images]), digits.target


def enlarge(image: np.ndarray) -> np.ndarray:
    """`[8, 8]` of values 0 to 16 -> uint8 `[16, 16]`, bicubic."""
    grey = Image.fromarray((image * (255 / 16)).astype(np.float32))
    large = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return np.rint(large.clip(0, 255)).astype(np.uint8)


def printed_digits(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Digits in random fonts, white on black, shifted, turned and emboldened: uint8 `[num, 16, 16]`, classes `[num]`."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.arange(num) % 10)
    fonts = available_fonts()
    images = [print_digit(int(digit), fonts[rng.integers(len(fonts))], rng) for digit in classes]
    return np.stack(images), classes


def print_digit(digit: int, font_path: Path, rng: np.random.Generator) -> np.ndarray:
    """One digit, uint8 `[16, 16]`."""
    side = SIDE * SUPERSAMPLING
    font = load_font(font_path)
    weight = int(rng.integers(0, SUPERSAMPLING))  # thickness added all round, in fine pixels
    shift = rng.uniform(-1, 1, size=2) * SUPERSAMPLING
    angle = rng.normal(0, 8)
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = draw.textbbox((0, 0), str(digit), font=font, stroke_width=weight)
    corner = (side - left - right) / 2 + shift[0], (side - top - bottom) / 2 + shift[1]
    draw.text(corner, str(digit), fill=255, font=font, stroke_width=weight)
    turned = canvas.rotate(angle, resample=Image.Resampling.BICUBIC)
    return np.asarray(turned.resize((SIDE, SIDE), Image.Resampling.BOX))


@cache
def available_fonts() -> tuple[Path, ...]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = tuple(path for name in FONTS if (path := folder / f"{name}.ttf").is_file())
    if not found:
        raise UserError(
            f"{folder}: matplotlib's fonts are missing; reinstall it with pip install --force-reinstall matplotlib"
        )
    return found


@cache
def load_font(path: Path) -> ImageFont.FreeTypeFont:
    """The font in the size that makes its digits `DIGIT_HEIGHT` high."""
    height = DIGIT_HEIGHT * SUPERSAMPLING
    _, top, _, bottom = ImageFont.truetype(path, 100).getbbox("0123456789")
    return ImageFont.truetype(path, round(100 * height / (bottom - top)))


def save_zip(path: Path, images: np.ndarray, labels: np.ndarray | None = None) -> None:
    """uint8 `[N, h, w]` as a zip of grey PNGs, the same bytes for the same images; with labels `[N]` in a dataset.json."""
    names = [f"img{index:05d}.png" for index in range(len(images))]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, image in zip(names, images, strict=True):
            archive.writestr(zipfile.ZipInfo(name), encode_png(image[:, :, None]))  # an entry without the time of day
        if labels is not None:
            pairs = [[name, int(label)] for name, label in zip(names, labels, strict=True)]
            archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps({"labels": pairs}))
