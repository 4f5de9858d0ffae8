"""Directions in w along which pictures change in one way: where they come from, and files of them.

`sefa`: the eigenvectors of what the style weights do to w (Shen & Zhou 2021, "Closed-Form Factorization of Latent Semantics in
GANs"). `pca`: principal axes of w itself (Harkonen 2020, GANSpace). From two groups of pictures: `mean`, from the mean w of the
one to that of the other; `svm`, across the plane that parts them (Shen 2020, InterFaceGAN).
"""

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dnnlib.errors import UserError, naming
from dnnlib.files import atomic_write, reading_arrays
from torch_utils.misc import Network
from training.sampling.projection import load_latents
from training.sampling.sampler import Look, Sampler

MOST_STRENGTH = 1000.0
SAMPLES = 2000  # of w, for principal axes and for the spread
PROJECTED = "projected_w.npz"  # ending of the names that project.py writes
STYLE_WEIGHTS = "affine.weight"  # of every layer that takes w
TRANSFORM = "input."  # StyleGAN3's input turns and moves the picture by w, which is no style


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
        self, ws: torch.Tensor, number: int, strength: float | torch.Tensor, layers: Sequence[int] | None = None
    ) -> torch.Tensor:
        """ws `[n, num_ws, w_dim]` moved along direction `number`, in these layers (all for None).

        strength: one number, or `[n]`.
        """
        strengths = torch.as_tensor(strength, dtype=torch.float32).reshape(-1, 1, 1)
        step = strengths * self.spread[number] * self.vectors[number]  # [n or 1, 1, w_dim]
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
        if not vectors.isfinite().all() or not spread.isfinite().all():
            raise UserError(f"{path}: holds NaN or infinite numbers; find the directions again")
        if vectors.ndim != 2 or spread.shape != vectors.shape[:1] or (vectors.shape[1], num_ws) != (G.w_dim, G.num_ws):
            raise UserError(
                f"{path}: holds directions {list(vectors.shape)} for {num_ws} layers, and this network has w of {G.w_dim} for "
                f"{G.num_ws} layers"
            )
        return cls(vectors, spread, method, num_ws)


def add_directions(sampler: Sampler, texts: Sequence[str], may_sweep: bool = False) -> "list[Move]":
    """Have a sampler move its ws as some `FILE:K=STRENGTH` say, after what it does already; those that go to and fro, where they
    may, are left to whoever knows the time. Raises `UserError`."""
    moves = [parse_direction(sampler, text) for text in texts]
    for text, move in zip(texts, moves, strict=True):
        if move.is_swept and not may_sweep:
            raise UserError(
                f"--direction={text}: a picture has one strength, such as =3; gen_video.py goes from one end to the other"
            )
    for move in moves:
        if not move.is_swept:
            sampler.move = chained(sampler.move, move)
    return [move for move in moves if move.is_swept]


def chained(first: Callable[[torch.Tensor], torch.Tensor], then: "Move") -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda ws: then(first(ws))


@dataclass(frozen=True)
class Move:
    """Along one of some directions, by a strength; in a film to and fro between it and its opposite, if it `is_swept`."""

    found: Directions
    number: int
    strength: float
    is_swept: bool = False

    def __call__(self, ws: torch.Tensor, share: float | torch.Tensor = 1.0) -> torch.Tensor:
        """ws `[n, num_ws, w_dim]`; share: of the strength, one number or `[n]`."""
        return self.found.moved(ws, self.number, self.strength * share)


def parse_direction(sampler: Sampler, text: str) -> Move:
    """What `FILE:K=STRENGTH`, or `FILE:K=±STRENGTH`, says. Raises `UserError`."""
    match = re.fullmatch(r"(.+):(\d{1,9})=(±|\+-|)([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", text)
    if match is None:
        raise UserError(f"--direction={text}: give FILE.npz:K=STRENGTH, such as out/directions.npz:0=3")
    if not abs(float(match[4])) <= MOST_STRENGTH:
        raise UserError(
            f"--direction={text}: a strength counts standard deviations of w; use {MOST_STRENGTH:g} at most"
        )
    with naming("--direction"):
        found = Directions.load(match[1], sampler.generator)
    number = int(match[2])
    if number >= len(found.vectors):
        raise UserError(f"--direction={text}: {match[1]} holds {len(found.vectors)}, 0 to {len(found.vectors) - 1}")
    return Move(found, number, float(match[4]), match[3] != "")


def find_directions(
    sampler: Sampler, method: str, count: int, look: Look, groups: tuple[torch.Tensor, torch.Tensor] | None = None
) -> Directions:
    """The first `count` directions of a network.

    groups: for `mean` and `svm`, w `[n, w_dim]` of pictures without and with what is looked for.

    Raises `UserError` where the network has no style weights to factorise, and for groups that cannot be told apart.
    """
    G = sampler.generator
    if count > G.w_dim:
        raise UserError(f"--count={count}: w has {G.w_dim} dimensions, and as many directions at most")
    w = samples_of_w(sampler, look)
    if method == "sefa":
        vectors = style_axes(G)[:count]
    elif method == "pca":
        vectors = principal_axes_of(w)[:count]
    else:
        assert groups is not None
        vectors = {"mean": mean_difference, "svm": across_the_plane}[method](*groups)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return Directions(vectors, ((w - w.mean(dim=0)) @ vectors.T).std(dim=0), method, G.num_ws)


def samples_of_w(sampler: Sampler, look: Look) -> torch.Tensor:
    """`[n, w_dim]` on the CPU."""
    return torch.cat([sampler.ws(latents, look)[:, 0].cpu() for latents in sampler.some_latents(SAMPLES, look, seed=0)])


def style_axes(G: Network) -> torch.Tensor:
    """Eigenvectors of A^T A for the style weights A of all layers (Shen & Zhou 2021, eq. 6), the largest first, `[d, d]`."""
    weights = [value.detach().cpu() for name, value in G.synthesis.named_parameters() if is_style(name)]
    if not weights:
        raise UserError(
            "--method=sefa: this network has no style weights to factorise; use --method=pca, or mean with two groups of pictures"
        )
    stacked = torch.nn.functional.normalize(torch.cat(weights), dim=1)
    return torch.linalg.eigh(stacked.T @ stacked).eigenvectors.T.flip(0)


def is_style(name: str) -> bool:
    return name.endswith(STYLE_WEIGHTS) and not name.startswith(TRANSFORM)


def principal_axes_of(w: torch.Tensor) -> torch.Tensor:
    """Axes of `[n, d]` by falling variance, `[d, d]`."""
    return torch.linalg.svd(w - w.mean(dim=0), full_matrices=False).Vh


def w_of_seeds(sampler: Sampler, seeds: Sequence[int], look: Look) -> torch.Tensor:
    """`[n, w_dim]` on the CPU."""
    return sampler.ws(sampler.latents(seeds, look), look)[:, 0].cpu()


def w_of_files(folder: str, G: Network) -> torch.Tensor:
    """w `[n, w_dim]` of the `…projected_w.npz` of a folder, mean over layers. Raises `UserError`."""
    paths = sorted(Path(folder).glob(f"*{PROJECTED}"))
    if not paths:
        raise UserError(
            f"{folder}: holds no {PROJECTED}; find the latents of your pictures first: python project.py --network=… "
            f"--target=PICTURES --outdir={folder}"
        )
    return torch.cat([load_latents(str(path), G)[0].mean(dim=1).cpu() for path in paths])


def mean_difference(without: torch.Tensor, having: torch.Tensor) -> torch.Tensor:
    """From the mean of w `[n, w_dim]` to that of others, `[1, w_dim]`."""
    difference = having.mean(dim=0) - without.mean(dim=0)
    if not difference.norm() > 0:
        raise UserError("the two groups of pictures have the same mean, and nothing leads from one to the other")
    return difference[None]


def across_the_plane(without: torch.Tensor, having: torch.Tensor) -> torch.Tensor:
    """Normal `[1, w_dim]` of the plane that a linear support vector machine puts between w `[n, w_dim]` of two groups."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError('--method=svm needs scikit-learn: pip install -e ".[prior]", or use --method=mean')
    from sklearn.svm import LinearSVC

    mean_difference(without, having)  # refuses groups that are the same
    w = torch.cat([without, having]).numpy()
    spread = max(float(w.std()), 1e-12)
    svm = LinearSVC(random_state=0, max_iter=20_000).fit(w / spread, [0] * len(without) + [1] * len(having))
    return torch.from_numpy(svm.coef_.astype(np.float32))
