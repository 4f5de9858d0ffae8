"""The labels that a network was trained with, as often as they occurred: a part of its snapshot.

With it metrics, later stages of a cascade and pictures draw labels as training did, wherever the training set lies now.
"""

from collections.abc import Sequence

import numpy as np
import torch

from dnnlib.errors import UserError
from torch_utils import persistence, seeding
from training.dataset import Dataset

MAX_ROWS, MAX_ROW_BYTES = 10_000, 8 << 20  # of label vectors that travel inside a snapshot
BELOW_ONE = 1 - 2**-24  # the largest float32 there


@persistence.persistent_class
class LabelDistribution:
    """How many images each class has or, of label vectors, some of the training set. Seen as a list of labels by its length
    and its items: of classes one for each image, class by class.

    c_dim: classes, or length of a vector; is_classes: which of the two.
    """

    def __init__(self, c_dim: int, is_classes: bool):
        if not c_dim >= 1:
            raise UserError(f"labels of {c_dim} numbers are none")
        self.c_dim, self.is_classes = int(c_dim), bool(is_classes)
        self.values = torch.zeros([0])  # int64 [c_dim], images of each class; or float32 [N, c_dim], label vectors

    @classmethod
    def of(cls, dataset: Dataset) -> "LabelDistribution | None":
        """The labels of what a network is trained on; None where that has no labels."""
        if not dataset.has_own_labels:
            return None
        distribution = cls(dataset.label_dim, dataset.has_onehot_labels)
        if distribution.is_classes:
            counts = np.bincount(dataset.get_classes(), minlength=dataset.label_dim)
            distribution.values = torch.from_numpy(counts.astype(np.int64))
            return distribution
        limit = min(MAX_ROWS, max(MAX_ROW_BYTES // (4 * dataset.label_dim), 1))
        chosen = np.arange(len(dataset))
        if len(chosen) > limit:
            chosen = np.sort(np.random.default_rng(0).choice(chosen, limit, replace=False))
        distribution.values = torch.from_numpy(dataset.get_labels(chosen))
        return distribution

    @classmethod
    def from_values(cls, values: torch.Tensor) -> "LabelDistribution":
        """The inverse of `values`. Raises `UserError`."""
        distribution = cls(values.shape[-1] if values.ndim > 0 else 0, values.ndim == 1)
        distribution.load_state_dict({"values": values})
        return distribution

    def __len__(self) -> int:
        return int(self.values.sum()) if self.is_classes else len(self.values)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.c_dim

    def __getitem__(self, index: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Labels by number, float32 `[n, c_dim]`."""
        index = torch.as_tensor(index, dtype=torch.int64)
        if not self.is_classes:
            return self.values[index]
        return one_hot(torch.searchsorted(self.values.cumsum(0), index, right=True), self.c_dim)

    def draw(self, n: int, generator: torch.Generator | None) -> torch.Tensor:
        """Labels `[n, c_dim]` as they occurred, on the CPU."""
        return self[torch.randint(len(self), [n], generator=generator)]

    def of_seed(self, seed: int) -> torch.Tensor:
        """The label `[1, c_dim]` of a seed."""
        return self.draw(1, seeding.generator("sample-label", seed))

    def occurred(self) -> list[int]:
        """The classes that have images."""
        assert self.is_classes
        return self.values.nonzero().flatten().tolist()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Raises `UserError` where the tensor is not that of such labels."""
        if state.keys() != {"values"}:
            raise UserError(f"labels have values, not {', '.join(sorted(state))}")
        check_values(state["values"], self.c_dim, self.is_classes)
        self.values = state["values"].cpu()


def check_values(values: torch.Tensor, c_dim: int, is_classes: bool) -> None:
    """Raise `UserError` for what are neither numbers of images nor label vectors."""
    if is_classes:
        if values.dtype != torch.int64 or list(values.shape) != [c_dim]:
            raise UserError(
                f"the images of {c_dim} classes are {list(values.shape)} {values.dtype}, not int64 [{c_dim}]"
            )
        if int(values.min()) < 0 or int(values.max()) > 2**32 or int(values.sum()) == 0:
            raise UserError("the images of each class are no numbers of images")
    elif values.dtype != torch.float32 or values.ndim != 2 or values.shape[1] != c_dim or len(values) == 0:
        raise UserError(f"label vectors are {list(values.shape)} {values.dtype}, not float32 [N, {c_dim}]")
    elif not values.isfinite().all():
        raise UserError("label vectors are not finite")


def one_hot(classes: torch.Tensor, c_dim: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(classes, c_dim).to(torch.float32)


def labels_at(position: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Labels `[n, c_dim]` by their places in [0, 1] `[n]` among all; values: of a `LabelDistribution`.

    For tracing, too: sums and comparisons only.
    """
    position = torch.minimum(position, torch.full_like(position, BELOW_ONE))
    if values.ndim == 2:
        return values[(position * len(values)).long()]
    ends = (values.cumsum(0).double() / values.sum()).to(torch.float32)  # [c_dim]
    return one_hot((position.unsqueeze(1) >= ends[:-1]).sum(dim=1), values.shape[0])
