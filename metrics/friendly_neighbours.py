"""Which source is the friendly neighbour of a target: SID, FID and KID side by side (Asokan & Seelamantula 2023).

The friendliest source is the one whose CSID is nearest to 0: the probes can tell it least from the target.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from metrics.detectors import Detector
from metrics.feature_stats import LEAVE_STRICT_OUT, FeatureSet, Images, compute_features
from metrics.features import as_features
from metrics.frechet_distance import FEW_FOR_FID, fit_gaussian, frechet_distance
from metrics.kernel_inception_distance import KID, kernel_inception_distance
from metrics.signed_inception_distance import DEFAULT_RADII, SID, signed_inception_distance

MAX_IMAGES = 50_000  # of a set; of larger ones a random subset
TIE_SE = 2.0  # standard errors by which two values must differ to be told apart


@dataclass(frozen=True)
class Request:
    """How sets are compared."""

    order: int = 1
    radii: Sequence[float] = DEFAULT_RADII
    probes: int | None = None
    seed: int = 0
    mode: str = "shared"
    max_images: int = MAX_IMAGES
    batch_size: int = 64
    is_strict: bool = False
    is_verbose: bool = True


@dataclass(frozen=True)
class Neighbour:
    """One source against the target."""

    name: str
    path: str
    num_images: int
    sid: SID
    fid: float
    kid: KID
    rank: int = 0  # by |CSID|, 1 is the friendliest
    tied_with: tuple[str, ...] = ()  # sources whose |CSID| is within the errors of this one's

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "path": self.path,
            "rank": self.rank,
            "csid": self.sid.csid,
            "csid_se": self.sid.csid_se,
            "fid": self.fid,
            "kid": self.kid.value,
            "kid_se": self.kid.error,
            "tied_with": list(self.tied_with),
            "num_images": self.num_images,
            "curve": self.sid.as_dict(),
        }


@dataclass(frozen=True)
class Ranking:
    """All sources against one target, the friendliest first."""

    target: str
    num_target: int
    detector: str
    """How numbers name it: with a hash where its weights are not the published ones."""
    neighbours: list[Neighbour]
    """The friendliest first."""
    detector_hash: str = ""
    """Of its weights, sha256, the first 16 digits."""
    resize: str = ""
    """How images got to its size."""

    @property
    def best(self) -> Neighbour:
        return self.neighbours[0]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        sources = [neighbour.as_dict() for neighbour in self.neighbours]
        return {
            "target": self.target,
            "num_target": self.num_target,
            "detector": self.detector,
            "detector_hash": self.detector_hash,
            "resize": self.resize,
            "sources": sources,
        }


def rank_sources(target: Images, sources: dict[str, Images], detector: Detector, request: Request) -> Ranking:
    """Compare every source with the target.

    sources: by path, which is what `best` gives back. Raises `UserError`.
    """
    for images in (target, *sources.values()):  # before features of others take minutes
        if len(images) < 2:
            raise UserError(f"{images.name}: at least 2 samples are needed, not {len(images)}; use more images")
    sets = {path: features_of(images, detector, request) for path, images in {"": target, **sources}.items()}
    reference = sets.pop("")
    gaussian = fit_gaussian(reference.features, target.name)
    found = []
    for path, features in sets.items():
        name = sources[path].name
        sid = signed_inception_distance(
            features.features,
            reference.features,
            order=request.order,
            radii=request.radii,
            probes=request.probes,
            seed=request.seed,
            mode=request.mode,
            progress=f"SID of {name}" if request.is_verbose else None,
        )
        fid = frechet_distance(fit_gaussian(features.features, name), gaussian)
        kid = kernel_inception_distance(reference.features, features.features, seed=request.seed)
        found.append(Neighbour(name, path, len(features), sid, fid, kid))
    return Ranking(target.name, len(reference), detector.title, in_order(found), detector.weights_hash, detector.resize)


def features_of(images: Images, detector: Detector, request: Request) -> FeatureSet:
    found = compute_features(
        images,
        detector,
        request.max_images,
        request.seed,
        batch_size=request.batch_size,
        is_strict=request.is_strict,
        is_verbose=request.is_verbose,
        alternative=LEAVE_STRICT_OUT,
    )
    as_features(found.features, images.name)  # names the set where it is too small or not finite
    return found


def in_order(found: list[Neighbour]) -> list[Neighbour]:
    """Order by |CSID|, with ranks and ties."""
    ordered = sorted(found, key=lambda neighbour: abs(neighbour.sid.csid))
    return [
        Neighbour(
            **{
                **vars(neighbour),
                "rank": place,
                "tied_with": tuple(other.name for other in ordered if ties(neighbour, other)),
            }
        )
        for place, neighbour in enumerate(ordered, 1)
    ]


def ties(a: Neighbour, b: Neighbour) -> bool:
    """Whether the errors leave open which of two sources is the friendlier."""
    gap = abs(abs(a.sid.csid) - abs(b.sid.csid))
    return a is not b and gap < TIE_SE * float(np.hypot(a.sid.csid_se, b.sid.csid_se))


def table(ranking: Ranking) -> str:
    """The table for people: a line per source, the friendliest first, and what to know about the numbers."""
    tag = "" if ranking.detector == "inception" else f"[{ranking.detector}]"
    rows = [["rank", "source", "images", f"CSID{tag}", f"FID{tag}", f"KID{tag} x 1000", ""]]
    rows += [columns(neighbour) for neighbour in ranking.neighbours]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    seen_by = f"detector {ranking.detector} (weights {ranking.detector_hash}, resize {ranking.resize})"
    lines = [f"target {ranking.target}, {ranking.num_target:,} images, {seen_by}"]
    for row in rows:
        rank, *numbers = (
            cell.rjust(width) for cell, width in zip(row[:1] + row[2:6], widths[:1] + widths[2:6], strict=True)
        )
        lines.append("  ".join([rank, row[1].ljust(widths[1]), *numbers, row[6]]).rstrip())
    counts = {ranking.target: ranking.num_target} | {one.name: one.num_images for one in ranking.neighbours}
    few = ", ".join(name for name, count in counts.items() if count < FEW_FOR_FID)
    if few:
        lines.append(f"Warning: {few}: under {FEW_FOR_FID} images, on which the FID reads too high; go by CSID and KID")
    by_kid = min(ranking.neighbours, key=lambda one: one.kid.value)
    if by_kid is not ranking.best:
        lines.append(f"Note: by KID {by_kid.name} is the closest; a CSID near 0 can be one that cancels, compare both")
    return "\n".join(lines)


def columns(neighbour: Neighbour) -> list[str]:
    """A row of the table, as text."""
    kid, error, _ = neighbour.kid
    return [
        str(neighbour.rank),
        neighbour.name,
        f"{neighbour.num_images:,}",
        f"{neighbour.sid.csid:.3f} ± {neighbour.sid.csid_se:.3f}",
        f"{neighbour.fid:.4g}",
        f"{1e3 * kid:.2f}" + ("" if error is None else f" ± {1e3 * error:.2f}"),
        f"tied with {', '.join(neighbour.tied_with)}" if neighbour.tied_with else "",
    ]


def write_reports(folder: Path, rankings: list[Ranking], command: str) -> None:
    """`sid.json` with everything, `sid.csv` with a row per source, radius and target."""
    with atomic_write(folder / "sid.json") as file:
        contents = {"command": command, "rankings": [ranking.as_dict() for ranking in rankings]}
        file.write(json.dumps(contents, indent=2).encode())
    with atomic_write(folder / "sid.csv") as file:
        writer = csv.writer(text := io.StringIO(newline=""))
        writer.writerow(["target", "source", "detector", "order", "radius", "sid", "se_features", "se_probes"])
        for ranking in rankings:
            for neighbour in ranking.neighbours:
                sid = neighbour.sid
                for values in zip(sid.radii, sid.sid, sid.se_features, sid.se_probes, strict=True):
                    writer.writerow([ranking.target, neighbour.name, ranking.detector, sid.order, *map(float, values)])
        file.write(text.getvalue().encode())
