"""Images in memory, for metrics."""

import torch

from metrics.feature_stats import Reading


class Pictures:
    """Random images of two sizes and three channel counts; the numbers in `broken` cannot be read."""

    reads_ahead = may_skip = True

    def __init__(self, num: int, name: str = "pictures", key: str | None = None, broken: tuple[int, ...] = ()):
        self.num, self.name, self.key, self.broken = num, name, key, broken
        self.num_read = 0

    def __len__(self) -> int:
        return self.num

    def read(self, indices):
        self.num_read += len(indices)
        return Reading.of(
            (None, f"{index}.png: cut short") if index in self.broken else (self.image(index), "") for index in indices
        )

    def image(self, index: int) -> torch.Tensor:
        gen = torch.Generator().manual_seed(index)
        shape = [(1, 3, 4)[index % 3], 20 + 10 * (index % 2), 30]
        return torch.randint(256, shape, generator=gen).to(torch.uint8)
