"""What every configuration and feature computes, as hashes: a change that shall change nothing shows the same ones.

python -m tools.fingerprint > before.txt    # a few minutes; then change the code, run it again, and compare
python -m tools.fingerprint stylegan2 cascade

Each run trains tiny networks for a few steps on images made of seeded noise. A line has hashes of its networks, its pictures
and its statistics (times left out). Lines agree on one machine, with one version of PyTorch and one number of threads.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from training.checkpoints.snapshot import load_snapshot
from training.checkpoints.state_file import SNAPSHOT_PATTERN, STATS, numbered

ROOT = Path(__file__).resolve().parent.parent
SIDE, CLASSES, IMAGES_OF_CLASS = 16, 3, 16
SIZES = "--batch=8 --cbase=128 --cmax=8 --z-dim=16 --kimg=0.032 --tick=0.016 --snap=1"
TINY = f"--device=cpu --workers=0 --seed=1 --detector=tiny {SIZES}".split()
STYLE = ["--w-dim=16", "--map-depth=2"]
PLAIN, SPIDER = ["--data=target"], ["--data=target", "--source=source"]
STYLEGAN2 = ["--cfg=stylegan2", *STYLE]

RUNS: dict[str, list[str]] = {
    "stylegan2": [*STYLEGAN2, *PLAIN],
    "stylegan2 float32": [*STYLEGAN2, *PLAIN, "--fp32=1"],
    "stylegan3-t": ["--cfg=stylegan3-t", *STYLE, *PLAIN],
    "stylegan3-r": ["--cfg=stylegan3-r", *STYLE, *PLAIN],
    **{cfg: [f"--cfg={cfg}", *PLAIN] for cfg in ("dcgan", "sngan", "biggan", "r3gan")},
    "pggan": ["--cfg=pggan", *PLAIN, "--grow-kimg=0.01"],
    **{cfg: [f"--cfg={cfg}", *STYLE, *PLAIN] for cfg in ("auto", "paper256", "paper512", "paper1024")},
    "cifar": ["--cfg=cifar", *STYLE, *PLAIN, "--mbstd-group=4"],
    "spider": [*STYLEGAN2, *SPIDER, "--source-noise=0.1"],
    "spider whiten crop": [*STYLEGAN2, *SPIDER, "--source-norm=whiten", "--source-encoder=flatten-crop"],
    "spider conv": [*STYLEGAN2, *SPIDER, "--source-encoder=conv"],
    "spider dcgan": ["--cfg=dcgan", *SPIDER],
    "chosen source": [
        *STYLEGAN2,
        "--data=target",
        "--source=auto",
        "--source-pool=source,other",
        "--metrics=csid1k_full",
    ],
    "conditional": [*STYLEGAN2, *PLAIN, "--cond=1"],
    "class pairs label": [*STYLEGAN2, *SPIDER, "--cond=1", "--source-match=label"],
    "class pairs csid": [*STYLEGAN2, *SPIDER, "--cond=1", "--source-match=csid"],
    "core-sets": [*STYLEGAN2, *SPIDER, "--coreset=prior,target", "--coreset-factor=2"],
    "prior": [*STYLEGAN2, *PLAIN, "--prior=features", "--prior-detector=tiny", "--prior-dim=8"],
    "pre-training": [*STYLEGAN2, *SPIDER, "--pretrain=0.032"],
    "augmentation fixed": [*STYLEGAN2, *PLAIN, "--aug=fixed", "--p=0.5", "--augpipe=bgcfnc"],
    "mirror subset": [*STYLEGAN2, *PLAIN, "--mirror=1", "--subset=20"],
    "accumulation": [*STYLEGAN2, *PLAIN, "--batch-gpu=4"],
    "metrics": [*STYLEGAN2, *PLAIN, "--metrics=fid1k_full,kid1k_full,pr1k3_full,dc1k5_full"],
    "two processes": [*STYLEGAN2, *SPIDER, "--gpus=2"],
    "network source": [*STYLEGAN2, "--data=target", "--source=first.pkl"],
    "stage cache": [*STYLEGAN2, "--data=target", "--source=first.pkl", "--stage-cache=32"],
    "resumed weights": [*STYLEGAN2, "--data=other", "--resume=first.pkl"],
    "cascade": ["--cascade=recipe.yaml"],
}
NEED_FIRST = {"network source", "stage cache", "resumed weights"}
RECIPE = """
defaults: {cfg: stylegan2, batch: 8, cbase: 128, cmax: 8, z-dim: 16, w-dim: 16, map-depth: 2, kimg: 0.016, tick: 0.016, seed: 1,
  detector: tiny}
stages:
  - {name: one, data: source}
  - {name: two, source: one, data: target, stage-cache: 32}
  - {name: three, source: two, data: other, resume: two}
table: [fid1k_full]
"""


@click.command(help=__doc__)
@click.argument("names", nargs=-1, metavar="[RUN]...")
def main(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in RUNS:
            raise click.BadParameter(f"{name!r}: choose from {', '.join(RUNS)}")
    print(f"# torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make_inputs(folder)
        chosen = names or tuple(RUNS)
        if NEED_FIRST & set(chosen):
            train(folder, "first", [*STYLEGAN2, "--data=source"])
            (folder / "first.pkl").write_bytes(newest_snapshot(folder / "runs-first").read_bytes())
        for name in chosen:
            word = name.replace(" ", "-")
            train(folder, word, RUNS[name])
            print(f"{name:<20} {fingerprint(folder / f'runs-{word}')}", flush=True)


def make_inputs(folder: Path) -> None:
    """Three sets of labelled images and a recipe."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("target", "source", "other")):
        for label in range(CLASSES):
            (folder / name / str(label)).mkdir(parents=True)
            for index in range(IMAGES_OF_CLASS):
                blocks = rng.integers(0, 160, [4, 4, 3]) + 30 * label + 10 * number
                pixels = blocks.repeat(SIDE // 4, axis=0).repeat(SIDE // 4, axis=1).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name / str(label) / f"{index:02d}.png")
    (folder / "recipe.yaml").write_text(RECIPE)


def train(folder: Path, name: str, arguments: list[str]) -> None:
    """One run of train.py in a process of its own; its output is shown if it fails."""
    is_cascade = any(argument.startswith("--cascade") for argument in arguments)
    settings = ["--device=cpu", "--workers=0"] if is_cascade else [one for one in TINY if not replaced(one, arguments)]
    command = [sys.executable, str(ROOT / "train.py"), f"--outdir=runs-{name}", *settings, *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        raise click.ClickException(f"{name}: {' '.join(command)}\n{result.stdout}{result.stderr}")


def replaced(setting: str, arguments: Iterable[str]) -> bool:
    return any(argument.split("=")[0] == setting.split("=")[0] for argument in arguments)


def fingerprint(runs: Path) -> str:
    """`networks … pictures … statistics …` of all runs in a folder."""
    folders = sorted({path.parent for path in runs.rglob(STATS)})
    assert folders, f"{runs} holds no run"
    hashes = {name: hashlib.sha256() for name in ("networks", "pictures", "statistics")}
    for folder in folders:
        contents = load_snapshot(newest_snapshot(folder))
        for part in ("G", "D", "G_ema"):
            for tensor in contents[part].state_dict().values():
                hashes["networks"].update(tensor.contiguous().numpy().tobytes())
        for path in sorted(folder.glob("*.png")):
            if path.name != "metrics.png":  # a plot, whose bytes are matplotlib's
                hashes["pictures"].update(np.asarray(Image.open(path)).tobytes())
        for line in (folder / STATS).read_text().splitlines():
            hashes["statistics"].update(json.dumps(without_times(json.loads(line)), sort_keys=True).encode())
        for path in sorted(folder.glob("metric-*.jsonl")):
            results = [json.loads(line)["results"] for line in path.read_text().splitlines()]
            hashes["statistics"].update(json.dumps(results, sort_keys=True).encode())
    return "  ".join(f"{name} {value.hexdigest()[:12]}" for name, value in hashes.items())


def newest_snapshot(folder: Path) -> Path:
    run = max(path.parent for path in folder.rglob(STATS))
    return numbered(run, SNAPSHOT_PATTERN)[0]


def without_times(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of the computation, not of the machine."""
    return {
        name: value
        for name, value in statistics.items()
        if not name.startswith(("Timing/", "Resources/", "timestamp")) and "sec" not in name
    }


if __name__ == "__main__":
    main()
