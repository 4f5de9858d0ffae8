"""--source=auto: the friendly neighbour is chosen, and why is written down."""

import json

import pytest

from dnnlib.errors import UserError
from tests.helpers.tiny import write_images
from training.config.options import TrainingOptions
from training.config.resolve import resolve
from training.config.source_choice import choose_source


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pool")
    return {
        "data": write_images(root / "data", 30),
        "near": write_images(root / "near", 30, seed=1),
        "far": write_images(root / "far", 30, channels=1, seed=2, side=32),
    }


def options(folders, **kwargs):
    kwargs = {"data": str(folders["data"]), "source": "auto", "device": "cpu", **kwargs}
    return TrainingOptions(cfg="stylegan2", cbase=512, cmax=16, batch=4, **kwargs)


def test_the_friendliest_source_is_taken(folders, capsys):
    pool = (str(folders["far"]), "noise", str(folders["near"]))
    resolved = resolve(options(folders, source_pool=pool))
    assert resolved.config.source.path == str(folders["near"])
    why = resolved.config.source.why
    assert why["sources"][0]["name"] == "near"
    json.dumps(why)
    assert "near: CSID[tiny]" in dict(resolved.summary)["Chosen"]
    assert "rank" in capsys.readouterr().out
    assert "near-to-data" in resolved.config.desc


def test_processes_that_have_not_met_yet_see_all_images(folders, tmp_path, monkeypatch):
    """torchrun's processes choose before they join: each one for itself, and all alike."""
    wanted = options(folders, source_pool=(str(folders["far"]), str(folders["near"])))
    _, alone = choose_source(wanted, "cpu")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "empty"))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    _, one_of_two = choose_source(wanted, "cpu")
    assert one_of_two == alone


def test_noise_can_win(folders):
    resolved = resolve(options(folders, source_pool=("noise",)))
    assert resolved.config.source.kind == "gaussian"
    assert resolved.config.source.why["sources"][0]["name"] == "noise"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({}, "--source=auto: needs --source-pool"),
        ({"source_pool": ("nowhere.zip",)}, "--source-pool: nowhere.zip"),
        ({"source": None, "source_pool": ("a.zip",)}, "--source-pool=a.zip: is for --source=auto"),
        ({"data": None, "source_pool": ("noise",)}, "--data to choose for"),
    ],
)
def test_refusals(folders, kwargs, words):
    with pytest.raises(UserError, match=words):
        resolve(options(folders, **kwargs))


def test_noise_is_a_source_as_calc_sid_names_it(folders):
    """`--source=$(python calc_sid.py … --best)` may say so."""
    assert resolve(options(folders, source="noise")).config.source.kind == "gaussian"
