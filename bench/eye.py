"""Does EfficientNet-Lite0 see? The share of a class's photographs that it calls by the same name, at several sizes.

python bench/eye.py --data=tinyimagenet.zip     # labelled photographs; the package of .[features]

Five images of every fifth class: were the predictions of ImageNet's 1,000 classes blind, the most frequent one would hold 20 %
of five by itself and little more.
"""

import sys
from pathlib import Path

import click
import numpy as np
import torch
from torch.nn.functional import interpolate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import describe_machine, save_result
from metrics.detectors import open_detector, to_rgb
from metrics.efficientnet import EfficientNetLite0
from training.data.image_files import open_files
from training.data.image_sets import ImageSet
from training.data.labels import find_classes

SIZES = (224, 128, 64)
IMAGES, STEP = 5, 5  # of a class, and from one class to the next
FILTERS = ("bilinear", "bicubic")


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--data", metavar="ZIP|DIR", required=True)
def main(data: str) -> None:
    detector = open_detector("efficientnet")
    images, classes = ImageSet(data), find_classes(open_files(data))
    assert isinstance(detector.network, EfficientNetLite0) and classes is not None
    shares = {}
    for name in FILTERS:
        for size in SIZES:
            shares[f"{name} {size}"] = agreement(detector.network, images, classes, size, name)
            print(f"{name:<9} {size:>4} pixels: {shares[f'{name} {size}']:.0%}")
    save_result("eye", {"shares": shares, "detector": detector.key, "machine": describe_machine()})


def agreement(network: EfficientNetLite0, images: ImageSet, classes: np.ndarray, size: int, name: str) -> float:
    """Mean over classes of the share that the most frequent prediction holds."""
    held = []
    for number in range(0, classes.max() + 1, STEP):
        members = np.flatnonzero(classes == number)[:IMAGES]
        pixels = torch.cat([to_rgb(image[None]) for image in images.read(members.tolist()).images])
        x = interpolate(pixels, (size, size), mode=name, antialias=True).clamp(0, 255) / 127.5 - 1
        with torch.no_grad():
            predictions = network.logits(network(x.contiguous(memory_format=torch.channels_last))).argmax(dim=1)
        held.append(float(predictions.bincount().max()) / len(members))
    return float(np.mean(held))


if __name__ == "__main__":
    main()
