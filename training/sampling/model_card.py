"""A trained network as a folder that can be uploaded as it is: weights, ONNX, facts, samples, and a card that says what it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, write_text
from torch_utils import persistence
from training.checkpoints import onnx_export
from training.checkpoints.snapshot import known_source, save_tensors
from training.data.grids import save_grid
from training.data.pixels import CHANNEL_NAMES
from training.layers.pyramid import image_size
from training.sampling.picture_files import Shot, same_look
from training.sampling.sampler import Look, Sampler, default_batch
from training.settings import ANY_CLASS

WEIGHTS, ONNX, SYNTHESIS, FACTS, SAMPLES, CARD = (
    "model.safetensors", "generator.onnx", "generator-synthesis.onnx", "config.json", "samples.png", "README.md",
)  # fmt: skip
COLUMNS, ROWS = 8, 4
UNSAID = "other"  # a licence that nobody has named


def write_folder(folder: Path, contents: dict[str, Any], path: str, licence: str | None) -> list[str]:
    """Write all files; what they are, a line each. path: of the snapshot, beside which its run has its metrics.

    Raises `UserError` where the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--dest={folder}: is there already, and not empty; name a new folder")
    facts = facts_of(contents, path)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, contents)
    lines = [f"{folder / WEIGHTS}: every script of this project reads it", *write_onnx(folder, contents)]
    has_samples = write_samples(folder / SAMPLES, contents, path)
    write_text(folder / FACTS, json.dumps(facts, indent=2) + "\n")
    write_text(folder / CARD, card(folder.name, facts, licence, has_samples, (folder / ONNX).exists()))
    if licence is None:
        lines.append(f"Note: say in {folder / CARD} under which licence it is, or give --license=NAME")
    return [*lines, f"{folder / CARD}: look it over before you upload the folder"]


def facts_of(contents: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What the card says, as JSON data."""
    G, meta = contents["G_ema"], contents["meta"]
    height, width = image_size(G.img_resolution)
    data = (meta.get("data") or {}).get("path") or contents["training_set_kwargs"].get("path")
    source = contents["source"].describe() if contents["source"] is not None else {}
    return {
        "cfg": meta.get("cfg"),
        "generator": persistence.class_path(type(G)),
        "width": width,
        "height": height,
        "channels": CHANNEL_NAMES.get(G.img_channels, G.img_channels),
        "z_dim": G.z_dim,
        "c_dim": G.c_dim,
        "kimg": meta.get("cur_nimg", 0) / 1000,
        "data": None if data is None else Path(str(data)).name,
        "source": {"kind": source.get("kind"), "name": Path(str(source.get("path", ""))).name or None},
        "parameters": sum(parameter.numel() for parameter in G.parameters()),
        "metrics": metrics_beside(path, meta.get("cur_nimg", 0)),
    }


def metrics_beside(path: str, cur_nimg: int) -> dict[str, float]:
    """What the run of a snapshot has measured of it, by name."""
    found: dict[str, float] = {}
    folder = Path(path).parent
    for file in sorted(folder.glob("metric-*.jsonl")) if folder.is_dir() else []:
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                result = json.loads(line)
                if abs(result["kimg"] * 1000 - cur_nimg) < 1:
                    found |= {str(name): float(value) for name, value in result["results"].items()}
            except (ValueError, KeyError, TypeError):
                continue  # of other programs
    return found


def write_onnx(folder: Path, contents: Mapping[str, Any]) -> list[str]:
    """Both models, where their packages are installed and the network can be exported; else a note why not."""
    try:
        onnx_export.require_packages()
        models = {
            ONNX: onnx_export.export_generator(contents["G_ema"]),
            SYNTHESIS: onnx_export.export_synthesis(contents["G_ema"]),
        }
    except UserError as error:
        return [f"Note: no {ONNX}: {error}"]
    for name, model in models.items():
        with atomic_write(folder / name) as file:
            file.write(model.data)
    return [
        f"{folder / name}: differs from PyTorch by {model.difference:.2g} at most" for name, model in models.items()
    ]


def write_samples(path: Path, contents: Mapping[str, Any], snapshot: str) -> bool:
    """The pictures of the first seeds; whether there are any: a network whose source does not travel has none."""
    source = known_source(contents, snapshot)
    if source.is_empty:
        return False
    import torch

    sampler = Sampler(contents["G_ema"], source, "cpu", prior=contents.get("prior"), labels=contents.get("labels"))
    look = Look(ANY_CLASS if contents["G_ema"].c_dim > 0 else None)
    shots = [Shot(seed, look, "") for seed in range(COLUMNS * ROWS)]
    batch = default_batch(contents["G_ema"].img_resolution, sampler.device)
    images = torch.cat([sampler.images([shot.seed for shot in part], look) for part in same_look(shots, batch)])
    save_grid(path, images, COLUMNS)
    return True


def card(name: str, facts: Mapping[str, Any], licence: str | None, has_samples: bool, has_onnx: bool) -> str:
    """The card, Markdown with the head that model hubs read."""
    size = f"{facts['width']}x{facts['height']}, {facts['channels']}"
    fed = (
        "noise"
        if facts["source"]["kind"] in (None, "gaussian")
        else f"{facts['source']['kind']} ({facts['source']['name']})"
    )
    rows = {
        "configuration": facts["cfg"] or "not said",
        "images": size,
        "fed by": fed,
        "classes": facts["c_dim"] or "none",
        "trained on": f"{facts['data'] or 'not said'}, {facts['kimg']:g} thousand images seen",
        "parameters": f"{facts['parameters']:,}",
        **{f"`{metric}`": f"{value:.4g}" for metric, value in facts["metrics"].items()},
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    told = ", each of a class that its seed draws" if facts["c_dim"] else ""
    seeds = f"Seeds 0 to {COLUMNS * ROWS - 1}{told}, none left out."
    picture = f"![{COLUMNS * ROWS} samples]({SAMPLES})\n\n{seeds}\n\n" if has_samples else ""
    onnx = f"`{ONNX}` makes images of z for onnxruntime, `{SYNTHESIS}` of ws. " if has_onnx else ""
    judged = "" if facts["metrics"] else "Nothing was measured of it, or not beside it.\n\n"
    return f"""---
license: {licence or UNSAID}
tags:
- gan
- image-generation
- {facts["cfg"] or "stylegan"}
---

# {name}

{picture}| | |
| --- | --- |
{table}

{judged}{onnx}`{WEIGHTS}` is read by every script of Spider StyleGAN, as data:

```bash
python gen_images.py --network={WEIGHTS} --seeds=0-7{" --class=any" if facts["c_dim"] else ""}
```

What it draws is as good and as biased as the images that it was trained on; say here where these come from, and who may use them.
"""
