"""Compute quality metrics of a trained network, or of images that something else made.

\b
# FID and density/coverage of a snapshot, against the data that it was trained on
python calc_metrics.py --metrics=fid50k_full,dc50k5_full --network=network-snapshot-000200.pkl

\b
# Statistics of a data set, once; then without its images
python calc_metrics.py --data=emoji.zip --features-out=emoji.npz
python calc_metrics.py --network=network-snapshot-000200.pkl --stats=emoji.npz --metrics=fid5k_full,kid5k_full

\b
# A folder of images against a data set, with fewer images, antialiased resizing as in clean-fid
python calc_metrics.py --metrics=fid5k_full --network=images/ --data=emoji.zip --resize=clean
"""

from __future__ import annotations

import dnnlib.interrupts  # before what takes long

# isort: split
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dnnlib.cli
import shared_options
from dnnlib.downloads import is_url
from dnnlib.errors import UserError, naming
from dnnlib.interrupts import importing
from metrics.settings import DEGREE, DETECTOR_NAMES, LPIPS_URL, NUM_SUBSETS, RESIZE_MODES, SUBSET_SIZE
from torch_utils.one_voice import say_once

if TYPE_CHECKING:
    import torch

    from metrics.feature_stats import Images
    from metrics.metric_main import MetricOptions
    from training.data.image_sets import ImageSet
    from training.sampling.generated_images import GeneratedImages

SHOWN_SIZES = 5  # in a warning


def metric_names(context: click.Context, param: click.Parameter, value: str) -> list[str]:
    with importing():
        from metrics import metric_main
    names = list(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    for name in names:
        metric_main.find_metric(name)
    if not names:
        raise UserError("--metrics: names nothing; give fid50k_full or others, with commas between them")
    return names


@click.command(help=__doc__, context_settings=shared_options.HELP)
@click.option(
    "--network",
    help="Snapshot, or the folder of a run; or a zip or folder of images in its place",
    metavar="PKL|URL|RUN|DIR|ZIP",
    type=shared_options.Snapshot(),
)
@click.option(
    "--metrics", help="Names, with commas between them", metavar="NAME,…", callback=metric_names, default="fid50k_full"
)
@click.option(
    "--data",
    help="Real images  [default: what the network was trained on]",
    metavar="ZIP|DIR",
    type=dnnlib.cli.IMAGE_SETS,
)
@click.option(
    "--stats",
    help="Statistics in place of --data: mu and sigma of pytorch-fid or clean-fid, official .pkl, or what --stats-out wrote",
    metavar="NPZ|PKL",
    type=click.Path(dir_okay=False),
)
@click.option("--stats-out", help="Write mean and covariance of --data", metavar="NPZ", type=click.Path(dir_okay=False))
@click.option(
    "--features-out",
    help="The same, and the features, for KID and others",
    metavar="NPZ",
    type=click.Path(dir_okay=False),
)
@click.option("--per-class", help="Each class by itself: its generated images against its real ones", is_flag=True)
@click.option("--mirror", help="Count the real images' mirrored copies, too", metavar="BOOL", type=bool, default=False)
@click.option(
    "--detector",
    help="What sees the images; auto: the metric's own if at hand, else efficientnet, else tiny; or an .onnx file",
    metavar=DETECTOR_NAMES,
    default="auto",
)
@shared_options.DETECTOR_WEIGHTS
@click.option(
    "--lpips-weights", help="File or address of LPIPS' layers, for path lengths", metavar="PATH|URL", default=LPIPS_URL
)
@click.option("--resize", help="How images get to its size", type=click.Choice(RESIZE_MODES), default="tf")
@click.option("--seed", help="What the generated images are drawn by", type=int, default=0)
@click.option("--batch", help="Images at a time", type=click.IntRange(min=1), default=64)
@click.option(
    "--kid-subsets", help="Random subsets that a KID is the mean of", type=click.IntRange(min=1), default=NUM_SUBSETS
)
@click.option(
    "--kid-subset-size", help="Images in each of them, at most", type=click.IntRange(min=2), default=SUBSET_SIZE
)
@click.option(
    "--kid-degree",
    help="Degree of its kernel; another than 3 shows in the name",
    type=click.IntRange(1, 10),
    default=DEGREE,
)
@click.option("--strict", help="Stop at images that cannot be read", is_flag=True)
@click.option(
    "--json",
    "json_path",
    help="Also append the results to this file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
)
@click.option("--gpus", help="Number of GPUs, of processes on a CPU", type=click.IntRange(min=1), default=1)
@click.option("--verbose", help="Show progress", metavar="BOOL", type=bool, default=True)
@shared_options.DEVICE
def main(gpus: int, device: str, **options: Any) -> int:
    from torch_utils.launcher import launch
    from torch_utils.misc import choose_device

    return launch(work, gpus, choose_device(device).type, options)


def work(options: dict[str, Any], device: torch.device) -> int:
    """One process of the computation. Raises `UserError` at the end if a metric failed: the others are computed first."""
    from metrics import metric_main
    from torch_utils import distributed

    check_flags(options)
    opts, parts = prepare(options, device)
    write_statistics(options, opts)
    if options["network"] is None:
        distributed.shutdown()
        return 0
    failed = []
    table: dict[str, dict[int, float]] = {}
    said: set[str] = set()  # every class has the same to say
    for label, part in parts:
        for name in options["metrics"]:
            result, failure = metric_main.try_metric(name, part)
            if result is None:
                distributed.print0(f"Warning: {failure}", file=sys.stderr)
                failed.append(name)
            elif distributed.get_rank() == 0:
                new = [warning for warning in result["warnings"] if warning not in said]
                said.update(new)
                for warning in new:
                    print(f"Warning: {warning}", file=sys.stderr)
                report({**result, **label}, options)
                for number in label.values():
                    scores = {key: value for key, value in result["results"].items() if "_std" not in key}
                    for value_name, value in scores.items():
                        table.setdefault(value_name, {})[number] = value
    say_classes(table)
    if failed:
        raise UserError(
            f"--metrics: {len(failed)} of {len(options['metrics']) * len(parts)} could not be computed: {', '.join(failed)}"
        )
    distributed.shutdown()
    return 0


def say_classes(table: dict[str, dict[int, float]]) -> None:
    """A line for each number, from the class with the lowest to that with the highest."""
    for name, values in table.items():
        ranked = ", ".join(f"{number}: {values[number]:.4g}" for number in sorted(values, key=lambda one: values[one]))
        print(f"{name} by class: {ranked}; mean {sum(values.values()) / len(values):.4g}", file=sys.stderr)


def check_flags(options: dict[str, Any]) -> None:
    """Refuse what does not go together. Raises `UserError`."""
    is_written = options["stats_out"] is not None or options["features_out"] is not None
    if options["network"] is None and not is_written:
        raise UserError("--network is missing: give a snapshot or images (--stats-out alone needs only --data)")
    if options["per_class"] and options["network"] is None:
        raise UserError("--per-class needs --network: statistics of single classes are not written")
    if options["per_class"] and options["stats"] is not None:
        raise UserError("--per-class needs the images of --data; --stats is of all classes together")
    if options["stats"] is not None:
        for name in ("data", "stats_out", "features_out"):
            if options[name] is not None:
                raise UserError(
                    f"--stats stands in for --data, and --{name.replace('_', '-')} is given, too; leave one out"
                )
        if options["mirror"]:
            raise UserError("--mirror=1 needs the images; --stats is of what it is of")
    for name in ("stats_out", "features_out"):
        if options[name] is not None:
            check_stats_path(f"--{name.replace('_', '-')}", Path(options[name]))


def check_stats_path(flag: str, path: Path) -> None:
    """Refuse what could not be written after minutes of work."""
    if path.suffix != ".npz":
        raise UserError(f"{flag}={path}: the name must end in .npz")
    if not path.parent.is_dir():
        raise UserError(f"{flag}={path}: there is no folder {path.parent}; make it, or name another")


def write_statistics(options: dict[str, Any], opts: MetricOptions) -> None:
    """What --stats-out and --features-out ask for, of the images as the usual detector sees them."""
    from metrics.feature_stats import LEAVE_STRICT_OUT, compute_features
    from metrics.reference_stats import write_reference
    from torch_utils import distributed

    wanted = {path: name == "features_out" for name in ("stats_out", "features_out") if (path := options[name])}
    if not wanted:
        return
    if opts.real is None:
        raise UserError("--data is missing: --stats-out and --features-out are of its images")
    detector = opts.detector("inception")
    found = compute_features(
        opts.real,
        detector,
        None,
        opts.seed,
        opts.batch_size,
        opts.is_strict,
        opts.is_verbose,
        alternative=LEAVE_STRICT_OUT,
    )
    for path, with_features in wanted.items():
        if distributed.get_rank() == 0:
            write_reference(path, found.features, detector, with_features)
        distributed.print0(f"Statistics of {len(found):,} images by {detector.title}: {path}", file=sys.stderr)


def report(result: dict[str, Any], options: dict[str, Any]) -> None:
    """Print a result, and append it to the run's file of the metric and to --json; what cannot be written is a warning.

    A run's file holds what compares with the run's own numbers: neither other data, nor mirrored copies, nor single classes.
    """
    from metrics import metric_main

    run_dir, kimg = run_of(options["network"])
    line = metric_main.result_line({**result, **kimg}, run_dir, options["network"])
    print(line, flush=True)
    files = [] if options["json_path"] is None else [Path(options["json_path"])]
    is_of_run = all(not options[name] for name in ("data", "stats", "mirror", "per_class"))
    if run_dir is not None and is_of_run:
        files.append(metric_main.report_path(run_dir, result["metric"]))
    for path in files:
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            print(f"Warning: {path}: cannot be written ({error.strerror}); the result stands above", file=sys.stderr)


def run_of(network: str) -> tuple[Path | None, dict[str, Any]]:
    """The folder of the run that a snapshot lies in, if it does, and for how many kimg it was trained.

    With its kimg a line in `metric-<name>.jsonl` goes where the snapshot goes: a resume that takes back the time after its
    state takes back these lines, too.
    """
    from training.checkpoints.snapshot import load_snapshot
    from training.checkpoints.state_file import OPTIONS_FILE

    folder = Path(network).parent
    if is_url(network) or not Path(network).is_file() or not (folder / OPTIONS_FILE).is_file():
        return None, {}
    meta = load_snapshot(network)["meta"] or {}
    return folder, {"kimg": meta.get("cur_nimg", 0) / 1000, "by": "calc_metrics"}


def prepare(
    options: dict[str, Any], device: torch.device
) -> tuple[MetricOptions, list[tuple[dict[str, int], MetricOptions]]]:
    """Everything is opened and checked here, so that nothing fails in the middle of a long computation.

    The options, and those of each part: one that is all, or the classes.
    """
    from dnnlib.files import writing
    from metrics import metric_main
    from metrics.detectors import Detectors, describe
    from metrics.kernel_inception_distance import KIDOptions
    from metrics.reference_stats import read_reference
    from torch_utils import distributed
    from training.data.image_sets import ImageSet, MirroredImages

    is_verbose = options["verbose"]
    if options["json_path"] is not None and distributed.get_rank() == 0:
        with writing("--json"), open(options["json_path"], "ab+") as file:
            file.seek(0)
            if file.read(1) not in (b"", b"{"):
                raise UserError(
                    f"{options['json_path']} holds something else than results; name a new file, or one of earlier results"
                )
    generated, sampler, data, missing = None, None, None, None
    if options["network"] is not None:
        with naming("--network"):
            generated, sampler, data, missing = open_network(options["network"], options["seed"], device)
    data = data if options["data"] is None else options["data"]
    with naming("--stats"):
        reference = None if options["stats"] is None else read_reference(options["stats"])
    with naming("--data"):
        real = None if data is None else ImageSet(data)
        if real is not None and options["data"] is not None:
            say_sizes(data, real)
    opts = metric_main.MetricOptions(
        detector=Detectors(
            options["detector"],
            options["detector_weights"],
            options["resize"],
            device,
            options["lpips_weights"],
            is_verbose,
        ),
        real=MirroredImages(real) if options["mirror"] and real is not None else real,
        reference=reference,
        generated=generated,
        sampler=sampler,
        notes=[sampler.note] if sampler is not None and sampler.note is not None else [],
        seed=options["seed"],
        kid=KIDOptions(options["kid_subsets"], options["kid_subset_size"], options["kid_degree"]),
        batch_size=options["batch"],
        is_strict=options["strict"],
        is_verbose=is_verbose,
    )
    with naming_missing(missing):
        parts = parts_of(options, opts, real)
        names = options["metrics"] if generated is not None else []
        detectors = {detector.key: detector for _, part in parts for detector in metric_main.prepare(names, part)}
    for detector in detectors.values():
        distributed.print0(describe(detector), file=sys.stderr)
    return opts, parts


def parts_of(
    options: dict[str, Any], opts: MetricOptions, real: ImageSet | None
) -> list[tuple[dict[str, int], MetricOptions]]:
    """What is measured by itself, and how its results are called. Raises `UserError`."""
    from metrics.metric_main import NeedsData
    from training.sampling.class_images import options_by_class

    if not options["per_class"] or opts.generated is None:
        return [({}, opts)]
    if real is None:
        raise NeedsData("--data is needed: --per-class compares with the real images of each class")
    generated = opts.generated(0) if opts.sampler is None else opts.sampler
    with naming("--per-class"):
        parts = [
            ({"class": number}, part) for number, part in options_by_class(opts, real, generated, options["mirror"])
        ]
    if not parts:
        raise UserError("--per-class: the images of --network and --data have no class in common")
    return parts


def open_network(
    path: str, seed: int, device: torch.device
) -> tuple[Callable[[int], Images], GeneratedImages | None, str | None, str | None]:
    """So many images on demand, what looks inside (None for a folder or zip), the path of the data it was trained on, and
    its name where that is not found."""
    from training.checkpoints.snapshot import is_snapshot, load_snapshot
    from training.checkpoints.whereabouts import training_data
    from training.data.image_sets import ImageSet
    from training.sampling.generated_images import open_generated

    if not is_snapshot(path):
        images = ImageSet(path)
        say_sizes(path, images)
        return lambda count: images, None, None, None  # of more than count a random subset is taken
    contents = load_snapshot(path, verbose=True)
    endless = open_generated(contents, path, 0, device, seed)
    data, name = training_data(contents, path), contents["training_set_kwargs"].get("path")
    return endless.first, endless, data, name if data is None and isinstance(name, str) else None


def say_sizes(path: str, images: ImageSet) -> None:
    """A warning where the images of a set have more than one size."""
    from torch_utils import distributed

    sizes = images.sizes().most_common()
    if len(sizes) < 2 or distributed.get_rank() != 0:
        return
    shown = ", ".join(f"{count:,} of {width}x{height}" for (width, height), count in sizes[:SHOWN_SIZES])
    more = f" and {len(sizes) - SHOWN_SIZES:,} more sizes" if len(sizes) > SHOWN_SIZES else ""
    print(
        f"Warning: {path}: its images have several sizes ({shown}{more}), and each is resized to the detector's",
        file=sys.stderr,
    )


@contextlib.contextmanager
def naming_missing(name: str | None) -> Iterator[None]:
    """Where --data is needed, say what the network was trained on, if that is known and not found."""
    from metrics.metric_main import NeedsData

    try:
        yield
    except NeedsData as error:
        if name is None:
            raise
        raise UserError(
            f"{error}; the network was trained on {name}, which is neither where its run found it nor in this folder or "
            "beside the snapshot, or holds something else now"
        ) from error


if __name__ == "__main__":
    dnnlib.cli.run(main, say=say_once)
