"""What seeds become: latents, images, and closed loops between them. For gen_images.py, gen_video.py and notebooks.

Whatever a seed decides is drawn from a generator of its own, so that its image depends on no other seed and, up to
the rounding of float32 arithmetic, not on the batch size.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.func import functional_call

from dnnlib.errors import UserError, naming
from torch_utils import seeding
from torch_utils.misc import Network, choose_device
from training.checkpoints.snapshot import known_source, load_snapshot
from training.checkpoints.whereabouts import locate_weights
from training.data.grids import BACKGROUND
from training.data.image_names import distinct_stems
from training.layers.pyramid import image_size
from training.settings import ANY_CLASS, MAX_SEED
from training.sources.cascade import Cascade, last_generator
from training.sources.encoders import IdentityEncoder
from training.sources.feed import LatentFeed
from training.sources.label_distribution import LabelDistribution
from training.sources.prior import InstancePrior
from training.sources.source import Draw, ImageSource, Source

FAR = 1.5  # times the longest z of the training's own images
BATCH_PIXELS = {"cpu": 2**14, "cuda": 2**19}  # in a batch that nobody chose the size of
MAX_BATCH = 16
NOISE_NAME = "noise_const"  # buffers of StyleGAN2's layers
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Look:
    """How a latent is shown."""

    class_idx: int | str | None = None
    """Class of a conditional network, or `any`: each seed draws one; None for an unconditional one."""
    truncation_psi: float = 1.0
    """Distance from the mean w: 1 leaves w alone, 0 gives the mean image."""
    noise_mode: str = "const"
    """Pixel noise of StyleGAN2: const, random (drawn from the seed) or none."""
    label: tuple[float, ...] | None = None
    """What a conditional network is told in place of a class, or of what its seeds draw: c_dim numbers."""
    noise_seed: int | None = None
    """Other noise for the same seeds, where it is random."""

    @property
    def draws_class(self) -> bool:
        return self.class_idx == ANY_CLASS


@dataclass(frozen=True)
class Latents:
    """What goes into a network, one row per image."""

    z: torch.Tensor
    """`[n, z_dim]` of the first stage."""
    noise: torch.Tensor | None = None
    """`[n, z_dim of the last stage]`, what `--source-noise` adds to z of a cascade's last stage; None without it."""
    c: torch.Tensor | None = None
    """`[n, c_dim]` where each image draws its condition; None where a look decides for all of them."""

    def split(self, size: int) -> Iterator["Latents"]:
        for first in range(0, len(self.z), size):
            yield Latents(**{name: part[first : first + size] for name, part in self.parts().items()})

    def parts(self) -> dict[str, torch.Tensor]:
        """What there is, by name."""
        named = {"z": self.z, "noise": self.noise, "c": self.c}
        return {name: part for name, part in named.items() if part is not None}


class Sampler:
    """A generator with what feeds it.

    network: `G_ema` of a snapshot (a `Cascade` counts as one network); source: what its first stage takes;
    picks_images: seed s takes image s of an `ImageSource`, instead of one drawn by the seed; prior: what conditions
    of the last stage are drawn from, if it was trained with one; labels: those that it was trained with, None where that is
    not known or it has none.
    """

    def __init__(
        self,
        network: Network,
        source: Source,
        device: torch.device | str = "cpu",
        picks_images: bool = False,
        prior: InstancePrior | None = None,
        labels: LabelDistribution | None = None,
    ):
        self.network = network.to(device).eval().requires_grad_(False)
        self.generator: Network = last_generator(network)
        self.device = torch.device(device)
        self.feed = LatentFeed(source, network.mapping.encoder).to(device)
        self.picks_images = picks_images
        self.prior = prior
        self.label_distribution = labels
        self.move: Callable[[torch.Tensor], torch.Tensor] = lambda ws: ws  # what is done to ws before pictures are made

    def drawn_by(self, look: Look) -> InstancePrior | LabelDistribution | None:
        """What each seed draws its condition from; None where the look decides for all of them."""
        labels = self.label_distribution
        if look.label is not None or self.network.c_dim == 0:
            return None
        if self.prior is not None or (labels is not None and not labels.is_classes):
            return self.prior if self.prior is not None else labels
        if not look.draws_class:
            return None
        return labels or LabelDistribution.from_values(torch.ones([self.network.c_dim], dtype=torch.int64))

    @property
    def stages(self) -> list[Network]:
        """The generators from the first stage to the last."""
        return stages_of(self.network)

    @property
    def noise_maps(self) -> dict[str, torch.Tensor]:
        """Pixel noise of StyleGAN2's layers, by the names of their buffers; none in other networks."""
        return noise_maps_of(self.generator)

    @property
    def has_pictures(self) -> bool:
        """Whether there is something to look at before the last generator: source images, or earlier stages."""
        return self.feed.has_images or len(self.stages) > 1

    def draw(self, seed: int) -> Draw:
        """The random choices of one seed, each `[1, ...]`."""
        gen = seeding.generator("sample", seed)
        draw = self.feed.draw_of_seed(seed, gen)
        if self.picks_images:
            draw = replace(draw, index=torch.tensor([seed]))
        encoder = self.generator.mapping.encoder
        if len(self.stages) > 1 and encoder.noise_std > 0:  # of the first stage it is in the feed's draw
            draw = replace(draw, last_noise=encoder.noise_std * torch.randn([1, encoder.z_dim], generator=gen))
        return draw

    def draws(self, seeds: Sequence[int], look: Look | None = None) -> Draw:
        """The random choices of several seeds, each `[n, ...]`; of images that the look's class is paired with."""
        draw = Draw.cat([self.draw(seed) for seed in seeds])
        is_paired = self.feed.source.pairs is not None
        return self.feed.match(draw, self.conditions(seeds, look or Look())) if is_paired else draw

    def conditions(self, seeds: Sequence[int], look: Look) -> torch.Tensor | None:
        """What the network is told for these seeds, `[n, c_dim]` on the device; None for an unconditional one."""
        drawn_by = self.drawn_by(look)
        if drawn_by is not None:
            return torch.cat([drawn_by.of_seed(seed) for seed in seeds]).to(self.device)
        return self.labels(len(seeds), look)

    def labels(self, n: int, look: Look) -> torch.Tensor | None:
        """What the look says, for each of n the same, `[n, c_dim]` on the device; None for an unconditional network."""
        if look.label is not None:
            c: torch.Tensor | None = torch.tensor([look.label])
        else:
            c = label(self.network.c_dim, look.class_idx)
        return None if c is None else c.to(self.device).expand(n, -1)

    @torch.no_grad()
    def latents(self, seeds: Sequence[int], look: Look | None = None) -> Latents:
        """look: decides the class, where source images depend on it, and whether each seed draws one."""
        look = look or Look()
        draw = self.draws(seeds, look)
        noise = None if draw.last_noise is None else draw.last_noise.to(self.device)
        c = None if self.drawn_by(look) is None else self.conditions(seeds, look)
        return Latents(self.feed.latents(draw), noise, c)

    def some_latents(self, count: int, look: Look, seed: int, batch: int = 100) -> Iterator[Latents]:
        """Yield latents of `count` samples as training draws them, `batch` at a time."""
        seeds = torch.randint(self.num_seeds, [count], generator=seeding.generator("some latents", seed)).tolist()
        for first in range(0, count, batch):
            yield self.latents(seeds[first : first + batch], look)

    @functools.cached_property
    def given_names(self) -> list[str] | None:
        """What the given source images are called, without folders and endings, all different; None for the snapshot's own."""
        source = self.feed.source
        if not self.picks_images or not isinstance(source, ImageSource) or source.names is None:
            return None
        return distinct_stems(source.names)

    @property
    def num_seeds(self) -> int:
        source = self.feed.source
        return len(source.images) if self.picks_images and isinstance(source, ImageSource) else MAX_SEED + 1

    @torch.no_grad()
    def last_z(self, latents: Latents) -> torch.Tensor:
        """z `[n, z_dim]` of the last generator, through all stages before it."""
        if not isinstance(self.network, Cascade):
            return latents.z
        z = self.generator.mapping.encoder(self.network.first_images(latents.z))
        return z if latents.noise is None else z + latents.noise

    @torch.no_grad()
    def ws(self, latents: Latents, look: Look) -> torch.Tensor:
        """`[n, num_ws, w_dim]` for the last generator, through all stages before it."""
        c = self.labels(len(latents.z), look) if latents.c is None else latents.c
        return self.last_ws(self.last_z(latents), c, look)

    @torch.no_grad()
    def last_ws(self, z: torch.Tensor, c: torch.Tensor | None, look: Look) -> torch.Tensor:
        """`[n, num_ws, w_dim]` from z `[n, z_dim]` of the last generator and its labels."""
        return self.move(self.generator.mapping(z, c, truncation_psi=look.truncation_psi))

    @torch.no_grad()
    def synthesize(
        self,
        ws: torch.Tensor,
        look: Look,
        seeds: Sequence[int] | None = None,
        noise_maps: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """`[n, num_ws, w_dim]` -> images `[n, C, h, w]`; random noise is a function of the `seeds`.

        noise_maps: fixed pixel noise by the names of its buffers, in place of the network's own.
        """
        with contextlib.ExitStack() as stack:
            if look.noise_mode == "random" and seeds is not None:
                others = () if look.noise_seed is None else (look.noise_seed,)
                stack.enter_context(seeding.sample_rows([("sample-noise", seed, *others) for seed in seeds]))
            if noise_maps:
                return functional_call(self.generator.synthesis, noise_maps, (ws,), {"noise_mode": look.noise_mode})
            return self.generator.synthesis(ws, noise_mode=look.noise_mode)

    def images(self, seeds: Sequence[int], look: Look) -> torch.Tensor:
        """Images `[n, C, h, w]` in [-1, 1]."""
        return self.synthesize(self.ws(self.latents(seeds, look), look), look, seeds)

    @torch.no_grad()
    def pictures_before(self, seeds: Sequence[int], look: Look | None = None) -> list[torch.Tensor]:
        """What the last generator's images were made from: source images if any, then the images of earlier stages."""
        draw = self.draws(seeds, look)
        sources = self.feed.images(draw)
        earlier = self.network.stages(self.feed.latents(draw)) if isinstance(self.network, Cascade) else []
        return [*([] if sources is None else [sources]), *earlier]


def open_sampler(
    network: str, source_images: str | None = None, device: str = "auto", verbose: bool = False
) -> Sampler:
    """A snapshot by path or address, on `auto`, `cpu` or `cuda`; `source_images` (folder or zip) replace its source.

    Raises `UserError` that names the flag of gen_images.py and gen_video.py, and the file.
    """
    chosen_device = choose_device(device)
    with naming("--network"):
        contents = load_snapshot(network, verbose=verbose)
    G_ema = contents["G_ema"]
    with naming("--network"):
        source = known_source(contents, network)
    if source_images is not None:
        own = source
        with naming("--source-images"):
            G_ema, source = replace_source(G_ema, source, source_images, verbose)
        warn_of_far_images(G_ema.mapping.encoder, own, source)
    elif source.is_empty:
        raise UserError(f"--network: {network} carries no source images; choose some with --source-images=DIR|ZIP")
    prior, labels = contents.get("prior"), contents.get("labels")
    if prior is not None:
        locate_weights(prior, network)
    return Sampler(G_ema, source, chosen_device, source_images is not None, prior, labels)


def replace_source(network: Network, source: Source, path: str, verbose: bool = False) -> tuple[Network, ImageSource]:
    """The network and the source when images from `path` go in: into the first stage that takes images.

    The images get as many channels as that stage was trained with.
    """
    stages = stages_of(network)
    takes_images = [not isinstance(stage.mapping.encoder, IdentityEncoder) for stage in stages]
    if not any(takes_images):
        raise UserError("the network was trained on noise and takes no images; leave the flag out")
    entry = takes_images.index(True)
    if entry > 0:
        trained_on = stages[entry - 1].img_channels
    elif source.img_channels is None:
        raise UserError("the network takes images, but its snapshot does not say how many channels they have")
    else:
        trained_on = source.img_channels
    images = ImageSource.open(path, verbose=verbose)
    images.images = match_channels(images.images, trained_on)
    images.image_shape[0] = trained_on
    if entry == 0:
        return network, images
    rest = stages[entry]
    for stage, labels in zip(stages[entry + 1 :], stage_labels(network)[entry:], strict=True):
        rest = Cascade.chain(rest, stage, labels)
    return rest, images


def warn_of_far_images(encoder: torch.nn.Module, own: Source, given: ImageSource) -> None:
    """Say which images lie far outside of what the network was trained on: what it makes of them says little about them."""
    if not isinstance(own, ImageSource) or own.is_empty:
        return
    usual, theirs = max(lengths(encoder, own)), lengths(encoder, given)
    far = [index for index, length in enumerate(theirs) if length > FAR * usual]
    if not far:
        return
    names = given.names or [str(index) for index in range(len(theirs))]
    more = f" and {len(far) - 3:,} more" if len(far) > 3 else ""
    print(
        f"Warning: {', '.join(names[index] for index in far[:3])}{more}: far outside of the images that the network was trained "
        f"on: z is up to {max(theirs) / usual:.1f} times as long as the longest of theirs",
        file=sys.stderr,
    )


@torch.no_grad()
def lengths(encoder: torch.nn.Module, source: ImageSource) -> list[float]:
    """Of z of every image."""
    return [length for images in source.all_batches() for length in encoder(images).norm(dim=1).tolist()]


def noise_maps_of(G: Network) -> dict[str, torch.Tensor]:
    """By the names of their buffers in `G.synthesis`."""
    return {name: noise for name, noise in G.synthesis.named_buffers() if name.endswith(NOISE_NAME)}


def stages_of(network: Network) -> list[Network]:
    """The generators of a cascade, first stage first; the generator itself if there is only one."""
    return [*stages_of(network.first), network.generator] if isinstance(network, Cascade) else [network]


def stage_labels(network: Network) -> list[torch.Tensor | None]:
    """What the labels of every stage but the last are drawn from, first stage first."""
    return [*stage_labels(network.first), network.first_labels] if isinstance(network, Cascade) else []


def match_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """uint8 `[N, C, h, w]` -> `[N, channels, h, w]`: transparency shows white, missing alpha is opaque."""
    if images.shape[1] == channels:
        return images
    colors = images.to(torch.float32)
    if images.shape[1] == 4:
        alpha = colors[:, 3:] / 255
        colors = colors[:, :3] * alpha + BACKGROUND * (1 - alpha)
    if channels == 1:
        colors = (colors * torch.tensor(LUMA).reshape(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    elif colors.shape[1] == 1:
        colors = colors.repeat(1, 3, 1, 1)
    if channels == 4:
        colors = torch.cat([colors, torch.full_like(colors[:, :1], 255)], dim=1)
    return colors.round().to(torch.uint8)


def label(c_dim: int, class_idx: int | str | None) -> torch.Tensor | None:
    """One-hot label `[1, c_dim]`; None for an unconditional network. Raises `UserError` that names `--class`."""
    if c_dim == 0:
        return None
    if not isinstance(class_idx, int):
        raise UserError(f"--class is needed: the network is conditional; choose from 0 to {c_dim - 1}, or any")
    if not 0 <= class_idx < c_dim:
        raise UserError(f"--class={class_idx}: the network's classes are 0 to {c_dim - 1}")
    return torch.nn.functional.one_hot(torch.tensor([class_idx]), c_dim).to(torch.float32)


def choose_seeds(sampler: Sampler, seeds: list[int] | None, flag: str = "--seeds") -> list[int]:
    """The seeds as given, or all the images of `--source-images`. Raises `UserError` that names `--seeds`."""
    if not sampler.picks_images:
        if seeds is None:
            raise UserError("--seeds is needed, such as --seeds=0-7; without it only with --source-images")
        return seeds
    source = sampler.feed.source
    assert isinstance(source, ImageSource)
    num_images = len(source.images)
    beyond = [seed for seed in seeds or [] if seed >= num_images]
    if beyond:
        raise UserError(
            f"{flag}: there is no image {beyond[0]}; {source.path} holds {num_images}, 0 to {num_images - 1}"
        )
    return list(range(num_images)) if seeds is None else seeds


def default_batch(img_resolution: int | Sequence[int], device: torch.device) -> int:
    """Images at a time: fewer the larger they are. A CPU gains nothing from batches of large images."""
    return min(max(BATCH_PIXELS[device.type] // math.prod(image_size(img_resolution)), 1), MAX_BATCH)


def make_transform(translate: tuple[float, float], angle: float) -> np.ndarray:
    """3x3 matrix that turns by `angle` degrees against the clock, then moves right and down, in units of the image."""
    sin, cos = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    return np.array([[cos, sin, translate[0]], [-sin, cos, translate[1]], [0, 0, 1]])


def move_image(sampler: Sampler, translate: tuple[float, float], angle: float) -> None:
    """Have a StyleGAN3 network draw its images moved and turned. Raises `UserError` for other networks."""
    synthesis_input = getattr(sampler.generator.synthesis, "input", None)
    if synthesis_input is None:
        raise UserError("--translate and --rotate need a StyleGAN3 network, which this one is not: leave them out")
    if not all(math.isfinite(value) for value in (*translate, angle)):
        raise UserError("--translate and --rotate take finite numbers")
    # The input asks where a point of the picture comes from, which is the way back.
    inverse = np.linalg.inv(make_transform(translate, angle))
    synthesis_input.transform.copy_(torch.from_numpy(inverse))
