"""Snapshots in the official format, read by our reader and by programs that run the text in them as the official loaders do."""

import ast
import io
import pickle
import sys
import types

import pytest
import torch

import legacy
from dnnlib.errors import UserError
from tests.helpers import tiny
from training import augment, networks_dcgan, networks_stylegan2, networks_stylegan3
from training.checkpoints import official_export
from training.checkpoints.snapshot import load_snapshot
from training.sources.cascade import Cascade
from training.sources.source import GaussianSource, ImageSource

ADA = """
import networks_2, dnnlib, torch
class Generator(networks_2.Generator):
    def __init__(self, z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs={}, synthesis_kwargs={}):
        assert type(mapping_kwargs) is type(synthesis_kwargs) is dnnlib.EasyDict and "encoder" not in mapping_kwargs
        assert "fused_modconv_default" not in synthesis_kwargs and mapping_kwargs.w_avg_beta == 0.998
        self.given = synthesis_kwargs
        super().__init__(z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs, **synthesis_kwargs)
    def __setattr__(self, name, value):
        self.__dict__.update({name: value}) if name == "given" else super().__setattr__(name, value)
class Discriminator(networks_2.Discriminator):
    pass
"""
STYLEGAN2 = """
import networks_2
class Generator(networks_2.Generator): pass
class Discriminator(networks_2.Discriminator): pass
"""
STYLEGAN3 = "import networks_3\nclass Generator(networks_3.Generator): pass\n"
AUGMENT = "import augment_pipes\nclass AugmentPipe(augment_pipes.AugmentPipe): pass\n"
CLIENTS = {
    "stylegan3": {"networks_stylegan2.py": STYLEGAN2, "networks_stylegan3.py": STYLEGAN3, "augment.py": AUGMENT},
    "stylegan2-ada": {"networks.py": ADA, "augment.py": AUGMENT},
    "without networks": {},
}


@pytest.fixture
def load_as(tmp_path, monkeypatch):
    """`load_as(client, data)`: what `pickle.load` gives in a program with a package `training` of its own."""

    def load(client: str, data: bytes):
        for name in [name for name in sys.modules if name.split(".")[0] == "training"]:
            monkeypatch.delitem(sys.modules, name)
        for name, module in (("networks_2", networks_stylegan2), ("networks_3", networks_stylegan3)):
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, "augment_pipes", augment)
        folder = tmp_path / client / "training"
        folder.mkdir(parents=True)
        for name, text in {"__init__.py": "", **CLIENTS[client]}.items():
            (folder / name).write_text(text)
        monkeypatch.syspath_prepend(folder.parent)
        return Loader(io.BytesIO(data)).load()

    return load


class Loader(pickle.Unpickler):
    """Runs the text in a pickle as a module, and hands a class of it the state, as the official code does."""

    def __init__(self, file):
        super().__init__(file)
        self.modules: dict[str, types.ModuleType] = {}

    def find_class(self, module, name):
        if (module, name) == ("torch_utils.persistence", "_reconstruct_persistent_obj"):
            return self.reconstruct
        return super().find_class(module, name)

    def reconstruct(self, meta):
        assert meta["type"] == "class" and meta["version"] == 6
        text = meta["module_src"]
        if text not in self.modules:
            self.modules[text] = types.ModuleType(f"imported_{len(self.modules)}")
            exec(text, self.modules[text].__dict__)
        cls = self.modules[text].__dict__[meta["class_name"]]
        obj = cls.__new__(cls)
        obj.__setstate__(meta["state"])
        return obj


def contents(G, c_dim=0, **others):
    D = networks_stylegan2.Discriminator(c_dim=c_dim, img_resolution=16, img_channels=3, channel_base=64, channel_max=8)
    pipe = augment.AugmentPipe(xflip=1, scale=0.5)
    pipe.p.fill_(0.25)
    return {"G": G, "D": D.eval().requires_grad_(False), "G_ema": G, "source": GaussianSource(G.z_dim),
            "augment_pipe": pipe.eval(), "training_set_kwargs": {}, "meta": {}, **others}  # fmt: skip


def perturbed(network):
    """With noise, biases and a mean w that matter."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("bias", "noise_strength", "w_avg")):
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return network


def exported(given) -> bytes:
    file = io.BytesIO()
    legacy.save_official_pkl(file, given)
    return file.getvalue()


def generator2(c_dim=0, encoder=None, architecture="skip"):
    G = networks_stylegan2.Generator(
        tiny.Z_DIM, c_dim, 16, 16, 3, mapping_kwargs={"num_layers": 2} | ({} if encoder is None else {"encoder": encoder}),
        channel_base=256, channel_max=16, architecture=architecture,
    )  # fmt: skip
    return perturbed(G).eval().requires_grad_(False)


GENERATORS = {
    "stylegan2": generator2,
    "resnet": lambda: generator2(c_dim=3, architecture="resnet"),
    "orig": lambda: generator2(architecture="orig"),
    "stylegan3-t": lambda: perturbed(tiny.generator3()),
    "stylegan3-r": lambda: perturbed(tiny.generator3(radial=True)),
}


def looks(G, **kwargs):
    z = torch.randn([3, G.z_dim], generator=torch.Generator().manual_seed(1))
    c = torch.eye(max(G.c_dim, 3))[:3, : G.c_dim]
    return G(z, c, truncation_psi=0.7, truncation_cutoff=2, noise_mode="const", **kwargs)


def same_networks(read, given):
    torch.testing.assert_close(looks(read["G_ema"]), looks(given["G_ema"]), rtol=0, atol=2e-5)
    images, c = torch.randn(4, 3, 16, 16), torch.eye(4)[:4, : given["G_ema"].c_dim]
    torch.testing.assert_close(read["D"](images, c), given["D"](images, c))
    assert read["augment_pipe"].p == 0.25 and read["augment_pipe"].scale == 0.5
    assert not read["G_ema"].training and not any(p.requires_grad for p in read["G_ema"].parameters())


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("client", ["ours", "stylegan3", "stylegan2-ada"])
def test_a_program_with_networks_gets_objects_of_its_own_classes(kind, client, load_as):
    """`pickle.load` in other programs stopped at "Can't get attribute '_rebuild_tensor'"."""
    G = GENERATORS[kind]()
    given = contents(G, G.c_dim)
    data = exported(given)
    if client == "ours":
        return same_networks(legacy.load_network_pkl(io.BytesIO(data)), given)
    read = load_as(client, data)
    if client == "stylegan2-ada" and kind.startswith("stylegan3"):
        with pytest.raises(
            RuntimeError, match=r"runs only in programs with a class for it: in training\.networks_stylegan3"
        ):
            looks(read["G_ema"])
        return None
    same_networks(read, given)
    assert type(read["G_ema"]) is sys.modules[type(read["G_ema"]).__module__].Generator
    assert type(read["G_ema"]).__module__.startswith("training.networks")


@pytest.mark.parametrize("kind", ["stylegan2", "resnet", "orig"])
def test_a_program_without_networks_gets_a_generator_all_the_same(kind, load_as):
    """As PTI has none: its package `training` holds other things."""
    G = GENERATORS[kind]()
    data = exported(contents(G, G.c_dim))
    twin = load_as("without networks", data)["G_ema"]
    assert type(twin).__module__ == "imported_0"
    for network in (G, twin):
        network.requires_grad_(True)
        looks(network).square().sum().backward()
    torch.testing.assert_close(looks(twin), looks(G), rtol=0, atol=2e-5)
    gradients = {name: parameter.grad for name, parameter in G.named_parameters() if parameter.grad is not None}
    for name, parameter in twin.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4)
    z = torch.randn(100, G.z_dim)
    c = torch.eye(3)[torch.arange(100) % 3, : G.c_dim]
    torch.testing.assert_close(twin.mapping(z, c), G.mapping(z, c))
    assert looks(twin, force_fp32=True).shape == (3, 3, 16, 16)


def test_what_a_program_without_networks_cannot_run_it_says(load_as):
    read = load_as("without networks", exported(contents(generator2())))
    for name in ("D", "augment_pipe"):
        with pytest.raises(RuntimeError, match="runs only in programs with a class for it"):
            read[name](torch.zeros(1))


def test_numbers_that_ada_assumes_otherwise_are_written(load_as):
    read = load_as("stylegan2-ada", exported(contents(tiny.generator2())))
    assert read["G_ema"].given.num_fp16_res == 4 and read["G_ema"].given.conv_clamp == 256


def test_only_plain_names_and_protocol_4():
    """What a loader of 2020, on Python 3.7 and NumPy 1, resolves."""
    named = set()

    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            named.add(f"{module}.{name}")
            return super().find_class(module, name)

    given = contents(generator2())
    where = {"class_name": "training.dataset.ImageFolderDataset", "path": "a.zip", "use_labels": True}
    given["training_set_kwargs"] = {**where, "bits": 8}
    data = exported(given)
    read = Recorder(io.BytesIO(data)).load()
    assert data[:2] == b"\x80\x04"
    assert named == {
        "torch_utils.persistence._reconstruct_persistent_obj", "dnnlib.util.EasyDict", "collections.OrderedDict",
        "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes",
    }  # fmt: skip
    assert data.count(b"Networks of Spider StyleGAN (MIT licence)") == 1
    assert read["training_set_kwargs"] == where


def test_a_spider_network_becomes_a_generator_of_z(tmp_path, capsys):
    images = ImageSource("photos.zip", 5, [3, 8, 8], "abc")
    images.images = torch.randint(256, [5, 3, 8, 8], dtype=torch.uint8)
    G = generator2(encoder={"kind": "flatten"})
    snapshot = tiny.save(tmp_path / "a.pkl", G, images)
    arguments = [f"--source={snapshot}", f"--dest={tmp_path / 'b.pkl'}", "--format=official"]
    legacy.main.main(arguments, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "in the official format" in printed and "the generators take z: source and encoder" in printed
    read = load_snapshot(tmp_path / "b.pkl")
    assert isinstance(read["source"], GaussianSource) and "encoder" not in read["G_ema"].init_kwargs["mapping_kwargs"]
    assert torch.equal(looks(read["G_ema"]), looks(G))


def test_of_a_cascade_the_last_stage_is_written(load_as):
    last = generator2(encoder={"kind": "flatten"}, c_dim=2)
    given = contents(Cascade.chain(tiny.generator2(), last)) | {"G": None, "D": None, "augment_pipe": None}
    file = io.BytesIO()
    notes = legacy.save_official_pkl(file, given)
    assert len(notes) == 3
    assert notes[0].startswith("of the cascade only the last stage is written") and "there is no D" in notes[2]
    again = legacy.load_network_pkl(io.BytesIO(file.getvalue()))
    assert torch.equal(looks(again["G_ema"]), looks(last)) and again["D"] is None
    read = load_as("stylegan3", file.getvalue())
    assert isinstance(read["D"], torch.nn.Module)  # which the official loaders insist on
    torch.testing.assert_close(looks(read["G_ema"]), looks(last))


def test_what_no_official_class_can_be_is_refused(tmp_path):
    dcgan = networks_dcgan.Generator(
        z_dim=8, c_dim=0, img_resolution=16, img_channels=3, channel_base=64, channel_max=8
    )
    with pytest.raises(UserError, match=r"no class for training\.networks_dcgan\.Generator.* write \.safetensors"):
        exported(contents(tiny.generator2()) | {"G_ema": dcgan})
    wide = networks_stylegan2.Generator(
        z_dim=8, c_dim=0, w_dim=8, img_resolution=[16, 32], img_channels=3, channel_base=64
    )
    with pytest.raises(UserError, match="squares whose side is a power of two, and this one 32x16"):
        exported(contents(wide))
    snapshot = tiny.save(tmp_path / "a.pkl", dcgan, None)
    arguments = [f"--source={snapshot}", f"--dest={tmp_path / 'b.pkl'}", "--format=official"]
    with pytest.raises(UserError, match="--format=official: the official format has no class"):
        legacy.main.main(arguments, standalone_mode=False)
    with pytest.raises(UserError, match=r"--format=official: is a pickle, .* name it .*b\.pkl"):
        legacy.main.main([*arguments[:1], f"--dest={tmp_path / 'b.onnx'}", "--format=official"], standalone_mode=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


def test_the_text_that_travels_is_for_old_pythons_too():
    ast.parse(official_export.client_text(), feature_version=(3, 6))
