"""What the index of a very large data set costs: seconds and peak memory, the first time and from the cache.

python bench/data_index.py                      # ten million images in 100 zips, with labels
python bench/data_index.py --shards=1           # ten million in one zip, without labels

The zips have true directories and holes where the images would be; headers are made up, and what looking at real ones
takes is measured apart, on small PNGs.
"""

import multiprocessing
import os
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import describe_machine, peak_memory_gb, save_result
from training.data import image_files
from training.data.image_files import open_files
from training.data.pixels import Header, encode_png
from training.data.zip_index import CENTRAL, END, END_64, LOCAL, LOCATOR
from training.dataset import ImageFolderDataset, sample_order

NAME_BYTES = len("00000/img00000000.png")
IMAGE_BYTES = 9_000
CLASSES = 1000
PROBED = 20_000  # real images


def write_shard(path: Path, first: int, count: int, with_labels: bool) -> None:
    """A zip of `count` images, numbered on from `first`, in which the images are holes."""
    numbers = np.arange(first, first + count)
    names = np.array([f"{number // 1000:05d}/img{number:08d}.png"[-NAME_BYTES:] for number in numbers.tolist()], "S")
    label_bytes = labels_of(names) if with_labels else b""
    records = np.zeros(count, [(name, CENTRAL[name]) for name in CENTRAL.names] + [("name", f"S{names.itemsize}")])
    records["signature"], records["name"], records["name_bytes"] = b"PK\1\2", names, names.itemsize
    records["packed"] = records["size"] = IMAGE_BYTES
    records["crc"] = numbers * 2654435761 % 2**32
    step = LOCAL.size + names.itemsize + IMAGE_BYTES
    places = len(label_bytes) + 1000 + np.arange(count) * step
    is_far = places >= 0xFFFFFFFF
    records["offset"] = np.where(is_far, 0xFFFFFFFF, places)
    with open(path, "wb") as file:
        label_record = write_stored(file, b"dataset.json", label_bytes) if with_labels else b""
        start = int(places[-1]) + step
        file.seek(start)
        file.write(records[~is_far].tobytes())
        for record, place in zip(records[is_far], places[is_far].tolist(), strict=True):
            record["extra_bytes"] = 12
            file.write(record.tobytes() + struct.pack("<2HQ", 1, 8, place))
        file.write(label_record)
        end = file.tell()
        total = count + with_labels
        file.write(END_64.pack(b"PK\6\6", END_64.size - 12, 45, 45, 0, 0, total, total, end - start, start))
        file.write(LOCATOR.pack(b"PK\6\7", 0, end, 1))
        file.write(END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def labels_of(names: np.ndarray) -> bytes:
    pairs = ",".join(f'["{name.decode()}",{index % CLASSES}]' for index, name in enumerate(names.tolist()))
    return f'{{"labels":[{pairs}]}}'.encode()


def write_stored(file: Any, name: bytes, data: bytes) -> bytes:
    """Write a file at the beginning of a zip; its record for the directory."""
    crc = zlib.crc32(data)
    file.write(LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 0, crc, len(data), len(data), len(name), 0) + name + data)
    record = np.zeros(1, CENTRAL)
    record["signature"], record["crc"], record["name_bytes"] = b"PK\1\2", crc, len(name)
    record["packed"] = record["size"] = len(data)
    return record.tobytes() + name


def index_all(path: str, with_labels: bool) -> dict[str, float]:
    """Do in a process of its own what a run does with its data before the first image. Seconds, and the memory it took."""
    image_files.StoredFiles.probe = lambda self, index: Header(64, 64, 3, 8)  # type: ignore[method-assign]
    seconds, start = {}, time.perf_counter()

    def lap(what: str) -> None:
        nonlocal start
        seconds[what] = round(time.perf_counter() - start, 2)
        start = time.perf_counter()

    before = peak_gb()
    files = open_files(path)
    lap("names")
    count = len(files)
    del files
    dataset = ImageFolderDataset(path, use_labels=with_labels)
    lap("names, headers, labels")
    assert len(dataset.fingerprint) == 64
    lap("fingerprint")
    sample_order(len(dataset), seed=0, start=0, count=32)
    sample_order(len(dataset), seed=0, start=5 * count, count=32)
    lap("order of two epochs")
    dataset.get_labels(np.arange(0, count, count // 100))
    peak = peak_gb()
    return {"images": count, **seconds, "gb before": round(before, 2), "peak gb": round(peak, 2)}


def peak_gb() -> float:
    """The peak of this process alone: what Linux counts as a child's maximum begins with its parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20
    except (OSError, StopIteration):
        return peak_memory_gb(torch.device("cpu"))


def in_a_process(*arguments: Any) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(index_all, arguments)


def seconds_per_header(folder: Path) -> float:
    """The seconds of real PNGs of 32x32 in a zip."""
    path, data = folder / "real.zip", encode_png(np.random.default_rng(0).integers(0, 256, [32, 32, 3], dtype=np.uint8))
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(PROBED):
            archive.writestr(f"{number:08d}.png", data)
    files = open_files(path)
    start = time.perf_counter()
    files.headers()
    return (time.perf_counter() - start) / PROBED


@click.command(help=__doc__)
@click.option("--images", default=10_000_000, show_default=True)
@click.option("--shards", default=100, show_default=True)
def main(images: int, shards: int) -> None:
    with_labels = shards > 1  # a single dataset.json of millions is beyond what JSON readers do in little memory
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        os.environ["DNNLIB_CACHE_DIR"] = str(folder / "cache")
        for shard in range(shards):
            write_shard(folder / f"s-{shard:04d}.zip", shard * (images // shards), images // shards, with_labels)
        path = str(folder / (f"s-{{0000..{shards - 1:04d}}}.zip" if shards > 1 else "s-0000.zip"))
        results = {"first time": in_a_process(path, with_labels), "from the cache": in_a_process(path, with_labels)}
        cache_gb = sum(file.stat().st_size for file in (folder / "cache" / "indices").iterdir()) / 2**30
        header_us = 1e6 * seconds_per_header(folder)
    for when, result in results.items():
        print(f"{when:>15}: " + ", ".join(f"{what} {value:,}" for what, value in result.items()))
    print(f"cache {cache_gb:.2f} GB; a real header (PNG 32x32, one thread) takes {header_us:.0f} microseconds")
    facts = {
        "shards": shards,
        "labels": with_labels,
        "cache gb": round(cache_gb, 2),
        "microseconds per header": header_us,
    }
    save_result(f"data_index-{shards}", {"machine": describe_machine(), **facts, **results})


if __name__ == "__main__":
    main()
