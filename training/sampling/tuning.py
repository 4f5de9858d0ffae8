"""Pivotal tuning (Roich 2021): with latents found, the synthesis network itself is moved until it draws the pictures.

What it draws elsewhere changes little, so that the pictures can be edited by directions and mixed.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from training.checkpoints.snapshot import load_snapshot, save_snapshot
from training.sampling.projection import Found, Projector
from training.sources.cascade import last_generator

LEARNING_RATE = 3e-4  # of the paper


def tune(projector: Projector, found: Found, targets: torch.Tensor, steps: int, batch: int) -> Iterator[float]:
    """Yield the mean perceptual distance of the pictures of every step: `batch` of them in turn."""
    G, num = projector.G, len(targets)
    targets = targets.to(found.ws.device)
    with torch.no_grad():
        goal = torch.cat([projector.seen(part) for part in targets.split(batch)])
    parameters = [parameter.requires_grad_(True) for parameter in G.synthesis.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    try:
        for step in range(steps):
            rows = torch.arange(step * batch, step * batch + min(batch, num)) % num
            maps = {name: one[rows] for name, one in found.noise_maps.items()}
            distances, loss = projector.loss(projector.images(found.ws[rows], maps), targets[rows], goal[rows])
            optimizer.zero_grad(set_to_none=True)
            (loss / len(rows)).backward()
            optimizer.step()
            yield float(distances.mean())
    finally:
        G.synthesis.requires_grad_(False)


@torch.no_grad()
def drawn_again(projector: Projector, found: Found, targets: torch.Tensor, batch: int) -> Found:
    """What is found, with the images that the network makes of it now."""
    rows = torch.arange(len(targets)).split(batch)
    maps = [{name: one[part] for name, one in found.noise_maps.items()} for part in rows]
    images = torch.cat([projector.images(found.ws[part], own) for part, own in zip(rows, maps, strict=True)])
    seen = [projector.seen(images[part]) - projector.seen(targets[part].to(images.device)) for part in rows]
    distances = torch.cat([part.square().sum(dim=1) for part in seen])
    return Found(found.points, found.ws, found.noise_maps, images, distances, found.steps)


def save_tuned(path: Path, network: str, projector: Projector) -> None:
    """The snapshot with its last generator tuned. Raises `UserError`."""
    contents = load_snapshot(network)
    last_generator(contents["G_ema"]).load_state_dict(projector.G.state_dict())
    save_snapshot(path, contents)
