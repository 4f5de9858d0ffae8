"""Where the tests find golden numbers and the real images, and how far numbers are apart."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
SHARED = ROOT.parent / "shared"


def golden_cases(name: str, op: str | None = None) -> list:
    """The cases of tests/golden/<name>.npz as pytest parameters; `.arrays(kind)` gives their tensors."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        data = {key: archive[key] for key in archive.files}
    cases = json.loads(str(data["meta"]))["cases"]
    return [pytest.param(GoldenCase(case, data), id=case["id"]) for case in cases if op in (None, case["op"])]


class GoldenCase:
    """One case of a golden file (the schema is in tests/golden/README.md)."""

    def __init__(self, case: dict, data: dict):
        self.op, self.args, self.info = case["op"], case["args"], case
        self._data = data

    def inputs(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor | None]:
        return self._tensors("inputs", dtype)

    def outputs(self) -> dict[str, torch.Tensor | None]:
        return self._tensors("outputs", None)

    def _tensors(self, kind: str, dtype: torch.dtype | None) -> dict[str, torch.Tensor | None]:
        tensors = {}
        for name, key in self.info[kind].items():
            tensor = None if key is None else torch.from_numpy(np.array(self._data[key]))
            is_cast = dtype is not None and tensor is not None and tensor.is_floating_point()
            tensors[name] = tensor.to(dtype) if is_cast else tensor
        return tensors


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """||a - b|| / ||b||, and the plain norm of a where b is zero."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    scale = expected.norm().item()
    return (actual - expected).norm().item() / (scale if scale > 0 else 1.0)
