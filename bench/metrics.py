"""How fast metrics are: detectors against the machine's matmul rate, the SID against the published estimator, and the
arithmetic of FID, KID, precision and recall in turns with torch-fidelity's, where that is installed.

python bench/metrics.py
python bench/metrics.py --only=peer    # pip install torch-fidelity: a peer, not a dependency
python bench/metrics.py --large    # adds the SID of 50,000 against 50,000 features
"""

import contextlib
import io
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import describe_machine, matmul_rate, median_seconds, save_result
from metrics import detectors, efficientnet, inception_v3, vgg16
from metrics.frechet_distance import fit_gaussian
from metrics.kernel_inception_distance import NUM_SUBSETS, SUBSET_SIZE, kernel_inception_distance
from metrics.precision_recall import precision_recall
from metrics.signed_inception_distance import (
    DEFAULT_RADII,
    PUBLISHED_FEATURES,
    PUBLISHED_ROUNDS,
    draw_cloud,
    signed_inception_distance,
)

GFLOP = {
    "inception": 11.4,
    "vgg16": 30.9,
    "efficientnet": 0.77,
    "tiny": None,
}  # per image, forward; tiny is counted below
NETWORKS = {
    "inception": inception_v3.InceptionV3,
    "vgg16": vgg16.VGG16,
    "efficientnet": efficientnet.EfficientNetLite0,
}
DIMENSIONS, PROBES = 2048, 1000
PEER_FEATURES = 10_000
MEASURED_RADII = 1  # of the published estimator, whose radii cost the same


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--repeats", default=5, help="Measurements, of which the median counts", show_default=True)
@click.option("--large", help="Also the SID of 50,000 against 50,000 features", is_flag=True)
@click.option("--only", help="peer: the comparison with torch-fidelity alone", type=click.Choice(["peer"]))
def main(device: str, repeats: int, large: bool, only: str | None) -> None:
    """Print tables and write bench/results/metrics-DEVICE.json, of `--only=peer` metrics-peer.json."""
    place = torch.device(device)
    if only == "peer":
        save_result("metrics-peer", {"machine": describe_machine(), "peer": peer_times(repeats)})
        return
    rate = matmul_rate(place, torch.float32)
    print(f"float32 matmul: {rate / 1e9:.0f} GFLOP/s")
    rows = [detector_row(name, place, rate, repeats) for name in (*NETWORKS, "tiny")]
    for row in rows:
        print(
            f"{row['detector']:<12} {row['img_per_sec']:8.1f} img/s {100 * row['share_of_matmul']:5.0f} % of the matmul rate"
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
    result["peer"] = peer_times(repeats)
    save_result(f"metrics-{device}", result)


def detector_row(name: str, device: torch.device, rate: float, repeats: int) -> dict[str, Any]:
    """Time with random weights where the real ones are not at hand: they take as long."""
    torch.manual_seed(0)
    if name == "tiny":
        detector = detectors.open_detector("tiny", device=device)
        batch, images, gflop = 256, torch.randint(256, [256, 3, 32, 32], dtype=torch.uint8), tiny_gflop()
    else:
        size = detectors.ARCHITECTURES[name].size
        detector = detectors.assemble(name, NETWORKS[name]().state_dict(), "0" * 16, "tf", device)
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


def peer_times(repeats: int) -> dict[str, Any]:
    """Ours and torch-fidelity's on the same features `[10,000, 2048]`, in turns, on the CPU; prints a line each."""
    gen = torch.Generator().manual_seed(0)
    basis = torch.randn([40, DIMENSIONS], generator=gen)  # of features that vary in few directions, as real ones do
    x, y = (
        (
            torch.randn([PEER_FEATURES, 40], generator=gen) @ basis / 5
            + torch.randn([PEER_FEATURES, DIMENSIONS], generator=gen) / 10
        ).relu()
        for _ in range(2)
    )
    ours: dict[str, Callable[[], Any]] = {
        "FID statistics": lambda: fit_gaussian(x),
        "KID": lambda: kernel_inception_distance(x, y),
        "precision and recall": lambda: precision_recall(x, y),
    }
    try:
        theirs = torch_fidelity_calls(x, y)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit this PyTorch
        print(f"torch-fidelity is not at hand ({error}): ours only")
        theirs = {}
    rows = {}
    for name, run in ours.items():
        calls = {"ours": run} | ({"torch-fidelity": theirs[name]} if theirs else {})
        seconds = in_turns(calls, repeats)
        rows[name] = {**seconds, "ratio": seconds["ours"] / seconds["torch-fidelity"] if theirs else None}
        told = "  ".join(f"{who} {value:.2f} s" for who, value in seconds.items())
        print(f"{name}: {told}" + (f"  ({rows[name]['ratio']:.2f}x)" if theirs else ""), flush=True)
    return rows


def torch_fidelity_calls(x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """The same computations of torch-fidelity; y are the generated features."""
    from torch_fidelity import metric_fid, metric_kid, metric_prc

    kid_options = {"kid_subsets": NUM_SUBSETS, "kid_subset_size": SUBSET_SIZE, "verbose": False}
    prc_options = {"prc_neighborhood": 3, "prc_batch_size": 10_000, "save_cpu_ram": False, "verbose": False}
    return {
        "FID statistics": lambda: metric_fid.fid_features_to_statistics(x),
        "KID": lambda: metric_kid.kid_features_to_metric(y, x, **kid_options),
        "precision and recall": lambda: metric_prc.prc_features_to_metric(y, x, **prc_options),
    }


def in_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, one after the other so many times: whatever slows the machine slows both."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, run in calls.items():
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                run()
            if turn > 0:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def large_sid(device: torch.device) -> dict[str, Any]:
    gen = torch.Generator().manual_seed(0)
    source, target = (torch.randn([50_000, DIMENSIONS], generator=gen).to(device) for _ in range(2))
    started = time.perf_counter()
    signed_inception_distance(source, target, probes=PROBES, progress="SID")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


if __name__ == "__main__":
    main()
