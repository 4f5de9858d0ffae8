"""Networks as recorded CUDA graphs."""

from collections.abc import Callable
from typing import Any

import torch

GRAPHS_PER_FUNCTION = 64  # recorded at most; a layer's code serves all resolutions and precisions


def graphed(network: torch.nn.Module, backend: str = "cudagraphs") -> Callable[..., torch.Tensor]:
    """The network, forward and backward, as kernels that are launched together, so that small layers need not wait.

    PyTorch records a graph for each combination of sizes and flags that it meets, at its first calls. Only first
    derivatives can be taken. Layers share their code, and each is a combination of its own: PyTorch's limit of 8 for
    the whole process is raised.
    """
    import torch._dynamo  # takes seconds, and only this needs it

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS_PER_FUNCTION)
    recorded = torch.compile(network, backend=backend, dynamic=False)

    def replay(*args: Any, **kwargs: Any) -> torch.Tensor:
        return recorded(*args, **kwargs).clone()  # a graph's memory is the next graph's

    return replay
