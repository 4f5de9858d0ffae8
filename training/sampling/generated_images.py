"""Images that a snapshot makes, as metrics look at them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import dnnlib
from dnnlib.errors import UserError
from metrics import metric_main
from metrics.feature_stats import Images, Reading
from torch_utils import seeding
from torch_utils.misc import Network
from training.checkpoints.snapshot import feed_of, is_snapshot, known_source, load_snapshot
from training.checkpoints.whereabouts import labels_of, source_places
from training.data.image_sets import NOISE, NOISE_IMAGES, DatasetImages, ImageSet, NoiseImages
from training.data.image_tensors import to_uint8
from training.dataset import Labels, LabelTable
from training.sampling.sampler import default_batch
from training.sources.encoders import IdentityEncoder
from training.sources.feed import LatentFeed
from training.sources.source import Draw, GaussianSource, ImageSource, Source

PRIOR_ROWS = 10_000  # conditions that generated images are drawn with


class GeneratedImages:
    """Endless images of a generator: image i under a seed is the same whatever the batch, and whoever asks.

    feed: the source that the generator was trained with, seen through its own encoder. labels: float32 `[N, c_dim]`
    that conditional networks draw from. count: how many images this stands for. note: what to know about them.
    """

    reads_ahead = False  # two networks at a time take twice as long on a processor
    may_skip = False  # the others would make a broken network look good

    def __init__(
        self,
        G: Network,
        feed: LatentFeed,
        count: int,
        seed: int = 0,
        labels: Labels | None = None,
        name: str = "generated images",
        note: str | None = None,
    ):
        self.G, self.feed, self.count, self.seed, self.labels = G, feed, count, seed, labels
        self.name, self.note = name, note
        self.key: str | None = None
        self.device = next(G.parameters()).device
        self.batch = default_batch(G.img_resolution, self.device)

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> Reading:
        return Reading.of(self._attempts(indices))

    def _attempts(self, indices: Sequence[int]) -> Iterator[tuple[torch.Tensor | None, str]]:
        for first in range(0, len(indices), self.batch):
            rows = indices[first : first + self.batch]
            z, c = self.latents(rows)
            with torch.no_grad(), seeding.sample_rows([("metric-pixels", self.seed, int(row)) for row in rows]):
                pixels = self.G(z, c)
            is_good = pixels.isfinite().flatten(1).all(dim=1).tolist()
            for row, image, good in zip(rows, to_uint8(pixels).cpu(), is_good, strict=True):
                yield (image, "") if good else (None, f"number {row}: NaN or infinite")

    def first(self, count: int) -> "GeneratedImages":
        """The first `count` images."""
        return GeneratedImages(self.G, self.feed, count, self.seed, self.labels, self.name, self.note)

    def latents(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """z `[n, z_dim]` and labels `[n, c_dim]` (None for unconditional networks) of images by number."""
        draws, chosen = [], []
        for index in indices:
            gen = seeding.generator("metric-sample", self.seed, int(index))
            draws.append(self.feed.draw(1, gen))
            if self.labels is not None:
                chosen.append(int(torch.randint(len(self.labels), [1], generator=gen)))
        draw = Draw.cat(draws)
        c = None if self.labels is None else self.labels[chosen].to(self.device)
        with torch.no_grad():
            z = self.feed.latents(self.feed.match(draw, c), self.G.mapping.encoder)
        return z, c


def open_images(path: str, count: int, device: torch.device | str = "cpu", seed: int = 0) -> Images:
    """A zip or folder as it is, `count` images of a snapshot, or `noise`. Raises `UserError`."""
    if path == NOISE and not Path(path).exists():
        return NoiseImages(min(count, NOISE_IMAGES))
    if is_snapshot(path):
        return open_generated(load_snapshot(path, verbose=True), path, count, device, seed)
    return ImageSet(path)


def open_generated(
    contents: dict[str, Any],
    path: str,
    count: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> GeneratedImages:
    """Images of a snapshot's `G_ema`, fed by all of its own source where that can still be read.

    A conditional network draws labels as often as they occurred in its training, wherever the training set lies now; a
    prior of the snapshot draws its conditions itself. Raises `UserError`.
    """
    source, note = whole_source(known_source(contents, path), path)
    feed = feed_of({**contents, "source": source}, device)
    if source.is_empty:
        raise UserError(f"{path}: carries no source images to draw from; use a snapshot that does")
    G = contents["G_ema"].to(device).eval().requires_grad_(False)
    prior = contents.get("prior")
    labels: Labels | None
    labels, note_on_labels = labels_of(contents, path)
    if prior is not None:
        labels = prior.draw(PRIOR_ROWS, seeding.generator("metric-prior", seed))
    if G.c_dim > 0 and labels is None:
        labels = torch.eye(G.c_dim)
    notes = "; ".join(filter(None, [note, note_on_labels])) or None
    return GeneratedImages(G, feed, count, seed, labels, Path(path).stem, notes)


def whole_source(source: Source, path: str) -> tuple[Source, str | None]:
    """The source with all of its images, and a note where only those that the snapshot carries are left.

    path: of the snapshot. A few images that come again and again make too few different outputs: numbers would be worse
    than in training.
    """
    if source.is_whole:
        return source, None
    assert isinstance(source, ImageSource)
    whole = source.reopened(source_places(source.path, path))
    if whole is not source:
        return whole, None
    return source, (
        f"{source.path} is not there as it was in training: generated from the {len(source.images):,} source images that "
        f"the snapshot carries, not from all {source.num_images:,}, which reads worse"
    )


def options_from_official(official: Any) -> metric_main.MetricOptions:
    """What the keywords in a `metrics.metric_utils.MetricOptions` mean. Raises `UserError`."""
    G, device = official.G, official.device
    real: Images | None = None
    labels: Labels | None = None
    if official.dataset_kwargs:
        kwargs = {"class_name": "training.dataset.ImageFolderDataset", **official.dataset_kwargs}
        dataset = dnnlib.util.construct_class_by_name(**kwargs)
        real = DatasetImages(dataset)
        labels = LabelTable(dataset) if dataset.has_labels else None
    if G is None:
        return metric_main.MetricOptions(
            official.detectors, real, seed=official.seed, is_verbose=official.progress.verbose
        )
    if not isinstance(G.mapping.encoder, IdentityEncoder):
        raise UserError(
            "metrics: this G was trained on source images, which dataset_kwargs= do not hold; use calc_metrics.py --network"
        )
    if official.G_kwargs not in ({}, {"noise_mode": "random"}):
        raise UserError(f"metrics: G_kwargs={dict(official.G_kwargs)} are not taken here; wrap G")
    if G.c_dim > 0 and (labels is None or labels.shape[1] != G.c_dim):
        labels = torch.eye(G.c_dim)
    G = G.eval().requires_grad_(False).to(device)
    feed = LatentFeed(GaussianSource(G.z_dim), G.mapping.encoder).to(device)
    endless = GeneratedImages(G, feed, 0, official.seed, labels if G.c_dim > 0 else None)
    return metric_main.MetricOptions(
        official.detectors, real, endless.first, endless, official.seed, is_verbose=official.progress.verbose
    )
