"""What several scripts take: snapshots by the folders of their runs, classes, lists of numbers."""

import click
import pytest

import shared_options
from dnnlib.errors import UserError


@click.command()
@shared_options.NETWORK
@shared_options.CLASSES
@shared_options.LABEL
def command(network, classes, label):
    return network, classes, label


def values(*args):
    return command.main(list(args), standalone_mode=False)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs with snapshots, and one that has none yet; the last two digits of a snapshot are a part of a kimg."""
    monkeypatch.chdir(tmp_path)
    for name, numbers in {"00000-a": ["000004", "000012"], "00010-b": ["000001", "000001.500"], "00003-c": []}.items():
        folder = tmp_path / "training-runs" / name
        folder.mkdir(parents=True)
        (folder / "training_options.json").write_text("{}")
        for number in numbers:
            (folder / f"network-snapshot-{number}.pkl").touch()
    return tmp_path / "training-runs"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("latest", "00010-b/network-snapshot-000001.500.pkl"),
        ("training-runs", "00010-b/network-snapshot-000001.500.pkl"),
        ("training-runs/00000-a", "00000-a/network-snapshot-000012.pkl"),
    ],
)
def test_a_run_stands_for_its_newest_snapshot(runs, value, expected, capsys):
    assert values(f"--network={value}")[0] == f"training-runs/{expected}"
    assert capsys.readouterr().err == f"--network={value}: training-runs/{expected}\n"


def test_other_values_stay(runs, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for value in ("x.pkl", "https://x/y.pkl", "images"):
        assert values(f"--network={value}")[0] == value
    assert capsys.readouterr().err == ""


def test_where_there_is_no_snapshot_yet(runs, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--network=training-runs/00003-c: no run in training-runs/00003-c has saved"):
        values("--network=training-runs/00003-c")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="--network=latest: there is no folder training-runs here"):
        values("--network=latest")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", [3]), ("0-2,7,1", [0, 1, 2, 7]), ("any", ["any"]), ("all", ["all"]), ("-1", [-1])],
)
def test_classes(text, expected):
    assert values("--network=x.pkl", f"--class={text}")[1] == expected


@pytest.mark.parametrize("arg", ["--class=x", "--class=1.5", "--class=3-1", "--label=1,x", "--label=nan", "--label="])
def test_what_is_no_list_is_refused(arg):
    with pytest.raises(click.BadParameter):
        values("--network=x.pkl", arg)


def test_label_vectors():
    assert values("--network=x.pkl", "--label=0.2,-1,3e-1")[2] == (0.2, -1.0, 0.3)
