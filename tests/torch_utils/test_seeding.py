"""Random numbers that depend on the position only."""

import pytest
import torch

from torch_utils import seeding


def draw(rows: seeding.Rows) -> list[torch.Tensor]:
    with seeding.batch_rows(rows, 7, 1000, "Gmain"):
        n = len(rows)
        return [
            seeding.randn([n, 3, 2]),
            seeding.rand([n, 1]),
            seeding.randint(10, [n, 2]),
            seeding.randn([n // 2, 4]),
        ]


@pytest.mark.parametrize("num_parts", [2, 4])
def test_a_batch_meets_the_same_numbers_however_it_is_divided(num_parts):
    whole = draw(seeding.Rows(16))
    parts = [draw(seeding.Rows(16, start, num_parts)) for start in range(num_parts)]
    for index, expected in enumerate(whole):
        joined = torch.empty_like(expected)
        for start, part in enumerate(parts):
            joined[start::num_parts] = part[index]
        assert torch.equal(joined, expected)


def test_keys_differ_and_repeat():
    one, same, other = (seeding.generator("a", seed).initial_seed() for seed in (1, 1, 2))
    assert one == same != other
    assert seeding.derive(1, "a") == 3062931605063305493  # on every machine


def test_outside_of_a_batch_it_is_torchs_own_stream():
    torch.manual_seed(3)
    expected = torch.randn([4])
    torch.manual_seed(3)
    assert torch.equal(seeding.randn([4]), expected)


def test_the_stream_ends_with_the_block():
    with seeding.batch_rows(seeding.Rows(4), 1, "x"):
        seeding.randn([4])
    assert seeding._current.get() is None


@pytest.mark.parametrize(("count", "limit"), [(1200, 100), (7, 7), (10, 7), (3, 5), (0, 4)])
def test_a_spread_is_a_row_of_each_stretch(count, limit):
    rows = seeding.spread(count, limit, "a", 0)
    edges = torch.linspace(0, count, len(rows) + 1, dtype=torch.float64)
    assert len(rows) == min(count, limit)
    assert ((edges[:-1].floor() <= rows) & (rows < edges[1:].ceil())).all()
    assert (rows.diff() > 0).all()
    assert torch.equal(rows, seeding.spread(count, limit, "a", 0))


def test_a_spread_meets_classes_that_take_turns():
    """Every 12th row of 1,200 was of one class where the files of 12 classes take turns."""
    rows = seeding.spread(1200, 100, "a", 0)
    assert len((rows % 12).unique()) == 12
    assert not torch.equal(rows, seeding.spread(1200, 100, "a", 1))
