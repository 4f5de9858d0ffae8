"""Detectors: every public name consumed, a literal second implementation, resizing, weights that are wrong."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d, linear, max_pool2d

from dnnlib.downloads import _Request
from dnnlib.errors import UserError
from metrics import detectors, inception_v3, metric_main, tiny_detector, vgg16
from tests.helpers.official import official

# The public state dict's convolutions in their order: name, channels out, kernel (h, w), stride, padding (h, w).
STEM = [
    ("Conv2d_1a_3x3", 32, (3, 3), 2, (0, 0)),
    ("Conv2d_2a_3x3", 32, (3, 3), 1, (0, 0)),
    ("Conv2d_2b_3x3", 64, (3, 3), 1, (1, 1)),
    ("Conv2d_3b_1x1", 80, (1, 1), 1, (0, 0)),
    ("Conv2d_4a_3x3", 192, (3, 3), 1, (0, 0)),
]


class Literal:
    """Inception-v3 straight from its description, on a state dict: loops, dictionaries, the formula of the batch norm."""

    def __init__(self, state):
        self.state, self.used = state, set()

    def take(self, name):
        self.used.add(name)
        return self.state[name].double()

    def unit(self, x, name, stride=1, padding=(0, 0)):
        x = conv2d(x, self.take(f"{name}.conv.weight"), stride=stride, padding=padding)
        mean, var, weight, bias = (
            self.take(f"{name}.bn.{part}")[:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 0.001).sqrt() * weight + bias).clamp(min=0)

    def mean_pool(self, x):
        """Each pixel: the mean over those of its 3x3 neighbours that exist."""
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        height, width = x.shape[2:]
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                to_y, to_x = slice(max(-dy, 0), height - max(dy, 0)), slice(max(-dx, 0), width - max(dx, 0))
                from_y, from_x = slice(max(dy, 0), height - max(-dy, 0)), slice(max(dx, 0), width - max(-dx, 0))
                total[:, :, to_y, to_x] += x[:, :, from_y, from_x]
                count[:, :, to_y, to_x] += 1
        return total / count

    def chain(self, x, block, *steps):
        """steps: a name and its padding, or a name, its padding and its stride."""
        for name, padding, *stride in steps:
            x = self.unit(x, f"{block}.{name}", stride[0] if stride else 1, padding)
        return x

    def __call__(self, x):
        none, one = (0, 0), (1, 1)
        for index, (name, _, _, stride, padding) in enumerate(STEM):
            x = self.unit(x, name, stride, padding)
            if index in (2, 4):
                x = max_pool2d(x, 3, stride=2)
        for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = torch.cat(
                [
                    self.chain(x, block, ("branch1x1", none)),
                    self.chain(x, block, ("branch5x5_1", none), ("branch5x5_2", (2, 2))),
                    self.chain(x, block, ("branch3x3dbl_1", none), ("branch3x3dbl_2", one), ("branch3x3dbl_3", one)),
                    self.chain(self.mean_pool(x), block, ("branch_pool", none)),
                ],
                dim=1,
            )
        double = [("branch3x3dbl_1", none), ("branch3x3dbl_2", one), ("branch3x3dbl_3", none, 2)]
        x = torch.cat(
            [
                self.chain(x, "Mixed_6a", ("branch3x3", none, 2)),
                self.chain(x, "Mixed_6a", *double),
                max_pool2d(x, 3, stride=2),
            ],
            dim=1,
        )
        row, column = (0, 3), (3, 0)
        for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            double = [f"branch7x7dbl_{step}" for step in range(1, 6)]
            x = torch.cat(
                [
                    self.chain(x, block, ("branch1x1", none)),
                    self.chain(x, block, ("branch7x7_1", none), ("branch7x7_2", row), ("branch7x7_3", column)),
                    self.chain(x, block, *zip(double, (none, column, row, column, row), strict=True)),
                    self.chain(self.mean_pool(x), block, ("branch_pool", none)),
                ],
                dim=1,
            )
        long = [("branch7x7x3_1", none), ("branch7x7x3_2", row), ("branch7x7x3_3", column), ("branch7x7x3_4", none, 2)]
        x = torch.cat(
            [
                self.chain(x, "Mixed_7a", ("branch3x3_1", none), ("branch3x3_2", none, 2)),
                self.chain(x, "Mixed_7a", *long),
                max_pool2d(x, 3, stride=2),
            ],
            dim=1,
        )
        row, column = (0, 1), (1, 0)
        for block in ("Mixed_7b", "Mixed_7c"):
            single = self.chain(x, block, ("branch3x3_1", none))
            double = self.chain(x, block, ("branch3x3dbl_1", none), ("branch3x3dbl_2", one))
            pooled = self.mean_pool(x) if block == "Mixed_7b" else max_pool2d(x, 3, stride=1, padding=1)
            x = torch.cat(
                [
                    self.chain(x, block, ("branch1x1", none)),
                    self.chain(single, block, ("branch3x3_2a", row)),
                    self.chain(single, block, ("branch3x3_2b", column)),
                    self.chain(double, block, ("branch3x3dbl_3a", row)),
                    self.chain(double, block, ("branch3x3dbl_3b", column)),
                    self.chain(pooled, block, ("branch_pool", none)),
                ],
                dim=1,
            )
        return x.mean(dim=[2, 3])


@pytest.fixture(scope="module")
def inception_state():
    """Random weights of a size that keeps features alive through 94 layers."""
    gen = torch.Generator().manual_seed(0)
    state = {}
    for name, value in inception_v3.InceptionV3().state_dict().items():
        if name.endswith("conv.weight"):
            state[name] = torch.randn(value.shape, generator=gen) * (2 / value[0].numel()) ** 0.5
        elif name.endswith("running_var") or name.endswith("bn.weight"):
            state[name] = 0.5 + torch.rand(value.shape, generator=gen)
        elif name.endswith("num_batches_tracked"):
            state[name] = value
        else:
            state[name] = 0.1 * torch.randn(value.shape, generator=gen)
    return state


def test_inception_equals_a_literal_implementation(inception_state):
    x = torch.randn([1, 3, 299, 299], generator=torch.Generator().manual_seed(1))
    literal = Literal(inception_state)
    with torch.no_grad():
        expected = literal(x.double())
        network = detectors.build_inception(dict(inception_state)).eval()
        actual = network(x)
        logits = network.logits(actual)
    assert actual.shape == (1, 2048) and float(expected.std()) > 1e-3
    torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(
        logits, linear(actual, literal.take("fc.weight").float(), literal.take("fc.bias").float())
    )
    unused = {name for name in inception_state if not name.endswith("num_batches_tracked")} - literal.used
    assert not unused


def test_the_layout_of_the_public_state_dict():
    state = inception_v3.InceptionV3().state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert sum(name.endswith("conv.weight") for name in shapes) == 94
    for (name, c_out, kernel, _, _), c_in in zip(STEM, (3, 32, 32, 64, 80), strict=True):
        assert shapes[f"{name}.conv.weight"] == (c_out, c_in, *kernel)
    assert shapes["Mixed_6e.branch7x7dbl_5.conv.weight"] == (192, 192, 1, 7)
    assert shapes["Mixed_7c.branch_pool.conv.weight"] == (192, 2048, 1, 1)
    assert shapes["fc.weight"] == (1008, 2048)


def test_other_translations_of_the_graph_are_read_by_their_order(inception_state):
    """As in TorchScript translations: names of their own, `beta` for the shift, no scale."""
    foreign, number = {}, 0
    for name, value in inception_state.items():
        if name.endswith("conv.weight"):
            number += 1
            foreign[f"layers.conv_{number}.weight"] = value
        elif name.endswith(("bn.bias", "running_mean", "running_var")):
            last = {"bias": "beta", "running_mean": "mean", "running_var": "var"}[name.rsplit(".", 1)[-1]]
            foreign[f"layers.conv_{number}.{last}"] = value
        elif name.startswith("fc."):
            foreign[name.replace("fc", "output")] = value
    state = {
        name: torch.ones_like(value) if name.endswith("bn.weight") else value for name, value in inception_state.items()
    }
    x = torch.randn([1, 3, 299, 299], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            detectors.build_inception(foreign).eval()(x), detectors.build_inception(dict(state)).eval()(x)
        )


def test_official_pickles_are_read_without_running_them(tmp_path, inception_state):
    """As the official code writes modules: a call with a dict, the tensors in the attributes of nested objects."""
    root = official({})
    for name, value in inception_state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            module = module.meta["state"]["_modules"].setdefault(part, official({}))
        module.meta["state"]["_buffers" if "running" in last or "num" in last else "_parameters"][last] = value
    path = tmp_path / "detector.pkl"
    path.write_bytes(pickle.dumps(root))
    detector = detectors.open_detector("inception", weights=str(path))
    x = torch.randint(256, [1, 3, 30, 30], dtype=torch.uint8)
    expected = detectors.assemble("inception", dict(inception_state), "", "tf", "cpu").features(x)
    torch.testing.assert_close(detector.features(x), expected)


def test_vgg16_equals_a_literal_implementation():
    torch.manual_seed(0)
    network = vgg16.VGG16().eval()
    state = network.state_dict()
    assert list(state)[:2] == ["features.0.weight", "features.0.bias"] and "classifier.6.bias" in state
    assert len(state) == 32 and state["features.28.weight"].shape == (512, 512, 3, 3)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        y, index = x, 0
        for _, depth in vgg16.PLAN:
            for _ in range(depth):
                y = conv2d(y, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1).clamp(
                    min=0
                )
                index += 2
            y, index = max_pool2d(y, 2), index + 1
        y = y.flatten(1)
        for index in (0, 3):
            y = linear(y, state[f"classifier.{index}.weight"], state[f"classifier.{index}.bias"]).clamp(min=0)
        torch.testing.assert_close(network(x), y, rtol=1e-4, atol=1e-5)


def test_squared_distances_of_lpips_vectors_are_lpips():
    torch.manual_seed(0)
    lpips = vgg16.LPIPS(vgg16.VGG16().eval())
    for weights in lpips.lins:
        weights.data.uniform_(0, 1)
    a, b = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        actual = (lpips(a) - lpips(b)).square().sum(dim=1)
        expected = torch.zeros(2)
        for x, y, weights in zip(lpips.network.stages(a), lpips.network.stages(b), lpips.lins, strict=True):
            unit_x, unit_y = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
            expected += ((unit_x - unit_y).square() * weights[:, None, None]).sum(dim=1).mean(dim=[1, 2])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_resizing_as_tensorflow():
    x = torch.rand(1, 3, 5, 7) * 255
    y = detectors.resize_tf(x, 8)
    for row, column in ((0, 0), (3, 5), (7, 7), (1, 6)):
        at_y, at_x = row * 5 / 8, column * 7 / 8
        y0, x0 = int(at_y), int(at_x)
        y1, x1, dy, dx = min(y0 + 1, 4), min(x0 + 1, 6), at_y - y0, at_x - x0
        top, bottom = (x[0, :, r, x0] * (1 - dx) + x[0, :, r, x1] * dx for r in (y0, y1))
        torch.testing.assert_close(y[0, :, row, column], top * (1 - dy) + bottom * dy, rtol=1e-5, atol=1e-3)
    square = x[:, :, :, :5]
    assert torch.equal(detectors.resize_tf(square, 5), square)


@pytest.mark.parametrize("size", [(40, 60), (12, 9)])
def test_resizing_as_clean_fid(size):
    """Pillow's bicubic on floating-point pixels, clipped; without that it was off by up to 45 grey levels."""
    pixels = np.random.default_rng(0).uniform(0, 255, [*size]).astype(np.float32)
    expected = np.asarray(Image.fromarray(pixels, mode="F").resize((19, 19), Image.Resampling.BICUBIC)).clip(0, 255)
    actual = detectors.resize_clean(torch.from_numpy(pixels)[None, None].expand(-1, 3, -1, -1), 19)
    np.testing.assert_allclose(actual[0, 1].numpy(), expected, atol=2e-2)


def test_pixels_that_clean_fid_makes():
    """Stored from clean-fid 0.1.35; unclipped, the worst pixel was -14.0 where 0 is right."""
    noise = [[172, 192, 195, 211], [36, 216, 58, 39], [88, 25, 9, 208], [254, 192, 216, 29]]
    expected = [
        [180.3241, 184.6060, 192.3935, 201.4276, 214.5023, 223.5199],
        [97.7314, 161.2837, 211.2610, 145.2136, 121.6021, 119.2430],
        [21.9414, 116.6246, 183.4740, 61.2076, 38.0400, 52.0977],
        [72.6626, 57.7145, 30.0152, 0.0, 102.2132, 208.8342],
        [183.9916, 142.0208, 99.2761, 112.7565, 120.4568, 123.6680],
        [255.0, 234.2090, 205.0666, 237.9873, 118.7407, 3.2503],
    ]
    image = torch.tensor(noise, dtype=torch.uint8).expand(1, 3, -1, -1)
    actual = detectors.resize_clean(detectors.to_rgb(image), 6)
    torch.testing.assert_close(actual, torch.tensor(expected).expand(1, 3, -1, -1), rtol=0, atol=8e-3)


def test_gray_and_transparent_images_are_seen_as_rgb():
    gray = torch.full([1, 1, 4, 4], 100, dtype=torch.uint8)
    assert torch.equal(detectors.to_rgb(gray), torch.full([1, 3, 4, 4], 100.0))
    clear = torch.tensor([10, 20, 30, 0], dtype=torch.uint8).reshape(1, 4, 1, 1)
    half = torch.tensor([0, 100, 200, 51], dtype=torch.uint8).reshape(1, 4, 1, 1)
    assert detectors.to_rgb(clear).flatten().tolist() == [255, 255, 255]
    torch.testing.assert_close(detectors.to_rgb(half).flatten(), torch.tensor([204.0, 224, 244]))
    with pytest.raises(ValueError, match="uint8"):
        detectors.to_rgb(gray.float())


def test_tiny_is_small_and_tells_images_apart():
    detector = detectors.open_detector("tiny")
    assert tiny_detector.WEIGHTS.stat().st_size < 2e6 and 128 <= detector.num_features <= 256
    flat = torch.full([1, 3, 64, 48], 200, dtype=torch.uint8)
    noise = torch.randint(256, [1, 3, 32, 32], generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    a, b = detector.features(flat), detector.features(noise)
    assert a.shape == b.shape == (1, detector.num_features)
    assert float((a - b).norm()) > 0.5 * float(a.norm())
    torch.testing.assert_close(detector.features_of([flat[0], noise[0]]), torch.cat([a, b]), rtol=1e-4, atol=1e-4)


def test_auto_is_tiny_where_no_weights_are():
    assert detectors.open_detector().name == "tiny"
    assert detectors.Detectors()("inception").name == detectors.Detectors()("vgg16").name == "tiny"


def test_weights_from_a_file(tmp_path, inception_state):
    path = tmp_path / "weights.pth"
    torch.save(inception_state, path)
    detector = detectors.open_detector("auto", weights=str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (detector.name, detector.weights_hash) == ("inception", digest[:16])
    assert detector.title == f"inception:{digest[:8]}"  # random weights printed a plain fid1k_full
    assert f"not the published weights that are known here, which numbers say: [inception:{digest[:8]}]" in (
        detectors.describe(detector)
    )
    assert metric_main.tag_of(detector, "inception") == f"[inception:{digest[:8]}]"
    images = torch.randint(256, [2, 3, 32, 32], dtype=torch.uint8)
    features = detector.features(images)
    assert features.shape == (2, 2048)
    probs = detector.probabilities(features)
    assert probs.shape == (2, 1008) and torch.allclose(probs.sum(dim=1), torch.ones(2))
    clean = detectors.open_detector("inception", weights=str(path), resize="clean")
    assert clean.key != detector.key


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file"),
        ("garbage", "no file of weights"),
        ("code", "no file of weights"),
        ("other", "is missing"),
        ("list", "no weights of one network"),
    ],
)
def test_weights_that_are_none(tmp_path, kind, words, inception_state):
    path = tmp_path / "weights.pth"
    if kind == "garbage":
        path.write_bytes(b"not a network" * 100)
    elif kind == "code":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "other":
        state = dict(inception_state)
        del state["Mixed_5b.branch1x1.conv.weight"]
        torch.save(state, path)
    elif kind == "list":
        torch.save([1, 2], path)
    with pytest.raises(UserError, match=words) as error:
        detectors.open_detector("inception", weights=str(path))
    assert "\n" not in str(error.value)


def test_published_weights_are_checked(monkeypatch, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({}, path)
    public = detectors.PublicWeights(str(path), "00000000", 1)
    monkeypatch.setitem(detectors.PUBLIC, "inception", public)
    with pytest.raises(UserError, match=r"sha256 begins with .*--detector-weights=FILE.*--detector=tiny"):
        detectors.open_detector("inception")


def test_weights_with_the_published_hash_need_no_mark(tmp_path, monkeypatch, inception_state):
    path = tmp_path / "weights.pth"
    torch.save(inception_state, path)
    start = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(detectors.PUBLIC, "inception", detectors.PublicWeights("http://localhost:1/x.pth", start, 1))
    detector = detectors.open_detector("inception", weights=str(path))
    assert detector.title == "inception" and metric_main.tag_of(detector, "inception") == ""
    assert detectors.open_tiny("cpu").title == "tiny"


def test_the_files_of_other_programs_are_known_by_their_hash():
    """As those who pin them have it. The official TorchScript was named `inception:f58cb9b6`, like foreign weights."""
    torch_fidelity = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
    official = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    torchvision = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
    for digest in (torch_fidelity, official):
        assert detectors.is_published("inception", digest) and detectors.is_published("inception", digest[:16])
        assert not detectors.is_published("vgg16", digest)
    assert detectors.is_published("vgg16", torchvision[:16]) and not detectors.is_published("inception", "")
    assert not detectors.is_published("inception", official[:8] + 8 * "0")


def test_unknown_names():
    with pytest.raises(UserError, match="--detector=resnet: not known; choose from auto, inception"):
        detectors.open_detector("resnet")
    with pytest.raises(UserError, match="--resize=nearest"):
        detectors.open_detector("tiny", resize="nearest")


def test_a_download_with_another_hash_is_not_kept(monkeypatch, tmp_path):
    """It lay in the cache, where `auto` took it for Inception from then on."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    public = detectors.PublicWeights("http://localhost:1/weights.pth", "00000000", 1)
    monkeypatch.setitem(detectors.PUBLIC, "inception", public)
    path = tmp_path / "downloads" / _Request(public.url).file_name
    path.parent.mkdir()
    path.write_bytes(b"another file")
    assert detectors.choose("inception", None) == "inception"
    with pytest.raises(UserError, match=f"{public.url}: its sha256 begins with"):
        detectors.open_detector("inception")
    assert not path.exists() and detectors.choose("inception", None) == "tiny"


def test_the_hash_of_lpips_is_of_both_files(tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "build_vgg16", lambda state: vgg16.VGG16())
    torch.save({}, tmp_path / "vgg16.pth")
    hashes = []
    for value in (0.5, 0.6):
        lins = {
            f"lin{index}.model.1.weight": torch.full([1, c, 1, 1], value) for index, (c, _) in enumerate(vgg16.PLAN)
        }
        torch.save(lins, tmp_path / "lins.pth")
        hashes.append(detectors.open_lpips(str(tmp_path / "vgg16.pth"), str(tmp_path / "lins.pth")).weights_hash)
    assert hashes[0] != hashes[1] and hashes[0][:8] == hashes[1][:8]


def test_torchscript_is_read_without_running_it(tmp_path, inception_state):
    network = inception_v3.InceptionV3().eval()
    network.load_state_dict(inception_state)
    path = tmp_path / "inception.pt"
    torch.jit.trace(network, torch.zeros(1, 3, 75, 75), check_trace=False).save(path)
    detector = detectors.open_detector("inception", weights=str(path))
    x = torch.randint(256, [1, 3, 30, 30], dtype=torch.uint8)
    expected = detectors.assemble("inception", dict(inception_state), "", "tf", "cpu").features(x)
    torch.testing.assert_close(detector.features(x), expected)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"--detector-weights: .*inception\.pt: is no file of weights"):
        detectors.open_detector("inception", weights=str(path))
