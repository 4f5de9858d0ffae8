"""The registry: names, what a result carries, what is refused before anything long begins."""

import json

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from metrics import metric_main
from metrics.detectors import Detectors
from metrics.kernel_inception_distance import KIDOptions
from metrics.metric_main import MetricOptions, calc_metric, find_metric, prepare, report_metric
from tests.helpers.pictures import Pictures

OFFICIAL = (
    "fid50k_full kid50k_full pr50k3_full ppl2_wend eqt50k_int eqt50k_frac eqr50k fid50k kid50k pr50k3 is50k "
    "ppl_zfull ppl_wfull ppl_zend"
).split()


def options(**kwargs) -> MetricOptions:
    detectors = Detectors("tiny")
    return MetricOptions(detector=detectors, real=Pictures(60), generated=Pictures, **kwargs)


@pytest.mark.parametrize(
    "name", [*OFFICIAL, "sid50k_full", "csid50k_full", "dc50k5_full", "fid5k_full", "kid1k", "pr10k5"]
)
def test_names_that_users_know(name):
    assert metric_main.is_valid_metric(name)
    find_metric(name)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(
        UserError, match=r"fid50k_ful is not known \(did you mean fid50k_full\?\); choose from fid50k_full"
    ):
        find_metric("fid50k_ful")
    for name in ("fid", "fid0k", "pr1k0", "fid5", "fid5k_half"):
        assert not metric_main.is_valid_metric(name)


@pytest.mark.parametrize("name", ["fid1k_full", "kid1k", "pr1k3_full", "dc1k5_full", "csid1k_full", "sid1k_full"])
def test_a_result_says_how_it_came_about(name):
    result = calc_metric(name, options(seed=3))
    assert all(key.startswith(name) and key.endswith("[tiny]") for key in result["results"])
    assert all(np.isfinite(value) for value in result["results"].values())
    assert (result["num_real"], result["num_gen"], result["seed"]) == (60, 1000, 3)
    assert result["detector"] == "tiny" and len(result["detector_hash"]) == 16 and result["resize"] == "area"
    assert result["total_time"] > 0 and "torch" in result["versions"]
    again = calc_metric(name, options(seed=3))
    assert again["results"] == result["results"]


def test_few_images_are_a_warning():
    assert "60 real images and 1000 generated images" in calc_metric("fid1k_full", options())["warnings"][0]


def test_features_are_computed_once_for_all_metrics():
    made = []

    def generated(count):
        made.append(Pictures(count))
        return made[-1]

    opts = MetricOptions(detector=Detectors("tiny"), real=Pictures(60), generated=generated)
    calc_metric("fid1k_full", opts)
    calc_metric("kid1k_full", opts)
    assert len([pictures for pictures in made if pictures.num_read > 0]) == 1
    opts.use_generator(generated, None)
    calc_metric("fid1k_full", opts)
    assert len([pictures for pictures in made if pictures.num_read > 0]) == 2


def test_the_same_images_are_at_no_distance():
    opts = MetricOptions(detector=Detectors("tiny"), real=Pictures(1000), generated=Pictures)
    (fid,) = calc_metric("fid1k", opts)["results"].values()
    (csid,) = calc_metric("csid1k", opts)["results"].values()
    precision, recall = calc_metric("pr1k3", opts)["results"].values()
    assert fid == pytest.approx(0, abs=1e-4) and csid == 0 and precision == recall == 1


def test_official_caps_on_real_images(monkeypatch):
    """pr50k3_full takes 200,000 real images at most, kid50k_full 1,000,000; there were no caps."""
    assert (metric_main.MOST_REAL_FOR_NEIGHBOURS, metric_main.MOST_REAL_FOR_KID) == (200_000, 1_000_000)
    monkeypatch.setattr(metric_main, "MOST_REAL_FOR_NEIGHBOURS", 30)
    monkeypatch.setattr(metric_main, "MOST_REAL_FOR_KID", 50)
    for name, num_real in (("pr1k3_full", 30), ("dc1k5_full", 30), ("kid1k_full", 50), ("fid1k_full", 60)):
        result = calc_metric(name, options())
        assert result["num_real"] == num_real
        said = [warning for warning in result["warnings"] if "a random subset, stand for it" in warning]
        assert len(said) == (num_real < 60), result["warnings"]
    first, second = (calc_metric("pr1k3_full", options(seed=seed))["results"] for seed in (0, 1))
    assert first == calc_metric("pr1k3_full", options())["results"] != second  # the subset is drawn by the seed
    monkeypatch.setattr(metric_main, "MOST_REAL_FOR_KID", 60)
    assert not any("stand for it" in warning for warning in calc_metric("kid1k_full", options())["warnings"])


def test_a_kid_says_how_it_was_computed():
    result = calc_metric("kid1k", options(kid=KIDOptions(5, 20, 2)))
    assert set(result["results"]) == {"kid1k_degree2[tiny]", "kid1k_degree2_std[tiny]"}
    assert (result["kid_subsets"], result["kid_subset_size"], result["kid_degree"]) == (5, 20, 2)
    assert result["standard_errors"]["kid1k_degree2[tiny]"] > 0
    assert metric_main.score(result) == result["results"]["kid1k_degree2[tiny]"]


def test_a_kid_of_few_images_says_so():
    """60 images had no ± and no word why."""
    opts = MetricOptions(detector=Detectors("tiny"), real=Pictures(60), generated=lambda count: Pictures(60))
    result = calc_metric("kid1k", opts)
    assert set(result["results"]) == {"kid1k[tiny]"} and result["standard_errors"]["kid1k[tiny]"] > 0
    assert (result["kid_subsets"], result["kid_subset_size"]) == (1, 60)
    assert "KID: its subsets have 60 images, 1,000 were asked for" in result["warnings"]


def test_a_report_is_a_line_of_json(tmp_path):
    result = calc_metric("kid1k", options())
    line = report_metric(result, tmp_path, "network-snapshot-000001.pkl")
    assert (tmp_path / "metric-kid1k.jsonl").read_text() == line + "\n"
    assert json.loads(line)["snapshot_pkl"] == "network-snapshot-000001.pkl"


def test_a_metric_of_your_own():
    @metric_main.register_metric
    def brightness(opts):
        return {
            "": float(torch.stack([image.float().mean() for image in opts.generated(10).read(range(10)).images]).mean())
        }

    try:
        assert calc_metric("brightness", options())["results"]["brightness"] == pytest.approx(127.5, abs=5)
    finally:
        del metric_main._registry["brightness"]


def test_refused_before_anything_begins():
    with pytest.raises(UserError, match="--data is needed: fid50k_full"):
        prepare(["fid50k_full"], MetricOptions(detector=Detectors("tiny"), generated=Pictures))
    with pytest.raises(UserError, match="ppl2_wend looks inside a generator"):
        prepare(["ppl2_wend"], options())
    with pytest.raises(UserError, match="is50k needs classes"):
        prepare(["is50k"], options())


@pytest.mark.parametrize(
    ("name", "num_real", "num_gen", "words"),
    [
        (
            "dc1k5_full",
            4,
            1000,
            r"dc1k5_full needs 6 images at least, not 4 \(pictures\); use dc1k3_full or more images",
        ),
        ("pr1k3", 60, 3, "pr1k3 needs 4 images at least, not 3 .*use pr1k2 or more"),
        ("pr1k1000_full", 5000, 5000, "pr1k1000_full needs 1001 images at least, not 1000"),
        ("fid1k_full", 1, 1000, r"fid1k_full needs 2 images at least, not 1 \(pictures\); use more images"),
        ("csid1k", 60, 1, "csid1k needs 2 images at least, not 1"),
    ],
)
def test_too_few_images_are_refused_before_anything_begins(name, num_real, num_gen, words):
    """Four images and k = 5 were an error after the first snapshot, and the FID before it was lost."""
    opts = MetricOptions(
        detector=Detectors("tiny"), real=Pictures(num_real), generated=lambda count: Pictures(min(count, num_gen))
    )
    with pytest.raises(UserError, match=words):
        prepare(["kid1k_full", name], opts) if num_real > 1 and num_gen > 1 else prepare([name], opts)
    assert len(prepare([name], opts, may_lack_images=True)) == 1


def test_enough_images_are_not_refused():
    opts = MetricOptions(detector=Detectors("tiny"), real=Pictures(6), generated=Pictures)
    assert prepare(["dc1k5_full", "pr1k5", "fid1k_full"], opts) and metric_main.shortages(["dc1k5_full"], opts) == []


def test_a_failure_is_one_line_that_names_the_metric():
    def broken(error):
        def compute(opts):
            raise error

        return compute

    opts = options()
    for error in (UserError("no\nsuch thing"), ZeroDivisionError("0"), torch.linalg.LinAlgError("singular")):
        metric_main._registry["broken"] = metric_main.Metric(broken(error), usual=None)
        result, failure = metric_main.try_metric("broken", opts)
        assert result is None and failure.startswith("broken could not be computed: ") and "\n" not in failure
    metric_main._registry["broken"] = metric_main.Metric(broken(TypeError("ours")), usual=None)
    with pytest.raises(TypeError):
        metric_main.try_metric("broken", opts)
    del metric_main._registry["broken"]


def test_scores_are_the_lower_the_better():
    def result(metric, **values):
        return {"metric": metric, "results": {metric + name: value for name, value in values.items()}}

    assert metric_main.score({"metric": "fid5k", "results": {"fid5k[tiny]": 3.0}}) == 3
    assert metric_main.score({"metric": "csid5k", "results": {"csid5k": -2.0}}) == 2
    assert metric_main.score(result("dc5k5", _density=0.1, _coverage=0.7)) == -0.7
    assert metric_main.score({"metric": "fid5k", "results": {"fid5k": float("nan")}}) == float("inf")


@pytest.mark.parametrize("name", ["fid99999k", "fid0k", "pr50k99999", "kid" + "9" * 5000 + "k"])
def test_sizes_that_nobody_can_compute_are_not_known(name):
    assert not metric_main.is_valid_metric(name)
