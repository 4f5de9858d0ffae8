"""What a step of project.py costs beside a forward and backward pass of G alone, and how near it comes to pictures of G's own.

python bench/projector.py
python bench/projector.py --network=network-snapshot-000200.pkl    # its own pictures found again, in w and in w+
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import describe_machine, save_result
from metrics.detectors import Detector, open_perceptual_eye
from shared_options import Snapshot
from training import networks_dcgan, networks_stylegan2, networks_stylegan3
from training.sampling.latent_spaces import choose_space, open_space
from training.sampling.projection import Projector, Search, perceived
from training.sampling.sampler import Look, Sampler, open_sampler
from training.sources.source import GaussianSource

SIZE = {"channel_base": 2048, "channel_max": 128}
NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "stylegan2 32x32": lambda: networks_stylegan2.Generator(64, 0, 64, 32, 3, **SIZE),
    "stylegan2 64x64": lambda: networks_stylegan2.Generator(64, 0, 64, 64, 3, **SIZE),
    "stylegan3-t 32x32": lambda: networks_stylegan3.Generator(64, 0, 64, 32, 3, **SIZE),
    "dcgan 32x32": lambda: networks_dcgan.Generator(64, 0, 32, 3, **SIZE),
}
PICTURES = 8  # found again
SPACES = ("w", "w+", "z")


@click.command()
@click.option("--batch", default=8, help="Pictures at a time", show_default=True)
@click.option("--repeats", default=7, help="Turns, of which the median counts", show_default=True)
@click.option("--network", help="Snapshot whose own pictures are to be found again", metavar="PKL|RUN", type=Snapshot())
@click.option("--steps", default=500, help="Of that search", show_default=True)
def main(batch: int, repeats: int, network: str | None, steps: int) -> None:
    """Print tables and write bench/results/projector.json, with --network projector-psnr.json."""
    torch.set_num_threads(1)
    eye = open_perceptual_eye("cpu")
    if network is not None:
        found = [nearness(network, eye, space, steps) for space in SPACES]
        save_result("projector-psnr", {"machine": describe_machine(), "eye": eye.name, "found": found})
        return
    rows = [costs(name, make(), eye, batch, repeats) for name, make in NETWORKS.items()]
    save_result("projector", {"machine": describe_machine(), "eye": eye.name, "batch": batch, "networks": rows})


def costs(name: str, G: torch.nn.Module, eye: Detector, batch: int, repeats: int) -> dict[str, Any]:
    """Processor seconds of a step, of G alone and of the eye alone, measured in turns."""
    sampler = Sampler(G, GaussianSource(64))
    space = open_space(choose_space(sampler, None, Look()), sampler, Look(), 0)
    projector = Projector(sampler, eye, space, Search(steps=10**6))
    targets = sampler.images(list(range(batch)), Look())
    steps = projector.run(targets)
    next(steps)
    turns: dict[str, Callable[[], object]] = {
        "step": lambda: next(steps),
        "generator": lambda: pass_of_generator(projector, batch),
        "eye": lambda: pass_of_eye(eye, targets),
    }
    for turn in turns.values():
        turn()
    seconds = {key: [] for key in turns}
    for _ in range(repeats):
        for key, turn in turns.items():
            start = time.process_time()
            turn()
            seconds[key].append(time.process_time() - start)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    ratio = (medians["step"] - medians["eye"]) / medians["generator"]
    print(
        f"{name:<18} step {1000 * medians['step']:6.1f} ms, G forward and backward {1000 * medians['generator']:6.1f}, eye "
        f"{1000 * medians['eye']:6.1f}: without the eye {ratio:.2f} times G"
    )
    return {"network": name, "processor_seconds": medians, "ratio_without_eye": ratio}


def pass_of_generator(projector: Projector, batch: int) -> None:
    """From points to the picture, and back to them and to the noise maps."""
    points = projector.space.start(batch).requires_grad_(True)
    maps = projector.start_of_maps(batch)
    projector.images(projector.space.ws(points), maps).square().sum().backward()


def pass_of_eye(eye: Detector, images: torch.Tensor) -> None:
    perceived(eye, images.clone().requires_grad_(True)).square().sum().backward()


def nearness(network: str, eye: Detector, space: str, steps: int) -> dict[str, Any]:
    """PSNR of the first pictures of a network when they are looked for from the mean."""
    sampler: Sampler = open_sampler(network, device="cpu")
    look = Look("any" if sampler.network.c_dim > 0 and space != "z" else 0 if sampler.network.c_dim > 0 else None)
    targets = sampler.images(list(range(PICTURES)), look).clamp(-1, 1)
    projector = Projector(sampler, eye, open_space(space, sampler, look, 0), Search(steps=steps))
    start = time.process_time()
    *_, found = projector.run(targets)
    decibels = projector.finished(found, targets).psnr(targets).tolist()
    seconds = time.process_time() - start
    print(
        f"{space:<3} {statistics.median(decibels):5.1f} dB on the median of {PICTURES} ({min(decibels):.1f} to "
        f"{max(decibels):.1f}), {seconds:.0f} processor seconds for {steps} steps of all"
    )
    return {"space": space, "steps": steps, "psnr_db": decibels, "processor_seconds": seconds}


if __name__ == "__main__":
    main()
