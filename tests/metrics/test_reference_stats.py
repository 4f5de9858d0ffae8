"""Statistics of real images as files: ours, those of other tools, and what is no such file."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from metrics.detectors import open_detector
from metrics.frechet_distance import extrapolated_distance, fit_gaussian, frechet_distance
from metrics.reference_stats import read_reference, write_reference


@pytest.fixture(scope="module")
def tiny():
    return open_detector("tiny")


@pytest.fixture
def features(tiny):
    return torch.randn([50, tiny.num_features], generator=torch.Generator().manual_seed(0))


def test_what_is_written_is_read(tmp_path, tiny, features):
    for with_features in (False, True):
        path = tmp_path / f"{with_features}.npz"
        write_reference(path, features, tiny, with_features)
        reference = read_reference(path)
        assert (reference.num_images, reference.detector_key, reference.name) == (50, tiny.key, path.name)
        assert frechet_distance(reference.gaussian, fit_gaussian(features)) < 1e-6
        reference.check(tiny)
        assert reference.unnamed == []
    assert torch.equal(reference.feature_set("kid").features, features)
    with pytest.raises(UserError, match=r"kid needs features, and False\.npz holds mean and covariance only"):
        read_reference(tmp_path / "False.npz").feature_set("kid")


def test_files_of_pytorch_fid_and_clean_fid(tmp_path, tiny, features):
    """`np.savez(path, mu=…, sigma=…)`, sigma divided by N - 1; nothing else is in there."""
    x = features.numpy()
    np.savez(tmp_path / "cifar10.npz", mu=x.mean(axis=0), sigma=np.cov(x, rowvar=False))
    reference = read_reference(tmp_path / "cifar10.npz")
    assert (reference.num_images, reference.detector_key) == (None, None)
    reference.check(tiny)
    assert reference.unnamed == ["cifar10.npz does not say which network has seen its images, nor how"]
    assert np.allclose(reference.gaussian.covariance * 49 / 50, fit_gaussian(features).covariance)


@pytest.mark.parametrize("keeps_features", [False, True])
def test_files_of_the_official_code(tmp_path, features, keeps_features):
    """`pickle.dump(stats.__dict__)`: sums over the images in float64, or a list of arrays of features."""
    x = features.numpy().astype(np.float64)
    content = {
        "capture_all": keeps_features, "capture_mean_cov": not keeps_features, "max_items": 50, "num_items": 50,
        "num_features": x.shape[1],
        "all_features": [x[:30].astype(np.float32), x[30:].astype(np.float32)] if keeps_features else None,
        "raw_mean": None if keeps_features else x.sum(axis=0), "raw_cov": None if keeps_features else x.T @ x,
    }  # fmt: skip
    path = tmp_path / "stats.pkl"
    path.write_bytes(pickle.dumps(content))
    reference = read_reference(path)
    assert reference.num_images == 50
    assert frechet_distance(reference.gaussian, fit_gaussian(features)) < 1e-6
    assert (reference.features is not None) == keeps_features


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"text", "cannot be read|damaged|no snapshot"),
        (pickle.dumps(Evil()), "print"),
        (pickle.dumps({"a": 1}), "no statistics in it"),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, "sigma is no covariance"),
        ({"mu": np.zeros(3), "sigma": np.triu(np.ones([3, 3]))}, "sigma is no covariance"),
        ({"mu": np.zeros(3) + 1j, "sigma": np.eye(3)}, r"cannot be read \(complex numbers\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "num_images": 0}, "says that it is of 0 images"),
        ({"mu": np.ones(3), "sigma": np.eye(3), "features": np.zeros([5, 3])}, "mu is not the mean of its features"),
        ({"mu": np.zeros(3)}, "holds no mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"mu of shape \[3\] and sigma of \[2, 2\] do not fit together"),
        ({"mu": np.zeros([1, 3]), "sigma": np.eye(3)}, "do not fit together"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not all finite"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "features": np.zeros([5, 2])}, "do not fit together"),
        ({"features": np.zeros(5)}, r"features have shape \[5\]"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "num_images": np.zeros(2)}, "cannot be read"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "cannot be read"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "features": np.full([5, 3], np.nan)}, "not all finite"),
        (
            {"mu": np.zeros(3), "sigma": np.eye(3), "features": np.zeros([5, 3]), "num_images": 6},
            "holds the features of 5",
        ),
    ],
)
def test_what_is_no_such_file_is_one_line(tmp_path, capsys, content, words):
    path = tmp_path / "stats.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(UserError, match=words) as caught:
        read_reference(path)
    assert len(str(caught.value).splitlines()) == 1 and "run" not in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be read"):
        read_reference(tmp_path / "missing.npz")


def test_other_detectors_are_refused(tmp_path, tiny, features):
    write_reference(tmp_path / "ref.npz", features, tiny, False)
    reference = read_reference(tmp_path / "ref.npz")
    other = dataclasses.replace(tiny, weights_hash="0000000000000000")
    with pytest.raises(UserError, match=r"was made with tiny-.*, and this computation uses tiny-0000"):
        reference.check(other)
    wide = dataclasses.replace(tiny, num_features=2048)
    with pytest.raises(UserError, match=r"is of 256 features, and tiny has 2048"):
        dataclasses.replace(reference, detector_key=None).check(wide)


def test_few_samples_read_too_high_and_the_extrapolated_distance_does_not():
    """Both sets are of the same distribution: the distance is 0, and d / N of few samples is not."""
    generator = torch.Generator().manual_seed(0)
    real = fit_gaussian(torch.randn([200_000, 12], generator=generator))
    values = [extrapolated_distance(real, torch.randn([300, 12], generator=generator), seed) for seed in range(5)]
    assert all(result.at_all > 0.1 for result in values)
    assert abs(np.mean([result.value for result in values])) < 0.04
    with pytest.raises(
        UserError, match="47 generated images are too few to extrapolate with 12 features; 48 are needed"
    ):
        extrapolated_distance(real, torch.randn([47, 12]))
