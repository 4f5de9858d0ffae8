"""`--source=auto`: the friendly neighbour of the data among the sets of `--source-pool`, by the signed inception distance."""

import dataclasses
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError, naming
from metrics.detectors import open_detector
from metrics.friendly_neighbours import Request, rank_sources, table
from torch_utils import distributed
from training.config.options import TrainingOptions
from training.data.image_sets import NOISE, ImageSet, name_apart
from training.sampling.generated_images import open_images

AUTO = "auto"
SNAPSHOT_IMAGES = 5_000  # that a snapshot in the pool makes
COMPARED_IMAGES = 10_000  # of a set


def choose_source(options: TrainingOptions, device: str) -> tuple[TrainingOptions, dict[str, Any] | None]:
    """The options with `auto` replaced by the friendliest source, and why, as JSON data; None without `auto`.

    Prints the ranking. Raises `UserError`.
    """
    if options.source != AUTO:
        if options.source == NOISE and not Path(NOISE).exists():  # as `calc_sid.py --best` may say
            return dataclasses.replace(options, source=None), None
        return options, None
    if not options.source_pool or options.data is None:
        raise UserError("--source=auto: needs --source-pool=A.zip,B.zip,… to choose from, and --data to choose for")
    with naming("--data"):
        target = ImageSet(options.data)
    with naming("--source-pool"):
        pool = {path: open_images(path, SNAPSHOT_IMAGES, device, options.seed) for path in options.source_pool}
    name_apart(pool | {options.data: target})
    request = Request(seed=options.seed, max_images=COMPARED_IMAGES)
    detector = open_detector(options.detector, options.detector_weights, device=device, verbose=True)
    with distributed.alone():
        ranking = rank_sources(target, pool, detector, request)
    distributed.print0(table(ranking))
    why = ranking.as_dict()
    for source in why["sources"]:
        del source["curve"]
    best = ranking.best.path
    if best == NOISE:
        return dataclasses.replace(options, source=None, source_pool=()), why
    return dataclasses.replace(options, source=best, source_pool=()), why


def choice_line(why: dict[str, Any]) -> str:
    """The line of the summary: what was chosen, by which numbers, and whether it was close."""
    best, *others = why["sources"]
    tied = f", not to be told apart from {', '.join(best['tied_with'])}" if best["tied_with"] else ""
    next_best = (
        f", before {others[0]['name']} with {others[0]['csid']:.3g} ± {others[0]['csid_se']:.2g}" if others else ""
    )
    return f"{best['name']}: CSID[{why['detector']}] {best['csid']:.3g} ± {best['csid_se']:.2g}{next_best}{tied}"
