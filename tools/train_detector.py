"""Train the `tiny` detector of metrics/ on labelled images, and write its weights and what it reaches.

    python tools/train_detector.py --data=cifar10.zip,tinyimagenet.zip --epochs=60

Every data set has a classifier of its own on the same features. A tenth of the images is held out and never trained on.
"""

import json
import sys
import time
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save_file

from dnnlib.bars import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dnnlib.cli
from metrics.tiny_detector import LAYERS, NUM_FEATURES, POOLED, SIZE, WEIGHTS, TinyDetector
from training.data.image_tensors import to_float
from training.dataset import ImageFolderDataset

HELD_OUT = 10  # one image in so many
GRAY_SHARE = 0.1  # of the training images, shown without colour


class Trainee(torch.nn.Module):
    """The detector with normalisation between convolution and ReLU, and one linear classifier per data set."""

    def __init__(self, class_counts: list[int]):
        super().__init__()
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False) for c_in, c_out, stride in LAYERS
        )
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(c_out) for _, c_out, _ in LAYERS)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(NUM_FEATURES, num_classes) for num_classes in class_counts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = []
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x)).relu()
            if index in POOLED:
                features.append(x.mean(dim=[2, 3]))
        return torch.cat(features, dim=1)

    def folded(self) -> TinyDetector:
        """The same features with the normalisation inside the convolutions."""
        detector = TinyDetector()
        for target, conv, norm in zip(detector.convs, self.convs, self.norms, strict=True):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            target.weight.data = (conv.weight * scale[:, None, None, None]).detach().contiguous()
            target.bias.data = (norm.bias - norm.running_mean * scale).detach()
        return detector.eval().requires_grad_(False)


class Labelled:
    """Images `[N, 3, 32, 32]` (uint8) and classes `[N]` of one data set, divided into training and held-out."""

    def __init__(self, path: str):
        dataset = ImageFolderDataset(path, use_labels=True)
        images = torch.from_numpy(dataset.read_images(np.arange(len(dataset))))
        small = torch.nn.functional.interpolate(to_float(images), (SIZE, SIZE), mode="bilinear", antialias=True)
        self.name, self.num_classes = dataset.name, dataset.label_dim
        self.images = small.expand(-1, 3, -1, -1)
        self.classes = torch.from_numpy(dataset.get_labels(np.arange(len(dataset))).argmax(axis=1))
        is_held_out = torch.arange(len(dataset)) % HELD_OUT == 0
        self.train, self.held_out = (~is_held_out).nonzero()[:, 0], is_held_out.nonzero()[:, 0]


def augment(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Mirrored, moved by up to 4 pixels, brighter or darker, with more or less contrast, some of them gray."""
    n = len(images)

    def rand() -> torch.Tensor:
        return torch.rand([n, 1, 1, 1], generator=rng)

    images = torch.where(rand() < 0.5, images.flip(3), images)
    theta = torch.eye(2, 3).repeat(n, 1, 1)
    theta[:, :, 2] = (2 * torch.rand([n, 2], generator=rng) - 1) * 8 / SIZE
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    images = torch.nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    gray = images.mean(dim=1, keepdim=True)
    images = torch.where(rand() < GRAY_SHARE, gray, gray + (images - gray) * (0.6 + 0.8 * rand()))
    return images * (0.7 + 0.6 * rand()) + 0.3 * (2 * rand() - 1)


def train(trainee: Trainee, sets: list[Labelled], epochs: int, batch: int, lr: float, rng: torch.Generator) -> None:
    """Every step takes a batch of each set in turn, mixed into one pass through the convolutions."""
    steps = min(len(part.train) for part in sets) // batch
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.15)
    bar = tqdm(range(epochs), unit="epoch")
    for _ in bar:
        orders = [part.train[torch.randperm(len(part.train), generator=rng)] for part in sets]
        trainee.train()
        losses = []
        for step in range(steps):
            rows = [order[step * batch : (step + 1) * batch] for order in orders]
            images = torch.cat([part.images[row] for part, row in zip(sets, rows, strict=True)])
            features = trainee(augment(images, rng).contiguous(memory_format=torch.channels_last)).split(batch)
            loss = sum(
                torch.nn.functional.cross_entropy(head(part_features), part.classes[row], label_smoothing=0.1)
                for head, part_features, part, row in zip(trainee.heads, features, sets, rows, strict=True)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        bar.set_postfix_str(", ".join([f"loss {np.mean(losses):.3f}", *map(str, accuracies(trainee, sets).values())]))


@torch.no_grad()
def accuracies(trainee: Trainee, sets: list[Labelled]) -> dict[str, float]:
    """Share of held-out images whose class is right, by the folded network."""
    trainee.eval()
    detector, result = trainee.folded(), {}
    for part, head in zip(sets, trainee.heads, strict=True):
        features = torch.cat([detector(images) for images in part.images[part.held_out].split(500)])
        result[part.name] = round(
            float((head(features).argmax(dim=1) == part.classes[part.held_out]).double().mean()), 4
        )
    return result


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--data", help="Labelled data sets, with commas between them", metavar="ZIP,ZIP", required=True)
@click.option("--epochs", type=click.IntRange(min=1), default=60)
@click.option("--batch", help="Images of each set in a step", type=click.IntRange(min=8), default=64)
@click.option("--lr", help="Highest learning rate", type=float, default=4e-3)
@click.option("--seed", type=int, default=0)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=WEIGHTS)
def main(data: str, epochs: int, batch: int, lr: float, seed: int, out: Path) -> None:
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    sets = [Labelled(path) for path in data.split(",")]
    trainee = Trainee([part.num_classes for part in sets]).to(memory_format=torch.channels_last)
    started = time.monotonic()
    train(trainee, sets, epochs, batch, lr, rng)
    reached = accuracies(trainee, sets)
    weights = {name: value.contiguous() for name, value in trainee.folded().state_dict().items()}
    save_file(weights, out, {"held_out_accuracy": json.dumps(reached), "epochs": str(epochs), "seed": str(seed)})
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, held-out accuracy {reached}, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    dnnlib.cli.run(main)
