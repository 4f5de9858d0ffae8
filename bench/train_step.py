"""How fast training runs: images per second of each phase, against this machine's own matrix products.

python bench/train_step.py --cfg=stylegan3-t --res=64 --batch=8 --cbase=16384 --cmax=256 --device=cpu
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import describe_machine, matmul_rate, median_seconds, peak_memory_gb, save_result, synthetic_run
from torch_utils.ops import dispatch
from training.run.state import TrainingState
from training.run.step import TrainingStep

# The official StyleGAN3 code on a CPU whose float32 matrix products run at 374 GFLOP/s: images/s in training and inference.
OFFICIAL_CPU = {
    ("stylegan3-t", 64, 8, 16384, 256): (0.11, 0.88),
    ("stylegan3-r", 32, 16, 8192, 128): (0.25, 1.31),
    ("stylegan2", 32, 16, 16384, 512): (1.22, 8.96),
}
OFFICIAL_CPU_RATE = 374e9


@click.command()
@click.option(
    "--cfg", type=click.Choice(["stylegan2", "stylegan3-t", "stylegan3-r"]), default="stylegan3-t", show_default=True
)
@click.option("--res", default=64, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--cbase", default=16384, show_default=True)
@click.option("--cmax", default=256, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--fp32", default=False, help="Everything in float32", show_default=True)
@click.option("--repeats", default=3, help="Measurements of each phase, of which the median counts", show_default=True)
@click.option("--kernels", default=True, help="False: plain PyTorch ops", show_default=True)
def main(
    cfg: str, res: int, batch: int, cbase: int, cmax: int, device: str, fp32: bool, repeats: int, kernels: bool
) -> None:
    """Median seconds of each phase of a training step, ADA off, and of generating images."""
    setting = dict(cfg=cfg, res=res, batch=batch, cbase=cbase, cmax=cmax, fp32=fp32, kernels=kernels)
    with synthetic_run(cfg=cfg, res=res, batch=batch, cbase=cbase, cmax=cmax, device=device, fp32=fp32) as run:
        with dispatch.forced("cuda" if kernels else dispatch.REFERENCE):
            result = measure(run.step, run.state, run.images, run.labels, repeats)
        decisions = dict(run.decisions)
    rates = {
        str(dtype).removeprefix("torch."): matmul_rate(run.device, dtype) for dtype in (torch.float32, torch.bfloat16)
    }
    result |= compare(result, rates, setting)
    report(setting, result, decisions)
    name = f"train_step_{cfg}_{res}_{run.device.type}" + ("_fp32" if fp32 else "") + ("" if kernels else "_reference")
    save_result(name, {"setting": setting, **result, "decisions": decisions, "machine": describe_machine()})


def measure(
    step: TrainingStep, state: TrainingState, images: torch.Tensor, labels: torch.Tensor, repeats: int
) -> dict[str, Any]:
    """Seconds and FLOP of each phase on one batch, and what follows for a whole run."""
    batches = step.batches.rounds([phase.name for phase in step.phases], images, labels)
    phases = {}
    for phase in step.phases:
        seconds, flop = time_and_count(lambda phase=phase: step.run_phase(phase, batches), state, repeats)
        phases[phase.name] = {
            "sec": seconds,
            "gflop": flop / 1e9,
            "every": phase.interval,
            "img_per_sec": len(images) / seconds,
        }
    update_sec, _ = time_and_count(step.update_average, state, repeats)
    z = torch.randn([len(images), state.G.z_dim], device=state.device)
    c = torch.zeros([len(images), state.G.c_dim], device=z.device)
    inference_sec, inference_flop = time_and_count(lambda: infer(state.G_ema, z, c), state, repeats)
    step_sec = update_sec + sum(phase["sec"] / phase["every"] for phase in phases.values())
    main_sec = update_sec + sum(phases[name]["sec"] for name in ("Gmain", "Dmain"))
    main_gflop = sum(phases[name]["gflop"] for name in ("Gmain", "Dmain")) / len(images)
    return {
        "phases": phases,
        "average_sec": update_sec,
        "train": {
            "img_per_sec": len(images) / step_sec,
            "img_per_sec_main_phases": len(images) / main_sec,
            "sec_per_kimg": 1000 * step_sec / len(images),
            "main_gflop_per_img": main_gflop,
        },
        "inference": {"img_per_sec": len(images) / inference_sec, "gflop_per_img": inference_flop / len(images) / 1e9},
        "peak_gb": peak_memory_gb(z.device),
    }


@torch.no_grad()
def infer(G: torch.nn.Module, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return G(z, c, noise_mode="const")


def time_and_count(run: Callable[[], Any], state: TrainingState, repeats: int) -> tuple[float, float]:
    """Median seconds, and the floating point operations of convolutions and matrix products."""
    with FlopCounter() as counter:
        run()  # warms up, too
    return median_seconds(run, state.device, repeats), counter.total


class FlopCounter(TorchDispatchMode):
    """Counts what PyTorch's own FlopCounterMode does, also where gradients are taken inside the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def compare(result: dict[str, Any], rates: dict[str, float], setting: dict[str, Any]) -> dict[str, Any]:
    """Shares of the machine's matrix products, and where there is one, the ratio to the official code on a machine like it."""
    train, inference = result["train"], result["inference"]
    shares = {
        dtype: {
            "train_share": train["img_per_sec_main_phases"] * train["main_gflop_per_img"] * 1e9 / rate,
            "inference_share": inference["img_per_sec"] * inference["gflop_per_img"] * 1e9 / rate,
        }
        for dtype, rate in rates.items()
    }
    compared = {"matmul_gflops": {dtype: rate / 1e9 for dtype, rate in rates.items()}, "shares_of_matmul": shares}
    official = OFFICIAL_CPU.get(tuple(setting[key] for key in ("cfg", "res", "batch", "cbase", "cmax")))
    if official is not None:
        scale = rates["float32"] / OFFICIAL_CPU_RATE
        compared["times_official_scaled_by_matmul"] = {
            "train": train["img_per_sec"] / (official[0] * scale),
            "inference": inference["img_per_sec"] / (official[1] * scale),
        }
    return compared


def report(setting: dict[str, Any], result: dict[str, Any], decisions: dict[str, str]) -> None:
    for line in table(setting, result, decisions):
        print(line)


def table(setting: dict[str, Any], result: dict[str, Any], decisions: dict[str, str]) -> Iterator[str]:
    yield "  ".join(f"{key}={value}" for key, value in setting.items())
    yield from (f"{name}: {text}" for name, text in decisions.items())
    yield f"{'phase':<10} {'every':>6} {'seconds':>9} {'img/s':>9} {'GFLOP/img':>10} {'GFLOP/s':>9}"
    for name, phase in result["phases"].items():
        per_image = phase["gflop"] / setting["batch"]
        yield (
            f"{name:<10} {phase['every']:>6} {phase['sec']:>9.3f} {phase['img_per_sec']:>9.2f} {per_image:>10.1f} "
            f"{phase['gflop'] / phase['sec']:>9.1f}"
        )
    yield f"{'average':<10} {1:>6} {result['average_sec']:>9.3f}"
    train, inference = result["train"], result["inference"]
    yield f"training   {train['img_per_sec']:.3f} img/s, {train['sec_per_kimg']:.0f} s/kimg"
    yield f"inference  {inference['img_per_sec']:.3f} img/s, {inference['gflop_per_img']:.1f} GFLOP/img"
    for dtype, share in result["shares_of_matmul"].items():
        rate = result["matmul_gflops"][dtype]
        yield (
            f"of the {dtype} matmul rate ({rate:.0f} GFLOP/s): main phases {share['train_share']:.0%}, "
            f"inference {share['inference_share']:.0%}"
        )
    for kind, ratio in result.get("times_official_scaled_by_matmul", {}).items():
        yield f"{kind}: {ratio:.2f} times the official code on a CPU with this matmul rate"
    yield f"peak memory {result['peak_gb']:.2f} GB"


if __name__ == "__main__":
    main()
