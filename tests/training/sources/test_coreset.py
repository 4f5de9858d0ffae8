"""Core-sets: k-center by theory, the same batch however it is divided, positions, runs to the bit, refusals."""

import itertools
import json

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from tests.helpers.golden import relative_error
from tests.helpers.runs import TINY, assert_same_run, resume, run_inside, snapshot_of, stats_of, train
from tests.helpers.sources import gen, generator, save, write_images
from tests.helpers.steps import make_step, run
from training.checkpoints.snapshot import load_snapshot, open_network_source
from training.config.options import TrainingOptions
from training.config.resolve import resolve
from training.dataset import ImageFolderDataset
from training.run.loader import BatchLoader
from training.sources.coreset import (
    DetectorChoice,
    PriorCoreset,
    TargetCoreset,
    coverage_radius,
    farthest_first,
    greedy_k_center,
    projected,
)
from training.sources.encoders import build_encoder
from training.sources.feed import LatentFeed
from training.sources.source import GaussianSource, ImageSource
from training.sources.stage_cache import StageCache

CORESET = ["--coreset=prior,target", "--coreset-factor=2"]


def points(n=60, d=5, seed=0):
    return torch.randn([n, d], generator=gen(seed))


# Greedy k-center.


def test_on_a_line_the_ends_follow_the_middle():
    line = torch.arange(9.0).unsqueeze(1)  # 0 ... 8, mean 4
    picks, radius = farthest_first(line, 5)
    assert picks.tolist() == [4, 0, 8, 2, 6]  # of two as far away, the lower index
    assert radius == 1
    assert [farthest_first(line, k)[1].item() for k in range(1, 10)] == [4, 4, 2, 2, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_at_most_twice_the_best_radius(seed, k):
    """Gonzalez 1985, against all subsets."""
    x = points(11, 2, seed)
    distances = torch.cdist(x, x)
    best = min(distances[:, list(subset)].amin(dim=1).amax().item() for subset in itertools.combinations(range(11), k))
    _, radius = farthest_first(x, k)
    assert best - 1e-5 <= radius.item() <= 2 * best + 1e-5


def test_the_radius_is_that_of_what_was_chosen():
    x = points()
    radii = []
    for k in (1, 2, 7, 30, 59, 60):
        picks, radius = farthest_first(x, k)
        assert torch.allclose(radius, coverage_radius(x, x[picks]), atol=2e-3)
        radii.append(radius.item())
    assert radii == sorted(radii, reverse=True)
    assert radii[-1] == 0


def test_copies_are_covered_exactly():
    """By a matrix product the radius of 60 copies of points about (1,000, …) was 6.3, not 0."""
    x = torch.randn(60, 64, generator=torch.Generator().manual_seed(0)) + 1000
    assert coverage_radius(x.repeat(2, 1), x) == 0


def test_all_points_are_chosen_once_though_many_are_equal():
    x = points(6).repeat(3, 1)
    assert sorted(greedy_k_center(x, 18).tolist()) == list(range(18))
    first = greedy_k_center(x, 6)
    assert sorted((first % 6).tolist()) == list(range(6))  # each of the different ones, before any twice
    assert (first < 6).all()
    assert greedy_k_center(torch.zeros(5, 3), 5).tolist() == [0, 1, 2, 3, 4]


def test_the_order_of_the_points_does_not_matter():
    x = points()
    order = torch.randperm(len(x), generator=gen(1))
    assert order[greedy_k_center(x[order], 20)].tolist() == greedy_k_center(x, 20).tolist()


def test_the_first_picks_do_not_depend_on_how_many_follow():
    x = points()
    assert torch.equal(greedy_k_center(x, 40)[:10], greedy_k_center(x, 10))


def test_every_cluster_is_met():
    """Ten clusters of very different sizes: ten picks take one of each, which ten random ones hardly ever do."""
    sizes = [100, 50, 20, 10, 5, 5, 3, 2, 1, 1]
    which = torch.repeat_interleave(torch.arange(10), torch.tensor(sizes))
    centres = 10 * torch.eye(10)[which]
    x = centres + 0.1 * torch.randn(centres.shape, generator=gen())
    picks = greedy_k_center(x, 10)
    assert sorted(which[picks].tolist()) == list(range(10))


def test_it_moves_and_scales_with_the_points():
    x = points()
    assert torch.equal(greedy_k_center(4 * x, 20), greedy_k_center(x, 20))
    assert torch.equal(greedy_k_center(-x, 20), greedy_k_center(x, 20))
    _, radius = farthest_first(x, 20)
    assert farthest_first(4 * x, 20)[1] == 4 * radius


def test_several_sets_at_a_time_are_each_on_its_own():
    sets = torch.stack([points(seed=seed) for seed in range(3)])
    together, radii = farthest_first(sets, 15)
    for one, picks, radius in zip(sets, together, radii, strict=True):
        expected, expected_radius = farthest_first(one, 15)
        assert torch.equal(picks, expected)
        assert torch.equal(radius, expected_radius)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_any_float_is_taken(dtype):
    assert greedy_k_center(points().to(dtype), 3).dtype == torch.int64


def test_a_projection_keeps_distances_on_average():
    x = points(100, 300)
    y = projected(x, seed=0, dims=64)
    assert y.shape == (100, 64)
    ratio = torch.pdist(y).square() / torch.pdist(x).square()
    assert ratio.mean().item() == pytest.approx(1, abs=4 * (2 / 64) ** 0.5 / 10)  # the 100 points share the matrix
    assert torch.equal(projected(x, seed=0, dims=64), y)
    assert torch.equal(projected(y, seed=1, dims=64), y)


# Latents.


def feeds(tmp_path):
    images = ImageSource.open(write_images(tmp_path / "a", size=(16, 16), count=24))
    encoder = build_encoder("flatten", 16)
    encoder.fit(images.all_batches())
    noisy = build_encoder("flatten", 16, noise_std=0.5)
    noisy.fit(images.all_batches())
    path = save(tmp_path / "stage.pkl", generator(), GaussianSource(16))
    chain = save(tmp_path / "chain.pkl", generator(encoder={"kind": "flatten"}), images)
    return {
        "gaussian": LatentFeed(GaussianSource(16), build_encoder("identity", 16)),
        "images": LatentFeed(images, encoder),
        "noise": LatentFeed(images, noisy),
        "conv": LatentFeed(images, build_encoder("conv", 16)),
        "network": LatentFeed(open_network_source(str(path)), encoder),
        "pool": StageCache(LatentFeed(open_network_source(str(path)), noisy), 64, 8, 0, lambda: 0),
        "pool for conv": StageCache(
            LatentFeed(open_network_source(str(path)), build_encoder("conv", 16)), 64, 8, 0, lambda: 0
        ),
        "chain": LatentFeed(open_network_source(str(chain)), noisy),
    }


@pytest.mark.parametrize("kind", ["gaussian", "images", "noise", "conv", "network", "chain", "pool", "pool for conv"])
def test_latents_of_every_source(tmp_path, kind):
    """Rows of the candidates, in their order; the radius is smaller than that of plain batches."""
    feed = feeds(tmp_path)[kind]
    coreset = PriorCoreset(feed, factor=3)
    gains = []
    for seed in range(8):
        candidates = feed.draw(24, gen(seed))
        (chosen, again), (coverage, _) = coreset.choose([candidates, candidates], 8)
        assert len(chosen) == 8 and torch.equal(feed.latents(chosen), feed.latents(again))
        keys, all_keys = feed.points(chosen), feed.points(candidates)
        places = [int((all_keys == key).all(dim=1).nonzero()[0]) for key in keys]
        assert places == sorted(places)
        gains.append(coverage.random_radius - coverage.radius)
        assert coverage.random_radius == pytest.approx(coverage_radius(all_keys, all_keys[:8]).item(), abs=1e-4)
        assert feed.latents(chosen).shape == (8, 16)
    assert np.mean(gains) > 0


def test_no_image_of_stage_one_is_made_for_a_candidate(tmp_path, monkeypatch):
    feed = feeds(tmp_path)["network"]
    monkeypatch.setattr(feed.source, "materialize", lambda draw: pytest.fail("an image was made"))
    PriorCoreset(feed, factor=2).choose([feed.draw(8, gen())], 4)


def test_what_is_chosen_does_not_follow_a_trained_encoder(tmp_path):
    feed = feeds(tmp_path)["conv"]
    coreset = PriorCoreset(feed, factor=2)
    candidates = feed.draw(16, gen())
    (before,), _ = coreset.choose([candidates], 8)
    for parameter in feed.encoder.parameters():
        torch.nn.init.normal_(parameter)
    (after,), _ = coreset.choose([candidates], 8)
    assert torch.equal(before.index, after.index)


# Real images.


def target_coreset(n=64, factor=4):
    return TargetCoreset(points(n, 6), factor, seed=0)


def test_a_batch_is_a_function_of_its_position():
    one, other = target_coreset(), target_coreset()
    batches = [one.order(start, 8) for start in range(0, 64, 8)]
    for start in reversed(range(0, 64, 8)):
        assert np.array_equal(other.order(start, 8), batches[start // 8])
    assert all(len(set(batch.tolist())) == 8 for batch in batches)


def test_every_image_is_a_candidate_equally_often(monkeypatch):
    """16 images seen at factor 4 are an epoch of 64."""
    seen = []
    coreset = target_coreset()
    monkeypatch.setattr(
        "training.sources.coreset.choose_rows",
        lambda x, k: (seen.append(x[0]), (torch.arange(k).unsqueeze(0), [(0.0, 0.0)]))[1],
    )
    for start in (0, 8):
        coreset.order(start, 8)
    assert sorted(map(tuple, torch.cat(seen).tolist())) == sorted(map(tuple, coreset.features.tolist()))


@pytest.mark.parametrize(("n", "batch", "factor"), [(64, 8, 4), (37, 6, 5), (30, 10, 3), (33, 16, 2)])
def test_batches_cover_more_than_plain_ones_and_hold_no_image_twice(n, batch, factor):
    """Also where candidates go over the end of an epoch, so that some images are candidates twice."""
    coreset = target_coreset(n, factor)
    coverages = []
    for start in range(0, 20 * batch, batch):
        assert len(set(coreset.order(start, batch).tolist())) == batch
        coverages.append(coreset.coverage(start, batch))
    radii, random_radii = np.array(coverages).T
    assert radii.mean() < random_radii.mean()


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_processes_read_their_rows_of_the_same_batch_and_no_other_images(tmp_path, monkeypatch, num_processes):
    dataset = ImageFolderDataset(write_images(tmp_path / "a", size=(16, 16), count=24), xflip=True)
    coreset = target_coreset(48)
    whole = np.stack([dataset[int(i)][0] for i in coreset.order(8, 8)])
    decoded = []
    original = ImageFolderDataset._load_raw_image
    monkeypatch.setattr(
        ImageFolderDataset, "_load_raw_image", lambda self, index: (decoded.append(index), original(self, index))[1]
    )
    dataset.close()
    for rank in range(num_processes):
        with BatchLoader(dataset, 8, rank, num_processes, start=8, num_workers=1, prefetch=0, order=coreset) as loader:
            images, _ = next(loader)
        assert np.array_equal(images.numpy(), whole[rank::num_processes])
    assert {int(i) % 24 for i in coreset.order(8, 8)} == set(decoded)


def config_of(tmp_path, **kwargs):
    data = write_images(tmp_path / "data", size=(16, 16), count=16)
    options = TrainingOptions(
        cfg="stylegan2", data=str(data), device="cpu", batch=4, mbstd_group=4, coreset=("target",), coreset_factor=2,
        **kwargs
    )  # fmt: skip
    return resolve(options).config


def target_order(config):
    dataset = ImageFolderDataset(**config.training_set_kwargs)
    choice = DetectorChoice.of_coreset(config.detector, config.detector_weights, "cpu")
    return config.coreset.of_targets(dataset.mirrored(dataset.subset_of(dataset.image_set())), choice, config.seed)


def test_a_subset_is_chosen_from_its_own_images(tmp_path):
    """The features were those of all images: a batch asked for images that the subset has not."""
    order = target_order(config_of(tmp_path, subset=8))
    assert order.features.shape[0] == 8
    whole = target_order(config_of(tmp_path))
    dataset = ImageFolderDataset(tmp_path / "data", max_size=8)
    assert torch.allclose(order.features, whole.features[dataset.raw_indices], atol=1e-4)


def test_features_of_the_data_are_those_of_its_images_and_mirror_images(tmp_path):
    plain = target_order(config_of(tmp_path))
    mirrored = target_order(config_of(tmp_path, mirror=True))
    assert plain.features.shape == (16, 64)
    assert mirrored.features.shape == (32, 64)
    assert torch.allclose(mirrored.features[:16], plain.features, atol=1e-4)
    assert (mirrored.features[16:] - plain.features).abs().amax() > 0.01


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    config = config_of(tmp_path)
    path = tmp_path / "data" / "003.png"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"^--coreset=target: .*003\.png.*mend or remove them$"):
        target_order(config)


# Steps and runs.


def test_accumulation_rounds_change_nothing(tmp_path):
    kwargs = dict(coreset=("prior",), coreset_factor=2, fp32=True)
    whole, half, parts = (
        make_step(tmp_path, batch_gpu=n, **kwargs, mbstd_group=2) for n in (8, 4, 2)
    )  # fmt: skip
    start = torch.cat([p.flatten() for m in (whole.state.G, whole.state.D) for p in m.parameters()])
    a = run(whole) - start
    assert relative_error(run(half) - start, a) < 1e-3
    assert relative_error(run(parts) - start, a) < 1e-3
    plain = make_step(tmp_path, batch_gpu=8, fp32=True, mbstd_group=2)
    assert relative_error(run(plain) - start, a) > 0.1


@pytest.mark.parametrize("encoder", ["flatten", "conv"])
def test_a_step_stopped_between_its_phases_is_the_step(tmp_path, encoder):
    from tests.helpers.steps import images

    kwargs = dict(coreset=("prior",), coreset_factor=2, source_encoder=encoder)
    whole, parts = make_step(tmp_path, **kwargs), make_step(tmp_path, **kwargs)
    whole.run(*images())
    answers = iter([False, True])
    parts.run(*images(), lambda: next(answers))
    parts.run(*images())
    assert torch.equal(run(whole, 1), run(parts, 1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for name in ("a", "b"):
        write_images(root / "target" / name, size=(16, 16), count=10, seed=ord(name))
    return {"target": root / "target", "source": write_images(root / "source", size=(16, 16), count=20, seed=1)}


def test_a_run_with_labels_and_mirror_images_goes_on_to_the_bit(tmp_path, folders):
    args = [f"--source={folders['source']}", f"--data={folders['target']}", *CORESET, "--cond=1", "--mirror=1"]
    args += ["--source-encoder=conv", "--snap=1"]
    whole, output = train(tmp_path / "whole", *args, "--kimg=0.048")
    assert "Core-set:  8 of 16 candidates by greedy k-center: latents by their source images" in output
    parts, _ = train(tmp_path / "parts", *args, "--kimg=0.024")
    resume(parts, "--kimg=0.048")
    assert_same_run(whole, parts)
    for line in stats_of(whole):
        for name in ("prior", "target"):
            assert line[f"Coreset/{name}_radius"]["mean"] < line[f"Coreset/{name}_radius_random"]["mean"]
        assert line["Coreset/target_radius"]["num"] == 2  # once a step
    options = json.loads((whole / "training_options.json").read_text())
    assert options["coreset"]["of"] == ["prior", "target"] and options["coreset"]["detector"].startswith("tiny-")
    status, _, err = run_inside("--resume=latest", f"--outdir={parts.parent}", "--kimg=0.1", "--coreset=prior")
    assert status == 2
    assert "--coreset=prior: the run in" in err


def test_two_processes_equal_one(tmp_path, folders):
    args = [f"--source={folders['source']}", f"--data={folders['target']}", *CORESET, "--fp32=1", "--kimg=0.016"]
    one, _ = train(tmp_path, *args)
    two, _ = train(tmp_path, *args, "--gpus=2")
    a, b = (load_snapshot(snapshot_of(run_dir))["G"].state_dict() for run_dir in (one, two))
    assert all(torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-5) for name in a)
    assert [line["Coreset/target_radius"] for line in stats_of(one)] == [
        line["Coreset/target_radius"] for line in stats_of(two)
    ]


def test_a_second_stage_with_a_pool_goes_on_to_the_bit(tmp_path, folders):
    first, _ = train(tmp_path / "1", f"--data={folders['source']}", "--kimg=0.008")
    args = [f"--source={snapshot_of(first)}", f"--data={folders['target']}", "--source-encoder=conv"]
    args += ["--coreset=prior", "--coreset-factor=2", "--source-noise=0.1"]
    whole, _ = train(tmp_path / "whole", *args, "--stage-cache=24", "--kimg=0.032")
    parts, _ = train(tmp_path / "parts", *args, "--stage-cache=24", "--kimg=0.024")
    resume(parts, "--kimg=0.032")
    assert_same_run(whole, parts)
    status, _, err = run_inside("--cfg=stylegan2", *TINY, f"--outdir={tmp_path}", *args, "--stage-cache=12")
    assert status == 2
    assert "2 x 8 = 16 candidates" in err and "--stage-cache=12 holds 12 images" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--coreset=prior,targets"], "--coreset=targets: choose from prior, target"),
        (["--coreset=prior", "--coreset-factor=0"], "--coreset-factor=0 must be from 2 to 64"),
        (["--coreset=prior", "--coreset-factor=-4"], "--coreset-factor=-4 must be from 2 to 64"),
        (["--coreset=prior", "--coreset-factor=1"], "--coreset-factor=1 must be from 2 to 64"),
        (["--coreset=prior", "--coreset-factor=65"], "--coreset-factor=65 must be from 2 to 64"),
        (["--coreset=prior", "--coreset-factor=many"], "--coreset-factor"),
        (["--coreset=prior", "--coreset-factor=4.5"], "--coreset-factor"),
        (["--coreset-factor=4"], "--coreset-factor=4: needs --coreset"),
        (["--coreset=target"], "--coreset=target: a batch is chosen from 4 x 8 = 32 candidates"),
        (["--coreset=prior", "--source=SOURCE"], "--coreset=prior: a batch is chosen from 4 x 8 = 32 candidates"),
        (["--coreset=target", "--batch=500"], "holds 20 images"),
        (
            ["--coreset=target", "--coreset-factor=2", "--detector=inception", "--detector-weights=no.pth"],
            "--detector-weights: no.pth",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, folders, args, words):
    args = [f"--data={folders['target']}", *(arg.replace("SOURCE", str(folders["source"])) for arg in args)]
    status, out, err = run_inside("--cfg=stylegan2", *TINY, f"--outdir={tmp_path / 'runs'}", *args)
    assert status == 2, out + err
    assert words in err
    assert len(err.strip().splitlines()) == 1 and out == ""
    assert not (tmp_path / "runs").exists()


def test_mirror_images_are_candidates_and_gaussian_latents_are_without_limit(tmp_path, folders):
    common = ["--cfg=stylegan2", *TINY, "--dry-run", f"--outdir={tmp_path}"]
    status, out, _ = run_inside(*common, f"--data={folders['target']}", "--mirror=1", "--coreset=target")
    assert status == 0 and "8 of 32 candidates by greedy k-center: real images by features of tiny" in out
    status, out, _ = run_inside(*common, f"--data={folders['target']}", "--coreset=prior", "--coreset-factor=64")
    assert status == 0 and "latents by z" in out
    status, out, _ = run_inside(*common, f"--data={folders['target']}")
    assert status == 0 and "Core-set:" not in out
