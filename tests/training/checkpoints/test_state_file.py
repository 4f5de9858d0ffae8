"""Names of files, their order, and the best network under a name of its own."""

import os
import re

import pytest

from dnnlib.errors import UserError
from training.checkpoints import state_file as checkpoint
from training.checkpoints.state_file import (
    SNAPSHOT_PATTERN,
    file_number,
    images_of,
    keep_as_best,
    numbered,
    state_beside,
)


@pytest.mark.parametrize(
    ("cur_nimg", "number"),
    [(0, "000000"), (320, "000000.320"), (2304, "000002.304"), (200_000, "000200"), (1_234_567_008, "1234567.008")],
)
def test_numbers_are_exact_and_whole_thousands_have_six_digits(cur_nimg, number):
    """320 and 608 images were both 000000."""
    assert file_number(cur_nimg) == number
    match = SNAPSHOT_PATTERN.fullmatch(f"network-snapshot-{number}.pkl")
    assert images_of(match) == cur_nimg


@pytest.mark.parametrize("name", ["00001", "000001.5", "000001.", "000001.1234", "000001.5x", "earlier-000001"])
def test_other_numbers_are_none(name):
    assert SNAPSHOT_PATTERN.fullmatch(f"network-snapshot-{name}.pkl") is None


def test_files_are_in_the_order_of_their_numbers(tmp_path):
    """By name, 000001.500 comes before 000001."""
    numbers = [999, 1000, 1500, 2000, 2048, 10_000, 999_999_999, 1_000_000_000]
    for cur_nimg in numbers:
        checkpoint.snapshot_path(tmp_path, cur_nimg).touch()
    found = [SNAPSHOT_PATTERN.fullmatch(path.name) for path in numbered(tmp_path, SNAPSHOT_PATTERN)]
    assert [images_of(match) for match in found] == numbers[::-1]


@pytest.mark.parametrize("has_links", [True, False])
def test_the_best_stays_what_it_was(tmp_path, monkeypatch, has_links):
    def no_link(*args):
        raise OSError("no links here")

    if not has_links:
        monkeypatch.setattr(os, "link", no_link)
    snapshot, best = tmp_path / "network-snapshot-000001.pkl", tmp_path / "network-best.pkl"
    for content in (b"first", b"second"):
        with checkpoint.atomic_write(snapshot) as file:
            file.write(content)
        if content == b"first":
            keep_as_best(best, snapshot)
    assert best.read_bytes() == b"first"
    keep_as_best(best, snapshot)
    keep_as_best(best, snapshot)
    snapshot.unlink()
    assert best.read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["network-best.pkl"]


def test_a_link_of_an_earlier_version_becomes_the_network(tmp_path):
    snapshot, best = tmp_path / "network-snapshot-000001.pkl", tmp_path / "network-best.pkl"
    snapshot.write_bytes(b"old")
    best.symlink_to(snapshot.name)
    checkpoint.settle_best(tmp_path)
    snapshot.unlink()
    assert best.read_bytes() == b"old" and not best.is_symlink()
    best.unlink()
    best.symlink_to("gone.pkl")
    checkpoint.settle_best(tmp_path)
    assert not best.is_symlink()


def test_the_state_beside_a_snapshot(tmp_path):
    """By its name, which an older version did not make of all its images; the best has none, and goes by its images."""
    for name in ("training-state-000000.320.pt", "training-state-000001.pt"):
        (tmp_path / name).touch()
    assert state_beside(tmp_path / "network-snapshot-000001.pkl", 1900).name == "training-state-000001.pt"
    assert state_beside(tmp_path / "network-best.pkl", 320).name == "training-state-000000.320.pt"
    with pytest.raises(UserError, match=re.escape("there is no training-state-000000.608.pt beside")):
        state_beside(tmp_path / "network-snapshot-000000.608.pkl", 608)
