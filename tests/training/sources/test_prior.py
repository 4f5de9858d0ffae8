"""The data instance prior: conditions, what they are drawn from, training with them, and what travels."""

import dataclasses
import io
import json
import pickle

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import gen_images
from dnnlib.errors import UserError
from metrics.detectors import open_detector
from tests.helpers.golden import relative_error
from tests.helpers.runs import assert_same_run, resume, run_inside, snapshot_of, train
from tests.helpers.steps import run_on, step_of
from tests.helpers.tiny import SIDE, Z_DIM, generator2, generator3, save, write_images
from torch_utils import persistence, seeding
from training.checkpoints import snapshot
from training.config.options import TrainingOptions
from training.config.resolve import resolve
from training.data.grids import LABEL_HEIGHT, LABEL_WIDTH
from training.data.image_tensors import to_uint8
from training.run.loader import BatchLoader
from training.sampling.generated_images import open_generated
from training.sampling.sampler import Look, Sampler, open_sampler
from training.sampling.walks import StageWalk
from training.sources import prior_features
from training.sources.cascade import Cascade
from training.sources.prior import InstancePrior, principal_axes
from training.sources.source import GaussianSource

PRIOR = ["--prior=features", "--prior-detector=tiny", "--prior-dim=6"]


def gen(seed=0):
    return seeding.generator("test", seed)


def make_prior(features, sampling="memory", dim=None, norm="unit"):
    d = features.shape[1]
    prior = InstancePrior("tiny", None, "abc", d, dim or d, norm, sampling, len(features))
    prior.fit(features, seed=0)
    return prior


def clusters(num=600, d=12, k=3, seed=0):
    """Three tight clusters with shares 1/2, 1/3, 1/6: features `[num, d]` and the number of each's cluster."""
    which = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(num // 6)
    centres = 5 * torch.randn([k, d], generator=gen(seed))
    return centres[which] + 0.1 * torch.randn([num, d], generator=gen(seed + 1)), which


# Conditions.


def test_conditions_are_centred_and_of_unit_norm():
    features = torch.randn([500, 10], generator=gen()) * 3 + 100  # a mean that would drown the rest
    c = make_prior(features).conditions(features)
    assert torch.allclose(c.norm(dim=1), torch.ones(500), atol=1e-5)
    assert c.mean(dim=0).norm() < 0.1
    plain = make_prior(features, norm="none").conditions(features)
    assert torch.allclose(plain, features - features.mean(dim=0), atol=1e-4)


def test_axes_are_those_of_largest_variance():
    scale = torch.tensor([1.0, 9.0, 0.1, 4.0])
    rotation = torch.linalg.qr(torch.randn([4, 4], generator=gen(), dtype=torch.float64))[0]
    features = (torch.randn([4000, 4], generator=gen(1)) * scale).double() @ rotation.t()
    axes = principal_axes(features, 2)
    assert torch.allclose(axes.t() @ axes, torch.eye(2, dtype=torch.float64), atol=1e-9)
    cosines = (axes * rotation[:, [1, 3]]).sum(dim=0).abs()
    assert (cosines > 0.99).all()
    assert (axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("norm", ["unit", "none"])
def test_the_way_between_two_conditions(norm):
    prior = make_prior(clusters()[0], norm=norm)
    a, b = prior.centres[0], prior.centres[3]
    way = prior.between(a, b, 5)
    assert torch.allclose(way[0], a, atol=1e-6) and torch.allclose(way[-1], b, atol=1e-6)
    assert norm == "none" or torch.allclose(way.norm(dim=1), torch.ones(5), atol=1e-5)
    assert (way[1:] @ (b - a) > way[:-1] @ (b - a)).all()


# What they are drawn from.


def test_the_memory_gives_each_of_its_conditions_alike():
    features, _ = clusters(60)
    prior = make_prior(features)
    drawn = prior.draw(30_000, gen())
    distance, index = torch.cdist(drawn, prior.conditions(features)).min(dim=1)
    assert distance.max() < 1e-3
    assert abs(index.bincount(minlength=60) - 500).max() < 5 * 500**0.5  # binomial, five standard deviations


@pytest.mark.parametrize("sampling", ["kmeans", "gmm"])
@pytest.mark.parametrize("norm", ["unit", "none"])
def test_mixtures_follow_the_clusters_and_are_new(sampling, norm):
    features, which = clusters()
    prior = make_prior(features, sampling, norm=norm)
    known = prior.conditions(features)
    drawn = prior.draw(6000, gen())
    distance, index = torch.cdist(drawn, known).min(dim=1)
    shares = which[index].bincount(minlength=3) / 6000
    assert (shares - torch.tensor([3, 2, 1]) / 6).abs().max() < 0.03
    assert distance.min() > 0
    within = torch.cdist(known, known).fill_diagonal_(9).min(dim=1).values.max()
    assert distance.quantile(0.99) < 3 * within  # as near to the data as the data are to themselves
    if norm == "unit":
        assert torch.allclose(drawn.norm(dim=1), torch.ones(6000), atol=1e-5)


def test_what_travels_is_bounded():
    features = torch.randn([5000, 64], generator=gen())
    for sampling in ("memory", "kmeans"):
        state = make_prior(features, sampling).state_dict()
        assert sum(tensor.nbytes for tensor in state.values()) < 1 << 20
    assert len(make_prior(features).centres) == 1000


@pytest.mark.parametrize(("sampling", "dim"), [("memory", None), ("kmeans", 4), ("gmm", 4)])
def test_a_prior_travels(sampling, dim):
    features, _ = clusters()
    prior = make_prior(features, sampling, dim)
    twin = persistence.load(io.BytesIO(pickle.dumps(prior)))
    assert torch.equal(twin.draw(7, gen()), prior.draw(7, gen()))
    assert torch.equal(twin.conditions(features), prior.conditions(features))
    assert torch.equal(twin.of_seed(3), prior.of_seed(3)) and not torch.equal(twin.of_seed(3), prior.of_seed(4))


def test_a_damaged_prior_is_refused():
    prior = make_prior(clusters()[0], "kmeans", 4)
    good = prior.state_dict()
    for broken in (
        {"mean": good["mean"][:-1]},
        {"centres": good["centres"] * float("nan")},
        {"shares": -good["shares"]},
        {"spreads": good["spreads"].double()},
        {"more": good["mean"]},
    ):
        with pytest.raises(UserError):
            InstancePrior(**prior.init_kwargs).load_state_dict({**good, **broken})
    with pytest.raises(UserError):
        InstancePrior(**prior.init_kwargs).load_state_dict({name: good[name] for name in ("mean", "centres")})
    with pytest.raises(persistence.SnapshotError):
        persistence.instantiate("training.prior.InstancePrior", {**prior.init_kwargs, "sampling": "x"}, good)


# Training.


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return {
        "data": write_images(root / "data", 20),
        "source": write_images(root / "source", 20, seed=1),
        "few": write_images(root / "few", 5),
    }


def options(folders, **kwargs):
    named = {"data": str(folders["data"]), "prior": "features", "prior_detector": "tiny", "prior_dim": 6, **kwargs}
    small = dict(cbase=128, cmax=16, z_dim=16, w_dim=16, map_depth=2, aug="noaug", batch=8, device="cpu")
    return TrainingOptions(**{**small, "cfg": "stylegan2", **named})


def test_d_sees_the_features_of_each_image_itself(folders):
    """Mirrored copies have their own."""
    step, dataset = step_of(resolve(options(folders, mirror=True)).config)
    assert (step.state.G.c_dim, step.state.D.c_dim, dataset.label_dim) == (6, 6, 6)
    loader = BatchLoader(dataset, 40, num_workers=1)
    images, labels = next(loader)
    loader.close()
    expected = step.state.conditions.prior.conditions(open_detector("tiny").features(images))
    assert torch.allclose(labels, expected, atol=1e-4)
    assert len(labels.unique(dim=0)) == 40


def test_generated_samples_have_features_of_training_images(folders):
    step, _ = step_of(resolve(options(folders, source=str(folders["source"]))).config)
    (batch,) = step.batches.rounds(
        [phase.name for phase in step.phases], torch.zeros([8, 3, 16, 16], dtype=torch.uint8), torch.zeros(8, 6)
    )
    table = step.state.conditions.rows
    for c in batch.labels.values():
        assert torch.cdist(c, table).min(dim=1).values.max() < 1e-3
    assert len(torch.cat(list(batch.labels.values())).unique(dim=0)) > 5


def test_two_rounds_are_one(folders):
    config = dataclasses.replace(resolve(options(folders, source=str(folders["source"]), fp32=True)).config)
    assert relative_error(*(run_on(*step_of(config, batch_gpu)) for batch_gpu in (8, 4))) < 1e-5


@pytest.fixture(scope="module")
def run_dir(folders, tmp_path_factory):
    args = [f"--data={folders['data']}", *PRIOR, "--prior-sampling=kmeans", "--metrics=fid1k", "--snap=1"]
    run_dir, output = train(tmp_path_factory.mktemp("run"), *args)
    assert "256 features of tiny" in output and "6 principal axes, unit norm" in output
    return run_dir


def test_gaussian_goes_on_to_the_bit(folders, tmp_path, run_dir, monkeypatch):
    args = [f"--data={folders['data']}", *PRIOR, "--prior-sampling=kmeans", "--metrics=fid1k", "--snap=1"]
    parts, _ = train(tmp_path / "parts", *args, "--kimg=0.016")
    monkeypatch.setattr(InstancePrior, "fit", None)  # what was found at the start is taken over
    resume(parts, "--kimg=0.032")
    assert_same_run(run_dir, parts)


def test_spider_goes_on_to_the_bit(folders, tmp_path):
    args = [f"--data={folders['data']}", f"--source={folders['source']}", *PRIOR, "--mirror=1"]
    whole, _ = train(tmp_path / "whole", *args, "--kimg=0.032", cfg="stylegan3-t")
    parts, _ = train(tmp_path / "parts", *args, "--kimg=0.024", cfg="stylegan3-t")
    resume(parts, "--kimg=0.032")
    assert_same_run(whole, parts)


# Afterwards.


def test_a_snapshot_draws_conditions_of_its_own(run_dir, folders, monkeypatch):
    path = str(snapshot_of(run_dir))
    contents = snapshot.load_snapshot(path)
    assert contents["prior"].sampling == "kmeans"
    sampler = open_sampler(path, device="cpu")
    latents = sampler.latents([5, 6])
    assert torch.equal(latents.c, torch.cat([contents["prior"].of_seed(5), contents["prior"].of_seed(6)]))
    expected = contents["G_ema"](latents.z, latents.c, noise_mode="const")
    assert torch.allclose(sampler.images([5, 6], Look()), expected, atol=1e-5)
    images = open_generated(contents, path, 40)
    _, c = images.latents(range(40))
    assert torch.allclose(c.norm(dim=1), torch.ones(40), atol=1e-5)
    assert len(c.unique(dim=0)) > 30


def test_a_cascade_with_a_prior(tmp_path, folders):
    """Loops through the stages move the conditions, too."""
    prior = make_prior(clusters()[0], dim=4)
    network = Cascade.chain(generator2(), generator2(seed=1, c_dim=4, encoder={"kind": "flatten"}))
    sampler = Sampler(network, GaussianSource(Z_DIM), prior=prior)
    walk = StageWalk(sampler, np.array([[0, 1, 2]]), Look(), batch=4)
    (picture,) = walk.pictures(np.array([1.0]))
    expected = sampler.images([1], Look())
    assert np.abs(picture[0, 1].astype(int) - to_uint8(expected)[0].permute(1, 2, 0).numpy()).max() <= 1


def command(network, folder, *args):
    arguments = [f"--network={network}", f"--outdir={folder}", "--device=cpu", *args]
    result = CliRunner().invoke(gen_images.main, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_images_for_given_images(run_dir, folders, tmp_path):
    path = snapshot_of(run_dir)
    said = command(path, tmp_path / "a", f"--prior-images={folders['few']}", "--seeds=0,7")
    assert "5 x 2 images and prior.png" in said
    assert len(list((tmp_path / "a").glob("prior0*-seed*.png"))) == 10
    contents = snapshot.load_snapshot(path)
    given = torch.stack(
        [torch.from_numpy(pixels(file).transpose(2, 0, 1)) for file in sorted(folders["few"].iterdir())]
    )
    c = contents["prior"].conditions(open_detector("tiny").features(given.to(torch.uint8)))
    z = open_sampler(str(path), device="cpu").latents([7]).z
    expected = to_uint8(contents["G_ema"](z, c[3:4], noise_mode="const"))[0].permute(1, 2, 0).numpy()
    assert np.abs(pixels(tmp_path / "a" / "prior0003-seed0007.png") - expected).max() <= 1
    factor = 64 // SIDE
    assert pixels(tmp_path / "a" / "prior.png").shape == (LABEL_HEIGHT + 5 * 64, LABEL_WIDTH + 3 * 64, 3)
    shown = pixels(tmp_path / "a" / "prior.png")[LABEL_HEIGHT::factor, LABEL_WIDTH::factor][:SIDE, :SIDE]
    assert np.array_equal(shown, given[0].permute(1, 2, 0).numpy())


def test_from_one_image_to_the_next(run_dir, folders, tmp_path):
    path = snapshot_of(run_dir)
    command(path, tmp_path / "a", f"--prior-images={folders['few']}", "--prior-interpolate=4", "--seeds=3")
    command(path, tmp_path / "b", f"--prior-images={folders['few']}", "--seeds=3")
    factor = 64 // SIDE
    sheet = pixels(tmp_path / "a" / "prior-interpolation.png")[LABEL_HEIGHT::factor, LABEL_WIDTH::factor]
    assert sheet.shape == (4 * SIDE, 6 * SIDE, 3)
    for row in range(4):
        for column, number in ((1, row), (4, row + 1)):  # the ends are the images of the given ones
            cell = sheet[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
            alone = pixels(tmp_path / "b" / f"prior{number:04d}-seed0003.png")
            assert np.abs(cell - alone).max() <= 1


def test_plain_seeds_need_nothing_more(run_dir, tmp_path):
    said = command(snapshot_of(run_dir), tmp_path, "--seeds=0-3", "--grid=4x1", "--class=1")
    assert "Warning: --class=1 is ignored" in said
    assert len(list(tmp_path.glob("seed*.png"))) == 4


@pytest.mark.parametrize(
    ("network", "args", "words"),
    [
        ("run", ["--prior-images=nowhere.zip"], r"--prior-images: nowhere\.zip: no such file"),
        (
            "run",
            ["--prior-images=FEW", "--prior-detector=nowhere.pth"],
            r"--prior-detector: nowhere\.pth: is no file of",
        ),
        ("run", ["--prior-images=ONE", "--prior-interpolate=3"], "holds a single image"),
        ("run", ["--prior-images=FEW", "--grid=2x2"], "--prior-images writes a sheet of its own"),
        ("run", ["--seeds=0", "--prior-interpolate=3"], "need --prior-images"),
        ("plain", ["--prior-images=FEW"], "was not trained with --prior=features"),
    ],
)
def test_bad_input_of_gen_images(run_dir, folders, tmp_path, network, args, words):
    one = write_images(tmp_path / "one", 1)
    path = snapshot_of(run_dir) if network == "run" else save(tmp_path / "x.pkl", generator3(), GaussianSource(Z_DIM))
    args = [arg.replace("FEW", str(folders["few"])).replace("ONE", str(one)) for arg in args]
    with pytest.raises(UserError, match=words) as caught:
        command(path, tmp_path / "out", *args)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_another_detector_is_noticed(run_dir, folders, tmp_path, monkeypatch):
    """The same images would mean something else."""
    tiny = open_detector("tiny")
    monkeypatch.setattr(
        prior_features, "open_detector", lambda *args, **kwargs: dataclasses.replace(tiny, weights_hash="other")
    )
    with pytest.raises(UserError, match="tiny is tiny with weights other, and the network was trained with tiny, 6550"):
        command(snapshot_of(run_dir), tmp_path / "out", f"--prior-images={folders['few']}")


def test_a_generator_with_a_prior_is_no_earlier_stage(run_dir, folders):
    args = [f"--source={snapshot_of(run_dir)}", f"--data={folders['data']}", "--cfg=stylegan2"]
    status, _, err = run_inside(*args)
    assert status == 2
    assert "--source: " in err and "(--prior)" in err and err.count("\n") == 1


def test_a_prior_that_does_not_fit_is_refused(run_dir, tmp_path):
    contents = snapshot.load_snapshot(snapshot_of(run_dir))
    contents["prior"] = make_prior(clusters()[0], dim=4)
    snapshot.save_snapshot(tmp_path / "x.pkl", contents)
    with pytest.raises(UserError, match="conditions of 4 numbers, and G_ema takes 6"):
        snapshot.load_snapshot(tmp_path / "x.pkl")


def test_safetensors_keep_the_prior(run_dir, tmp_path):
    contents = snapshot.load_snapshot(snapshot_of(run_dir))
    snapshot.save_tensors(tmp_path / "x.safetensors", contents)
    twin = snapshot.load_snapshot(tmp_path / "x.safetensors")
    assert torch.equal(twin["prior"].of_seed(1), contents["prior"].of_seed(1))


# Before anything starts.


def test_a_file_of_weights_is_whatever_it_fits(folders, tmp_path, monkeypatch):
    tiny, asked = open_detector("tiny"), []

    def open_fake(name, weights=None, **kwargs):
        asked.append((name, weights))
        if name == "inception":
            raise UserError("--detector-weights: these are no weights of Inception-v3")
        return dataclasses.replace(tiny, name=name)

    monkeypatch.setattr(prior_features, "open_detector", open_fake)
    path = tmp_path / "w.pth"
    path.write_bytes(b"x")
    config = resolve(options(folders, prior_detector=str(path))).config
    assert asked == [("inception", str(path)), ("vgg16", str(path))]
    assert (config.prior.detector, config.prior.weights) == ("vgg16", str(path))
    json.dumps(config.as_dict())


def no_download(url, **kwargs):
    raise UserError(f"{url}: this machine is on its own")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"cond": True}, "--prior=features: conditions on features, and --cond=1 on labels"),
        ({"data": "few"}, r"few holds 5 images, fewer than --batch=8; use --batch=5"),
        ({"prior_detector": "resnet"}, r"--prior-detector: resnet: is no file of weights, and none of auto, inception"),
        ({"prior_detector": "inception"}, r"--prior-detector=inception: no weights .*--prior-detector=FILE"),
        ({"prior_detector": "GARBAGE"}, r"--prior-detector: .*bad\.pth: "),
        ({"prior_dim": 64}, r"--prior-dim=64: 20 images and the 256 features of tiny have 19 principal axes"),
        ({"prior_sampling": "vae"}, "--prior-sampling=vae: choose from memory, kmeans, gmm"),
        ({"prior": None}, r"--prior-detector=tiny: needs --prior=features"),
        ({"prior": "pixels"}, r"--prior=pixels: choose from features"),
    ],
)
def test_bad_input(folders, tmp_path, monkeypatch, kwargs, words):
    monkeypatch.setattr("metrics.detectors.open_url", no_download if "inception" in kwargs.values() else None)
    (tmp_path / "bad.pth").write_bytes(b"no weights at all")
    if "GARBAGE" in kwargs.values():
        monkeypatch.undo()
    places = {"few": str(folders["few"]), "GARBAGE": str(tmp_path / "bad.pth")}
    with pytest.raises(UserError, match=words) as caught:
        resolve(options(folders, **{key: places.get(value, value) for key, value in kwargs.items()}))
    assert "\n" not in str(caught.value)


def test_a_mixture_without_its_package(folders, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--prior-sampling=gmm: needs scikit-learn: .*\[prior\]"):
        resolve(options(folders, prior_sampling="gmm"))
