"""On paper: what many GPUs would make of the bytes that bench/scaling.py has measured. Nothing here is a measurement.

python bench/projection.py

Prints the gradient bytes of the default networks, then seconds of a step and efficiency for 8, 64 and 512 GPUs. The
assumptions are the constants below; the hidden share is the lowest of bench/results/scaling.json on limited cards.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dnnlib.cli
from bench.common import RESULTS, save_result, write_noise_images
from dnnlib.errors import UserError
from torch_utils import persistence
from torch_utils.gradient_reducer import LARGEST_BUCKET, NUM_BUCKETS
from training.config.options import TrainingOptions
from training.config.resolve import resolve
from training.config.run_config import TrainingConfig

NETWORKS = [("stylegan2", 256), ("stylegan2", 1024), ("stylegan3-t", 256), ("stylegan3-t", 1024)]
# Seconds per 1,000 images of stylegan3-t at 256x256 on one card. The first two are the official code's published times.
SEC_PER_KIMG = {"V100, published": 89.15, "A100, published": 49.81, "H200, this project's goal": 11.0}
COMPUTE_OF = ("stylegan3-t", 256)
IMAGES_PER_GPU = 4  # the smallest share that the minibatch standard deviation allows: the hardest case
GPUS = (8, 64, 512)
GPUS_PER_MACHINE = 8
# Of a ring: through NVLink, through one network card of each machine, through one for each GPU.
BYTES_PER_SEC = {"inside": 200e9, "100 Gbit/s": 12.5e9, "8 x 200 Gbit/s": 200e9}
HOP_SEC = 10e-6  # of one message to the next GPU of the ring


@click.command(help=__doc__)
def main() -> None:
    hidden = measured_hidden_share()
    sizes = {network: gradient_sizes(*network) for network in NETWORKS}
    print(f"{'network':<18} {'G':>12} {'D':>12}  parameters; MB of gradients per step (float32, an average step)")
    for (cfg, res), size in sizes.items():
        print(f"{cfg + ' ' + str(res):<18} {size['G']:>12,} {size['D']:>12,}  {size['bytes_per_step'] / 1e6:.1f}")
    rows = list(project(sizes[COMPUTE_OF], hidden))
    print(
        f"\nProjection, unmeasured: {' '.join(map(str, COMPUTE_OF))}, {IMAGES_PER_GPU} images per GPU, ring all-reduce, "
        f"{hidden:.0%} of it hidden"
    )
    print(f"{'card':<26} {'GPUs':>5} {'between machines':>17} {'compute s':>10} {'exchange s':>11} {'efficiency':>11}")
    for row in rows:
        print(
            f"{row['card']:<26} {row['gpus']:>5} {row['network']:>17} {row['compute_sec']:>10.3f} "
            f"{row['exchange_sec']:>11.4f} {row['efficiency_after']:>5.0%} to {row['efficiency_during']:.0%}"
        )
    print("Efficiency: nothing hidden, and the measured share hidden.")
    named = {f"{cfg} {res}": size for (cfg, res), size in sizes.items()}
    save_result("projection", {"hidden_share": hidden, "networks": named, "rows": rows})


def measured_hidden_share() -> float:
    path = RESULTS / "scaling.json"
    if not path.exists():
        raise UserError(f"{path}: not there; run bench/scaling.py first")
    rows = json.loads(path.read_text())["rows"]
    return max(min(row["hidden_share"] for row in rows if row["mbit_per_sec"] > 0), 0.0)


def gradient_sizes(cfg: str, res: int) -> dict[str, float]:
    """Parameters of the networks that `train.py` would build by default, and bytes of gradients per step."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_noise_images(Path(folder) / "data", res, count=2)
        config = resolve(TrainingOptions(cfg=cfg, data=str(data), device="cpu")).config
    G, D = (
        sum(param.numel() for param in persistence.construct(**kwargs).parameters())
        for kwargs in (config.G_kwargs, config.D_kwargs)
    )
    passes_of_G, passes_of_D = passes(config)
    bytes_per_step = 4 * (G * passes_of_G + D * passes_of_D)
    return {"G": G, "D": D, "bytes_per_step": bytes_per_step, "passes_of_G": passes_of_G, "passes_of_D": passes_of_D}


def passes(config: TrainingConfig) -> tuple[float, float]:
    """How often the gradients of G and of D travel in an average step."""
    has_path_lengths = config.G_reg_interval is not None and config.pl_weight > 0
    return 1 + (1 / config.G_reg_interval if has_path_lengths else 0), 1 + 1 / config.D_reg_interval


def project(size: dict[str, float], hidden: float) -> Iterator[dict]:
    num_messages = sum(max(NUM_BUCKETS, 4 * size[name] / LARGEST_BUCKET) * size[f"passes_of_{name}"] for name in "GD")
    for card, sec_per_kimg in SEC_PER_KIMG.items():
        compute = IMAGES_PER_GPU * sec_per_kimg / 1000
        for gpus in GPUS:
            networks = ["inside"] if gpus <= GPUS_PER_MACHINE else ["100 Gbit/s", "8 x 200 Gbit/s"]
            for network in networks:
                exchange = ring_seconds(size["bytes_per_step"], num_messages, gpus, BYTES_PER_SEC[network])
                yield {
                    "card": card,
                    "gpus": gpus,
                    "network": network,
                    "compute_sec": compute,
                    "exchange_sec": exchange,
                    "efficiency_after": compute / (compute + exchange),
                    "efficiency_during": compute / (compute + (1 - hidden) * exchange),
                }


def ring_seconds(num_bytes: float, num_messages: float, num_gpus: int, bytes_per_sec: float) -> float:
    """All-reduce in a ring: every link carries 2 (N - 1) / N of the bytes, and every message makes 2 (N - 1) hops."""
    share = 2 * (num_gpus - 1) / num_gpus
    return share * num_bytes / bytes_per_sec + num_messages * 2 * (num_gpus - 1) * HOP_SEC


if __name__ == "__main__":
    dnnlib.cli.run(main)
