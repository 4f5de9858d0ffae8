"""What `--preset` names: flags of train.py that suit a kind of data, and what came of them on a processor where measured.

Flags that are typed win. Nothing here imports torch, so that `--help` does not wait for it.
"""

from collections.abc import Collection
from dataclasses import dataclass

from dnnlib.errors import UserError, naming

SIDES = (16, 32, 64)  # of images that a preset is chosen for
FEW_IMAGES = 500
SMALL = "--cbase=1024 --cmax=128 --z-dim=64 --batch=32"
PROJECTED = f"--cfg=fastgan {SMALL}"
PLAIN = f"--cfg=dcgan {SMALL} --aug=noaug"


@dataclass(frozen=True)
class NamedPreset:
    """A row of the table: for which data, with which flags, and what to expect on 2 processor cores."""

    data: str
    flags: str
    expect: str
    without_eye: str
    """Flags where the weights of EfficientNet are not installed."""


NAMED_PRESETS = {
    "sprites": NamedPreset(
        "drawings with transparency, 16 to 64 pixels",
        f"{PLAIN} --kimg=160 --tick=8",
        "Measured on 3,583 emoji, 32x32: 9 processor minutes, fid2k_full[tiny] 19 (one seed); projected ones: two colours",
        f"{PLAIN} --kimg=160 --tick=8",  # the same: it needs none
    ),
    "photos": NamedPreset(
        "photographs and other pictures without transparency, 16 to 64 pixels",
        f"{PROJECTED} --kimg=32 --tick=2",
        "Measured on CIFAR-10, 32x32: 6 processor minutes for 12 kimg, fid2k_full[tiny] 10.1 (plain DCGAN: 32.1)",
        f"{PLAIN} --kimg=128 --tick=4",
    ),
    "few": NamedPreset(
        f"fewer than {FEW_IMAGES} images of one kind",
        f"{PROJECTED} --kimg=16 --tick=1",
        "Measured on 100 cars, 32x32, --mirror=1: 4 processor minutes for 8 kimg, fid1k_full[tiny] 11.1 (plain DCGAN: 26.0)",
        f"--cfg=dcgan {SMALL} --kimg=64 --tick=4",
    ),
}


def flags_of(name: str, given: Collection[str] = ()) -> tuple[list[str], str]:
    """The flags of a preset on this machine, and a line that says so. given: options that were typed, which win.

    Raises `UserError`.
    """
    from metrics.efficientnet import EXTRA, packaged_weights

    if name not in NAMED_PRESETS:
        raise UserError(f"--preset={name}: choose from {', '.join(NAMED_PRESETS)}")
    preset = NAMED_PRESETS[name]
    has_eye = preset.flags == preset.without_eye or packaged_weights() is not None
    flags = (preset.flags if has_eye else preset.without_eye).split()
    used = [flag for flag in flags if flag.partition("=")[0].removeprefix("--").replace("-", "_") not in given]
    line = f"--preset={name}: {' '.join(used)}"
    if not has_eye:
        line += f". Without EfficientNet's weights: {EXTRA} brings them, and better images"
    elif used == flags:
        line += f". {preset.expect}"
    return used, line


def choose_preset(data: str, device: str, subset: int | None = None) -> tuple[str, str] | None:
    """`(name, why)` of the preset for images of such channels, number and size; None for other sizes, and on GPUs."""
    from training.dataset import ImageFolderDataset

    if device == "cuda":
        return None
    with naming("--data"):
        dataset = ImageFolderDataset(data)
    channels, height, width = dataset.image_shape
    num = min(len(dataset), subset or len(dataset))
    dataset.close()
    if height != width or height not in SIDES:
        return None
    kind = "RGBA images" if channels == 4 else "images"
    why = f"{num:,} {kind} of {width}x{height}, and no --cfg"
    if num < FEW_IMAGES:
        return "few", why
    return ("sprites" if channels == 4 else "photos"), why
