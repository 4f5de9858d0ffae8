"""Which images of a source stand for which class of the target: the memory of `--source-match`."""

from collections.abc import Sequence

import torch

from dnnlib.errors import UserError
from torch_utils import seeding


class ClassPairs:
    """A class of the source for every class of the target, and where the images of that lie.

    sources: int64 `[c_dim]`, the source class of each target class; classes: int64 `[N]`, those of the source's images.
    """

    def __init__(self, sources: Sequence[int] | torch.Tensor, classes: torch.Tensor):
        """Raises `UserError` where a source class has no images."""
        self.sources = torch.as_tensor(sources, dtype=torch.int64)
        self.classes = classes
        num_classes = 1 + int(torch.cat([self.sources, classes]).max())
        self.counts = torch.bincount(classes, minlength=num_classes)
        self.starts = self.counts.cumsum(0) - self.counts
        self.order = torch.argsort(classes, stable=True)  # [N], class by class
        empty = self.sources[self.counts[self.sources] == 0]
        if len(empty) > 0:
            raise UserError(f"its class {int(empty[0])} has no images, and is paired with a class of the target")

    def __len__(self) -> int:
        """Classes of the target."""
        return len(self.sources)

    def choose(self, places: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Images of the classes that one-hot labels `[n, c_dim]` are paired with, int64 `[n]`.

        places: `[n]` in [0, 1), which of a class's images it is.
        """
        source = self.sources[c.cpu().argmax(dim=1)]
        count = self.counts[source]
        member = torch.minimum((places * count).long(), count - 1)
        return self.order[self.starts[source] + member]

    def spread(self, limit: int) -> torch.Tensor:
        """About `limit` images, as many of every class that is paired and at least one: int64 `[n]` ascending."""
        used = self.sources.unique()
        each = max(limit // len(used), 1)
        picks = []
        for source in used:
            count = int(self.counts[source])
            picks.append(
                self.order[self.starts[source] + seeding.spread(count, each, "keepsake", int(source))]
            )  # a part of the seed
        return torch.cat(picks).sort().values

    def kept(self, index: torch.Tensor) -> "ClassPairs":
        """The same pairs for some of the images."""
        return ClassPairs(self.sources, self.classes[index])
