"""What a source costs: a training step from images and from a network, without and with --stage-cache, against one from
Gaussian noise, in turns.

python bench/sources.py
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import describe_machine, save_result, step_on, write_noise_images
from torch_utils import misc
from training.checkpoints.snapshot import save_snapshot
from training.config.options import TrainingOptions
from training.config.resolve import resolve
from training.run.state import TrainingState, build_state
from training.run.step import TrainingStep
from training.sources.source import GaussianSource


def make_step(options: dict) -> tuple[TrainingStep, TrainingState]:
    config = resolve(TrainingOptions(**options)).config
    state = build_state(config, torch.device(config.device), verbose=False)
    return step_on(state, config), state


def save_stage_one(folder: Path, state: TrainingState) -> Path:
    path = folder / "stage1.pkl"
    contents = {"G": state.G, "D": state.D, "G_ema": state.G_ema, "source": GaussianSource(state.G.z_dim)}
    save_snapshot(path, {**contents, "augment_pipe": None, "training_set_kwargs": {}, "meta": {}})
    return path


@click.command()
@click.option("--cfg", default="stylegan2", show_default=True)
@click.option("--res", default=32, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--cbase", default=2048, show_default=True)
@click.option("--cmax", default=64, show_default=True)
@click.option("--steps", default=16, help="Steps of each kind", show_default=True)
@click.option("--stage-cache", default=4096, help="Outputs in the pool", show_default=True)
@click.option("--device", default="auto", show_default=True)
def main(cfg: str, res: int, batch: int, cbase: int, cmax: int, steps: int, stage_cache: int, device: str) -> None:
    """Median seconds of a training step for each source, ADA off."""
    misc.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        data = str(write_noise_images(folder / "data", res))
        shared = dict(cfg=cfg, data=data, batch=batch, cbase=cbase, cmax=cmax, device=device, aug="noaug")
        kinds = {"gaussian": make_step(shared)}
        kinds["images"] = make_step(shared | {"source": data})
        network = shared | {"source": str(save_stage_one(folder, kinds["gaussian"][1]))}
        kinds["network"] = make_step(network)
        kinds["network, cached"] = make_step(network | {"stage_cache": stage_cache})
    images = torch.randint(256, [batch, 3, res, res], dtype=torch.uint8)
    labels = torch.zeros(batch, 0)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for index in range(steps + 1):
        for kind, (step, state) in kinds.items():
            state.batch_idx = 1  # the main phases only: regularisation steps are rarer than one in `steps`
            start = time.perf_counter()
            step.run(images, labels)
            if state.pl_mean.is_cuda:
                torch.cuda.synchronize()
            if index > 0:
                times[kind].append(time.perf_counter() - start)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    for kind, seconds in medians.items():
        print(f"{kind:<16} {seconds:8.4f} s/step   {seconds / medians['gaussian']:.3f} of Gaussian")
    setting = {"cfg": cfg, "res": res, "batch": batch, "cbase": cbase, "cmax": cmax, "steps": steps}
    setting["stage_cache"] = stage_cache
    ratios = {kind: seconds / medians["gaussian"] for kind, seconds in medians.items()}
    result = {"setting": setting, "median_sec": medians, "of_gaussian": ratios, "machine": describe_machine()}
    save_result("sources" if cfg == "stylegan2" else f"sources_{cfg}", result)


if __name__ == "__main__":
    main()
