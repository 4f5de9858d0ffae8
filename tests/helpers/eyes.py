"""EfficientNets of random weights: the published ones are in a package that a machine may lack."""

import functools

import torch

from metrics import efficientnet
from metrics.detectors import Detector, assemble


def random_network(seed: int = 0) -> efficientnet.EfficientNetLite0:
    """With statistics that are not those of a fresh network."""
    torch.manual_seed(seed)
    network = efficientnet.EfficientNetLite0().eval().requires_grad_(False)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            value.normal_(std=0.1)
    return network


@functools.cache
def random_detector(device: torch.device) -> Detector:
    """Leaves torch's random numbers as they were."""
    with torch.random.fork_rng():
        state = random_network().state_dict()
    return assemble("efficientnet", state, "0123456789abcdef", "bilinear", device)
