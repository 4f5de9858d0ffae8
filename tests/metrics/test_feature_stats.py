"""From images to features: order, sizes, what cannot be read, the cache, subsets, stopping, processes."""

import json

import pytest
import torch

from dnnlib.errors import UserError
from metrics import feature_stats
from metrics.detectors import open_detector
from metrics.feature_stats import LEAVE_STRICT_OUT, compute_features
from metrics.stopping import Stopped
from tests.helpers.pictures import Pictures
from tests.helpers.processes import run_two
from torch_utils import distributed


@pytest.fixture(scope="module")
def tiny():
    return open_detector("tiny")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))


def test_one_row_for_each_image_in_order_whatever_the_batch(tiny):
    pictures = Pictures(23)
    expected = torch.cat([tiny.features(pictures.image(index)[None]) for index in range(23)])
    for batch_size, pictures.reads_ahead in ((1, True), (5, False), (5, True), (64, True)):
        result = compute_features(pictures, tiny, batch_size=batch_size)
        torch.testing.assert_close(result.features, expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_read_is_named_and_left_out(tiny, capsys):
    result = compute_features(Pictures(10, broken=(2, 7)), tiny)
    assert (len(result), result.num_requested, len(result.skipped)) == (8, 10, 2)
    assert "2 of 10 images cannot be read (2.png: cut short; 7.png: cut short)" in capsys.readouterr().err
    with pytest.raises(UserError, match="leave --strict out"):
        compute_features(Pictures(10, broken=(2, 7)), tiny, is_strict=True, alternative=LEAVE_STRICT_OUT)
    with pytest.raises(UserError, match=r"mend or remove them$"):
        compute_features(Pictures(10, broken=(2, 7)), tiny, is_strict=True)
    with pytest.raises(UserError, match="3 of 3 images cannot be read"):
        compute_features(Pictures(3, broken=(0, 1, 2)), tiny)


def test_a_subset_is_random_and_the_same_for_a_seed(tiny):
    pictures = Pictures(40)
    chosen = [feature_stats.choose_indices(40, 15, seed).tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2] and len(set(chosen[0])) == 15
    result = compute_features(pictures, tiny, max_items=15)
    torch.testing.assert_close(result.features, tiny.features_of([pictures.image(index) for index in chosen[0]]))


def test_the_cache_answers_for_the_same_content_only(tiny, tmp_path):
    first = Pictures(12, key="a", broken=(3,))
    result = compute_features(first, tiny)
    again = Pictures(12, name="pictures", key="a")
    cached = compute_features(again, tiny)
    assert again.num_read == 0
    assert torch.equal(cached.features, result.features) and cached.skipped == result.skipped
    for other, limit in ((Pictures(12, key="b"), None), (Pictures(12, key="a"), 5)):
        compute_features(other, tiny, max_items=limit)
        assert other.num_read > 0
    names = {path.suffix for path in (tmp_path / "cache" / "metrics").iterdir()}
    assert names == {".npy", ".json"}  # nothing half-written


def test_an_entry_without_its_description_does_not_count(tiny, tmp_path):
    compute_features(Pictures(6, key="a"), tiny)
    (description,) = (tmp_path / "cache" / "metrics").glob("*.json")
    description.unlink()
    again = Pictures(6, key="a")
    compute_features(again, tiny)
    assert again.num_read == 6
    assert json.loads(description.read_text())["shape"] == [6, tiny.num_features]


def test_a_damaged_entry_is_named(tiny, tmp_path):
    compute_features(Pictures(6, key="a"), tiny)
    (features,) = (tmp_path / "cache" / "metrics").glob("*.npy")
    features.write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged .* delete it"):
        compute_features(Pictures(6, key="a"), tiny)


def test_a_cache_that_cannot_be_written_is_a_warning(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "file"))
    assert len(compute_features(Pictures(4, key="a"), tiny)) == 4
    assert "DNNLIB_CACHE_DIR names another folder" in capsys.readouterr().err


def test_many_features_go_to_a_file(tiny, monkeypatch):
    expected = compute_features(Pictures(9), tiny).features
    monkeypatch.setattr(feature_stats, "SPILL_BYTES", 1000)
    spilled = compute_features(Pictures(9), tiny).features
    assert torch.equal(spilled, expected)


def test_stops_between_batches(tiny):
    answers = iter([True, True, False])
    with pytest.raises(Stopped):
        compute_features(Pictures(50), tiny, batch_size=10, keep_going=lambda: next(answers))


def share_of_the_work():
    pictures = Pictures(11, broken=(4,))

    def everybody_goes_on():
        return bool(distributed.all_sum(torch.ones(1)) == 2)

    result = compute_features(pictures, open_detector("tiny"), batch_size=2, keep_going=everybody_goes_on)
    return {"features": result.features, "skipped": result.skipped, "num_read": pictures.num_read}


def test_processes_share_the_work(tiny, tmp_path):
    results = run_two(share_of_the_work, tmp_path)
    expected = compute_features(Pictures(11, broken=(4,)), tiny)
    assert [result["num_read"] for result in results] == [6, 5]
    for result in results:
        torch.testing.assert_close(result["features"], expected.features, rtol=1e-4, atol=1e-4)
        assert result["skipped"] == expected.skipped


def test_long_names_and_paths_are_shortened_for_the_cache(tiny, tmp_path):
    for name in ("é" * 200, "a/../b c"):
        pictures = Pictures(3, key=name)
        pictures.name = name
        assert len(compute_features(pictures, tiny)) == 3
    assert len(list((tmp_path / "cache" / "metrics").glob("*.json"))) == 2
