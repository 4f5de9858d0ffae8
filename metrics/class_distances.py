"""The signed inception distance from every class of one labelled set to every class of another."""

import numpy as np
import torch

from dnnlib.errors import UserError
from metrics.progress_bar import progress_bar
from metrics.signed_inception_distance import DEFAULT_RADII, Cube, draw_cloud, measure

PROBES = 500  # all classes of the source are seen by the same ones: their order hardly depends on how many
ORDER = 1


def csid_between_classes(
    source: torch.Tensor,
    source_classes: np.ndarray,
    target: torch.Tensor,
    target_classes: np.ndarray,
    probes: int = PROBES,
    seed: int = 0,
    progress: str | None = None,
) -> np.ndarray:
    """CSID of each source class against each target class, float64 `[target classes, source classes]`.

    Features `[N, n]` with their class numbers `[N]`, and `[M, n]` with `[M]`. NaN where a class is empty. One cloud of
    probes round a target class measures all of the source at once, so that the cost grows with the target's classes
    only; each entry is what `signed_inception_distance` says of that pair. Raises `UserError` for a target class
    without spread.
    """
    num_target, num_source = (int(classes.max()) + 1 for classes in (target_classes, source_classes))
    table = np.full([num_target, num_source], np.nan)
    u = draw_cloud(probes, source.shape[1], seed)
    onehot = torch.nn.functional.one_hot(torch.from_numpy(source_classes), num_source).double()  # [N, K]
    means = onehot / onehot.sum(dim=0)  # a column sums the features of a class with equal weights
    with progress_bar(num_target * len(source) + len(target), progress or "", "feature", progress is not None) as bar:
        for number in range(num_target):
            own = target[torch.from_numpy(target_classes == number)]
            if len(own) == 0:
                continue
            cube = Cube.around(own)
            if not cube.sigma > 0:
                raise UserError(f"the images of its class {number} are all alike, so that no distance can be measured")
            theirs, ours = (measure(part, u, cube, ORDER, DEFAULT_RADII, bar).per_feature for part in (source, own))
            table[number] = ((theirs @ means).sum(dim=0) - ours.mean(dim=1).sum()).numpy()
    return table
