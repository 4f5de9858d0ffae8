"""The micro-batch that fits."""

import pytest

from tests.helpers.steps import make_step
from training.run import memory


@pytest.fixture
def step(tmp_path):
    return make_step(tmp_path, batch=24, mbstd_group=4, aug="noaug")


def test_saved_activations_grow_with_the_batch(step):
    one, two = (memory.saved_bytes(step.state, n) for n in (8, 16))
    assert 1.5 < two / one < 2.1  # weights are saved once, activations per image
    assert all(p.grad is None and not p.requires_grad for p in step.state.G.parameters())


@pytest.mark.parametrize(("gigabytes", "expected"), [(100, 24), (1e-6, 4)])
def test_the_largest_divisor_that_fits(step, monkeypatch, gigabytes, expected):
    monkeypatch.setattr(memory, "available_memory", lambda: int(gigabytes * 2**30))
    assert memory.choose_micro_batch(step.config, step.state) == expected


def test_between_the_extremes(step, monkeypatch):
    per_image = memory.saved_bytes(step.state, 4) / 4 * memory.SECOND_DERIVATIVES
    monkeypatch.setattr(memory, "available_memory", lambda: int(13 * per_image / memory.SHARE_OF_MEMORY))
    assert memory.choose_micro_batch(step.config, step.state) == 12
