"""`metrics.compute`, and detectors of one's own."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

import metrics
from dnnlib.errors import UserError
from metrics.computing import as_pixels
from metrics.detectors import open_detector
from metrics.own_detectors import detector_of_function
from tests.helpers.tiny import write_images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return [write_images(root / name, 30, seed=seed) for seed, name in enumerate(("fakes", "reals"))]


def as_array(folder):
    return np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(folder.glob("*.png"))])


def mean_colours(x):
    return x.mean(dim=[2, 3])


def test_all_kinds_of_images_give_the_same_numbers(folders):
    fakes, reals = folders
    pixels = as_array(fakes)
    floats = torch.from_numpy(pixels) / 127.5 - 1
    kinds = [
        str(fakes), fakes, pixels, torch.from_numpy(pixels), floats, list(torch.from_numpy(pixels)),
        [(Image.fromarray(one.transpose(1, 2, 0)), 3) for one in pixels],
    ]  # fmt: skip
    numbers = [metrics.compute(kind, reals, ["fid", "kid"], "tiny") for kind in kinds]
    assert set(numbers[0]) >= {"fid[tiny]", "kid[tiny]"}
    assert all(number == pytest.approx(numbers[0], rel=1e-4) for number in numbers)
    unit = metrics.compute((floats + 1) / 2, reals, ["fid"], "tiny", value_range=(0, 1))
    assert unit["fid[tiny]"] == pytest.approx(numbers[0]["fid[tiny]"], rel=1e-4)


def test_a_function_makes_images_that_depend_on_their_number_only(folders):
    calls = []

    def sample(n, generator):
        calls.append(n)
        return torch.rand([n, 3, 8, 8], generator=generator) * 2 - 1

    first, second = (
        metrics.compute(sample, folders[1], ["fid"], "tiny", num=100, batch_size=size) for size in (7, 100)
    )
    assert first == pytest.approx(second, rel=1e-4) and sum(calls) == 200
    assert metrics.compute(sample, folders[1], ["fid"], "tiny", num=100, seed=1) != pytest.approx(first, rel=1e-3)


def test_every_short_name(folders):
    numbers = metrics.compute(*folders, ["fid", "kid", "pr", "dc", "sid", "csid", "fid2k"], "tiny")
    names = {"pr_precision[tiny]", "pr_recall[tiny]", "dc_density[tiny]", "csid[tiny]", "sid_r0.5[tiny]", "fid2k[tiny]"}
    assert names <= set(numbers)


def test_a_file_of_statistics_stands_for_the_images(folders, tmp_path):
    from metrics.reference_stats import write_reference

    tiny = open_detector("tiny")
    write_reference(tmp_path / "ref.npz", tiny.features(torch.from_numpy(as_array(folders[1]))), tiny, True)
    ours = metrics.compute(folders[0], tmp_path / "ref.npz", ["fid", "kid"], "tiny")
    assert ours == pytest.approx(metrics.compute(*folders, ["fid", "kid"], "tiny"), rel=1e-4)


def test_a_function_as_detector(folders):
    numbers = metrics.compute(*folders, ["fid"], mean_colours)
    assert list(numbers) == ["fid[mean_colours]"]
    sized = detector_of_function(lambda x: x.flatten(1), "pixels", size=4)
    assert sized.num_features == 48
    assert list(metrics.compute(*folders, ["fid"], sized)) == ["fid[pixels]"]


def test_functions_of_one_name_are_not_taken_for_each_other(folders):
    """Features were kept in the cache by the function's name."""
    numbers = [metrics.compute(*folders, "fid", lambda x, power=power: x.mean(dim=[2, 3]) ** power) for power in (1, 2)]
    assert numbers[0] != numbers[1]


def test_pictures_of_all_modes_are_what_people_see():
    gray = Image.new("L", (4, 4), 200)
    for mode in ("1", "P", "RGB", "L", "CMYK"):
        pixels = as_pixels(gray.convert(mode), (-1, 1))
        assert pixels.float().mean() == pytest.approx(255 if mode == "1" else 200, abs=60 if mode == "1" else 2), mode
    clear = Image.new("RGBA", (4, 4), (1, 2, 3, 0))
    assert as_pixels(clear, (-1, 1)).shape == (4, 4, 4)
    assert as_pixels(np.zeros([5, 6], dtype=np.uint8), (-1, 1)).shape == (1, 5, 6)


def test_reals_may_lie_in_another_range(folders):
    reals = torch.from_numpy(as_array(folders[1])) / 255
    expected = metrics.compute(*folders, "fid", "tiny")
    assert metrics.compute(folders[0], reals, "fid", "tiny", reference_range=(0, 1)) == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x, r"gives \[2, 3, 32, 32\] for 2 images"),
        (lambda x: 1 / 0, "failed on a grey image"),
        (len, "gives int"),
    ],
)
def test_what_is_no_detector(folders, function, words):
    with pytest.raises(UserError, match=words):
        metrics.compute(*folders, ["fid"], function)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (3, "int is no folder, zip, tensor, data set or function"),
        (torch.zeros(5, 2, 8, 8), r"an image has shape \[2, 8, 8\]"),
        (torch.full([5, 3, 8, 8], 255.0), "pixels reach from 255 to 255, far beyond value_range"),
        (lambda n, generator: torch.zeros(n + 1, 3, 8, 8), "gave 11 images, 10 were asked for"),
        ("nowhere.zip", "images: .*nowhere.zip"),
    ],
)
def test_what_are_no_images(folders, images, words):
    with pytest.raises(UserError, match=words):
        metrics.compute(images, folders[1], ["fid"], "tiny", num=10)
    with pytest.raises(UserError, match="say how many with num="):
        metrics.compute(lambda n, generator: None, folders[1])


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"metrics": []}, r"metrics=\[\]: give names, of fid, fid_inf"),
        ({"metrics": [3]}, "give names"),
        ({"num": 2.5}, "num=2.5: give a whole number from 1"),
        ({"num": -3}, "num=-3"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"value_range": 1}, "value_range=1: give black and white"),
        ({"value_range": (1, -1)}, "give black and white"),
        ({"reference_range": "ab"}, "reference_range='ab'"),
    ],
)
def test_other_arguments_are_refused(folders, known, words):
    with pytest.raises(UserError, match=words):
        metrics.compute(*folders, **{"metrics": ["fid"], "detector": "tiny", **known})


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (None, "the function gave NoneType, not images"),
        (torch.full([10, 3, 8, 8], torch.nan), "NaN or infinite pixels"),
        (torch.zeros([10, 3, 8, 8], dtype=torch.int32), "pixels are int32; give uint8"),
        (torch.zeros([10, 3, 0, 8]), r"an image has shape \[3, 0, 8\]"),
    ],
)
def test_what_a_function_must_not_make(folders, made, words):
    with pytest.raises(UserError, match=words):
        metrics.compute(lambda n, generator: made, folders[1], "fid", "tiny", num=10)


def test_sixteen_bits_are_eight_and_unknown_whites_are_refused():
    deep = Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16))
    assert as_pixels(deep, (-1, 1)).flatten().tolist() == [0, 1, 255]
    for mode in ("I", "F"):
        with pytest.raises(UserError, match="does not say what is white"):
            as_pixels(Image.new(mode, (2, 2)), (-1, 1))


def test_weights_beside_an_onnx_file_are_refused(tmp_path, monkeypatch):
    """They would be no part of its hash."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weights = onnx.numpy_helper.from_array(np.ones([3, 2000], dtype=np.float32), "w")
    helper, kinds = onnx.helper, onnx.TensorProto
    axes = helper.make_tensor("axes", kinds.INT64, [2], [2, 3])
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0),
        helper.make_node("MatMul", ["y", "w"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kinds.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("z", kinds.FLOAT, None)], [axes, weights],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save_model(model, str(tmp_path / "d.onnx"), save_as_external_data=True, location="d.data", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="save it as one file"):
        open_detector(str(tmp_path / "d.onnx"))


def onnx_file(path, shape=("n", 3, 8, 8), dtype="FLOAT", axes=(2, 3)):
    """Mean colours over pixels, as a file."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=kinds.FLOAT)]
    nodes += [helper.make_node("ReduceMean", ["y", "axes"], ["z"], keepdims=0)]
    axes = helper.make_tensor("axes", kinds.INT64, [len(axes)], list(axes))
    inputs = [helper.make_tensor_value_info("x", getattr(kinds, dtype), shape)]
    outputs = [helper.make_tensor_value_info("z", kinds.FLOAT, None)]
    graph = helper.make_graph(nodes, "colours", inputs, outputs, [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("dtype", ["FLOAT", "UINT8"])
def test_an_onnx_file_as_detector(folders, tmp_path, dtype):
    path = onnx_file(tmp_path / "colours.onnx", dtype=dtype)
    numbers = metrics.compute(*folders, ["fid"], str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert list(numbers) == [f"fid[colours:{digest}]"]
    pixels = torch.from_numpy(as_array(folders[0]))
    detector = open_detector(str(path))
    shrunk = torch.nn.functional.interpolate(pixels.float(), (8, 8), mode="bilinear", antialias=True)
    expected = (shrunk.round() if dtype == "UINT8" else shrunk).mean(dim=[2, 3])
    assert torch.allclose(detector.features(pixels), expected, atol=0.01)
    free = open_detector(str(onnx_file(tmp_path / "free.onnx", shape=("n", 3, "h", "w"), dtype=dtype)))
    assert torch.allclose(free.features(pixels), pixels.float().mean(dim=[2, 3]), atol=0.01)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"shape": ("n", 1, 8, 8)}, "not one batch of colour images"),
        ({"dtype": "INT64"}, r"takes tensor\(int64\); uint8 or float32"),
        ({"shape": ("n", 3, 8, "w")}, "takes images of 8xw; both sides are known"),
        ({"shape": ("n", 3, 100_000, 100_000)}, "both sides are known, 1 to 4096"),
        ({"axes": (3,)}, r"gives \[2, 3, 8\] for 2 images"),
    ],
)
def test_other_onnx_files_are_one_line(tmp_path, known, words):
    path = onnx_file(tmp_path / "other.onnx", **known)
    with pytest.raises(UserError, match=words):
        open_detector(str(path))


def test_damaged_and_missing_onnx_files(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="onnxruntime cannot open it"):
        open_detector(str(tmp_path / "bad.onnx"))
    with pytest.raises(UserError, match="cannot be read"):
        open_detector(str(tmp_path / "none.onnx"))
    with pytest.raises(UserError, match="has its own; leave it out"):
        open_detector(str(tmp_path / "bad.onnx"), weights="file.pth")
