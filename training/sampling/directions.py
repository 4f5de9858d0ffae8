"""Directions in w along which pictures change in one way: where they come from, and files of them.

`sefa`: the eigenvectors of what the style weights do to w (Shen & Zhou 2021, "Closed-Form Factorization of Latent Semantics in
GANs"). `pca`: principal axes of w itself (Harkonen 2020, GANSpace). `seeds`: from the mean of some pictures to that of others.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dnnlib.errors import UserError, naming
from dnnlib.files import atomic_write, reading_arrays
from torch_utils import seeding
from torch_utils.misc import Network
from training.sampling.sampler import Latents, Look, Sampler

SAMPLES, BATCH = 2000, 100  # of w, for principal axes and for the spread
STYLE_WEIGHTS = "affine.weight"  # of every layer that takes w


@dataclass(frozen=True)
class Directions:
    """Unit vectors in w, the most telling first, and how far w itself reaches along each."""

    vectors: torch.Tensor
    """`[K, w_dim]`."""
    spread: torch.Tensor
    """`[K]`, the standard deviation of w along each: a strength of 1 is one of these."""
    method: str
    num_ws: int

    def moved(
        self, ws: torch.Tensor, number: int, strength: float, layers: Sequence[int] | None = None
    ) -> torch.Tensor:
        """ws `[n, num_ws, w_dim]` moved along direction `number`, in these layers (all for None)."""
        step = strength * self.spread[number] * self.vectors[number]
        moved = ws.clone()
        moved[:, list(range(self.num_ws)) if layers is None else list(layers)] += step.to(ws)
        return moved

    def save(self, path: Path) -> None:
        with atomic_write(path) as file:
            np.savez(
                file,
                directions=self.vectors.numpy(),
                spread=self.spread.numpy(),
                method=np.str_(self.method),
                num_ws=np.int64(self.num_ws),
            )

    @classmethod
    def load(cls, path: str, G: Network) -> "Directions":
        """Raises `UserError` for other files, and directions of another network."""
        with reading_arrays(path, "a file of directions.py"), np.load(path, allow_pickle=False) as file:
            vectors = torch.from_numpy(np.asarray(file["directions"], dtype=np.float32))
            spread = torch.from_numpy(np.asarray(file["spread"], dtype=np.float32))
            method, num_ws = str(file["method"]), int(file["num_ws"])
        if vectors.ndim != 2 or (vectors.shape[1], num_ws) != (G.w_dim, G.num_ws) or len(spread) != len(vectors):
            raise UserError(
                f"{path}: holds directions {list(vectors.shape)} for {num_ws} layers, and this network has w of {G.w_dim} for "
                f"{G.num_ws} layers"
            )
        return cls(vectors, spread, method, num_ws)


def add_direction(sampler: Sampler, text: str) -> None:
    """Have a sampler move its ws as `FILE:K=STRENGTH` says, after what it does already. Raises `UserError`."""
    found, number, strength, is_swept = parse_direction(sampler, text)
    if is_swept:
        raise UserError(
            f"--direction={text}: a picture has one strength, such as =3; gen_video.py shows the way between two"
        )
    before = sampler.move
    sampler.move = lambda ws: found.moved(before(ws), number, strength)


def parse_direction(sampler: Sampler, text: str) -> tuple[Directions, int, float, bool]:
    """The file, the number and the strength of `FILE:K=STRENGTH`, and whether it says `±`. Raises `UserError`."""
    match = re.fullmatch(r"(.+):(\d+)=(±|\+-|)([+-]?\d+(?:\.\d+)?)", text)
    if match is None:
        raise UserError(f"--direction={text}: give FILE.npz:K=STRENGTH, such as out/directions.npz:0=3")
    with naming("--direction"):
        found = Directions.load(match[1], sampler.generator)
    number = int(match[2])
    if number >= len(found.vectors):
        raise UserError(f"--direction={text}: {match[1]} holds {len(found.vectors)}, 0 to {len(found.vectors) - 1}")
    return found, number, float(match[4]), match[3] != ""


def find_directions(
    sampler: Sampler, method: str, count: int, look: Look, groups: tuple[Sequence[int], Sequence[int]] | None = None
) -> Directions:
    """The first `count` directions of a network. groups: for `seeds`, those without and those with what is looked for.

    Raises `UserError` where the network has no style weights to factorise.
    """
    G = sampler.generator
    w = samples_of_w(sampler, look)
    if method == "sefa":
        vectors = style_axes(G)[:count]
    elif method == "pca":
        vectors = principal_axes_of(w)[:count]
    else:
        assert groups is not None
        vectors = mean_difference(sampler, look, *groups)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return Directions(vectors, ((w - w.mean(dim=0)) @ vectors.T).std(dim=0), method, G.num_ws)


@torch.no_grad()
def samples_of_w(sampler: Sampler, look: Look) -> torch.Tensor:
    """`[n, w_dim]` on the CPU."""
    gen = seeding.generator("directions")
    parts = []
    for _ in range(SAMPLES // BATCH):
        z = sampler.feed.latents(sampler.feed.draw(BATCH, gen))
        seeds = torch.randint(1 << 30, [BATCH], generator=gen).tolist()
        c = sampler.conditions(seeds, look)
        parts.append(sampler.ws(Latents(z, c=c), look)[:, 0].cpu())
    return torch.cat(parts)


def style_axes(G: Network) -> torch.Tensor:
    """Eigenvectors of A^T A for the style weights A of all layers (Shen & Zhou 2021, eq. 6), the largest first, `[d, d]`."""
    weights = [value.detach().cpu() for name, value in G.synthesis.named_parameters() if name.endswith(STYLE_WEIGHTS)]
    if not weights:
        raise UserError(
            "--method=sefa: this network has no style weights to factorise; use --method=pca or --seeds-a, --seeds-b"
        )
    stacked = torch.nn.functional.normalize(torch.cat(weights), dim=1)
    return torch.linalg.eigh(stacked.T @ stacked).eigenvectors.T.flip(0)


def principal_axes_of(w: torch.Tensor) -> torch.Tensor:
    """Axes of `[n, d]` by falling variance, `[d, d]`."""
    return torch.linalg.svd(w - w.mean(dim=0), full_matrices=False).Vh


def mean_difference(sampler: Sampler, look: Look, without: Sequence[int], having: Sequence[int]) -> torch.Tensor:
    """From the mean w of some seeds to that of others, `[1, w_dim]`."""
    means = [sampler.ws(sampler.latents(seeds, look), look)[:, 0].mean(dim=0) for seeds in (without, having)]
    difference = (means[1] - means[0]).cpu()
    if not difference.norm() > 0:
        raise UserError("--seeds-a and --seeds-b: their means are the same")
    return difference[None]
