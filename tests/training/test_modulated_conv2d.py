"""Modulated convolutions of both generators against golden numbers."""

import pytest
import torch

from tests.helpers.golden import golden_cases, relative_error
from training import networks_stylegan2, networks_stylegan3

OPS = {
    "sg2.modulated_conv2d": networks_stylegan2.modulated_conv2d,
    "sg3.modulated_conv2d": networks_stylegan3.modulated_conv2d,
}
FILE = "ops_conv2d_resample"
GOLDEN = [case for op in OPS for case in golden_cases(FILE, op)]


def gradients(case, dtype):
    """y, d* and d2_* as tests/golden/README.md names them."""
    tensors = {k: v if v is None or k == "resample_filter" else v.to(dtype) for k, v in case.inputs().items()}
    expected = case.outputs()
    wanted = [name for name, value in tensors.items() if value is not None and f"d{name}" in expected]
    leaves = {name: tensors[name].requires_grad_() for name in [*wanted, "dy"]}
    y = OPS[case.op](**{k: v for k, v in tensors.items() if not k.startswith("d")}, **case.args)
    grads = torch.autograd.grad((y * leaves["dy"]).sum(), [leaves[name] for name in wanted], create_graph=True)
    first = dict(zip(wanted, grads, strict=True))
    terms = [(grad * tensors[f"dd{name}"]).sum() for name, grad in first.items() if f"dd{name}" in tensors]
    second = torch.autograd.grad(sum(terms), list(leaves.values()), allow_unused=True)
    actual = {"y": y, **{f"d{name}": grad for name, grad in first.items()}}
    for (name, leaf), grad in zip(leaves.items(), second, strict=True):
        actual[f"d2_{name}"] = torch.zeros_like(leaf) if grad is None else grad
    return actual


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case, dtype):
    expected = {name: value for name, value in case.outputs().items() if value is not None}
    tensors = case.inputs()
    if tensors["x"].dtype == torch.float16:  # its pre-normalisation; a value and no gradients
        y = OPS[case.op](**{k: v for k, v in tensors.items() if not k.startswith("d")}, **case.args)
        assert y.dtype == torch.float16
        assert (y.double() - expected["y"].double()).abs().max() < 1e-2 * expected["y"].abs().max()
        return
    actual = gradients(case, dtype)
    for name, value in expected.items():
        scale = 1e-6 if dtype == torch.float64 else 1e-5
        assert relative_error(actual[name], value) < scale, name
