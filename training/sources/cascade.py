"""A chain of generators as one network: noise -> images of stage one -> images of stage two -> …"""

from collections.abc import Sequence
from typing import Any

import torch

from torch_utils import persistence
from torch_utils.misc import Network
from training.sources.label_distribution import labels_at


@persistence.persistent_class
class Cascade(torch.nn.Module):
    """`G(z, c) -> images`: `first` turns z into images, `generator` turns those into images of its own data set.

    Both arguments are data, `{"class_name": …, **constructor arguments}`, so that a snapshot carries the whole chain;
    `first` may be a cascade itself. `Cascade.chain(first, generator)` joins two existing networks. first_labels: the shape of
    what labels of `first` are drawn from, the `values` of a `LabelDistribution`; None draws classes evenly.
    """

    def __init__(self, first: dict[str, Any], generator: dict[str, Any], first_labels: Sequence[int] | None = None):
        super().__init__()
        self.first_labels: torch.Tensor | None
        if first_labels is not None:
            is_classes = len(first_labels) == 1
            self.register_buffer("first_labels", torch.ones(first_labels, dtype=torch.int64 if is_classes else None))
        else:
            self.first_labels = None
        self.first = persistence.construct(**first)
        self.generator = persistence.construct(**generator)
        self.z_dim = self.first.z_dim
        self.c_dim = self.generator.c_dim
        self.w_dim = self.generator.w_dim
        self.num_ws = self.generator.num_ws
        self.img_resolution = self.generator.img_resolution
        self.img_channels = self.generator.img_channels

    @classmethod
    def chain(cls, first: Network, generator: Network, first_labels: torch.Tensor | None = None) -> "Cascade":
        """first_labels: the `values` of the `LabelDistribution` of a conditional `first`."""
        shape = {} if first_labels is None else {"first_labels": list(first_labels.shape)}
        cascade = (
            cls(first=constructor_of(first), generator=constructor_of(generator), **shape).eval().requires_grad_(False)
        )
        if cascade.first_labels is not None and first_labels is not None:
            cascade.first_labels.copy_(first_labels)
        cascade.first.load_state_dict(first.state_dict())
        cascade.generator.load_state_dict(generator.state_dict())
        return cascade.to(next(generator.parameters()).device)

    @property
    def synthesis(self) -> torch.nn.Module:
        return self.generator.synthesis

    @property
    def mapping(self) -> "CascadeMapping":
        return CascadeMapping(self)

    def forward(self, z: torch.Tensor, c: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        """z `[n, z_dim]` (or images for the first stage's encoder), labels of the last stage -> images."""
        return self.generator(self.first_images(z), c, **kwargs)

    def first_images(self, z: torch.Tensor) -> torch.Tensor:
        """What `generator` is fed with: images of `first`."""
        return stage_images(self.first, z, self.first_labels)

    def stages(self, z: torch.Tensor) -> list[torch.Tensor]:
        """The images of every stage but the last, first stage first."""
        earlier = self.first.stages(z) if isinstance(self.first, Cascade) else []
        return [*earlier, self.first_images(z)]


class CascadeMapping:
    """The mapping of a cascade: everything up to the w of its last generator."""

    def __init__(self, cascade: Cascade):
        self.cascade = cascade
        self.encoder = cascade.first.mapping.encoder
        self.num_ws = cascade.num_ws
        self.w_avg = cascade.generator.mapping.w_avg

    def __call__(self, z: torch.Tensor, c: torch.Tensor | None, *args: Any, **kwargs: Any) -> torch.Tensor:
        """z `[n, z_dim]` -> ws `[n, num_ws, w_dim]`."""
        return self.cascade.generator.mapping(self.cascade.first_images(z), c, *args, **kwargs)


def constructor_of(network: Any) -> dict[str, Any]:
    """The data that `persistence.construct` builds the network from."""
    return {"class_name": persistence.class_path(type(network)), **network.init_kwargs}


@torch.no_grad()
def stage_images(network: Network, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """What a trained generator hands to the next stage: images `[n, C, h, w]` in [-1, 1], the same for the same x.

    A conditional stage draws its labels as a function of z, so that the chain stays deterministic: as they occurred in its
    training (labels: the `values` of a `LabelDistribution`), or evenly where that is not known.
    """
    z = network.mapping.encoder(x)
    c = None
    if network.c_dim > 0:
        c = uniform_classes(z, network.c_dim) if labels is None else labels_at(position_of(z), labels)
    return network(z, c, noise_mode="const").clamp(-1, 1)


def uniform_classes(z: torch.Tensor, c_dim: int) -> torch.Tensor:
    """One-hot labels `[n, c_dim]`, every class as often as every other."""
    index = (position_of(z) * c_dim).long().clamp(0, c_dim - 1)
    return torch.nn.functional.one_hot(index, c_dim).to(torch.float32)


def position_of(z: torch.Tensor) -> torch.Tensor:
    """`[n]` in [0, 1], uniform for standard normal z: its first coordinate through the normal distribution function."""
    return 0.5 * (1 + torch.erf(z[:, 0] / 2**0.5))


def last_generator(network: Network) -> torch.nn.Module:
    """The generator itself, or the last one of a cascade."""
    return network.generator if isinstance(network, Cascade) else network
