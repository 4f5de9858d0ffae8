"""How well StyleGAN3's images move and turn with their input: EQ-T and EQ-R (Karras 2021, section 2.2 and appendix E).

    EQ = 10 log10( 4 / E[ (moved(G(z)) - G_moved(z))^2 ] )   in dB, over the pixels that both show

4 is the square of the pixels' range [-1, 1]; more is better. `eqt_int` moves by whole pixels, where the comparison is
exact. `eqt_frac` moves by fractions, `eqr` turns: the image is then resampled with a windowed kernel. Turning keeps only
frequencies inside a circle, so that both images are filtered by the same round kernel before they are compared.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from scipy.special import j1

from dnnlib.errors import UserError
from metrics.sample_loop import over_samples
from metrics.stopping import KeepGoing
from torch_utils import seeding

TRANSLATE_MAX = 0.125  # of the image's side
LANCZOS = 3  # lobes of the kernel for fractions of pixels
REACH = 6  # pixels, radius of the round kernel
Latents = Callable[[list[int]], tuple[torch.Tensor, torch.Tensor | None]]
KINDS = ("eqt_int", "eqt_frac", "eqr")


class Equivariance(NamedTuple):
    psnr: float  # dB
    error: float  # standard error over the images, in dB


def equivariance(
    G: Any,
    latents: Latents,
    kind: str,
    num_samples: int,
    seed: int = 0,
    batch_size: int = 4,
    progress: str | None = None,
    keep_going: KeepGoing = None,
) -> Equivariance:
    """Measure on every process, each of which does its share. G: a StyleGAN3 generator (`G.synthesis.input.transform`)."""
    assert kind in KINDS

    def compute(samples: list[int]) -> torch.Tensor:
        return errors_of(G, latents, kind, samples, seed)

    return summary(over_samples(compute, num_samples, batch_size, progress, keep_going))


def summary(sums: torch.Tensor) -> Equivariance:
    """`[N, 2]`, squared error and pixels of each image."""
    error, pixels = sums.sum(dim=0)
    mean = float(error / pixels)
    # Of a ratio of sums, by the delta method; then of its logarithm.
    residual = (sums[:, 0] - mean * sums[:, 1]) / sums[:, 1].mean()
    spread = float(residual.std()) / math.sqrt(len(sums)) if len(sums) > 1 else 0.0
    psnr = 10 * math.log10(4 / mean) if mean > 0 else math.inf
    return Equivariance(psnr, 10 / math.log(10) * spread / mean if mean > 0 else 0.0)


def errors_of(G: Any, latents: Latents, kind: str, samples: list[int], seed: int) -> torch.Tensor:
    """float64 `[n, 2]` on the CPU: squared error and number of the pixels that both images show."""
    z, c = latents(samples)
    ws = G.mapping(z, c)
    original = synthesize(G, ws, torch.eye(3))
    rows = []
    for row, sample in enumerate(samples):
        gen = seeding.generator("equivariance", seed, sample)
        move = draw_move(kind, original.shape[2], gen)
        moved = synthesize(G, ws[row : row + 1], move.inverse())
        expected, seen, mask = compare(kind, original[row : row + 1], moved, move)
        difference = (expected - seen).double().square() * mask
        rows.append(torch.stack([difference.sum(), mask.double().expand_as(difference).sum()]).cpu())
    return torch.stack(rows)


def draw_move(kind: str, side: int, gen: torch.Generator) -> torch.Tensor:
    """3x3, in units of the image: from the original's coordinates to the moved one's."""
    move = torch.eye(3)
    if kind == "eqr":
        angle = 2 * math.pi * float(torch.rand([], generator=gen))
        move[:2, :2] = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        return move
    shift = (2 * torch.rand([2], generator=gen) - 1) * TRANSLATE_MAX
    move[:2, 2] = (shift * side).round() / side if kind == "eqt_int" else shift
    return move


def synthesize(G: Any, ws: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
    """Images `[n, C, h, w]` drawn by an input that is moved by `transform`; the input is put back."""
    buffer = G.synthesis.input.transform
    before = buffer.clone()
    try:
        buffer.copy_(transform)
        return G.synthesis(ws, noise_mode="const", force_fp32=True)
    finally:
        buffer.copy_(before)


def compare(
    kind: str, original: torch.Tensor, moved: torch.Tensor, move: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the moved image should be, what it is (filtered alike), and where both are known, `[1, 1, h, w]`."""
    if kind == "eqr":
        expected, known = turn(original, move)
        seen, known_too = turn(moved, torch.eye(3))
        return expected, seen, known * known_too
    side = original.shape[2]
    expected, known = translate(original, (float(move[0, 2]) * side, float(move[1, 2]) * side))
    return expected, moved, known


def translate(images: torch.Tensor, shift: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Moved right and down by so many pixels, with a Lanczos kernel between them; and where the result is known."""
    known = torch.ones_like(images[:1, :1])
    for dim, distance in ((3, shift[0]), (2, shift[1])):
        whole = math.floor(distance + 0.5 if abs(distance - round(distance)) < 1e-6 else distance)
        fraction = distance - whole
        if abs(fraction) < 1e-6:
            taps = {0: 1.0}
        else:
            taps = {k: lanczos(k - fraction) for k in range(1 - LANCZOS, LANCZOS + 1)}
            total = sum(taps.values())
            taps = {k: weight / total for k, weight in taps.items()}
        before = images
        images = torch.zeros_like(before)
        for k, weight in taps.items():
            images = images + weight * shifted(before, whole + k, dim)
        known = torch.stack([shifted(known, whole + k, dim) for k in taps]).amin(dim=0)
    return images, known


def shifted(images: torch.Tensor, distance: int, dim: int) -> torch.Tensor:
    """Shift by whole pixels along a dimension, zeros coming in."""
    result = torch.zeros_like(images)
    length = images.shape[dim] - abs(distance)
    if length > 0:
        result.narrow(dim, max(distance, 0), length).copy_(images.narrow(dim, max(-distance, 0), length))
    return result


def lanczos(x: float) -> float:
    if x == 0:
        return 1.0
    if abs(x) >= LANCZOS:
        return 0.0
    return LANCZOS * math.sin(math.pi * x) * math.sin(math.pi * x / LANCZOS) / (math.pi * x) ** 2


def turn(images: torch.Tensor, move: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turned about the centre by `move` and filtered by the round kernel; and where the result is known."""
    height, width = images.shape[2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    inverse = move.double().inverse()[:2, :2]
    centred = torch.stack([x - width / 2, y - height / 2], dim=-1).double() @ inverse.T
    position = centred + torch.tensor([width / 2 - 0.5, height / 2 - 0.5])  # where in the original, in pixels
    base = position.floor().long()
    total, weights = torch.zeros_like(images), torch.zeros([height, width], dtype=torch.float64)
    known = torch.ones([height, width], dtype=torch.bool)
    for dy in range(1 - REACH, REACH + 1):
        for dx in range(1 - REACH, REACH + 1):
            place = base + torch.tensor([dx, dy])
            weight = round_kernel((position - place).square().sum(dim=-1).sqrt())
            is_inside = ((place >= 0) & (place < torch.tensor([width, height]))).all(dim=-1)
            known &= is_inside | (weight == 0)
            column, row = place[..., 0].clamp(0, width - 1), place[..., 1].clamp(0, height - 1)
            total += images[:, :, row, column] * weight.to(images.device, images.dtype)
            weights += weight
    return total / weights.to(images.device, images.dtype), known.to(images.device, images.dtype)[None, None]


def round_kernel(r: torch.Tensor) -> torch.Tensor:
    """Ideal low-pass inside a circle of half a cycle per pixel, 2 J1(pi r) / (pi r), under a cosine window."""
    x = math.pi * r.clamp(min=1e-9)
    window = torch.cos(math.pi / 2 * (r / REACH).clamp(max=1)).square()
    return 2 * torch.from_numpy(j1(x.numpy())) / x * window


# Official names.


def sinc(x: torch.Tensor) -> torch.Tensor:
    """sin(pi x) / (pi x)"""
    return torch.sinc(x)


def lanczos_window(x: torch.Tensor, a: float) -> torch.Tensor:
    """sinc(x / a) within |x| < a, else 0."""
    return torch.where(x.abs() < a, torch.sinc(x / a), torch.zeros_like(x))


def rotation_matrix(angle: float) -> torch.Tensor:
    """3x3"""
    return torch.block_diag(_turn(float(angle)), torch.ones(1, 1))


def _turn(angle: float) -> torch.Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def apply_integer_translation(x: torch.Tensor, tx: float, ty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[n, C, h, w]` moved by these parts of their sides, in whole pixels; and a mask of their shape."""
    shift = (round(float(tx) * x.shape[3]), round(float(ty) * x.shape[2]))
    moved, known = translate(x, shift)
    return moved, known.expand_as(x)


def apply_fractional_translation(
    x: torch.Tensor, tx: float, ty: float, a: int = LANCZOS
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with a Lanczos kernel for fractions of pixels."""
    if a != LANCZOS:
        raise UserError(f"apply_fractional_translation: a={a} is not taken here, it is {LANCZOS}")
    moved, known = translate(x, (float(tx) * x.shape[3], float(ty) * x.shape[2]))
    return moved, known.expand_as(x)


def compute_equivariance_metrics(
    opts: Any,
    num_samples: int,
    batch_size: int,
    translate_max: float = TRANSLATE_MAX,
    rotate_max: float = 1,
    compute_eqt_int: bool = False,
    compute_eqt_frac: bool = False,
    compute_eqr: bool = False,
) -> float | list[float]:
    """EQ-T and EQ-R that are asked for, a number or a list. opts: a `metric_utils.MetricOptions`."""
    if translate_max != TRANSLATE_MAX or rotate_max != 1:
        raise UserError(f"compute_equivariance_metrics: translate_max is {TRANSLATE_MAX}, and rotate_max 1")
    asked = dict(zip(KINDS, (compute_eqt_int, compute_eqt_frac, compute_eqr), strict=True))
    args = (num_samples, opts.seed, batch_size)
    values = [equivariance(opts.G, opts.own.sampler.latents, kind, *args).psnr for kind in KINDS if asked[kind]]
    return values[0] if len(values) == 1 else values


def __getattr__(name: str) -> Any:
    """Official names that are refused: this project turns and filters in one pass of its own."""
    if name in (
        "construct_affine_bandlimit_filter",
        "apply_affine_transformation",
        "apply_fractional_rotation",
        "apply_fractional_pseudo_rotation",
    ):
        raise AttributeError(
            f"metrics.equivariance.{name} is not part of this project; turn(images, move) turns and filters"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
