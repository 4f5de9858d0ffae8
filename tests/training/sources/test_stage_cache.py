"""The pool of stage-one outputs: a function of seed and position, fresh little by little, the same over processes."""

import types

import pytest
import torch

from dnnlib.errors import UserError
from tests.helpers import tiny
from torch_utils import distributed
from training.config.choices import choose_stage_cache
from training.config.options import TrainingOptions
from training.config.source_specs import ImagesSpec, NetworkSpec
from training.sources import stage_cache
from training.sources.encoders import build_encoder
from training.sources.feed import LatentFeed
from training.sources.network_source import NetworkSource
from training.sources.source import Draw, GaussianSource
from training.sources.stage_cache import StageCache, StageCacheSpec, block_size

BATCH, SIZE = 16, 20


def feed(kind="flatten", noise=0.0):
    source = NetworkSource(tiny.generator2(), GaussianSource(tiny.Z_DIM), "one.pkl", "x")
    encoder = build_encoder(kind, 16, norm="none", noise_std=noise)
    return LatentFeed(source, encoder)


def cache(at, own_feed=None, seed=3):
    clock = types.SimpleNamespace(nimg=at * BATCH)
    pool = StageCache(own_feed or feed(), SIZE, BATCH, seed, lambda: clock.nimg)
    return pool, clock


def test_the_pool_is_the_same_however_a_run_got_there():
    walking, clock = cache(0)
    for step in range(9):  # more than once round
        clock.nimg = step * BATCH
        fresh, _ = cache(step)
        assert torch.equal(walking.at_position(), fresh.at_position())


def test_each_step_replaces_one_block_by_outputs_that_were_not_there():
    pool, clock = cache(0)
    before = pool.at_position().clone()
    assert before.shape == (20, 16)  # whole blocks of 4
    clock.nimg += BATCH
    after = pool.at_position()
    changed = (after != before).any(dim=1)
    assert changed.tolist() == [True] * 4 + [False] * 16
    assert len(torch.unique(torch.cat([before, after[:4]]), dim=0)) == 24
    assert not torch.equal(cache(0, seed=4)[0].at_position(), before)


def test_the_pool_holds_outputs_of_the_source():
    """Block 0 is what the source makes of its own choices."""
    own_feed = feed()
    pool, _ = cache(0, own_feed)
    draw = own_feed.source.draw(4, stage_cache.seeding.generator(3, "stage cache", 0))
    assert torch.equal(pool.at_position()[:4], own_feed.latents(draw))
    z = pool.latents(Draw(pool=torch.tensor([2, 0])))
    assert torch.equal(z, pool.at_position()[[2, 0]])
    assert torch.equal(pool.latents(draw), own_feed.latents(draw))  # draws of the feed pass through


def test_trained_encoders_see_images_and_learn():
    pool, _ = cache(0, feed("conv"))
    assert pool.at_position().shape == (20, 3, 16, 16)
    encoder = pool.feed.encoder.requires_grad_(True)
    pool.latents(pool.draw(5, torch.Generator().manual_seed(0)), encoder).square().mean().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_noise_on_z_is_drawn_for_every_sample():
    pool, _ = cache(0, feed(noise=0.5))
    draw = pool.draw(1000, torch.Generator().manual_seed(0))
    difference = pool.latents(draw) - pool.at_position()[draw.pool]
    assert abs(difference.std().item() - 0.5) < 0.02


def test_ranks_share_the_work_and_agree(monkeypatch):
    alone, _ = cache(1)
    whole = alone.at_position()
    parts = {}
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "gather_rows", lambda rows, rank=rank: parts.setdefault(rank, rows))
        pool, _ = cache(1)
        pool.make_block(1)
    gathered = torch.stack([parts[0], parts[1]], dim=1).flatten(0, 1)
    assert torch.allclose(gathered, whole[4:8], atol=1e-6)  # block 1 stands in its place


def test_what_may_be_asked_for():
    options = dict(cfg="stylegan2", source="one.pkl", data="data")
    assert choose_stage_cache(TrainingOptions(**options), NetworkSpec("one.pkl"), 32)[0] == StageCacheSpec()
    assert (
        choose_stage_cache(TrainingOptions(**options, stage_cache=0), NetworkSpec("one.pkl"), 32)[0] == StageCacheSpec()
    )
    spec, line = choose_stage_cache(TrainingOptions(**options, stage_cache=64), NetworkSpec("one.pkl"), 32)
    assert spec.size == 64 and "8 of them new" in line
    assert block_size(1) == 1
    with pytest.raises(UserError, match="--stage-cache=64 needs --source=SNAPSHOT"):
        choose_stage_cache(TrainingOptions(**options, stage_cache=64), ImagesSpec("one"), 32)
    with pytest.raises(UserError, match="less than the batch of 32"):
        choose_stage_cache(TrainingOptions(**options, stage_cache=8), NetworkSpec("one.pkl"), 32)
    with pytest.raises(UserError, match="--stage-cache=-1"):
        TrainingOptions(**options, stage_cache=-1)
