"""Find the latents of given pictures in a trained network.

\b
# One picture: proj.png, projected_w.npz, target.png
python project.py --network=network-snapshot-000200.pkl --target=photo.png --outdir=out

\b
# All pictures of a folder, w of every layer, more steps, and films of the search
python project.py --network=network-snapshot-000200.pkl --target=photos/ --space=w+ --num-steps=1000 --save-video=1

\b
# The picture again, from its latents
python gen_images.py --network=network-snapshot-000200.pkl --projected-w=out/projected_w.npz --outdir=again
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

import dnnlib
import dnnlib.cli
import shared_options
from dnnlib.bars import tqdm
from dnnlib.errors import UserError, naming
from dnnlib.interrupts import STOPPED, importing
from training.settings import SPACES

if TYPE_CHECKING:
    from training.sampling.projection import Found, Projector
    from training.sampling.sampler import Sampler
    from training.sampling.targets import Target

FRAMES, FPS = 60, 15  # of a film
TIMED_STEPS = 3  # after which the time is known


@click.command(help=__doc__, context_settings=shared_options.HELP)
@click.option("--network", help="Snapshot", metavar="[PATH|URL]", required=True, type=dnnlib.cli.IMAGE_SETS)
@click.option(
    "--target",
    "target_path",
    help="Picture, or folder or zip of pictures, of any size",
    metavar="FILE|DIR|ZIP",
    required=True,
)
@click.option(
    "--space",
    help="Where to look: w, w of every layer, or z  [default: w; z for networks without w]",
    type=click.Choice(SPACES),
)
@click.option("--num-steps", help="Steps of the search", metavar="INT", type=click.IntRange(1, 100_000), default=500)
@click.option("--noise-maps", help="Look for pixel noise, too (StyleGAN2)", metavar="BOOL", type=bool, default=True)
@click.option("--seed", help="Random seed", metavar="INT", type=click.IntRange(min=0), default=0)
@shared_options.CLASS
@shared_options.LABEL
@click.option("--save-video", help="Save the search as a film", metavar="BOOL", type=bool, default=False)
@click.option("--outdir", help="Where to save what is found", metavar="DIR", default="out")
@shared_options.DEVICE
@shared_options.BATCH_BY_SIZE
def main(
    network: str,
    target_path: str,
    space: str | None,
    num_steps: int,
    noise_maps: bool,
    seed: int,
    class_idx: int | str | None,
    label: tuple[float, ...] | None,
    save_video: bool,
    outdir: str,
    device: str,
    batch: int | None,
) -> int:
    with importing():
        from dnnlib.files import prepare_folder
        from metrics.detectors import open_perceptual_eye
        from training.sampling.conditions import check_look
        from training.sampling.projection import Projector, Search
        from training.sampling.sampler import Look, default_batch, open_sampler
        from training.sampling.targets import read_targets
    start_time = time.time()
    sampler = open_sampler(network, None, device, verbose=True)
    look = Look(class_idx, label=label)
    check_look(sampler, look)
    space = choose_space(sampler, space)
    with naming("--target"):
        targets = read_targets(target_path, sampler.generator)
    search = Search(space=space, steps=num_steps, seed=seed, has_noise_maps=noise_maps)
    projector = Projector(sampler, open_perceptual_eye(sampler.device), search, look)
    describe(projector, targets)
    folder = Path(outdir)
    prepare_folder(folder, "--outdir")
    batch = batch or default_batch(sampler.generator.img_resolution, sampler.device)
    is_whole = True
    for first in range(0, len(targets), batch):
        part = targets[first : first + batch]
        found, is_whole = look_for(projector, part, save_video)
        save(folder, projector, part, found, is_alone=len(targets) == 1, with_film=save_video)
        if not is_whole:
            break
    elapsed = dnnlib.util.format_time(time.time() - start_time)
    print(
        f"Saved to {outdir} in {elapsed} on {sampler.device}" + ("" if is_whole else "; interrupted, as far as it came")
    )
    return 0 if is_whole else STOPPED


def choose_space(sampler: Sampler, space: str | None) -> str:
    """Where to look; of networks whose w is z there is z only. Raises `UserError`."""
    from training.conv_generator import ConvGenerator

    has_w = not isinstance(sampler.generator, ConvGenerator)
    if space in ("w", "w+") and not has_w:
        raise UserError(f"--space={space}: this network has no w; use --space=z, or leave it out")
    return space or ("w" if has_w else "z")


def describe(projector: Projector, targets: list[Target]) -> None:
    """What is looked for, where, by what."""
    search = projector.search
    for target in targets[:10]:
        if target.changes:
            print(f"{target.name}: {target.changes}")
    num = f"{len(targets)} pictures" if len(targets) > 1 else targets[0].name
    print(f"Looking for {num} in {search.space}, {search.steps} steps, compared by {projector.eye.name} and by pixels")


def look_for(projector: Projector, targets: list[Target], with_film: bool) -> tuple[Found, bool]:
    """Run the search; what it found, and whether it came to its end: Ctrl-C ends it with what it has."""
    import torch

    goal = torch.stack([target.image for target in targets])
    steps = projector.search.steps
    keep_every = max(steps // FRAMES, 1) if with_film else None
    found, start_time = None, time.time()
    try:
        with tqdm(total=steps, desc="Search", unit="step", disable=None, leave=False) as bar:
            for found in projector.run(goal, keep_every):
                if found.steps == TIMED_STEPS:
                    expected = (time.time() - start_time) / TIMED_STEPS * steps
                    tqdm.write(f"About {dnnlib.util.format_time(expected)} for {len(targets)} at a time")
                bar.set_postfix_str(f"distance {float(found.distances.mean()):.3f}", refresh=False)
                bar.update(1)
    except KeyboardInterrupt:
        if found is None:
            raise
        return projector.finished(found, goal), False
    assert found is not None
    return projector.finished(found, goal), True


def save(
    folder: Path, projector: Projector, targets: list[Target], found: Found, is_alone: bool, with_film: bool
) -> None:
    """Write the files of every target, under its name where there are several, and say how near it came."""
    import torch

    from dnnlib.files import writing
    from gen_video import save_video
    from training.data.grids import rgb_pixels
    from training.data.image_tensors import to_uint8
    from training.data.pixels import encode_png
    from training.sampling.picture_files import write_picture
    from training.sampling.projection import save_latents

    psnr = found.psnr(torch.stack([target.image for target in targets]))
    for index, target in enumerate(targets):
        start = "" if is_alone else f"{target.name}-"
        latents = f"{start}projected_{'z' if projector.search.space == 'z' else 'w'}.npz"
        with writing("--outdir"):
            for name, image in (("target", target.image), ("proj", found.images[index])):
                pixels = to_uint8(image[None])[0].permute(1, 2, 0).cpu().numpy()
                write_picture(folder / f"{start}{name}.png", encode_png(pixels))
            save_latents(folder / latents, found, index)
            if with_film:
                frames = (rgb_pixels(torch.cat([target.image, frame[index]], dim=2)[None])[0] for frame in found.frames)
                save_video(folder / f"{start}proj.gif", frames, FPS)
        print(
            f"{target.name}: {float(psnr[index]):.1f} dB, distance {float(found.distances[index]):.4f} "
            f"[{projector.eye.name}] after {found.steps} steps: {start}proj.png, {latents}"
        )


if __name__ == "__main__":
    dnnlib.cli.run(main)
