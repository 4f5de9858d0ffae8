"""Find the latents of given pictures in a trained network.

\b
# One picture: proj.png, projected_w.npz, target.png
python project.py --network=network-snapshot-000200.pkl --target=photo.png --outdir=out

\b
# All pictures of a folder, w of every layer, more steps, and films of the search
python project.py --network=network-snapshot-000200.pkl --target=photos/ --space=w+ --num-steps=1000 --save-video=1

\b
# A Spider network: which source image comes nearest, and with its pixels moved; then the network itself (pivotal tuning)
python project.py --network=network-snapshot-000200.pkl --target=photo.png --space=source
python project.py --network=network-snapshot-000200.pkl --target=photo.png --space=w+ --tune=350

\b
# The picture again, from its latents
python gen_images.py --network=network-snapshot-000200.pkl --projected-w=out/projected_w.npz --outdir=again
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
import time
from pathlib import Path

import click

import dnnlib
import dnnlib.cli
import shared_options
from dnnlib.errors import UserError, naming
from dnnlib.interrupts import STOPPED, importing
from training.settings import SPACES


@click.command(help=__doc__, context_settings=shared_options.HELP)
@shared_options.NETWORK
@click.option(
    "--target",
    "target_path",
    help="Picture, or folder or zip of pictures, of any size",
    metavar="FILE|DIR|ZIP",
    required=True,
)
@click.option(
    "--space",
    help="Where to look: w, w of every layer, z, or source images  [default: w; z for networks without w]",
    type=click.Choice(SPACES),
)
@click.option("--num-steps", help="Steps of the search", metavar="INT", type=click.IntRange(1, 100_000), default=500)
@click.option(
    "--noise-maps",
    help="Look for pixel noise, too (StyleGAN2)  [default: 1 where there is any]",
    metavar="BOOL",
    type=bool,
)
@click.option(
    "--tune", help="Then move the network itself for so many steps", metavar="INT", type=click.IntRange(1, 100_000)
)
@click.option("--seed", help="Random seed", metavar="INT", type=click.IntRange(min=0), default=0)
@shared_options.CLASS
@shared_options.LABEL
@shared_options.SOURCE_IMAGES
@click.option("--vgg-weights", help="VGG16 that compares pictures, with --lpips-weights", metavar="PATH|URL")
@click.option("--lpips-weights", help="LPIPS' layers on it", metavar="PATH|URL")
@click.option("--save-video", help="Save the search as a film", metavar="BOOL", type=bool, default=False)
@click.option("--outdir", help="Where to save what is found", metavar="DIR", default="out")
@shared_options.DEVICE
@shared_options.BATCH_BY_SIZE
def main(
    network: str,
    target_path: str,
    space: str | None,
    num_steps: int,
    noise_maps: bool | None,
    tune: int | None,
    seed: int,
    class_idx: int | str | None,
    label: tuple[float, ...] | None,
    source_images: str | None,
    vgg_weights: str | None,
    lpips_weights: str | None,
    save_video: bool,
    outdir: str,
    device: str,
    batch: int | None,
) -> int:
    with importing():
        from dnnlib.files import prepare_folder
        from metrics.detectors import open_perceptual_eye
        from training.sampling.conditions import check_look
        from training.sampling.latent_spaces import choose_space
        from training.sampling.projecting import Job, run
        from training.sampling.projection import Search
        from training.sampling.sampler import Look, default_batch, open_sampler
        from training.sampling.targets import read_targets
    start_time = time.time()
    sampler = open_sampler(network, source_images, device, verbose=True)
    look = Look(class_idx, label=label)
    check_look(sampler, look)
    space = choose_space(sampler, space, look)
    if source_images is not None and space != "source":
        raise UserError("--source-images: go with --space=source, which looks among them")
    with naming("--target"):
        targets = read_targets(target_path, sampler.generator)
    if noise_maps and (space == "source" or not sampler.noise_maps):
        where = "source images" if space == "source" else "this network"
        raise UserError(f"--noise-maps=1: there is no pixel noise to look for in {where}; leave it out")
    if (vgg_weights is None) != (lpips_weights is None):
        raise UserError("--vgg-weights and --lpips-weights go together: give both, or none")
    with naming("--vgg-weights"):
        eye = open_perceptual_eye(sampler.device, vgg_weights, lpips_weights)
    search = (
        Search.of_pixels(num_steps, seed) if space == "source" else Search(num_steps, noise_maps is not False, seed)
    )
    batch = batch or default_batch(sampler.generator.img_resolution, sampler.device)
    job = Job(sampler, eye, look, space, search, targets, batch, Path(outdir))
    prepare_folder(job.folder, "--outdir")
    job.describe()
    is_whole = run(job, network, tune, save_video)
    elapsed = dnnlib.util.format_time(time.time() - start_time)
    print(
        f"Saved to {outdir} in {elapsed} on {sampler.device}" + ("" if is_whole else "; interrupted, as far as it came")
    )
    return 0 if is_whole else STOPPED


if __name__ == "__main__":
    dnnlib.cli.run(main)
