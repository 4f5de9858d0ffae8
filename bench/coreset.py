"""What core-sets cost: a training step with `--coreset=prior,target` against a plain one, in turns.

python bench/coreset.py
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import describe_machine, median_seconds, save_result, step_on, synchronize, write_noise_images
from torch_utils import misc
from training.config.options import TrainingOptions
from training.config.resolve import resolve
from training.config.run_config import TrainingConfig
from training.run.state import TrainingState, build_state
from training.sources.coreset import PROJECTED_DIMS, CoresetSpec, ShuffledOrder, TargetCoreset, TargetOrder
from training.sources.source import Draw

NUM_IMAGES = 50_000  # that the targets are chosen among


@click.command()
@click.option("--cfg", default="stylegan2", show_default=True)
@click.option("--res", default=32, show_default=True)
@click.option("--batch", default=64, show_default=True)
@click.option("--factor", default=4, show_default=True)
@click.option("--cbase", default=2048, show_default=True)
@click.option("--cmax", default=64, show_default=True)
@click.option("--steps", default=12, help="Steps of each kind", show_default=True)
@click.option("--device", default="auto", show_default=True)
def main(cfg: str, res: int, batch: int, factor: int, cbase: int, cmax: int, steps: int, device: str) -> None:
    """Median seconds of the main phases with and without core-sets, for Gaussian noise and for images; ADA off."""
    misc.keep_freed_memory()
    setting = dict(cfg=cfg, res=res, batch=batch, factor=factor, cbase=cbase, cmax=cmax, steps=steps)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        data = str(write_noise_images(Path(folder) / "data", res, count=max(batch * factor, 256)))
        shared = dict(cfg=cfg, data=data, batch=batch, cbase=cbase, cmax=cmax, device=device, aug="noaug")
        for kind, more in (("gaussian", {}), ("images", {"source": data})):
            results[kind] = compare(shared | more, factor, steps)
            print(line(kind, results[kind]))
    save_result("coreset", {"setting": setting, "results": results, "machine": describe_machine()})


def compare(options: dict[str, Any], factor: int, steps: int) -> dict[str, float]:
    """Seconds of a plain step, of one with core-sets, and of the choices alone; medians, and the first two's ratio.

    cpu_sec: of this process's threads, which other work on a shared machine lengthens less; on a GPU it says nothing.
    """
    config = resolve(TrainingOptions(**options, coreset=("prior", "target"), coreset_factor=factor)).config
    state = build_state(config, torch.device(config.device), verbose=False)
    target = TargetCoreset(torch.randn(NUM_IMAGES, PROJECTED_DIMS), factor, config.seed)
    kinds = {
        "plain": stepper(
            dataclasses.replace(config, coreset=CoresetSpec()), state, ShuffledOrder(NUM_IMAGES, config.seed)
        ),
        "coreset": stepper(config, state, target),
    }
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for index in range(steps + 1):
        for kind, step in kinds.items():
            state.batch_idx = 1  # the main phases only: with the rarer ones the share of core-sets is smaller
            synchronize(state.device)
            start, start_cpu = time.perf_counter(), time.process_time()
            step()
            synchronize(state.device)
            if index > 0:
                times[kind].append((time.perf_counter() - start, time.process_time() - start_cpu))
    result = {}
    for column, name in enumerate(("sec", "cpu_sec")):
        medians = {kind: statistics.median(pair[column] for pair in pairs) for kind, pairs in times.items()}
        result |= {f"{kind}_{name}": median for kind, median in medians.items()}
        result[f"ratio_of_{name}"] = medians["coreset"] / medians["plain"]
    return result | choices_alone(config, state, target)


def stepper(config: TrainingConfig, state: TrainingState, order: TargetOrder) -> Callable[[], None]:
    """A step on the same pixels each time; which images a batch holds is decided all the same."""
    step = step_on(state, config, order)
    shape = [config.batch_size, config.G_kwargs["img_channels"], *[config.G_kwargs["img_resolution"]] * 2]
    images = torch.randint(256, shape, dtype=torch.uint8)

    def run() -> None:
        order.order(state.cur_nimg, config.batch_size)
        step.run(images, torch.zeros(config.batch_size, 0))

    return run


def choices_alone(config: TrainingConfig, state: TrainingState, target: TargetCoreset) -> dict[str, float]:
    """Seconds of one step's choices: of the latents of G and D with their second ones for style mixing, and of images."""
    prior = config.coreset.of_latents(state.feed)
    num_draws = 4 if config.style_mixing_prob > 0 else 2
    generator = torch.Generator().manual_seed(0)
    num = prior.factor * config.batch_size
    draws: list[Draw] = [state.feed.draw(num, generator) for _ in range(num_draws)]
    device = state.device
    return {
        "prior_sec": median_seconds(lambda: prior.choose(draws, config.batch_size), device, repeats=7),
        "target_sec": median_seconds(lambda: target._choose(0, config.batch_size), device, repeats=7),
    }


def line(kind: str, result: dict[str, float]) -> str:
    alone = f"latents {1000 * result['prior_sec']:.1f} ms, images {1000 * result['target_sec']:.1f} ms"
    return (
        f"{kind:<10} plain {result['plain_sec']:.4f} s/step, core-sets {result['coreset_sec']:.4f}: "
        f"{result['ratio_of_sec']:.3f} of it, {result['ratio_of_cpu_sec']:.3f} in processor time (alone: {alone})"
    )


if __name__ == "__main__":
    main()
