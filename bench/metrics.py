"""How fast metrics are: detectors against the machine's matmul rate, and the SID against the published estimator.

python bench/metrics.py
python bench/metrics.py --large    # adds the SID of 50,000 against 50,000 features
"""

import resource
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import describe_machine, matmul_rate, median_seconds, save_result
from metrics import detectors, inception_v3, vgg16
from metrics.signed_inception_distance import (
    DEFAULT_RADII,
    PUBLISHED_FEATURES,
    PUBLISHED_ROUNDS,
    draw_cloud,
    signed_inception_distance,
)

GFLOP = {"inception": 11.4, "vgg16": 30.9, "tiny": None}  # per image, forward; tiny is counted below
DIMENSIONS, PROBES = 2048, 1000
MEASURED_RADII = 1  # of the published estimator, whose radii cost the same


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--repeats", default=5, help="Measurements, of which the median counts", show_default=True)
@click.option("--large", help="Also the SID of 50,000 against 50,000 features", is_flag=True)
def main(device: str, repeats: int, large: bool) -> None:
    """Print tables and write bench/results/metrics-DEVICE.json."""
    place = torch.device(device)
    rate = matmul_rate(place, torch.float32)
    print(f"float32 matmul: {rate / 1e9:.0f} GFLOP/s")
    rows = [detector_row(name, place, rate, repeats) for name in ("inception", "vgg16", "tiny")]
    for row in rows:
        print(
            f"{row['detector']:<10} {row['img_per_sec']:8.1f} img/s {100 * row['share_of_matmul']:5.0f} % of the matmul rate"
        )
    sid = sid_times(place, repeats)
    print(
        f"SID, 5,000 against 5,000: {sid['seconds']:.2f} s. The published estimator: {sid['literal_seconds']:.0f} s by "
        f"differences as published ({sid['literal_ratio']:.0f}x; one batch measured), {sid['published_seconds']:.0f} s by "
        f"matrix products ({sid['ratio']:.0f}x; {MEASURED_RADII} of {len(DEFAULT_RADII)} radii measured)"
    )
    result = {"machine": describe_machine(), "matmul_gflops": rate / 1e9, "detectors": rows, "sid": sid}
    if large:
        result["sid_large"] = large_sid(place)
        print(
            f"SID, 50,000 against 50,000: {result['sid_large']['seconds']:.0f} s, peak {result['sid_large']['peak_gb']:.1f} GB"
        )
    save_result(f"metrics-{device}", result)


def detector_row(name: str, device: torch.device, rate: float, repeats: int) -> dict[str, Any]:
    """With random weights where the real ones are not at hand: they take as long."""
    torch.manual_seed(0)
    if name == "tiny":
        detector = detectors.open_detector("tiny", device=device)
        batch, images, gflop = 256, torch.randint(256, [256, 3, 32, 32], dtype=torch.uint8), tiny_gflop()
    else:
        size = inception_v3.SIZE if name == "inception" else vgg16.SIZE
        network = {"inception": inception_v3.InceptionV3, "vgg16": vgg16.VGG16}[name]()
        detector = detectors.assemble(name, network.state_dict(), "0" * 16, "tf", device)
        batch, gflop = 16, GFLOP[name]
        images = torch.randint(256, [batch, 3, size, size], dtype=torch.uint8)
    seconds = median_seconds(lambda: detector.features(images), device, repeats)
    return {
        "detector": name,
        "img_per_sec": batch / seconds,
        "gflop_per_image": gflop,
        "share_of_matmul": batch / seconds * gflop * 1e9 / rate,
    }


def tiny_gflop() -> float:
    side, total = 32, 0
    for c_in, c_out, stride in detectors.tiny_detector.LAYERS:
        side //= stride
        total += 2 * 9 * c_in * c_out * side**2
    return total / 1e9


def sid_times(device: torch.device, repeats: int) -> dict[str, Any]:
    gen = torch.Generator().manual_seed(0)
    source, target = (torch.randn([5000, DIMENSIONS], generator=gen).to(device) for _ in range(2))
    ours = median_seconds(lambda: signed_inception_distance(source, target, probes=PROBES), device, repeats)
    started = time.perf_counter()
    signed_inception_distance(source, target, radii=DEFAULT_RADII[:MEASURED_RADII], probes=PROBES, mode="published")
    published = (time.perf_counter() - started) / MEASURED_RADII * len(DEFAULT_RADII)
    # The paper's code forms every difference; here one of its batches, of all that the curve takes.
    started = time.perf_counter()
    by_differences(draw_cloud(PROBES, DIMENSIONS, 0, device), source[:PUBLISHED_FEATURES].double())
    literal = (time.perf_counter() - started) * 2 * PUBLISHED_ROUNDS * len(DEFAULT_RADII)
    return {
        "seconds": ours,
        "published_seconds": published,
        "ratio": published / ours,
        "literal_seconds": literal,
        "literal_ratio": literal / ours,
    }


def by_differences(probes: torch.Tensor, features: torch.Tensor, rows: int = 20) -> torch.Tensor:
    """Mean distance of `[P, n]` to `[F, n]` by way of `[rows, F, n]` differences."""
    return torch.cat([(part[:, None] - features).square().sum(dim=2).sqrt() for part in probes.split(rows)]).mean()


def large_sid(device: torch.device) -> dict[str, Any]:
    gen = torch.Generator().manual_seed(0)
    source, target = (torch.randn([50_000, DIMENSIONS], generator=gen).to(device) for _ in range(2))
    started = time.perf_counter()
    signed_inception_distance(source, target, probes=PROBES, progress="SID")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


if __name__ == "__main__":
    main()
