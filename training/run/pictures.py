"""The pictures of a run: the data, what goes in, and what comes out of it at every snapshot."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_utils import seeding
from training.config.run_config import TrainingConfig
from training.data.grid_cells import GridCells
from training.data.grids import grid_size, rgb_pixels, save_grid, save_pairs, tile
from training.data.image_tensors import to_float
from training.dataset import ImageFolderDataset, Labels
from training.run.state import TrainingState
from training.sources.source import Draw


class Pictures:
    """The same source samples and labels, drawn again at every snapshot."""

    def __init__(
        self,
        run_dir: Path,
        dataset: ImageFolderDataset,
        state: TrainingState,
        config: TrainingConfig,
        labels: Labels,
        batch_gpu: int,
    ):
        self.run_dir = run_dir
        self.dataset = dataset
        self.state = state
        self.batch_gpu = batch_gpu
        _, height, width = dataset.image_shape
        self.columns, rows = grid_size(height, width, config.device)
        self.seeds = tuple(range(self.columns * rows))
        gen = seeding.generator(config.seed, "pictures")
        draw = Draw.cat([state.feed.draw_of_seed(seed, seeding.generator("sample", seed)) for seed in self.seeds])
        self.indices = reals_by_row(dataset, self.columns, rows, gen)
        self.labels = labels[torch.from_numpy(self.indices)].to(state.device)
        self.draw = state.feed.match(draw, self.labels)

    def save_start(self) -> None:
        reals = torch.from_numpy(self.dataset.read_images(self.indices))
        save_grid(self.run_dir / "reals.png", to_float(reals), self.columns)
        sources = self.state.feed.images(self.draw)
        if sources is not None:
            save_grid(self.run_dir / "sources.png", sources, self.columns)
        self.save("_init")

    def save(self, suffix: str, events: Any = None) -> None:
        """`fakes<suffix>.png`, and with a source of images `pairs<suffix>.png`. events: of TensorBoard, which shows them, too."""
        fakes, cells = self.generate()
        if events is not None:
            picture = tile(rgb_pixels(fakes), self.columns)
            events.add_image("fakes", picture, global_step=self.state.cur_nimg, dataformats="HWC")
        save_grid(self.run_dir / f"fakes{suffix}.png", fakes, self.columns, texts=cells.text())
        sources = self.state.feed.images(self.draw)
        if sources is not None:
            save_pairs(self.run_dir / f"pairs{suffix}.png", sources, fakes, self.columns)

    @torch.no_grad()
    def generate(self) -> tuple[torch.Tensor, GridCells]:
        """Images `[n, C, h, w]` on the CPU, in full precision as the scripts make them, and what they are made from."""
        G = self.state.G_ema
        z = self.state.feed.latents(self.draw, G.mapping.encoder)
        parts = zip(z.split(self.batch_gpu), self.labels.split(self.batch_gpu), strict=True)
        images = torch.cat([G(part, c, noise_mode="const", force_fp32=True).cpu() for part, c in parts])
        return images, GridCells(z, self.labels if G.c_dim > 0 else None, self.seeds)


def reals_by_row(dataset: ImageFolderDataset, columns: int, rows: int, gen: torch.Generator) -> np.ndarray:
    """Indices of the images shown: at random, and with class labels one class a row."""
    if not dataset.has_onehot_labels:
        return torch.randint(len(dataset), [columns * rows], generator=gen).numpy()
    classes = dataset.get_classes()
    order = torch.randperm(dataset.label_dim, generator=gen).numpy()
    present = [c for c in order if (classes == c).any()]
    picks = []
    for row in range(rows):
        members = np.flatnonzero(classes == present[row % len(present)])
        picks.append(members[torch.randint(len(members), [columns], generator=gen).numpy()])
    return np.concatenate(picks)
