"""Official pickles: the tensors and arguments come out, and nothing else happens."""

import io
import json
import pickle

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from tests.helpers.golden import SHARED
from tests.helpers.official import Written, official
from torch_utils import official_pickles

PICKLES = SHARED / "golden" / "pickles"


def read(obj) -> object:
    return official_pickles.read(io.BytesIO(obj if isinstance(obj, bytes) else pickle.dumps(obj)))


def test_nested_modules():
    inner = official(
        {"_buffers": {"mean": torch.arange(3.0), "none": None, "scratch": torch.ones(1)}, "gain": np.float64(2)}
    )
    inner.meta["state"]["_non_persistent_buffers_set"] = {"scratch"}
    weight = torch.nn.Parameter(torch.randn(2, 5)[:, ::2])
    outer = official({"_parameters": {"weight": weight}, "_modules": {"inner": inner}, "size": np.array([4, 8])}, "Net")
    outer.meta["state"]["_init_kwargs"] = {"z_dim": 16}
    module = read({"G": outer})["G"]
    assert (module.class_name, module.init_kwargs) == ("Net", {"z_dim": 16})
    state = module.state_dict()
    assert list(state) == ["weight", "inner.mean"]
    assert torch.equal(state["weight"], weight.detach()) and not state["weight"].requires_grad
    assert module.attributes["size"].tolist() == [4, 8]
    assert module.children["inner"].attributes["gain"] == 2.0


@pytest.mark.parametrize("path", sorted(PICKLES.glob("*.pkl")), ids=lambda path: path.stem)
def test_golden_pickles(path):
    with open(path, "rb") as file:
        contents = official_pickles.read(file)
    with np.load(path.with_suffix(".npz")) as golden:
        cases = {case["id"]: case for case in json.loads(str(golden["meta"]))["cases"]}
        outputs = cases["G_ema"]["outputs"]
        expected = {name.removeprefix("sd/"): golden[key] for name, key in outputs.items() if name.startswith("sd/")}
    state = contents["G_ema"].state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name].numpy(), value)
    assert contents["G_ema"].class_name == "Generator" and contents["D"].class_name == "Discriminator"


class Malicious:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (Malicious(), "asks for builtins.print"),
        (official({"_modules": {"x": Malicious()}}), "asks for builtins.print"),
        (official({}, version=7), "version 7"),
        (Written({"type": "class"}), "not in the format"),
        (official({"x": np.array([object()], dtype=object)}), "instead of numbers"),
        (b"no pickle", "at byte 0"),
        (pickle.dumps(official({}))[:-20], "ends too early"),
    ],
)
def test_refused(thing, words, capsys):
    with pytest.raises(UserError, match=words):
        read(thing)
    assert capsys.readouterr().out == ""
