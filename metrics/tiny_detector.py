"""`tiny`: a small convolutional network whose features stand in for Inception's where no weights are at hand.

It travels inside the package (`tiny.safetensors`, trained by tools/train_detector.py; docs/tiny-detector.md says on what
and how well). Its numbers are for comparing runs and data sets with each other: they are no FIDs.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

WEIGHTS = Path(__file__).with_name("tiny.safetensors")
SIZE = 32  # pixels a side of what it sees
LAYERS = ((3, 32, 2), (32, 32, 1), (32, 64, 2), (64, 128, 2), (128, 192, 1))  # channels in, channels out, stride
POOLED = (2, 4)  # layers whose means over the image are the features: textures and colours, and what is shown
NUM_FEATURES = sum(LAYERS[index][1] for index in POOLED)


class TinyDetector(torch.nn.Module):
    """Five 3x3 convolutions with ReLU. `[N, 3, 32, 32]` in [-1, 1] -> features `[N, 256]`."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1) for c_in, c_out, stride in LAYERS
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = []
        for index, conv in enumerate(self.convs):
            x = conv(x).relu_()
            if index in POOLED:
                features.append(x.mean(dim=[2, 3]))
        return torch.cat(features, dim=1)

    @classmethod
    def pretrained(cls) -> "TinyDetector":
        """The detector with the weights of the package, in eval mode."""
        detector = cls()
        detector.load_state_dict(load_file(WEIGHTS))
        return detector.eval().requires_grad_(False)
