"""Other people's networks: the official pickles give the images they gave, by our reader and by anybody's."""

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import legacy
from dnnlib.errors import UserError
from tests.helpers import tiny
from tests.helpers.golden import GOLDEN, ROOT, SHARED
from tests.helpers.official import official
from torch_utils import official_pickles
from training import augment, networks_stylegan2, networks_stylegan3
from training.checkpoints import onnx_export
from training.checkpoints.snapshot import KEYS, is_snapshot, load_snapshot, save_snapshot
from training.sources.cascade import Cascade
from training.sources.source import GaussianSource, ImageSource

COMMITTED = sorted((GOLDEN / "pickles").glob("*.pkl"))
SHARED_ONLY = sorted(
    path for path in (SHARED / "golden" / "pickles").glob("*.pkl") if path.name not in {path.name for path in COMMITTED}
)


def plain_pickle(file):
    return pickle.load(file)


def same_numbers(contents: dict, path: Path) -> None:
    with np.load(path.with_suffix(".npz")) as golden:
        for case in json.loads(str(golden["meta"]))["cases"]:
            network = contents[case["id"]]
            given = {
                name: None if key is None else torch.from_numpy(golden[key]) for name, key in case["inputs"].items()
            }
            expected = {name: golden[key] for name, key in case["outputs"].items()}
            if "z" in given:
                ws = network.mapping(given["z"], given["c"])
                np.testing.assert_allclose(ws, expected["ws"], rtol=0, atol=1e-4)
                images = network(given["z"], given["c"], noise_mode="const", force_fp32=True)
                np.testing.assert_allclose(images, expected["img"], rtol=0, atol=1e-4)
            elif "img" in given:
                logits = network(given["img"], given["c"], force_fp32=True)
                np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4)
            else:
                assert network.p.item() == case["args"]["p"]
            state = {name.removeprefix("sd/"): value for name, value in expected.items() if name.startswith("sd/")}
            if state:
                assert state.keys() == network.state_dict().keys()
            for name, value in state.items():
                np.testing.assert_array_equal(network.state_dict()[name], value)


@pytest.mark.parametrize("read", [legacy.load_network_pkl, plain_pickle])
@pytest.mark.parametrize("path", [*COMMITTED, *SHARED_ONLY], ids=lambda path: path.stem)
def test_golden_pickles_give_the_stored_images(path, read):
    with open(path, "rb") as file:
        contents = read(file)
    same_numbers(contents, path)
    assert isinstance(contents["G_ema"], networks_stylegan2.Generator | networks_stylegan3.Generator)
    assert isinstance(contents["D"], networks_stylegan2.Discriminator)
    assert isinstance(contents["augment_pipe"], augment.AugmentPipe | None)
    assert not contents["G_ema"].training and not any(p.requires_grad for p in contents["G_ema"].parameters())


@pytest.mark.skipif(not SHARED_ONLY, reason="the full set of golden pickles (../shared) is not on this machine")
def test_the_full_set_is_tested():
    assert len(COMMITTED) + len(SHARED_ONLY) == 4


def test_an_official_pickle_has_the_keys_of_a_snapshot_and_becomes_one(tmp_path):
    with open(COMMITTED[0], "rb") as file:
        contents = legacy.load_network_pkl(file)
    assert tuple(contents) == KEYS
    assert isinstance(contents["source"], GaussianSource) and contents["source"].z_dim == contents["G_ema"].z_dim
    save_snapshot(tmp_path / "ours.pkl", contents)
    same_numbers(load_snapshot(tmp_path / "ours.pkl"), COMMITTED[0])


def written_officially(network: torch.nn.Module, class_name: str, own: dict, has_sizes: bool, **init_kwargs):
    """The network as the official code writes it: a description of every module, with its attributes."""
    attributes = {
        "_parameters": dict(network._parameters),
        "_buffers": dict(network._buffers),
        "_modules": {
            name: written_officially(child, type(child).__name__, {}, has_sizes)
            for name, child in network.named_children()
            if name != "encoder"
        },
        "_init_kwargs": init_kwargs,
        **({"in_features": 1} if has_sizes and type(network).__name__ == "FullyConnectedLayer" else {}),
        **own,
    }
    return official(attributes, class_name)


SMALL = dict(z_dim=8, c_dim=0, w_dim=8, img_resolution=16, img_channels=3)


def read_back(**networks):
    contents = {"G": None, "D": None, "training_set_kwargs": None, **networks}
    return legacy.load_network_pkl(io.BytesIO(pickle.dumps(contents)))


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize("c_dim", [0, 3])
def test_every_architecture_of_ada_with_its_own_defaults(architecture, c_dim):
    """`synthesis_kwargs` in one dict, and other values for what is not given."""
    sizes = dict(channel_base=64, channel_max=8, architecture=architecture)
    small = {**SMALL, "c_dim": c_dim}
    G = networks_stylegan2.Generator(**small, **sizes, num_fp16_res=0, conv_clamp=None)
    D = networks_stylegan2.Discriminator(c_dim, 16, 3, **sizes, num_fp16_res=0, conv_clamp=None)
    G_kwargs = {**small, "mapping_kwargs": {}, "synthesis_kwargs": sizes}
    D_kwargs = dict(c_dim=c_dim, img_resolution=16, img_channels=3, **sizes)
    contents = read_back(
        G_ema=written_officially(G, "Generator", {}, False, **G_kwargs),
        D=written_officially(D, "Discriminator", {}, False, **D_kwargs),
    )
    twin, D_twin = contents["G_ema"], contents["D"]
    assert twin.init_kwargs["num_fp16_res"] == D_twin.init_kwargs["num_fp16_res"] == 0
    assert twin.init_kwargs["conv_clamp"] is D_twin.init_kwargs["conv_clamp"] is None
    assert twin.mapping.w_avg_beta == 0.995
    z, c = torch.randn(4, 8), torch.nn.functional.one_hot(torch.arange(4) % 3, 3) if c_dim else None
    images = G.eval()(z, c, noise_mode="const")
    torch.testing.assert_close(twin(z, c, noise_mode="const"), images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(D_twin(images, c), D.eval()(images, c))


def test_stylegan3_code_keeps_its_defaults_for_stylegan2_networks():
    G = networks_stylegan2.Generator(**SMALL, channel_base=64, channel_max=8)
    twin = read_back(G_ema=written_officially(G, "Generator", {}, True, **SMALL, channel_base=64, channel_max=8))[
        "G_ema"
    ]
    assert "conv_clamp" not in twin.init_kwargs and twin.synthesis.b16.conv1.conv_clamp == 256
    assert twin.mapping.w_avg_beta == 0.998


def test_arguments_by_position():
    G = networks_stylegan2.Generator(**SMALL, channel_base=64, channel_max=8)
    written = written_officially(G, "Generator", {}, True, channel_base=64, channel_max=8)
    written.meta["state"]["_init_args"] = tuple(SMALL.values())
    assert read_back(G_ema=written)["G_ema"].init_kwargs["img_resolution"] == 16


def test_what_fits_no_class_is_refused_by_name():
    G = networks_stylegan2.Generator(**SMALL, channel_base=64, channel_max=8)
    written = written_officially(G, "Generator", {}, True, **SMALL, channel_base=64, channel_max=4)
    with pytest.raises(UserError, match=r"synthesis\.\S+ has shape .* by its arguments"):
        read_back(G_ema=written)
    with pytest.raises(UserError, match="no network of this project"):
        read_back(G_ema=official({}, "SomethingElse"))
    with pytest.raises(UserError, match="no generator G_ema"):
        read_back(G_ema=None)


def test_plain_pickle_hands_over_parts_as_data_and_never_looks_at_source_text():
    part = official({"_parameters": {"weight": torch.ones(2)}}, "SynthesisLayer")
    part.meta["module_src"] = "raise SystemExit('it ran')"
    described = pickle.loads(pickle.dumps(part))
    assert isinstance(described, official_pickles.OfficialModule)
    assert described.class_name == "SynthesisLayer"


def test_force_fp16(tmp_path):
    with open(tiny.save(tmp_path / "a.pkl", tiny.generator2(), None), "rb") as file:
        assert legacy.load_network_pkl(file, force_fp16=True)["G_ema"].init_kwargs["num_fp16_res"] == 4


# Conversion


def convert(*args) -> None:
    legacy.main.main([str(arg) for arg in args], standalone_mode=False)


def cascade() -> Cascade:
    second = tiny.generator2(seed=1, encoder={"kind": "flatten"}, c_dim=2)
    return Cascade.chain(tiny.generator2(seed=2, c_dim=3), second, torch.tensor([3, 0, 1]))


def test_the_source_is_not_overwritten(tmp_path):
    """`--format=official` left a network without its source in place of itself."""
    path = tiny.save(tmp_path / "a.pkl", tiny.generator2(), None)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"--dest=.*is --source itself"):
        convert(f"--source={path}", f"--dest={tmp_path / '.' / 'a.pkl'}", "--format=official")
    assert path.read_bytes() == before


def test_safetensors_and_back(tmp_path):
    images = torch.randint(256, [5, 3, 8, 8], dtype=torch.uint8)
    source = ImageSource("photos.zip", 5, [3, 8, 8], "abc")
    source.images = images
    snapshot = tiny.save(tmp_path / "a.pkl", cascade(), source)
    convert(f"--source={snapshot}", f"--dest={tmp_path / 'a.safetensors'}")
    convert(f"--source={tmp_path / 'a.safetensors'}", f"--dest={tmp_path / 'b.pkl'}")
    before, between, after = (load_snapshot(tmp_path / name) for name in ("a.pkl", "a.safetensors", "b.pkl"))
    z, c = torch.randn(2, tiny.Z_DIM), torch.eye(2)
    expected = before["G_ema"](z, c, noise_mode="const")
    for contents in (between, after):
        assert tuple(contents) == KEYS
        assert torch.equal(contents["G_ema"](z, c, noise_mode="const"), expected)
        assert torch.equal(contents["source"].images, images)
        assert contents["meta"] == before["meta"]
    assert is_snapshot(str(tmp_path / "a.safetensors"))


def test_safetensors_of_an_official_pickle(tmp_path):
    convert(f"--source={COMMITTED[0]}", f"--dest={tmp_path / 'a.safetensors'}")
    with open(tmp_path / "a.safetensors", "rb") as file:
        same_numbers(legacy.load_network_pkl(file), COMMITTED[0])


NETWORKS = {
    "stylegan2": lambda: tiny.generator2(c_dim=3),
    "stylegan3-t": tiny.generator3,
    "stylegan3-r": lambda: tiny.generator3(radial=True),
}


def run_onnx(data: bytes, **inputs: torch.Tensor) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


@pytest.mark.parametrize("kind", NETWORKS)
def test_onnx_of_the_whole_generator(kind):
    pytest.importorskip("onnxscript", reason='ONNX is not installed: pip install -e ".[onnx]"')
    G = NETWORKS[kind]()
    model = onnx_export.export_generator(G)
    z, c = torch.randn(5, tiny.Z_DIM), torch.eye(3)[[0, 1, 2, 0, 1]] if G.c_dim else None
    images, ws = run_onnx(model.data, z=z, **({} if c is None else {"c": c}))
    np.testing.assert_allclose(images, G(z, c, noise_mode="const"), atol=1e-4)
    np.testing.assert_allclose(ws, G.mapping(z, c), atol=1e-5)


def test_onnx_of_a_cascade_from_the_command_line(tmp_path, capsys):
    pytest.importorskip("onnxscript", reason='ONNX is not installed: pip install -e ".[onnx]"')
    G = cascade()
    convert(f"--source={tiny.save(tmp_path / 'a.pkl', G, None)}", f"--dest={tmp_path / 'a.onnx'}")
    assert capsys.readouterr().out.count("onnxruntime and PyTorch differ by") == 2
    z, c = torch.randn(4, tiny.Z_DIM), torch.eye(2)[[0, 1, 1, 0]]
    expected = G(z, c, noise_mode="const")
    images, ws = run_onnx((tmp_path / "a.onnx").read_bytes(), z=z, c=c)
    np.testing.assert_allclose(images, expected, atol=1e-4)
    for name in (
        "a.onnx",
        "a-synthesis.onnx",
    ):  # the exporter writes the paths of this machine's Python files into them
        assert str(ROOT).encode() not in (tmp_path / name).read_bytes()
    (images,) = run_onnx((tmp_path / "a-synthesis.onnx").read_bytes(), ws=torch.from_numpy(ws))
    np.testing.assert_allclose(images, expected, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-synthesis.onnx", "a.onnx", "a.pkl"]


def test_an_onnx_model_that_differs_is_refused(monkeypatch):
    pytest.importorskip("onnxscript", reason='ONNX is not installed: pip install -e ".[onnx]"')
    monkeypatch.setattr(onnx_export, "MAX_DIFFERENCE", -1.0)
    with pytest.raises(UserError, match=r"differs from PyTorch by .* at batch 1 .* nothing was written"):
        onnx_export.export(torch.nn.Linear(2, 2), ("x",), ("y",), lambda n: [torch.ones(n, 2)])


def test_nothing_is_written_where_one_of_the_models_is_refused(tmp_path, monkeypatch):
    def refuse(network):
        raise UserError("it differs")

    monkeypatch.setattr(onnx_export, "require_packages", lambda: None)
    monkeypatch.setattr(onnx_export, "export_generator", lambda network: onnx_export.OnnxModel(b"", (), (), 0.0))
    monkeypatch.setattr(onnx_export, "export_synthesis", refuse)
    snapshot = tiny.save(tmp_path / "a.pkl", tiny.generator2(), None)
    with pytest.raises(UserError, match="--dest: it differs"):
        convert(f"--source={snapshot}", f"--dest={tmp_path / 'a.onnx'}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


def test_a_missing_package_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "REQUIRED", ("no_such_package",))
    with pytest.raises(UserError, match=r'--dest: .* no_such_package: pip install -e "\.\[onnx\]"'):
        convert("--source=nowhere.pkl", f"--dest={tmp_path / 'a.onnx'}")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--source=a.pkl", "--dest=b.zip"], r"choose from \.pkl, \.safetensors, \.onnx"),
        (["--source=a.pkl", "--dest=no/such/b.pkl"], "there is no folder"),
        (["--source=a.pkl", "--dest=b.onnx", "--force-fp16=1"], "--force-fp16: ONNX files are float32"),
        (["--source=a.pkl", "--dest=b.pkl"], "--source: a.pkl: no such file"),
    ],
)
def test_wrong_options(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        convert(*args)
    assert not list(tmp_path.iterdir())


def test_as_a_program(tmp_path):
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04cos\nsystem\n(X\x04\x00\x00\x00echotR.")
    command = [sys.executable, str(ROOT / "legacy.py"), "--source=bad.pkl", "--dest=b.pkl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --source: bad.pkl: at byte 2: the file asks for os.system")
    assert done.stderr.count("\n") == 1 and not done.stdout
