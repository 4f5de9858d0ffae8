"""Pictures of signed inception distances: curves against the radius, and all pairs as a heat map."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dnnlib.files import SHEET_TEXT, whole_file
from metrics.friendly_neighbours import Ranking

BAND_SE = 2  # standard errors on either side of a curve


def draw_curves(path: Path, ranking: Ranking) -> None:
    """SID(r) of every source with its error band; 0 is what the target itself would have."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.axhline(0, color="0.5", linewidth=0.8)
    for neighbour in ranking.neighbours:
        sid = neighbour.sid
        label = f"{neighbour.rank}. {neighbour.name}: CSID {sid.csid:.3g} ± {sid.csid_se:.2g}"
        (line,) = axes.plot(sid.radii, sid.sid, label=label, marker="." if len(sid.radii) < 3 else None)
        axes.fill_between(
            sid.radii, sid.sid - BAND_SE * sid.se, sid.sid + BAND_SE * sid.se, color=line.get_color(), alpha=0.2
        )
    order, detector = ranking.best.sid.order, ranking.detector
    axes.set_xlabel("r, side of the probes' cube in units of the target's spread")
    axes.set_ylabel(f"SID[{detector}] of order {order}")
    axes.set_title(f"Signed inception distance to {ranking.target} (bands: ± {BAND_SE} standard errors)")
    axes.legend()
    save(path, figure)


def draw_matrix(path: Path, names: list[str], values: np.ndarray, detector: str) -> None:
    """values `[source, target]`, CSID of every pair."""
    side = 2.5 + 0.9 * len(names)
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    limit = max(float(np.abs(values).max()), 1e-12)
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("target")
    axes.set_ylabel("source")
    axes.set_title(f"CSID[{detector}]")
    for (row, column), value in np.ndenumerate(values):
        color = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=color)
    figure.colorbar(image, shrink=0.8)
    save(path, figure)


def save(path: Path, figure: Figure) -> None:
    with whole_file(path) as file:
        figure.savefig(file, dpi=120, format="png", metadata=SHEET_TEXT)
    plt.close(figure)
