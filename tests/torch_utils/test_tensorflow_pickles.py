"""TensorFlow StyleGAN2: files made here in that format, against a literal reading of what its layers compute.

No genuine file was at hand; the layout is that of the published code's variables.
"""

import io
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

import legacy
from dnnlib.errors import UserError
from training.sources.source import GaussianSource

RNG = np.random.default_rng(0)
SIZES = {"resolution": 8, "num_channels": 3, "fmap_base": 16, "fmap_max": 8}
KERNEL = [1, 2, 4, 1]  # lopsided, so that a mirrored filter would show


@pytest.fixture(autouse=True)
def stub_module(monkeypatch):
    """Where the files say their class is."""
    module = ModuleType("dnnlib.tflib.network")

    class Network:
        def __init__(self, **state):
            self.state = state

        def __getstate__(self):
            return self.state

    Network.__module__, Network.__qualname__ = module.__name__, "Network"
    module.Network = Network
    monkeypatch.setitem(sys.modules, "dnnlib.tflib", ModuleType("dnnlib.tflib"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def stub(module, static_kwargs, variables, version=4, **components):
    return module.Network(
        version=version,
        name="net",
        static_kwargs=static_kwargs,
        components=components,
        build_module_src="raise SystemExit('it ran')",
        build_func_name="G_main",
        variables=list(variables.items()),
    )


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def generator(module, architecture="skip", label_size=0, **more):
    label = {"LabelEmbed/weight": normal(label_size, 6), "LabelEmbed/bias": normal(6)} if label_size else {}
    dense_in = 4 + (6 if label_size else 0)
    mapping = {
        **label,
        "Dense0/weight": normal(dense_in, 5),
        "Dense0/bias": normal(5),
        "Dense1/weight": normal(5, 6),
        "Dense1/bias": normal(6),
    }
    synthesis = {"4x4/Const/const": normal(1, 8, 4, 4)}

    def layer(name, width, out, kernel=3, has_noise=True):
        synthesis[f"{name}/weight"] = normal(kernel, kernel, width, out)
        synthesis[f"{name}/mod_weight"] = normal(6, width)
        synthesis[f"{name}/mod_bias"] = normal(width)
        synthesis[f"{name}/bias"] = normal(out)
        if has_noise:
            synthesis[f"{name}/noise_strength"] = np.float32(0.3)

    layer("4x4/Conv", 8, 8)
    layer("8x8/Conv0_up", 8, 4)
    layer("8x8/Conv1", 4, 4)
    if architecture == "skip":
        layer("4x4/ToRGB", 8, 3, kernel=1, has_noise=False)
    if architecture == "resnet":
        synthesis["8x8/Skip/weight"] = normal(1, 1, 8, 4)
    layer("8x8/ToRGB", 4, 3, kernel=1, has_noise=False)
    for index, side in enumerate([4, 8, 8]):
        synthesis[f"noise{index}"] = normal(1, 1, side, side)
    kwargs = {
        **SIZES, "latent_size": 4, "dlatent_size": 6, "mapping_layers": 2, "label_size": label_size,
        "architecture": architecture, "func_name": "training.networks_stylegan2.G_main", "truncation_psi": 0.5, **more,
    }  # fmt: skip
    parts = {"mapping": stub(module, {}, mapping), "synthesis": stub(module, {}, synthesis)}
    return stub(module, kwargs, {"dlatent_avg": normal(6)}, **parts), mapping, synthesis


def discriminator(module, architecture="resnet", label_size=0):
    variables = {
        "8x8/FromRGB/weight": normal(1, 1, 3, 4), "8x8/FromRGB/bias": normal(4),
        "8x8/Conv0/weight": normal(3, 3, 4, 4), "8x8/Conv0/bias": normal(4),
        "8x8/Conv1_down/weight": normal(3, 3, 4, 8), "8x8/Conv1_down/bias": normal(8),
        "4x4/Conv/weight": normal(3, 3, 9, 8), "4x4/Conv/bias": normal(8),
        "4x4/Dense0/weight": normal(128, 8), "4x4/Dense0/bias": normal(8),
        "Output/weight": normal(8, 6 if label_size else 1), "Output/bias": normal(6 if label_size else 1),
    }  # fmt: skip
    if architecture == "resnet":
        variables["8x8/Skip/weight"] = normal(1, 1, 4, 8)
    if architecture == "skip":
        variables |= {"4x4/FromRGB/weight": normal(1, 1, 3, 8), "4x4/FromRGB/bias": normal(8)}
    if label_size:
        variables |= {"LabelEmbed/weight": normal(label_size, 6), "LabelEmbed/bias": normal(6)}
    kwargs = {**SIZES, "label_size": label_size, "architecture": architecture, "resample_kernel": KERNEL}
    return stub(module, kwargs, variables), variables


def load(*networks):
    return legacy.load_network_pkl(io.BytesIO(pickle.dumps(networks)))


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize("label_size", [0, 3])
def test_every_architecture_has_a_place_for_every_variable(stub_module, architecture, label_size):
    G = generator(stub_module, architecture, label_size)[0]
    Gs = generator(stub_module, architecture, label_size)[0]
    contents = load(G, discriminator(stub_module, architecture, label_size)[0], Gs)
    z, c = torch.randn(2, 4), torch.eye(3)[:2] if label_size else None
    images = contents["G_ema"](z, c, noise_mode="const")
    assert images.shape == (2, 3, 8, 8)
    assert contents["D"](images, c).shape == (2, 1)
    assert not torch.equal(images, contents["G"](z, c, noise_mode="const"))
    assert isinstance(contents["source"], GaussianSource) and contents["augment_pipe"] is None
    assert contents["G_ema"].mapping.w_avg_beta == 0.995


def lrelu(x):
    return np.where(x > 0, x, 0.2 * x) * np.sqrt(2)


def firs(x, kernel, gain, before, after):
    """Pad `[n, H, W, C]` with zeros, then convolve with the outer product of the kernel with itself."""
    taps = np.outer(kernel, kernel) / np.sum(kernel) ** 2 * gain
    x = np.pad(x, [(0, 0), (before, after), (before, after), (0, 0)])
    height, width = x.shape[1] - len(kernel) + 1, x.shape[2] - len(kernel) + 1
    mirrored = taps[::-1, ::-1]
    y = np.zeros((x.shape[0], height, width, x.shape[3]))
    for i in range(len(kernel)):
        for j in range(len(kernel)):
            y += mirrored[i, j] * x[:, i : i + height, j : j + width]
    return y


def correlate(x, weight, stride=1):
    """`[n, H, W, in]` with `[kh, kw, in, out]`, without padding."""
    size = weight.shape[0]
    height, width = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
    y = np.zeros((x.shape[0], height, width, weight.shape[3]))
    for i in range(size):
        for j in range(size):
            y += x[:, i : i + stride * height : stride, j : j + stride * width : stride] @ weight[i, j]
    return y


def scatter_twice_as_large(x, weight):
    """The transposed convolution of stride 2: every pixel `[in]` adds its `[kh, kw, in, out]` at twice its place."""
    n, height, width, _ = x.shape
    size = weight.shape[0]
    y = np.zeros((n, 2 * (height - 1) + size, 2 * (width - 1) + size, weight.shape[3]))
    for i in range(size):
        for j in range(size):
            y[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] += x @ weight[i, j]
    return y


def modulated(variables, name, w):
    style = w @ variables[f"{name}/mod_weight"] / np.sqrt(6) + variables[f"{name}/mod_bias"] + 1  # [in]
    weight = variables[f"{name}/weight"]
    weight = weight / np.sqrt(np.prod(weight.shape[:3])) * style[:, None]
    return weight / np.sqrt(np.square(weight).sum(axis=(0, 1, 2)) + 1e-8)


def test_mapping_equals_a_literal_reading(stub_module):
    G, mapping, _ = generator(stub_module)
    z = normal(3, 4)
    x = z / np.sqrt(np.square(z).mean(axis=1, keepdims=True) + 1e-8)
    for index in range(2):
        weight, bias = mapping[f"Dense{index}/weight"], mapping[f"Dense{index}/bias"]
        x = lrelu(x @ weight * 0.01 / np.sqrt(weight.shape[0]) + bias * 0.01)
    ws = load(G, discriminator(stub_module)[0], G)["G_ema"].mapping(torch.from_numpy(z), None)
    np.testing.assert_allclose(ws[:, 0], x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "layer", "noise"), [("8x8/Conv0_up", "conv0", 1), ("8x8/Conv1", "conv1", 2)])
def test_synthesis_layers_equal_a_literal_reading(stub_module, name, layer, noise):
    G, _, variables = generator(stub_module, resample_kernel=KERNEL)
    side = 4 if layer == "conv0" else 8
    w, x = normal(6), normal(1, side, side, 8 if layer == "conv0" else 4)
    weight = modulated(variables, name, w)
    if layer == "conv0":
        y = firs(scatter_twice_as_large(x, weight[::-1, ::-1]), KERNEL, gain=4, before=1, after=1)
    else:
        y = correlate(np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), weight)
    y = y + variables[f"noise{noise}"][0, 0][None, :, :, None] * 0.3
    y = lrelu(y + variables[f"{name}/bias"])
    ours = getattr(load(G, discriminator(stub_module)[0], G)["G_ema"].synthesis.b8, layer)
    result = ours(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(w)[None], noise_mode="const")
    np.testing.assert_allclose(result.permute(0, 2, 3, 1), y, rtol=1e-3, atol=1e-4)


def test_the_discriminators_block_equals_a_literal_reading(stub_module):
    D, variables = discriminator(stub_module)
    x = normal(1, 8, 8, 4)

    def halve(x, weight, pad):
        weight = weight / np.sqrt(np.prod(weight.shape[:3]))
        return correlate(firs(x, KERNEL, 1, *pad), weight, stride=2)

    conv0 = variables["8x8/Conv0/weight"] / np.sqrt(36)
    y = lrelu(correlate(np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), conv0) + variables["8x8/Conv0/bias"])
    y = lrelu(halve(y, variables["8x8/Conv1_down/weight"], (2, 2)) + variables["8x8/Conv1_down/bias"])
    y = (y + halve(x, variables["8x8/Skip/weight"], (1, 1))) / np.sqrt(2)
    block = load(generator(stub_module)[0], D, generator(stub_module)[0])["D"].b8
    planes = torch.from_numpy(x).permute(0, 3, 1, 2)
    ours = block.conv1(block.conv0(planes), gain=0.5**0.5) + block.skip(planes, gain=0.5**0.5)
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1), y, rtol=1e-3, atol=1e-4)


def test_refused_by_name(stub_module):
    D = discriminator(stub_module)[0]
    G = generator(stub_module, fmap_decay=2.0)[0]
    with pytest.raises(UserError, match=r"fmap_decay=2\.0"):
        load(G, D, G)
    G = generator(stub_module)[0]
    G.state["version"] = 2
    with pytest.raises(UserError, match="version 2; StyleGAN2 is 4"):
        load(G, D, G)
    G = generator(stub_module)[0]
    G.state["components"]["synthesis"].state["variables"].append(("lod", np.float32(0)))
    with pytest.raises(UserError, match="variable synthesis/lod, which StyleGAN2 does not have"):
        load(G, D, G)
    G = generator(stub_module)[0]
    G.state["components"]["synthesis"].state["variables"][1] = ("4x4/Conv/weight", normal(3))
    with pytest.raises(UserError, match=r"synthesis/4x4/Conv/weight has shape \[3\]"):
        load(G, D, G)
