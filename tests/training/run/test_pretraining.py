"""Pre-training: the pairs by theory, what G learns from them, whole runs to the bit and over processes, refusals."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.errors import UserError
from tests.helpers.runs import TINY, assert_same_run, resume, run_inside, snapshot_of, train
from tests.helpers.sources import gen, write_images
from tests.helpers.steps import make_step
from training.checkpoints.snapshot import load_snapshot
from training.data.image_tensors import to_float
from training.dataset import ImageFolderDataset, sample_order
from training.run.pretraining import Pairs, all_principal_axes, assign, keys, pretrain, small_images, small_rgb
from training.sources.feed import LatentFeed
from training.sources.source import Draw


def points(n, d=3, seed=0):
    return torch.randn([n, d], generator=gen(seed))


def test_the_assignment_is_the_best_of_all_permutations():
    latents, images = points(6), points(6, seed=1)
    costs = {p: (latents[list(p)] - images).square().sum().item() for p in itertools.permutations(range(6))}
    assert tuple(assign(latents, images).tolist()) == min(costs, key=costs.get)


def test_equal_sets_are_assigned_to_themselves_whatever_their_order():
    images = points(200, 10)
    order = torch.randperm(200, generator=gen())
    assert torch.equal(images[order][assign(images[order], images)], images)


def test_only_rows_of_one_class_are_paired():
    classes = torch.arange(60) % 3
    rows = assign(points(60), points(60, seed=1), classes)
    assert torch.equal(classes[rows], classes)
    assert sorted(rows.tolist()) == list(range(60))
    assert not torch.equal(classes[assign(points(60), points(60, seed=1))], classes)


def test_noise_is_compared_along_the_principal_axes(tmp_path):
    step = make_step(tmp_path, source=None, source_noise=0.0)
    images = points(50, 192) * torch.linspace(10, 0.1, 192)
    latents, coordinates = keys(step.state.feed, Draw(z=points(50, 16)), images, all_principal_axes(images))
    assert latents.shape == coordinates.shape == (50, 16)
    spread = coordinates.std(dim=0)
    assert (spread[:-1] >= spread[1:]).all()  # the largest first
    best = torch.linalg.svdvals(images - images.mean(dim=0))[:16].square().sum()
    assert coordinates.square().sum().item() == pytest.approx(best.item(), rel=1e-4)


def test_all_blocks_agree_what_noise_stands_for(tmp_path):
    """E[z x^T] of two blocks points the same way: axes found anew for each would differ in their signs."""
    pairs, _, _ = make_pairs(tmp_path, source=None, source_noise=0.0)
    products = []
    for number in (0, 1, 2):
        images = pairs.images(number)
        products.append((pairs.block(number).z.t() @ (images - images.mean(dim=0))).flatten())
    for product in products[1:]:
        assert torch.cosine_similarity(products[0], product, dim=0) > 0.9


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_what_is_opaque_and_coloured_is_compared(tmp_path, mode):
    source = write_images(tmp_path / "other", size=(16, 16), count=16, mode=mode, seed=1)
    step = make_step(tmp_path, source=str(source))
    draw = step.state.feed.draw(20, gen())
    sources, images = keys(step.state.feed, draw, points(20, 192), None)
    assert sources.shape == images.shape == (20, 192)
    assert sources.mean(dim=0).abs().max() < 1e-5


def test_transparency_is_white():
    images = torch.full([1, 4, 16, 16], -1.0)  # black, and transparent
    assert torch.equal(small_rgb(images), torch.ones([1, 192]))
    images[:, 3] = 1
    assert torch.equal(small_rgb(images), -torch.ones([1, 192]))
    assert torch.equal(small_rgb(-torch.ones([1, 1, 16, 16])), -torch.ones([1, 192]))


def make_pairs(tmp_path, batch_size=8, seed=0, **kwargs):
    step = make_step(tmp_path, **kwargs)
    dataset = ImageFolderDataset(**step.config.training_set_kwargs)
    return Pairs(dataset, step.state.feed, seed, batch_size), step, dataset


def test_pairs_are_a_function_of_the_position(tmp_path):
    pairs, _, _ = make_pairs(tmp_path)
    whole = pairs.draw(0, 64)
    again, _, _ = make_pairs(tmp_path)
    assert torch.equal(whole.index, Draw.cat([again.draw(start, 8) for start in range(0, 64, 8)]).index)
    other, _, _ = make_pairs(tmp_path, seed=1)
    assert not torch.equal(whole.index, other.draw(0, 64).index)
    assert not torch.equal(whole.index, pairs.draw(pairs.block_size, 64).index)  # the next block


def test_a_source_image_is_paired_with_the_training_image_that_it_resembles(tmp_path):
    """The source holds the training images with noise on them: nearly each finds its own."""
    data = write_images(tmp_path / "data", size=(16, 16), count=16)
    (tmp_path / "copies").mkdir()
    for path in data.iterdir():
        pixels = np.asarray(Image.open(path)).astype(int)
        noisy = pixels + np.random.default_rng(0).integers(-20, 20, pixels.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "copies" / path.name)
    pairs, _, dataset = make_pairs(tmp_path, source=str(tmp_path / "copies"), source_noise=0.0)
    block = pairs.draw(0, pairs.block_size)
    wanted = sample_order(len(dataset), 0, 0, pairs.block_size)
    # Images come as often as each other, draws do not: so many must get another one.
    excess = sum(abs((block.index == i).sum().item() - (wanted == i).sum()) for i in range(16)) / 2
    assert (block.index.numpy() != wanted).sum() <= 2 * excess < pairs.block_size / 4


def error_of_pairs(step, pairs, dataset, num=64):
    indices = sample_order(len(dataset), 0, 0, num)
    images, _ = zip(*(dataset[index] for index in indices), strict=True)
    images = to_float(torch.from_numpy(np.stack(images)))
    feed = LatentFeed(step.state.feed.source, step.state.G.mapping.encoder)
    with torch.no_grad():
        made = step.state.G(feed.latents(pairs.draw(0, num)), torch.zeros([num, 0]), noise_mode="none")
    return (made - images).square().mean().item()


@pytest.mark.parametrize("source", ["images", None])
@pytest.mark.parametrize("cfg", ["stylegan2", "dcgan"])
def test_g_comes_nearer_to_its_pairs_and_d_learns_nothing(tmp_path, cfg, source):
    kwargs = {"cfg": cfg} | ({} if cfg == "stylegan2" else {"w_dim": None, "map_depth": None})
    kwargs |= {} if source else {"source": None, "source_noise": 0.0}
    pairs, step, dataset = make_pairs(tmp_path, pretrain=0.8, **kwargs)
    before = error_of_pairs(step, pairs, dataset)
    of_D = [p.clone() for p in step.state.D.parameters()]
    pretrain(step, dataset, step.config)
    assert error_of_pairs(step, pairs, dataset) < 0.9 * before
    assert all(torch.equal(a, b) for a, b in zip(of_D, step.state.D.parameters(), strict=True))
    for a, b in zip(step.state.G.state_dict().values(), step.state.G_ema.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert step.state.cur_nimg == step.state.batch_idx == 0
    assert len(step.state.G_opt.state) == 0
    assert not any(p.requires_grad for p in step.state.G.parameters())


def test_small_images(tmp_path):
    _, _, dataset = make_pairs(tmp_path)
    found = small_images(dataset, np.array([3, 1, 3]))
    assert found.shape == (3, 192) and torch.equal(found[0], found[2])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    found = {
        "target": write_images(root / "target", size=(16, 16), count=20),
        "source": write_images(root / "source", size=(16, 16), count=20, seed=1),
    }
    for folder in found.values():
        labels = [[path.name, index % 3] for index, path in enumerate(sorted(folder.glob("*.png")))]
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return found


def flags(folders, *more):
    return [f"--source={folders['source']}", f"--data={folders['target']}", "--pretrain=0.04", *more]


@pytest.mark.parametrize("more", [["--source-noise=0.1"], ["--cond=1", "--source-match=label"], ["--prior=features"]])
def test_a_run_goes_on_to_the_bit(tmp_path, folders, more):
    args = flags(
        folders, "--target=0.1", *(more if "--prior=features" not in more else [*more, "--prior-detector=tiny"])
    )
    whole, output = train(tmp_path / "whole", *args)
    assert output.count("Pre-training: 0.04 kimg in") == 1
    parts, _ = train(tmp_path / "parts", *args, "--kimg=0.016")
    assert "Pre-training:" not in resume(parts, "--kimg=0.032")
    assert_same_run(whole, parts)


def test_classes_that_are_matched_stay_matched(tmp_path, folders):
    kwargs = {name: str(folders[folder]) for name, folder in (("data", "target"), ("source", "source"))}
    pairs, step, dataset = make_pairs(tmp_path, **kwargs, cond=True, source_match="label")
    indices = sample_order(len(dataset), 0, 0, 64)
    source = step.state.feed.source
    classes = source.pairs.classes[pairs.draw(0, 64).index]
    assert torch.equal(classes, torch.from_numpy(dataset.get_labels(indices)).argmax(dim=1))


@pytest.mark.parametrize(("cfg", "encoder"), [("stylegan2", "conv"), ("stylegan3-t", "flatten")])
def test_two_processes_equal_one(tmp_path, folders, cfg, encoder):
    args = flags(folders, "--fp32=1", "--kimg=0.008", f"--source-encoder={encoder}")
    one, _ = train(tmp_path, *args, cfg=cfg)
    two, _ = train(tmp_path, *args, "--gpus=2", cfg=cfg)
    a, b = (load_snapshot(snapshot_of(run_dir))["G_ema"].state_dict() for run_dir in (one, two))
    for name, value in a.items():
        # Some first gradients of stylegan3 are so small that Adam's first step, their sign, turns on rounding.
        if cfg == "stylegan2" or name.endswith(("_avg", "_ema")):
            assert torch.allclose(value, b[name], rtol=2e-4, atol=1e-3 if cfg == "stylegan3-t" else 2e-4), name


def test_accumulation_rounds_change_nothing(tmp_path, folders):
    args = flags(folders, "--fp32=1", "--kimg=0.008")
    one, _ = train(tmp_path, *args)
    rounds, _ = train(tmp_path, *args, "--batch-gpu=4")
    a, b = (load_snapshot(snapshot_of(run_dir))["G_ema"].state_dict() for run_dir in (one, rounds))
    for name, value in a.items():
        if not name.endswith("w_avg"):  # from the first round
            assert torch.allclose(value, b[name], rtol=1e-4, atol=1e-4), name


def test_gradients_that_are_not_finite_name_the_flag(tmp_path):
    _, step, dataset = make_pairs(tmp_path, pretrain=0.8, nan_patience=1)
    with torch.no_grad():
        step.state.G.synthesis.b4.const.fill_(float("nan"))
    with pytest.raises(UserError, match=r"^--pretrain: losses or gradients of Pretrain were not finite"):
        pretrain(step, dataset, step.config)
    assert "Pretrain" not in step.num_skipped


def test_a_stop_says_that_nothing_is_saved(tmp_path, capsys):
    _, step, dataset = make_pairs(tmp_path, pretrain=0.8)

    def stop(*args):
        raise KeyboardInterrupt

    step.run_phase = stop
    with pytest.raises(KeyboardInterrupt):
        pretrain(step, dataset, step.config)
    assert "nothing is saved, the same command begins anew" in capsys.readouterr().out


def test_a_cascade_is_pretrained_on_images_of_its_stage(tmp_path, folders):
    first, _ = train(tmp_path, f"--data={folders['source']}", "--kimg=0.008")
    second, output = train(
        tmp_path, f"--source={snapshot_of(first)}", f"--data={folders['target']}", "--pretrain=0.016", "--kimg=0.008"
    )
    assert "Pre-training: 0.016 kimg in" in output
    assert load_snapshot(snapshot_of(second))["G_ema"](torch.zeros([1, 16]), None).isfinite().all()


@pytest.mark.parametrize(
    ("args", "words"),
    [(["--pretrain=-1"], "--pretrain=-1.0 must be from 0 to 10,000"), (["--pretrain=nan"], "--pretrain=nan")],
)
def test_bad_input_is_one_line(tmp_path, folders, args, words):
    status, _, err = run_inside("--cfg=stylegan2", *TINY, f"--data={folders['target']}", *args)
    assert status == 2 and words in err and len(err.strip().splitlines()) == 1


def test_another_length_is_another_run(tmp_path, folders):
    run_dir, _ = train(tmp_path, *flags(folders), "--kimg=0.008")
    status, _, err = run_inside("--resume=latest", f"--outdir={run_dir.parent}", "--pretrain=1")
    assert status == 2 and "--pretrain=1.0: the run in" in err
