"""The images of one class after the other, real and generated, for metrics of each (`calc_metrics.py --per-class`)."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from dnnlib.errors import UserError
from metrics.metric_main import MetricOptions
from training.data.image_sets import ImageSet, MirroredImages, SubsetImages
from training.sampling.generated_images import GeneratedImages


def options_by_class(
    opts: MetricOptions, data: ImageSet, generated: GeneratedImages | ImageSet, mirror: bool
) -> Iterator[tuple[int, MetricOptions]]:
    """Yield `(class, options)` for the classes that the real images have; generated: of a snapshot, or another labelled set.

    Raises `UserError` where either has no classes.
    """
    real = members_of(data)
    others = members_of(generated) if isinstance(generated, ImageSet) else {}
    for number, indices in real.items():
        images = SubsetImages(data, indices)
        if isinstance(generated, GeneratedImages):
            own = of_class(generated, number)
            chosen = {"generated": own.first, "sampler": own}
        elif number in others:
            subset = SubsetImages(generated, others[number])
            chosen = {"generated": lambda count, subset=subset: subset, "sampler": None}
        else:
            continue
        yield (
            number,
            dataclasses.replace(
                opts, real=MirroredImages(images) if mirror else images, warnings=[], _known={}, **chosen
            ),
        )


def members_of(images: ImageSet) -> dict[int, np.ndarray]:
    """The images of each class that has some, by number, ascending."""
    classes = images.classes()
    return {int(number): np.flatnonzero(classes == number) for number in np.unique(classes)}


def of_class(images: GeneratedImages, number: int) -> GeneratedImages:
    """Those of a single class. Raises `UserError` where the network has none, or not this one."""
    c_dim = images.G.c_dim
    if c_dim == 0:
        raise UserError("the network is not conditional; leave it out")
    if images.labels is None or not (images.labels[[0]] == 1).any():
        raise UserError("the network was told label vectors or features, no classes; leave it out")
    if number >= c_dim:
        raise UserError(f"--data has a class {number}, and the network knows 0 to {c_dim - 1}")
    labels = torch.eye(c_dim)[number : number + 1]
    name = f"{images.name}, class {number}"
    return GeneratedImages(images.G, images.feed, images.count, images.seed, labels, name, images.note)
