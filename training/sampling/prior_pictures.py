"""Images for the features of given images (`gen_images.py --prior-images`), and what lies between two of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dnnlib.errors import UserError, naming
from training.data.grids import PLAIN, Finish, rgb_pixels, save_labelled
from training.data.image_tensors import resize, to_float, to_uint8
from training.data.pixels import encode_png
from training.sampling.sampler import Look, Sampler
from training.sources.prior import InstancePrior
from training.sources.prior_features import conditions_of_images

MAX_IMAGES = 100  # given ones; a sheet of more is no picture to look at
SHEET, STEPS_SHEET = "prior.png", "prior-interpolation.png"


@dataclass(frozen=True)
class Given:
    """Images whose features decide, and these."""

    prior: InstancePrior
    images: list[torch.Tensor]  # uint8 [C, h, w] of any sizes
    c: torch.Tensor  # [n, c_dim]


def check_flags(images: str | None, steps: int | None, weights: str | None, has_pictures: bool) -> None:
    """Which flags of gen_images.py go together; has_pictures: --grid or --pairs. Raises `UserError`."""
    if images is None and (steps is not None or weights is not None):
        raise UserError("--prior-interpolate and --prior-detector need --prior-images=DIR|ZIP")
    if images is not None and has_pictures:
        raise UserError("--grid and --pairs: --prior-images writes a sheet of its own; leave them out")


def open_given(sampler: Sampler, path: str, weights: str | None, steps: int | None) -> Given:
    """The first images of a folder or zip with their conditions. Raises `UserError` that names the flag."""
    if sampler.prior is None:
        raise UserError("--prior-images: the network was not trained with --prior=features; leave the flag out")
    with naming("--prior-images"):
        c, images = conditions_of_images(sampler.prior, path, MAX_IMAGES, sampler.device, weights)
    if steps is not None and len(images) < 2:
        raise UserError(f"--prior-interpolate: {path} holds a single image, and the way leads from one to another")
    return Given(sampler.prior, images, c)


def save_for_images(
    sampler: Sampler,
    seeds: Sequence[int],
    given: Given,
    steps: int | None,
    look: Look,
    batch: int,
    folder: Path,
    finish: Finish = PLAIN,
) -> str:
    """Write the sheet that is asked for, with `steps` that of the first seed; what was written, for people."""
    if steps is not None:
        save_steps(sampler, seeds[0], given, steps, look, batch, folder / STEPS_SHEET, finish)
        return f"{folder / STEPS_SHEET} ({len(given.c) - 1} x {steps} steps of seed {seeds[0]})"
    images = save_each(sampler, seeds, given, look, batch, folder / SHEET, finish)  # [n, seeds, C, h, w]
    for number, row in enumerate(images):
        for seed, image in zip(seeds, to_uint8(row).permute(0, 2, 3, 1).numpy(), strict=True):
            (folder / f"prior{number:04d}-seed{seed:04d}.png").write_bytes(encode_png(finish.enlarge(image)))
    return f"{images.shape[0]} x {images.shape[1]} images and {SHEET} to {folder}"


def save_each(
    sampler: Sampler, seeds: Sequence[int], given: Given, look: Look, batch: int, path: Path, finish: Finish
) -> torch.Tensor:
    """A row for each given image: itself, then the image of each seed. These, `[n, seeds, C, h, w]`."""
    num, per_image = len(given.c), len(seeds)
    c = given.c.repeat_interleave(per_image, dim=0)
    images = conditioned(sampler, [*seeds] * num, c, look, batch, finish).unflatten(0, (num, per_image))
    rows = [np.concatenate([cell(one, row), rgb_pixels(row)]) for one, row in zip(given.images, images, strict=True)]
    save_labelled(
        path, np.stack(rows), ["given", *(f"seed {seed}" for seed in seeds)], [str(i) for i in range(num)], finish
    )
    return images


def save_steps(
    sampler: Sampler, seed: int, given: Given, steps: int, look: Look, batch: int, path: Path, finish: Finish
) -> None:
    """A row for each given image and the next: one seed, from the features of the one to those of the other."""
    rows, names = [], []
    for number in range(len(given.c) - 1):
        between = given.prior.between(given.c[number], given.c[number + 1], steps)  # [steps, c_dim]
        images = conditioned(sampler, [seed] * steps, between, look, batch, finish)
        first, last = (cell(given.images[index], images) for index in (number, number + 1))
        rows.append(np.concatenate([first, rgb_pixels(images), last]))
        names.append(f"{number}-{number + 1}")
    columns = ["given", *(f"{step / (steps - 1):.2f}" for step in range(steps)), "given"]
    save_labelled(path, np.stack(rows), columns, names, finish)


@torch.no_grad()
def conditioned(
    sampler: Sampler, seeds: Sequence[int], c: torch.Tensor, look: Look, batch: int, finish: Finish
) -> torch.Tensor:
    """The image of each seed under its row of c `[n, c_dim]`: `[n, C, h, w]` in [-1, 1] on the CPU, alpha as it is saved."""
    images = []
    for first in range(0, len(seeds), batch):
        part = seeds[first : first + batch]
        latents = replace(sampler.latents(part, look), c=c[first : first + batch].to(sampler.device))
        made = sampler.synthesize(sampler.ws(latents, look), look, part).cpu()
        images.append(made if finish.alpha_threshold is None else to_float(finish.threshold(to_uint8(made))))
    return torch.cat(images)


def cell(image: torch.Tensor, like: torch.Tensor) -> np.ndarray:
    """uint8 `[C, H, W]` as `[1, h, w, 3]`, of the size of images `[n, C, h, w]`."""
    return rgb_pixels(resize(to_float(image[None]), (like.shape[-2], like.shape[-1])))
