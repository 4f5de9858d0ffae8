"""VGG16 (Simonyan & Zisserman 2014): 4096 features for precision and recall, and LPIPS distances (Zhang 2018) for PPL.

Names of parameters are those of torchvision's `vgg16-397923af.pth` (BSD licence); the weights of the five LPIPS layers
are those of the public `vgg.pth` of LPIPS 0.1 (`lin0.model.1.weight` … `lin4.model.1.weight`, BSD licence).
"""

import torch

SIZE = 224
NUM_FEATURES = 4096
PLAN = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of the stages, pooled after each
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for pixels in [0, 1]


class VGG16(torch.nn.Module):
    """`[N, 3, h, w]`, pixels normalised by ImageNet's `MEAN` and `STD`; h = w = 224 for `forward`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        self.stage_ends = []  # index of each stage's last ReLU
        channels = 3
        for width, depth in PLAN:
            for _ in range(depth):
                layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU(inplace=True)]
                channels = width
            self.stage_ends.append(len(layers) - 1)
            layers.append(torch.nn.MaxPool2d(2))
        self.features = torch.nn.Sequential(*layers)
        self.classifier = torch.nn.Sequential(
            torch.nn.Linear(512 * 7 * 7, NUM_FEATURES),
            torch.nn.ReLU(inplace=True),
            torch.nn.Dropout(),
            torch.nn.Linear(NUM_FEATURES, NUM_FEATURES),
            torch.nn.ReLU(inplace=True),
            torch.nn.Dropout(),
            torch.nn.Linear(NUM_FEATURES, 1000),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, 4096]`, the second fully connected layer after its ReLU."""
        return self.classifier[:5](self.features(x).flatten(1))

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`[N, c, h, w]` at the end of each stage, before it is pooled."""
        outputs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.stage_ends:
                outputs.append(x.clone())  # the next stage works in place
        return outputs


class LPIPS(torch.nn.Module):
    """Images of any size, normalised like VGG16's, to vectors whose squared distance is the LPIPS distance."""

    def __init__(self, network: VGG16):
        super().__init__()
        self.network = network
        self.lins = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(width)) for width, _ in PLAN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, sum of c h w]`: unit vectors per pixel, weighted per channel, averaged over the pixels."""
        vectors = []
        for stage, weights in zip(self.network.stages(x), self.lins, strict=True):
            unit = stage / (stage.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
            num_pixels = stage.shape[2] * stage.shape[3]
            vectors.append((unit * (weights.clamp(min=0) / num_pixels).sqrt()[:, None, None]).flatten(1))
        return torch.cat(vectors, dim=1)
