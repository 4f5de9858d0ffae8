"""EfficientNet-Lite0 against a slow literal twin, and against stored features of its published weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dnnlib.errors import UserError
from metrics import detectors, efficientnet
from metrics.detectors import Detectors, describe, open_detector
from tests.helpers.eyes import random_network
from tests.helpers.golden import GOLDEN

# Repeats, kernel, stride, expansion, channels in and out, as the paper's table 1 has them for B0.
TABLE = [
    (1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80), (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320),
]  # fmt: skip


def conv_by_hand(x, weight, stride, groups):
    """One output pixel after the other, from the definition of SAME: output i is centred on input i * stride."""
    kernel = weight.shape[2]
    height, width = (-(-side // stride) for side in x.shape[2:])
    before = [max((-(-side // stride) - 1) * stride + kernel - side, 0) // 2 for side in x.shape[2:]]
    padded = torch.zeros([*x.shape[:2], x.shape[2] + 2 * kernel, x.shape[3] + 2 * kernel], dtype=x.dtype)
    padded[:, :, before[0] : before[0] + x.shape[2], before[1] : before[1] + x.shape[3]] = x
    out = torch.empty([len(x), len(weight), height, width], dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            patch = padded[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            out[:, :, i, j] = F.conv2d(patch, weight, groups=groups)[:, :, 0, 0]
    return out


def twin(state, x):
    """The network as the table says it, from a state dict: features and levels."""
    state = {name: value.double() for name, value in state.items()}

    def norm(x, name):
        mean, var, gain, shift = (
            state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * gain + shift

    def clip(x):
        return x.clamp(0, 6)

    x = clip(norm(conv_by_hand(x.double(), state["_conv_stem.weight"], 2, 1), "_bn0"))
    number, levels = 0, []
    for repeats, kernel, first_stride, expansion, first_in, out in TABLE:
        for index in range(repeats):
            name, stride = f"_blocks.{number}", first_stride if index == 0 else 1
            y = x
            if expansion > 1:
                y = clip(norm(conv_by_hand(y, state[f"{name}._expand_conv.weight"], 1, 1), f"{name}._bn0"))
            weight = state[f"{name}._depthwise_conv.weight"]
            assert weight.shape == ((first_in if index == 0 else out) * expansion, 1, kernel, kernel)
            y = clip(norm(conv_by_hand(y, weight, stride, y.shape[1]), f"{name}._bn1"))
            y = norm(conv_by_hand(y, state[f"{name}._project_conv.weight"], 1, 1), f"{name}._bn2")
            x = x + y if stride == 1 and x.shape == y.shape else y
            number += 1
        levels.append(x)
    x = clip(norm(conv_by_hand(x, state["_conv_head.weight"], 1, 1), "_bn1"))
    return x.mean(dim=[2, 3]), [levels[index] for index in (1, 2, 4, 6)]


@pytest.mark.parametrize("size", [(32, 32), (37, 50)])
@pytest.mark.parametrize("is_fused", [False, True])
def test_it_is_its_literal_twin(size, is_fused):
    network = random_network()
    x = torch.randn([2, 3, *size], generator=torch.Generator().manual_seed(1))
    features, levels = twin(network.state_dict(), x)
    network = network.fuse() if is_fused else network
    assert torch.allclose(network(x).double(), features, rtol=1e-3, atol=1e-4 * float(features.abs().max()))
    for actual, expected in zip(network.levels(x), levels, strict=True):
        assert torch.allclose(actual.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert tuple(level.shape[1] for level in levels) == efficientnet.LEVEL_CHANNELS == (24, 40, 112, 320)


def sixteen_images():
    """uint8 images of all channel counts and several sizes, coarse and fine, from a fixed stream."""
    rng = np.random.RandomState(0)
    images = []
    for index in range(16):
        channels, side, block = (3, 3, 1, 4)[index % 4], (32, 64, 48)[index % 3], (1, 4, 8, 16)[index // 4]
        coarse = rng.randint(0, 256, [channels, side // block, side // block + index % 2], dtype=np.uint8)
        images.append(torch.from_numpy(coarse.repeat(block, axis=1).repeat(block, axis=2)))
    return images


@pytest.fixture
def with_package(monkeypatch):
    """The installed package, which conftest hides."""
    hidden = str(Path(__file__).parent.parent / "helpers" / "without_features")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != hidden])
    monkeypatch.delitem(sys.modules, efficientnet.PACKAGE, raising=False)
    if efficientnet.packaged_weights() is None:
        pytest.skip(f"the weights of EfficientNet-Lite0 are not installed: {efficientnet.EXTRA}")


def test_features_of_the_published_weights_are_the_stored_ones(with_package):
    detector = open_detector("efficientnet")
    assert detector.is_published and detector.title == "efficientnet" and detector.num_features == 1280
    with np.load(GOLDEN / "efficientnet.npz") as archive:
        expected, classes = (torch.from_numpy(archive[name]) for name in ("features", "classes"))
    features = detector.features_of(sixteen_images())
    assert (features - expected).abs().max() < 1e-3 * expected.abs().max()
    assert torch.equal(detector.probabilities(features).argmax(dim=1), classes)


def test_auto_takes_it_where_inception_is_not_at_hand(with_package):
    assert open_detector("auto").name == "efficientnet"
    assert Detectors("auto")("vgg16").name == "efficientnet"
    assert "its numbers are no FIDs (they compare with each other" in describe(open_detector("auto"))
    assert efficientnet.PACKAGE not in sys.modules  # its weights are read, its code is not run


def test_without_the_package_it_names_the_extra():
    assert open_detector("auto").name == "tiny"
    with pytest.raises(
        UserError, match=r'^--detector=efficientnet: .* is not installed: pip install -e "\.\[features\]"'
    ):
        open_detector("efficientnet")


def test_other_weights_are_named_by_their_hash(tmp_path):
    path = tmp_path / "own.pth"
    torch.save(random_network().state_dict(), path)
    detector = open_detector("efficientnet", str(path))
    assert detector.title == f"efficientnet:{detector.weights_hash[:8]}" and detector.has_classes
    torch.save({"_conv_stem.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"^--detector-weights: these are no weights of EfficientNet-Lite0|_blocks"):
        open_detector("efficientnet", str(path))


def test_damaged_weights_of_the_package_are_refused(tmp_path, monkeypatch):
    path = tmp_path / efficientnet.FILE
    torch.save(random_network().state_dict(), path)
    monkeypatch.setattr(efficientnet, "packaged_weights", lambda: path)
    with pytest.raises(UserError, match=r"its sha256 begins with .*, not with 579344248a93e230"):
        detectors.open_detector("efficientnet")


def test_squared_distances_of_its_vectors_are_of_unit_features():
    distance = efficientnet.PerceptualDistance(random_network())
    a, b = (torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    actual = (distance(a) - distance(b)).square().sum(dim=1)
    expected = torch.zeros(2)
    for x, y in zip(distance.network.levels(a), distance.network.levels(b), strict=True):
        cosine = torch.nn.functional.cosine_similarity(x, y, dim=1)
        expected += (2 - 2 * cosine).mean(dim=[1, 2])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    small = torch.nn.functional.interpolate(a, scale_factor=0.25, mode="area")
    assert torch.equal(distance(small), distance(F.interpolate(small, (42, 64), mode="bilinear")))


@pytest.mark.parametrize(
    ("name", "is_cached", "is_packaged", "opened"),
    [
        ("auto", True, True, "lpips"),
        ("auto", False, True, "efficientnet-levels"),
        ("auto", False, False, "lpips"),
        ("efficientnet", True, True, "efficientnet-levels"),
        ("inception", False, True, "lpips"),
    ],
)
def test_what_measures_path_lengths(monkeypatch, name, is_cached, is_packaged, opened):
    monkeypatch.setattr(detectors, "cached_path", lambda url: "there" if is_cached else None)
    monkeypatch.setattr(efficientnet, "packaged_weights", lambda: Path("file") if is_packaged else None)
    assert Detectors(name)._perceptual() == opened
    assert Detectors(name, lpips_weights="own.pth")._perceptual() == ("lpips" if name != "efficientnet" else opened)
