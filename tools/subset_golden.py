"""Choose a spread of golden cases small enough to be part of the repository.

    python tools/subset_golden.py --source ../shared/golden --dest tests/golden --set ops_bias_act --max-mb 0.3

The schema of the files is in tests/golden/README.md.
"""

import io
import json
import sys
from collections import defaultdict
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dnnlib.cli
from dnnlib.errors import UserError

KINDS = ("label", "act", "demodulate", "fused_modconv", "up", "down")  # arguments that tell kinds of cases apart


@click.command()
@click.option("--source", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--dest", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--set", "name", help="Name of the file, without .npz.", required=True)
@click.option("--max-mb", type=click.FloatRange(min=0, min_open=True), required=True)
def main(source: Path, dest: Path, name: str, max_mb: float) -> None:
    """Write one in k cases of a golden file, of every kind at least one, with the smallest k that fits."""
    path = source / f"{name}.npz"
    if not path.is_file():
        raise UserError(f"--set: {path} does not exist")
    with np.load(path) as archive:
        data = {key: archive[key] for key in archive.files}
    cases = json.loads(str(data["meta"]))["cases"]
    for step in range(1, len(cases) + 1):
        chosen = spread(cases, step)
        content = pack(data, chosen)
        if len(content) <= max_mb * 1e6:
            break
    else:
        raise UserError(f"--max-mb: one case of each kind of {name} takes {len(content) / 1e6:.2f} MB")
    dest.mkdir(parents=True, exist_ok=True)
    (dest / f"{name}.npz").write_bytes(content)
    click.echo(f"{name}: {len(chosen)} of {len(cases)} cases, {len(content) / 1e6:.2f} MB")


def spread(cases: list[dict], step: int) -> list[dict]:
    """One in `step` of each kind, in the order given. Drawn at random: the arguments of the files vary in cycles."""
    rng = np.random.default_rng(0)
    kinds: dict[tuple, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        kinds[kind(case)].append(index)
    chosen = [rng.choice(indices, -(-len(indices) // step), replace=False) for indices in kinds.values()]
    return [cases[index] for index in sorted(np.concatenate(chosen))]


def kind(case: dict) -> tuple:
    return (case["op"], case.get("compute_dtype"), *(str(case["args"].get(name)) for name in KINDS))


def pack(data: dict[str, np.ndarray], cases: list[dict]) -> bytes:
    """A compressed .npz with these cases, what they point at and the rest of the description."""
    meta = json.loads(str(data["meta"])) | {"cases": cases}
    keys = {key for case in cases for part in ("inputs", "outputs") for key in case[part].values() if key is not None}
    arrays = {key: data[key] for key in sorted(keys)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, meta=np.array(json.dumps(meta)), **arrays)
    return buffer.getvalue()


if __name__ == "__main__":
    dnnlib.cli.run(main)
