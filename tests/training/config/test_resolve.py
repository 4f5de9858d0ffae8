"""Defaults, what the summary says of them, and refusals that name the flag."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from dnnlib.errors import UserError
from tests.helpers.sources import generator, save, write_images
from training.config.options import TrainingOptions
from training.config.resolve import resolve
from training.config.source_specs import ImagesSpec, NetworkSpec, NoiseSpec
from training.sources.source import GaussianSource


@pytest.fixture
def data(tmp_path):
    return str(write_images(tmp_path / "data", size=(32, 32)))


@pytest.fixture
def source(tmp_path):
    return str(write_images(tmp_path / "source", size=(20, 30), mode="RGBA"))


def options(**kwargs):
    return TrainingOptions(**{"cfg": "stylegan2", "device": "cpu", **kwargs})


def line(resolved, topic):
    return dict(resolved.summary)[topic]


@pytest.mark.parametrize(
    ("cfg", "gamma"), [("stylegan2", 0.0002 * 1024 / 32), ("stylegan3-t", 2 / 64), ("stylegan3-r", 2 / 64)]
)
def test_gamma_follows_the_resolution(data, cfg, gamma):
    assert resolve(options(cfg=cfg, data=data)).config.r1_gamma == pytest.approx(gamma)
    assert resolve(options(cfg=cfg, data=data, gamma=3.0)).config.r1_gamma == 3


def test_stylegan3_r_is_twice_as_wide(data):
    config = resolve(options(cfg="stylegan3-r", data=data, cbase=2048, cmax=64)).config
    assert (config.G_kwargs["channel_base"], config.G_kwargs["channel_max"]) == (4096, 128)
    assert (config.D_kwargs["channel_base"], config.D_kwargs["channel_max"]) == (2048, 64)
    assert config.blur_init_sigma == 10


def test_the_three_stages(data, source):
    plain, spider, one = (
        resolve(options(**kwargs)) for kwargs in ({"data": data}, {"data": data, "source": source}, {"source": source})
    )
    assert plain.config.source == one.config.source == NoiseSpec(512)
    assert "plain" in line(plain, "Stage")
    assert "stage one" in line(one, "Stage")
    assert one.config.training_set_kwargs["path"] == source
    assert spider.config.source == ImagesSpec(source)
    assert spider.config.G_kwargs["mapping_kwargs"]["encoder"]["kind"] == "flatten"
    assert "encoder flatten to z_dim 512, standardize" in line(spider, "Source")


def test_metrics_with_too_few_images_are_refused_before_a_run_begins(data):
    num = len(list(Path(data).iterdir()))
    with pytest.raises(UserError, match=f"dc1k{num}_full needs {num + 1} images at least, not {num} .data.; use dc1k"):
        resolve(options(data=data, metrics=("fid1k_full", f"dc1k{num}_full")))
    assert resolve(options(data=data, metrics=("fid1k_full", f"dc1k{num - 1}_full"))).num_images == num


def test_stage_one_needs_a_size_that_the_networks_can_do(tmp_path):
    with pytest.raises(UserError, match="30x21"):
        resolve(options(source=str(write_images(tmp_path / "odd", size=(21, 30)))))


def test_a_network_as_source(tmp_path, data):
    path = save(tmp_path / "s.pkl", generator(), GaussianSource(16))
    small = {"z_dim": 16, "w_dim": 16, "map_depth": 2}
    resolved = resolve(options(data=data, source=str(path), source_encoder="conv", resume=str(path), **small))
    assert resolved.config.source == NetworkSpec(str(path))
    assert resolved.config.G_kwargs["mapping_kwargs"]["encoder"]["img_channels"] == 3
    assert "generator of RGB images 16x16" in line(resolved, "Source")
    assert "s.pkl" in line(resolved, "Start")
    assert "D (none of its weights are there, or fit), optimizers" in line(resolved, "Start")
    with pytest.raises(UserError, match="add --data"):
        resolve(options(source=str(path)))


def test_labels_used_or_ignored(tmp_path, data):
    names = sorted(p.name for p in (tmp_path / "data").iterdir())
    labels = [[name, index % 3] for index, name in enumerate(names)]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert "ignored (--cond=1 uses them)" in line(resolve(options(data=data)), "Data")
    resolved = resolve(options(data=data, cond=True))
    assert "3 classes" in line(resolved, "Data")
    assert resolved.config.G_kwargs["c_dim"] == resolved.config.D_kwargs["c_dim"] == 3


def test_rectangles(tmp_path):
    path = str(write_images(tmp_path / "wide", size=(32, 48)))
    assert resolve(options(data=path)).config.G_kwargs["img_resolution"] == [32, 48]
    with pytest.raises(UserError, match="48x32"):
        resolve(options(cfg="stylegan3-t", data=path))


def test_the_configuration_is_json(data, source):
    config = resolve(options(data=data, source=source)).config
    assert json.loads(json.dumps(config.as_dict())) == config.as_dict()


def test_resume_changes_the_schedule(tmp_path, data):
    path = str(save(tmp_path / "s.pkl", generator(), GaussianSource(16)))
    small = {"z_dim": 16, "w_dim": 16, "map_depth": 2}
    fresh, resumed = resolve(options(data=data)).config, resolve(options(data=data, resume=path, **small)).config
    assert (fresh.ada_kimg, fresh.ema_rampup) == (500, 0.05)
    assert (resumed.ada_kimg, resumed.ema_rampup) == (100, None)
    with pytest.raises(UserError, match=r"s\.pkl: nothing that its generator has learned fits into"):
        resolve(options(data=data, resume=path))  # but strengths of noise, which are single numbers


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"data": None}, "nothing to train on"),
        ({"cfg": "stylegan4"}, "--cfg=stylegan4: choose from stylegan2"),
        ({"batch": 0}, "--batch=0"),
        ({"batch": 9, "gpus": 2}, "--batch=9 is not a multiple of --gpus=2"),
        ({"batch": 16, "batch_gpu": 5}, "--batch-gpu=5"),
        ({"batch": 6}, "--mbstd-group=4 does not divide the 6"),
        ({"gamma": -1.0}, "--gamma=-1.0 must not be negative"),
        ({"p": 1.5, "aug": "fixed"}, "--p=1.5 must be from 0 to 1"),
        ({"augpipe": "bgx"}, "--augpipe=bgx: choose from blit"),
        ({"cond": True}, "--cond"),
        ({"resume": "nowhere.pkl"}, "--resume: nowhere.pkl: no such file"),
        ({"source": "nowhere.zip"}, "--source: nowhere.zip: no such file"),
        ({"source_encoder": "flatten"}, "--source-encoder=flatten: needs --source"),
        ({"source_noise": 0.2}, "--source-noise=0.2: needs --source"),
        ({"metrics": ("fid50k_ful",)}, "did you mean fid50k_full"),
        ({"source": "SOURCE", "z_dim": 509}, "--z-dim=509"),
        ({"source": "SOURCE", "source_norm": "zca"}, "--source-norm=zca: choose from"),
        ({"source": "SOURCE", "source_encoder": "identity"}, "--source-encoder=identity"),
        ({"source": "SOURCE", "data": None, "source_noise": 0.1}, "--source-noise=0.1: needs --source=IMAGES.zip"),
    ],
)
def test_refusals(data, source, kwargs, words):
    kwargs = {"data": data, **kwargs}
    kwargs = {key: source if value == "SOURCE" else value for key, value in kwargs.items()}
    with pytest.raises(UserError) as error:
        resolve(options(**kwargs))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"hello"), "neither a folder nor a zip"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "no images"),
        (lambda path: zip_of(path, (32, 32), (16, 16)), "16"),
        (lambda path: zip_of(path, (33, 33)), "33x33"),
    ],
    ids=["missing", "empty", "no-zip", "no-images", "mixed", "odd-size"],
)
def test_bad_data(tmp_path, make, words):
    path = tmp_path / "x.zip"
    make(path)
    with pytest.raises(UserError, match=r"^--data: ") as error:
        resolve(options(data=str(path)))
    assert words in str(error.value)


def zip_of(path, *sizes):
    folder = path.with_suffix("")
    with zipfile.ZipFile(path, "w") as archive:
        for index, size in enumerate(sizes):
            write_images(folder / str(index), count=1, size=size)
            archive.write(folder / str(index) / "000.png", f"{index}.png")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(data):
    with pytest.raises(UserError, match="--device=cuda"):
        resolve(options(data=data, device="cuda"))
    assert resolve(options(data=data, device="auto")).config.device == "cpu"
