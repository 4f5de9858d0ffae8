"""Where the tests find golden numbers and, when they are at hand, the real images."""

import os
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.eyes import random_detector
from tests.helpers.golden import SHARED

# In this process and in those that tests start: `--detector=auto` is `tiny`, whether the package of EfficientNet is there or not.
WITHOUT_FEATURES = str(Path(__file__).parent / "helpers" / "without_features")
sys.path.insert(0, WITHOUT_FEATURES)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [WITHOUT_FEATURES, os.environ.get("PYTHONPATH")]))

torch.set_num_threads(1)  # tiny tensors; several test processes may share the cores


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Features and downloads of the tests stay apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DNNLIB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def random_eye(monkeypatch):
    """Projected discriminators look through a network of random weights, in this process."""
    monkeypatch.setattr("training.networks_projected.frozen_detector", random_detector)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real images; the test is skipped where it is missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the folder of real images (../shared/data) is not on this machine")
    return SHARED / "data"
