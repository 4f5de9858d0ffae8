"""What keeping freed memory brings on a CPU: one generator step with and without, in turns.

python bench/allocator.py
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import describe_machine, save_result

STEP = """
import sys, time, torch
sys.path.insert(0, ".")
from torch_utils import misc
from training import losses, networks_stylegan2, networks_stylegan3
if {keep}:
    misc.keep_freed_memory()
torch.manual_seed(0)
module = networks_stylegan3 if {cfg!r} == "stylegan3-t" else networks_stylegan2
G = module.Generator(512, 0, 512, {res}, 3, channel_base={cbase}, channel_max={cmax}).train()
D = networks_stylegan2.Discriminator(0, {res}, 3, channel_base={cbase}, channel_max={cmax}).requires_grad_(False)
z = torch.randn({batch}, 512)
times = []
for _ in range({steps} + 1):
    start = time.perf_counter()
    losses.generator_loss(D(G(z, None), None)).mean().backward()
    times.append(time.perf_counter() - start)
print(*times[1:])
"""


@click.command()
@click.option("--cfg", type=click.Choice(["stylegan2", "stylegan3-t"]), default="stylegan3-t", show_default=True)
@click.option("--res", default=32, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--cbase", default=2048, show_default=True)
@click.option("--cmax", default=64, show_default=True)
@click.option("--steps", default=3, help="Steps in each turn", show_default=True)
@click.option("--turns", default=3, show_default=True)
def main(turns: int, **setting) -> None:
    """Median seconds of a generator step, freed memory given back against kept."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(turns):
        for keep in times:
            code = STEP.format(keep=keep, **setting)
            result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            times[keep] += map(float, result.stdout.split())
    given_back, kept = (statistics.median(times[keep]) for keep in (False, True))
    print(f"{'given back':<12} {given_back:8.3f} s/step")
    print(f"{'kept':<12} {kept:8.3f} s/step    {given_back / kept:.2f}x as fast")
    result = {"setting": setting, "given_back_sec": given_back, "kept_sec": kept, "ratio": given_back / kept}
    save_result("allocator", {**result, "machine": describe_machine()})
    print(json.dumps(describe_machine()))


if __name__ == "__main__":
    main()
