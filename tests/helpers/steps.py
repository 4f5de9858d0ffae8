"""Training steps on a few images."""

import numpy as np
import torch

from tests.helpers.sources import write_images
from training.config.options import TrainingOptions
from training.config.resolve import resolve
from training.dataset import ImageFolderDataset, LabelTable
from training.run.batches import Batches
from training.run.state import build_state
from training.run.step import TrainingStep
from training.sources.coreset import DetectorChoice, ShuffledOrder


def make_step(tmp_path, batch_gpu=8, **kwargs):
    data = write_images(tmp_path / "data", size=(16, 16), count=16)
    source = write_images(tmp_path / "source", size=(16, 16), count=16, seed=1)
    options = dict(cfg="stylegan2", data=str(data), source=str(source), device="cpu", batch=8, source_noise=0.1)
    options |= dict(cbase=128, cmax=16, z_dim=16, w_dim=16, map_depth=2)
    options |= dict(aug="fixed", p=0.5) if "aug" not in kwargs else {}
    config = resolve(TrainingOptions(**{**options, **kwargs})).config
    state = build_state(config, torch.device("cpu"), verbose=False)
    order = ShuffledOrder(16, config.seed)
    return TrainingStep(state, config, Batches(state, config, batch_gpu, torch.zeros(16, 0), order))


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, [8, 3, 16, 16], generator=generator, dtype=torch.uint8), torch.zeros(8, 0)


def run(step, num_steps=3):
    for index in range(num_steps):
        step.run(*images(index))
    return torch.cat([p.flatten() for module in (step.state.G, step.state.D) for p in module.parameters()])


def run_on(step, dataset, num_steps=2):
    """Parameters after steps on the first images of a dataset, in batches of 8."""
    for rows in np.arange(8 * num_steps).reshape(num_steps, 8):
        step.run(torch.from_numpy(dataset.read_images(rows)), torch.from_numpy(dataset.get_labels(rows)))
    return torch.cat([p.flatten() for module in (step.state.G, step.state.D) for p in module.parameters()])


def step_of(config, batch_gpu=8):
    """A step of a configuration on its data, as the loop makes it, and the dataset."""
    state = build_state(config, torch.device("cpu"), verbose=False)
    dataset = ImageFolderDataset(**config.training_set_kwargs)
    images = dataset.mirrored(dataset.subset_of(dataset.image_set()))
    state.conditions = config.prior.conditions(images, torch.device("cpu"), config.seed, None)
    state.conditions.become_labels_of(dataset)
    detector = DetectorChoice.of_coreset(config.detector, config.detector_weights, "cpu")
    order = config.coreset.of_targets(images, detector, config.seed)
    batches = Batches(state, config, batch_gpu, LabelTable(dataset), order)
    return TrainingStep(state, config, batches), dataset
