"""doctor.py: what is there, what is missing, and the way to it."""

import doctor
from tests.test_project import call


def test_what_is_there(capsys):
    assert call(doctor) == 0
    said = capsys.readouterr().out
    for words in ("Python ", "PyTorch ", "of memory free", "tiny: always at hand", "cpu: ", "for this folder"):
        assert words in said


def test_what_is_missing_comes_with_its_command(monkeypatch, capsys):
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    lines = list(doctor.packages())
    (line,) = [line for line in lines if "pyarrow" in line]
    assert "Parquet in dataset_tool.py" in line and line.endswith('-m pip install -e ".[parquet]"')


def test_every_extra_is_one_of_the_project():
    import tomllib

    from tests.helpers.golden import ROOT

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for _, extra in doctor.EXTRAS.values()} <= set(extras)


def test_a_folder_that_is_not_there_yet(tmp_path):
    assert doctor.nearest_existing(tmp_path / "a" / "b") == tmp_path
