"""How fast the ops run: kernels against plain PyTorch, and against the time to copy what goes in and out.

python bench/kernels.py --device=cpu
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import copy_rate, describe_machine, median_seconds, save_result
from torch_utils import misc
from torch_utils.ops import dispatch
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

HEADINGS = (
    f"{'op':<28} {'dtype':<9} {'layout':<14} {'forward':>9} {'x copy':>7} {'plain':>9} {'ratio':>6} {'backward':>9} "
    f"{'plain':>9} {'ratio':>6}"
)
LAYOUTS = {"nchw": torch.contiguous_format, "channels-last": torch.channels_last}


class Case(NamedTuple):
    name: str
    shape: tuple[int, int, int, int]
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x, bias -> y


def cases(device: torch.device) -> list[Case]:
    short = setup_filter([1, 3, 3, 1], device=device)
    long, longer = (setup_filter(torch.hann_window(n + 2, periodic=False)[1:-1], device=device) for n in (12, 24))
    radial = torch.outer(long, long) + 1e-3  # of two dimensions, and no product
    large, image = (8, 256, 84, 84), (16, 128, 64, 64)
    return [
        Case("filtered_lrelu up 2 down 2", large, lambda x, b: filtered_lrelu(x, long, long, b, 2, 2, 9, clamp=256)),
        Case("filtered_lrelu up 4 down 2", (8, 256, 36, 36), lambda x, b: filtered_lrelu(x, longer, long, b, 4, 2, 9, clamp=256)),
        Case("filtered_lrelu radial", (8, 256, 52, 52), lambda x, b: filtered_lrelu(x, long, radial, b, 2, 2, 9, clamp=256)),
        Case("upfirdn2d 4x4", image, lambda x, b: upfirdn2d(x, short, padding=[2, 1, 2, 1])),
        Case("upfirdn2d 4x4 up 2", image, lambda x, b: upfirdn2d(x, short, up=2, padding=[2, 1, 2, 1])),
        Case("upfirdn2d 4x4 down 2", image, lambda x, b: upfirdn2d(x, short, down=2, padding=1)),
        Case("bias_act lrelu", image, lambda x, b: bias_act(x, b, act="lrelu", clamp=256)),
    ]  # fmt: skip


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--repeats", default=7, help="Measurements, of which the median counts", show_default=True)
def main(device: str, repeats: int) -> None:
    """Median milliseconds forward and backward, and how many times that of a copy of input and output the forward takes."""
    misc.keep_freed_memory()
    place = torch.device(device)
    dtypes = [torch.float32, torch.float16 if device == "cuda" else torch.bfloat16]
    rate = copy_rate(place)
    print(f"{dispatch.describe(place)}\ncopies run at {rate / 1e9:.1f} GB/s, read and written")
    print(HEADINGS)
    rows = []
    for case in cases(place):
        for dtype in dtypes:
            for layout in LAYOUTS:
                rows.append(measure(case, place, dtype, layout, repeats))
                print(line(rows[-1]))
    save_result(f"kernels_{device}", {"copy_gb_per_sec": rate / 1e9, "rows": rows, "machine": describe_machine()})


def measure(case: Case, device: torch.device, dtype: torch.dtype, layout: str, repeats: int) -> dict[str, Any]:
    x = torch.randn(case.shape, device=device).to(dtype).contiguous(memory_format=LAYOUTS[layout]).requires_grad_(True)
    b = torch.randn([case.shape[1]], device=device).to(dtype).requires_grad_(True)
    y = case.run(x, b)
    x_copy, y_copy = torch.empty_like(x, requires_grad=False), torch.empty_like(y, requires_grad=False)
    dy = torch.randn_like(y)
    row: dict[str, Any] = {"op": case.name, "dtype": str(dtype).removeprefix("torch."), "layout": layout}
    row["copy_ms"] = 1e3 * median_seconds(lambda: (x_copy.copy_(x.detach()), y_copy.copy_(y.detach())), device, repeats)
    for impl, prefix in (("cuda", ""), (dispatch.REFERENCE, "plain_")):
        with dispatch.forced(impl):
            row[f"{prefix}forward_ms"] = 1e3 * median_seconds(lambda: infer(case, x, b), device, repeats)
            both = 1e3 * median_seconds(lambda: torch.autograd.grad(case.run(x, b), x, dy), device, repeats)
            row[f"{prefix}backward_ms"] = both - row[f"{prefix}forward_ms"]
    return row


@torch.no_grad()
def infer(case: Case, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return case.run(x, b)


def line(row: dict[str, Any]) -> str:
    forward, backward = row["forward_ms"], row["backward_ms"]
    plain_forward, plain_backward = row["plain_forward_ms"], row["plain_backward_ms"]
    return (
        f"{row['op']:<28} {row['dtype']:<9} {row['layout']:<14} {forward:>9.2f} {forward / row['copy_ms']:>7.2f} "
        f"{plain_forward:>9.2f} {plain_forward / forward:>6.1f} {backward:>9.2f} {plain_backward:>9.2f} "
        f"{plain_backward / backward:>6.1f}"
    )


if __name__ == "__main__":
    main()
