"""Plain DCGAN against Spider DCGAN on handwritten digits, in minutes on two CPU cores and without a download.

\b
python -m demo.run_demo                # about five minutes; then open demo/index.html
python -m demo.run_demo --seed=1       # another throw of the dice
python -m demo.run_demo --kimg=2       # a quick look

Makes the two data sets from what scikit-learn and matplotlib ship, trains both generators at the same time with one
thread each, measures every snapshot's distance to the target, and writes a page with the curves and images.
"""

import dataclasses
import datetime
import json
import os
import platform
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import PIL
import torch

import dnnlib
import dnnlib.cli
from demo import digits, report
from demo.evaluate import METRIC, PixelSpace, Snapshot, evaluate, same_class_share
from demo.trainings import Training, plan_trainings, run_trainings
from dnnlib.errors import UserError
from training.sources.source import ImageSource

MARKER = ".made-by-the-demo"
NUM_SOURCE = 4000  # printed digits
EARLY_KIMG = 12.0  # of the snapshot shown beside the last


@dataclasses.dataclass
class Digits:
    """Images uint8 `[N, 16, 16]` and the digits that they show `[N]`, of both sets, and where they lie as zips."""

    target: np.ndarray
    target_classes: np.ndarray
    source: np.ndarray
    source_classes: np.ndarray
    target_zip: Path
    source_zip: Path


@click.command(help=__doc__, context_settings={"max_content_width": 110, "show_default": True})
@click.option("--kimg", help="Length of each training", metavar="KIMG", type=click.FloatRange(min=0.05), default=60)
@click.option("--outdir", help="Where to put data sets, runs and numbers", metavar="DIR", default="demo/out")
@click.option("--page", help="Where to write the page", metavar="HTML", default="demo/index.html")
@click.option("--seed", help="Random seed", metavar="INT", type=click.IntRange(min=0), default=0)
def main(kimg: float, outdir: str, page: str, seed: int) -> None:
    start_time, load = time.time(), load_average()
    page_path = check_page(Path(page))
    out = fresh_folder(Path(outdir))
    print(f"1. Two data sets, into {out}", flush=True)
    data = make_digits(out, seed)
    trainings = plan_trainings(out, data.target_zip, data.source_zip, kimg, seed)
    print(f"2. Two trainings of {kimg:g} kimg at the same time (what they say: {out}/*/output.txt)", flush=True)
    run_trainings(list(trainings.values()))
    print(f"3. {METRIC} of every snapshot", flush=True)
    space = PixelSpace(data.target)
    snapshots = measure_all(trainings, space, data, seed)
    result = make_report(data, space, trainings, snapshots)
    result.facts = describe_run(trainings, kimg, seed, start_time) | {"Other load": load}
    save_numbers(out / "results.json", result)
    page_path.write_text(report.page(result), encoding="utf-8")
    print(f"\n{report.verdict(result.plain.kimg, result.plain.distances, result.spider.distances)}")
    print(f"\nDone in {dnnlib.util.format_time(time.time() - start_time)}. Open {page_path}")


# The steps.


def check_page(path: Path) -> Path:
    """Refuses to write over a file that is no page of the demo, and into a folder that is not there."""
    if path.is_dir() or (path.exists() and report.GENERATOR not in path.read_text(encoding="utf-8", errors="replace")):
        raise UserError(f"--page={path}: is there and was not made by the demo; choose another name")
    if not path.parent.is_dir():
        raise UserError(f"--page={path}: there is no folder {path.parent}; make it, or choose another one")
    return path


def fresh_folder(path: Path) -> Path:
    """An empty folder with the demo's mark; what an earlier demo left there is removed, anything else is not."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--outdir={path}: is a file; choose a folder")
    if path.exists() and any(path.iterdir()):
        if not (path / MARKER).is_file():
            raise UserError(f"--outdir={path}: holds files that the demo did not make; choose another folder")
        shutil.rmtree(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / MARKER).write_text(
            "The demo made this folder and replaces it when it is run again.\n", encoding="utf-8"
        )
    except OSError as error:
        raise UserError(f"--outdir={path}: cannot be made ({error.strerror}); choose another folder") from error
    return path


def make_digits(out: Path, seed: int) -> Digits:
    data = Digits(
        *digits.handwritten_digits(),
        *digits.printed_digits(NUM_SOURCE, seed),
        out / "handwritten.zip",
        out / "printed.zip",
    )
    digits.save_zip(data.target_zip, data.target)
    digits.save_zip(data.source_zip, data.source)
    return data


def measure_all(
    trainings: dict[str, Training], space: PixelSpace, data: Digits, seed: int
) -> dict[str, list[Snapshot]]:
    """Every snapshot of every training, measured on as many images as the target has."""
    # Networks as small as these run faster on a thread for each training than on all cores one after the other.
    torch.set_num_threads(1)
    source = ImageSource.open(data.source_zip)

    def measure(training: Training) -> list[Snapshot]:
        snapshots = []
        for path in training.snapshots():
            snapshots.append(evaluate(path, space, len(data.target), source, seed))
            print(f"  {training.name:<8} {snapshots[-1].kimg:6.2f} kimg   {snapshots[-1].distance:6.1f}", flush=True)
        return snapshots

    with ThreadPoolExecutor(len(trainings)) as pool:
        return dict(zip(trainings, pool.map(measure, trainings.values()), strict=True))


def make_report(
    data: Digits, space: PixelSpace, trainings: dict[str, Training], snapshots: dict[str, list[Snapshot]]
) -> report.Report:
    kimg = np.array([snapshot.kimg for snapshot in snapshots["spider"]])
    early = int(np.abs(kimg - EARLY_KIMG).argmin())
    final = snapshots["spider"][-1]
    assert final.source_index is not None
    return report.Report(
        plain=describe_training(trainings["plain"], snapshots["plain"], early),
        spider=describe_training(trainings["spider"], snapshots["spider"], early),
        metric=METRIC,
        early=early,
        target=data.target,
        source=data.source,
        num_target=len(data.target),
        num_source=len(data.source),
        num_generated=len(final.images),
        pair_sources=data.source[final.source_index],
        floor=space.floor(data.target),
        source_distance=space.distance(data.source),
        share_of_variance=space.share_of_variance,
        same_class=same_class_share(final, data.source_classes, data.target, data.target_classes),
        facts={},
    )


def describe_training(training: Training, snapshots: list[Snapshot], early: int) -> report.Run:
    return report.Run(
        kimg=[snapshot.kimg for snapshot in snapshots],
        distances=[snapshot.distance for snapshot in snapshots],
        early=snapshots[early].images,
        final=snapshots[-1].images,
        img_per_sec=training.img_per_sec,
        seconds=training.seconds,
        command=training.command,
    )


def describe_run(trainings: dict[str, Training], kimg: float, seed: int, start_time: float) -> dict[str, str]:
    """Where, with what and how fast, for the page."""
    speeds = "; ".join(
        f"{training.name} {training.img_per_sec:.0f} img/s, {training.seconds / 60:.1f} minutes"
        for training in trainings.values()
    )
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "Pillow": PIL.__version__,
    }
    return {
        "Date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "Machine": f"{processor_name()}, {available_cores()} cores ({platform.system()} {platform.machine()})",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Training": f"{kimg:g} kimg each, seed {seed}, both at the same time with one thread each",
        "Speed": speeds,
        "All in all": f"{(time.time() - start_time) / 60:.1f} minutes with data sets and distances",
    }


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> str:
    """What else the machine is doing before the demo begins, which tells how far to trust the times."""
    if not hasattr(os, "getloadavg"):
        return "unknown"
    return f"{os.getloadavg()[0]:.1f} processes were running before the start (average of a minute)"


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def save_numbers(path: Path, result: report.Report) -> None:
    """The page's numbers as JSON, without the images."""

    def numbers(item: object) -> dict:
        pairs = ((field.name, getattr(item, field.name)) for field in dataclasses.fields(item))
        return {
            name: numbers(value) if dataclasses.is_dataclass(value) else value
            for name, value in pairs
            if not isinstance(value, np.ndarray)
        }

    path.write_text(json.dumps(numbers(result), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="replace")
    dnnlib.cli.run(main)
