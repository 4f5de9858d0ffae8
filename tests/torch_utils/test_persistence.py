"""Snapshots are data: they come back as they went, and run nothing."""

import copy
import io
import os
import pickle

import numpy as np
import pytest
import torch

import legacy
import training
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
    assert torch.equal(G.eval()(z, None, noise_mode="const"), twin.eval()(z, None, noise_mode="const"))


def test_a_network_comes_back_in_its_manner():
    """`.training`, gradients and attributes that were added were dropped."""
    G = networks_stylegan2.Generator(**SMALL)
    G.mapping.requires_grad_(False)
    G.note, G.synthesis.b4.scores = "mine", [1, {"a": 2.5}]
    G.direction = torch.arange(3)
    twin = pickle.loads(pickle.dumps(G))
    assert twin.training and twin.note == "mine" and twin.synthesis.b4.scores == [1, {"a": 2.5}]
    assert torch.equal(twin.direction, torch.arange(3))
    for (name, a), (_, b) in zip(G.named_parameters(), twin.named_parameters(), strict=True):
        assert a.requires_grad == b.requires_grad == (not name.startswith("mapping.")), name
    quiet = through_pickle(G.eval().requires_grad_(False))
    assert not quiet.training and not any(p.requires_grad for p in quiet.parameters())


def test_what_could_not_be_read_again_is_refused_when_it_is_written():
    """After surgery `dump` succeeded and `load` failed."""
    changed = networks_stylegan2.Generator(**SMALL)
    changed.synthesis.b16.torgb = torch.nn.Identity()
    with pytest.raises(UserError, match=r"Generator: synthesis\.b16\.torgb\.affine\.bias was \[4\] .* and is gone now"):
        pickle.dumps(changed)
    grown = networks_stylegan2.Generator(**SMALL)
    grown.extra = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"extra\.bias was not there when it was built"):
        pickle.dumps(grown)

    class Unmarked(networks_stylegan2.Generator):
        pass

    with pytest.raises(UserError, match=r"Unmarked: is not marked with persistence\.persistent_class"):
        pickle.dumps(Unmarked(**SMALL))
    thing = networks_stylegan2.Generator(**SMALL)
    thing.file = object()
    with pytest.raises(UserError, match="attributes of Generator: file is a object, which is no plain data"):
        pickle.dumps(thing)


@persistence.persistent_class
class Own:
    """A class of a user's program."""

    def __init__(self, size):
        self.size = size
        self.table = torch.zeros(size)


@persistence.persistent_class
class OwnGenerator(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(width, width)


def test_classes_of_a_program_come_back_whole():
    """Their `__dict__` was lost."""
    thing = Own(3)
    thing.table[1], thing.seen = 5, ["a"]
    twin = pickle.loads(pickle.dumps(thing))
    assert twin.table.tolist() == [0, 5, 0] and twin.seen == ["a"] and twin.init_kwargs.size == 3


def test_a_snapshot_may_hold_networks_of_the_program_that_reads_it(tmp_path):
    """A modified network of the user's own was refused; keys of others were dropped."""
    contents = {
        "G": None,
        "D": None,
        "G_ema": OwnGenerator(4),
        "training_set_kwargs": None,
        "augment_pipe": None,
        "epoch": 7,
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(contents))
    with open(tmp_path / "a.pkl", "rb") as file:
        read = legacy.load_network_pkl(file)
    assert read["epoch"] == 7 and read["G_ema"].training
    assert torch.equal(read["G_ema"].layer.weight, contents["G_ema"].layer.weight)


def test_is_persistent_takes_classes_and_objects():
    assert persistence.is_persistent(networks_stylegan2.Generator) and persistence.is_persistent(Own(1))
    assert not persistence.is_persistent(torch.nn.Linear) and not persistence.is_persistent(3)


def test_arguments_have_names_in_parts_too():
    G = networks_stylegan2.Generator(**SMALL, mapping_kwargs={"num_layers": 2})
    assert G.init_kwargs.z_dim == 8 and G.init_kwargs.mapping_kwargs.num_layers == 2 and G.init_args == ()
    assert G.synthesis.init_kwargs.img_resolution == 16 and G.synthesis.b8.conv0.init_kwargs.up == 2
    G3 = networks_stylegan3.Generator(**SMALL)
    assert G3.synthesis.input.init_kwargs.w_dim == 8


@pytest.mark.parametrize(
    "manner",
    [
        {"attributes": {"forward": 1}},
        {"attributes": {"synthesis.b4.forward": 1}},
        {"attributes": {"_init_kwargs": {}}},
        {"attributes": {"z_dim": 5}},
        {"attributes": {"nothing.x": 5}},
        {"attributes": {"x": object()}},
        {"attributes": [1]},
        {"trainable": ["nothing"]},
        {"trainable": [3]},
        {"trainable": "all"},
    ],
)
def test_a_file_changes_nothing_that_the_class_knows(manner):
    meta = networks_stylegan2.Generator(**SMALL).eval().requires_grad_(False).__reduce_ex__(4)[1][0]
    assert not {"training", "trainable", "attributes"} & meta.keys()
    state = {name: packed.tensor for name, packed in meta["state"].items()}
    with pytest.raises(UserError):
        persistence._reconstruct_persistent_obj({**meta, "state": state, **manner})


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
    [
        "os.system",
        "training.networks_stylegan2.SynthesisLayer",
        "training.sources.source.np",
        "torch.nn.Linear",
        "Generator",
    ],
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


def test_a_class_that_moved_is_read_under_the_name_that_files_have(monkeypatch, tmp_path):
    """Files outlive the layout of folders: the class is found where it lives now, and writes the old name again."""
    (tmp_path / "moved_networks.py").write_text(
        "from torch_utils.persistence import persistent_class\n"
        "@persistent_class\n"
        "class Thing:\n"
        "    def __init__(self, size):\n"
        "        self.size = size\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(training.STORED_CLASSES, "training.once_there.Thing", "moved_networks")
    meta = {"type": "class", "version": 7, "class_name": "training.once_there.Thing", "init_kwargs": {"size": 3}}
    thing = persistence._reconstruct_persistent_obj(meta | {"state": {}})
    assert type(thing).__module__ == "moved_networks" and thing.size == 3
    assert b"training.once_there.Thing" in pickle.dumps(thing) and b"moved_networks" not in pickle.dumps(thing)


def test_every_class_that_files_may_name_is_there():
    shared = "training.networks_stylegan3.Discriminator"  # it has that of StyleGAN2
    for name, place in training.STORED_CLASSES.items():
        if name == shared:
            continue
        cls = persistence.find_class(name)
        assert (cls.__module__, persistence.class_path(cls)) == (place, name)
