"""Snapshots are data: they come back as they went, and run nothing."""

import copy
import io
import os
import pickle

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from torch_utils import persistence
from training import networks_stylegan2, networks_stylegan3

SMALL = dict(z_dim=8, c_dim=0, w_dim=8, img_resolution=16, img_channels=3, channel_base=64, channel_max=8)


def through_pickle(obj):
    return persistence.load(io.BytesIO(pickle.dumps(obj)))


@pytest.mark.parametrize("module", [networks_stylegan2, networks_stylegan3])
def test_a_network_comes_back_equal(module):
    G = module.Generator(**SMALL)
    twin = through_pickle({"G": G})["G"]
    assert type(twin) is type(G)
    assert twin.init_kwargs == G.init_kwargs
    for (name, a), (other, b) in zip(G.state_dict().items(), twin.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    z = torch.randn(2, 8)
    assert torch.equal(G.eval()(z, None, noise_mode="const"), twin(z, None, noise_mode="const"))
    assert not twin.training
    assert not any(p.requires_grad for p in twin.parameters())


def test_the_file_names_two_functions_and_nothing_else():
    named = set()

    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            named.add((module, name))
            return super().find_class(module, name)

    Recorder(io.BytesIO(pickle.dumps({"G": networks_stylegan2.Generator(**SMALL)}))).load()
    module = "torch_utils.persistence"
    assert named == {(module, "_reconstruct_persistent_obj"), (module, "_rebuild_tensor")}


def test_plain_pickle_reads_it_too():
    G = networks_stylegan2.Generator(**SMALL)
    assert torch.equal(pickle.loads(pickle.dumps(G)).synthesis.b4.const, G.synthesis.b4.const)


def test_positional_and_keyword_arguments_are_remembered_by_name():
    G = networks_stylegan2.Generator(8, 0, 8, 16, 3, channel_base=np.int64(64), channel_max=8)
    assert G.init_kwargs == SMALL
    assert type(G.init_kwargs["channel_base"]) is int


def test_deepcopy_is_independent():
    G = networks_stylegan2.Generator(**SMALL)
    twin = copy.deepcopy(G)
    with torch.no_grad():
        twin.synthesis.b4.const.zero_()
    assert G.synthesis.b4.const.abs().sum() > 0
    assert twin.init_kwargs == G.init_kwargs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_tensors_of_all_kinds(dtype, shape):
    tensor = torch.ones(shape).to(dtype)
    back = persistence.load(io.BytesIO(pickle.dumps(persistence._PackedTensor(tensor))))
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


class Shell:
    def __reduce__(self):
        return os.system, ("touch should-not-exist",)


@pytest.mark.parametrize("payload", [Shell(), {"G_ema": Shell()}, np.complex64, torch.nn.Linear(2, 2)])
def test_anything_else_is_refused_by_name(payload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"which a snapshot has no business with"):
        through_pickle(payload)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["os.system", "training.networks_stylegan2.SynthesisLayer", "training.source.np", "torch.nn.Linear", "Generator"],
)
def test_classes_off_the_list_are_refused_by_name(name):
    meta = {"type": "class", "version": persistence.FORMAT_VERSION, "class_name": name, "init_kwargs": {}, "state": {}}
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        persistence._reconstruct_persistent_obj(meta)


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"\x80\x04", pickle.dumps({"a": 1})[:-3]])
def test_damaged_files_are_one_clear_error(data):
    with pytest.raises(UserError, match=r"^at byte \d+: "):
        persistence.load(io.BytesIO(data))


def test_arguments_must_be_data():
    @persistence.persistent_class
    class Odd:
        def __init__(self, thing):
            self.thing = thing

        def state_dict(self):
            return {}

    with pytest.raises(UserError, match="arguments of Odd: thing is a object, which is no plain data"):
        pickle.dumps(Odd(object()))
