"""What `--preset` names: flags of train.py that suit a kind of data, and what came of them on a processor where measured.

Flags that are typed win. Nothing here imports torch, so that `--help` does not wait for it.
"""

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
        "On 3,583 emoji of 32x32: 9 processor minutes, fid2k_full[tiny] 19 (one seed); projected ones had two colours only",
        f"{PLAIN} --kimg=160 --tick=8",  # the same: it needs none
    ),
    "photos": NamedPreset(
        "photographs, 32 to 64 pixels",
        f"{PROJECTED} --kimg=32 --tick=2",
        "On CIFAR-10: 6 processor minutes for 12 kimg, fid2k_full[tiny] 10.1 (plain DCGAN in the same time: 32.1)",
        f"{PLAIN} --kimg=128 --tick=4",
    ),
    "few": NamedPreset(
        f"fewer than {FEW_IMAGES} images of one kind",
        f"{PROJECTED} --kimg=16 --tick=1",
        "On 100 photographs of cars: 4 processor minutes for 8 kimg, fid1k_full[tiny] 11.1 against all (plain DCGAN: 26.0)",
        f"--cfg=dcgan {SMALL} --kimg=64 --tick=4",
    ),
}


def flags_of(name: str) -> tuple[list[str], str]:
    """The flags of a preset on this machine, and a line that says so. Raises `UserError`."""
    from metrics.efficientnet import EXTRA, packaged_weights

    if name not in NAMED_PRESETS:
        raise UserError(f"--preset={name}: choose from {', '.join(NAMED_PRESETS)}")
    preset = NAMED_PRESETS[name]
    if preset.flags == preset.without_eye or packaged_weights() is not None:
        return preset.flags.split(), f"--preset={name}: {preset.flags}. {preset.expect}"
    return (
        preset.without_eye.split(),
        f"--preset={name}, without EfficientNet's weights ({EXTRA} brings them, and better images): {preset.without_eye}",
    )


def choose_preset(data: str, device: str, subset: int | None = None) -> tuple[str, str] | None:
    """`(name, why)` of the preset that suits the images; None where none was measured on anything like them."""
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
