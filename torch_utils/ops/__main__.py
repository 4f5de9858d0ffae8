"""What runs the fast ops on this machine, why, and whether it computes what the plain PyTorch ops do.

python -m torch_utils.ops
"""

import sys
from collections.abc import Callable, Iterator

import torch

from torch_utils.ops import dispatch
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}

Op = Callable[[torch.Tensor, torch.Tensor, str], torch.Tensor]  # x, b, impl -> y


def main() -> int:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if len(devices) == 1:
        print("cuda: PyTorch sees no GPU")
    all_right = True
    for device in devices:
        status = dispatch.readiness(device)
        print(f"{device}: {'kernels' if status.ready else 'plain PyTorch ops'}, {status.reason}")
        if not status.ready:
            print(f"  {status.advice or 'nothing can be done about it'}")
            continue
        for name, dtype, errors in self_test(device):
            passes = max(errors) <= TOLERANCES[dtype]
            all_right &= passes
            shown = ", ".join(f"{error:.1e}" for error in errors)
            print(f"  {'ok  ' if passes else 'WRONG'} {name:<16} {str(dtype).removeprefix('torch.'):<9} errors {shown}")
    print("Errors are relative, of the result and its first and second derivatives, against float64 plain PyTorch.")
    return 0 if all_right else 1


def self_test(device: str) -> Iterator[tuple[str, torch.dtype, list[float]]]:
    """Every op in every precision: name, dtype, relative errors."""
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if device == "cuda" else [])]
    for dtype in dtypes:
        for name, op in ops(device).items():
            yield name, dtype, errors_of(op, device, dtype)


def ops(device: str) -> dict[str, Op]:
    short = setup_filter([1, 3, 3, 1], device=device)
    long = setup_filter(torch.hann_window(14, periodic=False)[1:-1], device=device)  # 12 taps
    return {
        "bias_act": lambda x, b, impl: bias_act(x, b, act="lrelu", clamp=1.5, impl=impl),
        "upfirdn2d up": lambda x, b, impl: upfirdn2d(x, short, up=2, padding=2, impl=impl),
        "upfirdn2d down": lambda x, b, impl: upfirdn2d(x, long, down=2, padding=5, impl=impl),
        "filtered_lrelu": lambda x, b, impl: filtered_lrelu(
            x, long, long, b, up=2, down=2, padding=10, clamp=1.5, impl=impl
        ),
    }


def errors_of(op: Op, device: str, dtype: torch.dtype) -> list[float]:
    gen = torch.Generator().manual_seed(0)
    x = torch.randn([2, 19, 23, 17], generator=gen).to(device, dtype)
    b = torch.randn([19], generator=gen).to(device, dtype)
    actual = derivatives(op, x, b, "cuda")
    expected = derivatives(op, x.double(), b.double(), dispatch.REFERENCE)
    return [float((a.double() - e).norm() / e.norm()) for a, e in zip(actual, expected, strict=True)]


def derivatives(op: Op, x: torch.Tensor, b: torch.Tensor, impl: str) -> list[torch.Tensor]:
    """The result, its gradient with respect to x, and the gradient of a product with that."""
    x, b = x.clone().requires_grad_(True), b.clone()
    y = op(x, b, impl)
    weight = torch.linspace(-1, 1, y.numel(), device=y.device).reshape(y.shape).to(y.dtype).requires_grad_(True)
    (first,) = torch.autograd.grad(y, x, weight, create_graph=True)
    probe = torch.linspace(1, -1, x.numel(), device=x.device).reshape(x.shape).to(x.dtype)
    (second,) = torch.autograd.grad(first, weight, probe)
    return [y.detach(), first.detach(), second]


if __name__ == "__main__":
    sys.exit(main())
