"""train.py --preset: the flags of a row, typed ones win, chosen by the data where nobody says --cfg."""

import json

import pytest

from metrics import efficientnet
from tests.helpers.runs import run_inside
from tests.helpers.sources import write_images
from training.checkpoints.state_file import OPTIONS_FILE
from training.config.named_presets import NAMED_PRESETS, choose_preset, flags_of
from training.config.options import TrainingOptions, check_together

SMALL = [
    "--cbase=64",
    "--cmax=8",
    "--z-dim=16",
    "--batch=4",
    "--kimg=0.008",
    "--tick=0.004",
    "--workers=0",
    "--device=cpu",
]


@pytest.fixture
def with_eye(monkeypatch, random_eye, tmp_path):
    monkeypatch.setattr(efficientnet, "packaged_weights", lambda: tmp_path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return {mode: write_images(root / mode, 12, (16, 16), mode) for mode in ("RGB", "RGBA", "L")}


@pytest.mark.parametrize("name", NAMED_PRESETS)
@pytest.mark.parametrize("has_eye", [False, True])
def test_every_preset_trains_and_goes_on(tmp_path, folders, request, name, has_eye):
    if has_eye:
        request.getfixturevalue("with_eye")
    args = [f"--preset={name}", f"--data={folders['RGBA']}", f"--outdir={tmp_path / 'runs'}", *SMALL]
    status, out, err = run_inside(*args)
    assert status == 0, out + err
    preset = NAMED_PRESETS[name]
    flags = preset.flags if has_eye else preset.without_eye
    first, _, _ = out.partition("\n")
    assert first.startswith(f"--preset={name}: {flags.split()[0]}") and "--cbase" not in first  # which was typed
    assert preset.expect not in out  # of other flags
    (run_dir,) = (tmp_path / "runs").iterdir()
    kept = json.loads((run_dir / OPTIONS_FILE).read_text())["options"]
    assert kept["cfg"] == ("fastgan" if "fastgan" in flags else "dcgan")
    assert (kept["cbase"], kept["kimg"]) == (64, 0.008)  # typed ones win
    status, out, err = run_inside(*args, "--resume=latest", "--kimg=0.012")
    assert status == 0 and "goes on from training-state" in out, out + err


def test_what_to_expect_is_said_of_the_preset_as_it_is():
    for name, preset in NAMED_PRESETS.items():
        flags, line = flags_of(name)
        assert flags in (preset.flags.split(), preset.without_eye.split())
        assert (preset.expect in line) == (flags == preset.flags.split())
        assert preset.expect not in flags_of(name, {"kimg"})[1]


def test_a_preset_that_does_not_count_is_named(tmp_path, folders):
    args = [f"--data={folders['L']}", f"--outdir={tmp_path / 'runs'}", *SMALL, "--resume=latest"]
    assert run_inside("--preset=sprites", *args)[0] == 0
    status, out, _ = run_inside("--preset=few", *args, "--kimg=0.012")
    assert status == 0 and "--preset=few is not used" in out
    status, _, err = run_inside("--preset=nosuch", *args, "--kimg=0.016")
    assert status == 2 and "--preset=nosuch: choose from" in err


def test_an_error_behind_a_chosen_preset_says_so(tmp_path, folders, request):
    request.getfixturevalue("with_eye")
    status, _, err = run_inside(f"--data={folders['L']}", f"--outdir={tmp_path / 'runs'}", "--gamma=5")
    assert status == 2 and "(the preset above was chosen by --data; --cfg=NAME chooses otherwise)" in err
    assert not (tmp_path / "runs").exists()


def test_a_run_keeps_its_options_whatever_is_installed_since(tmp_path, folders, monkeypatch, random_eye):
    args = ["--preset=few", f"--data={folders['RGB']}", f"--outdir={tmp_path / 'runs'}", *SMALL, "--resume=latest"]
    assert run_inside(*args)[0] == 0
    monkeypatch.setattr(efficientnet, "packaged_weights", lambda: tmp_path)
    status, out, err = run_inside(*args, "--kimg=0.012")
    assert status == 0 and "goes on from training-state" in out, out + err


@pytest.mark.parametrize("name", NAMED_PRESETS)
def test_flags_of_presets_go_together(name):
    import train

    for flags in (NAMED_PRESETS[name].flags, NAMED_PRESETS[name].without_eye):
        check_together(TrainingOptions(**{**train.parse(flags.split()), "data": "images.zip"}))


@pytest.mark.parametrize(
    ("mode", "size", "count", "expected"),
    [
        ("RGBA", (32, 32), 501, "sprites"),
        ("RGB", (16, 16), 501, "photos"),
        ("L", (16, 16), 20, "few"),
        ("RGB", (16, 24), 501, None),
        ("RGB", (128, 128), 3, None),
    ],
)
def test_data_chooses(tmp_path, mode, size, count, expected):
    chosen = choose_preset(str(write_images(tmp_path, count, size, mode)), "cpu")
    assert (chosen is None and expected is None) or (chosen[0] == expected and f"{count} " in chosen[1])
    assert choose_preset(str(tmp_path), "cuda") is None  # nothing was measured there
    if expected in ("sprites", "photos"):
        assert choose_preset(str(tmp_path), "cpu", subset=100)[0] == "few"


def test_a_folder_alone_is_enough(tmp_path, folders):
    args = [f"--data={folders['L']}", f"--outdir={tmp_path / 'runs'}", *SMALL]
    for more in ([], ["--resume=latest", "--kimg=0.012"]):
        status, out, err = run_inside(*args, *more)
        assert status == 0, out + err
    assert "goes on from training-state" in out
    status, out, _ = run_inside(*args, f"--outdir={tmp_path / 'others'}", "--resume=latest")
    assert status == 0 and "chosen for 12 images of 16x16, and no --cfg" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--preset=sprite"], "--preset=sprite: choose from sprites, photos, few"),
        (["--preset=few", "--cascade=a.yaml"], "--preset=few: the recipe of --cascade says what each stage is"),
        (["--data=nowhere"], "nowhere"),
        ([], "--cfg is missing"),
    ],
)
def test_other_presets_are_one_line(args, words):
    status, out, err = run_inside(*args)
    assert status == 2 and words in err and len(err.strip().splitlines()) == 1, out + err
