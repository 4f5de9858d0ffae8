"""train.py --discriminator=projected: with every kind of network and image, exact to resume, refusals in one line."""

import json

import pytest
import torch

import legacy
from tests.helpers.runs import assert_same_run, resume, run_inside, snapshot_of
from tests.helpers.sources import write_images
from training.checkpoints.snapshot import load_snapshot, save_snapshot

pytestmark = pytest.mark.usefixtures("random_eye")
SMALL = (
    "--device=cpu --batch=4 --cbase=128 --cmax=8 --z-dim=16 --tick=0.008 --snap=1 --workers=0 --discriminator=projected "
    "--feature-size=32"
).split()
STYLES = ["--w-dim=16", "--map-depth=2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    modes = {"rgb": "RGB", "gray": "L", "rgba": "RGBA"}
    folders = {name: write_images(root / name, size=(16, 16), mode=mode) for name, mode in modes.items()}
    labels = [[path.name, index % 3] for index, path in enumerate(sorted(folders["rgb"].iterdir()))]
    (folders["rgb"] / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folders


@pytest.mark.parametrize(
    ("cfg", "data", "args"),
    [
        ("stylegan2", "rgb", ["--cond=1", *STYLES]),
        ("stylegan3-t", "rgba", STYLES),
        ("auto", "gray", STYLES),
        ("dcgan", "rgba", ["--aug=noaug"]),
        ("sngan", "rgb", ["--cond=1", "--loss=logistic"]),
        ("pggan", "gray", ["--grow-kimg=0.004"]),
        ("fastgan", "rgba", []),
    ],
)
def test_a_projected_run_goes_on_to_the_bit(tmp_path, folders, cfg, data, args):
    args = [f"--cfg={cfg}", f"--data={folders[data]}", f"--source={folders['gray']}", *SMALL, *args]
    for name, kimg in (("whole", 0.024), ("parts", 0.012)):
        status, out, err = run_inside(*args, f"--outdir={tmp_path / name}", f"--kimg={kimg}")
        assert status == 0, out + err
        assert "D sees features of a frozen EfficientNet at 32 pixels" in out
    whole, parts = (max((tmp_path / name).iterdir()) for name in ("whole", "parts"))
    resume(parts, "--kimg=0.024")
    assert_same_run(whole, parts)
    contents = load_snapshot(snapshot_of(whole))
    assert contents["D"].init_kwargs["weights_hash"] == "0123456789abcdef"
    assert not any("_blocks" in name for name in contents["D"].state_dict())


def test_rows_are_divided_as_one_likes(tmp_path, folders):
    """The random colour behind transparent pixels is a matter of the image, not of the micro-batch."""
    args = ["--cfg=stylegan2", f"--data={folders['rgba']}", *SMALL, *STYLES, "--kimg=0.008", "--fp32=1"]
    states = []
    for micro in (4, 2):
        outdir = tmp_path / str(micro)
        status, out, err = run_inside(*args, f"--outdir={outdir}", f"--batch-gpu={micro}")
        assert status == 0, out + err
        states.append(load_snapshot(snapshot_of(max(outdir.iterdir())))["D"].state_dict())
    differences = torch.cat([(states[0][name] - states[1][name]).abs().flatten() for name in states[0]])
    assert differences.mean() < 2e-5  # Adam makes a whole step of 0.002 of the sign of a gradient that is rounding


def test_snapshots_travel_in_all_formats(tmp_path, folders):
    args = ["--cfg=dcgan", f"--data={folders['rgb']}", *SMALL, "--kimg=0.004", f"--outdir={tmp_path / 'runs'}"]
    status, out, err = run_inside(*args)
    assert status == 0, out + err
    pickle = snapshot_of(max((tmp_path / "runs").iterdir()))
    legacy.write_tensors(tmp_path / "net.safetensors", load_snapshot(pickle))
    before, after = load_snapshot(pickle), load_snapshot(tmp_path / "net.safetensors")
    images = torch.zeros(1, 3, 16, 16)
    assert torch.equal(before["D"](images, None), after["D"](images, None))
    assert type(after["augment_pipe"]).__name__ == "DiffAugment"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--gamma=1"], "--gamma=1: --discriminator=projected has no gradient penalty; leave it out"),
        (["--gamma=0"], "--gamma=0: --discriminator=projected has no gradient penalty; leave it out"),
        (["--loss=relativistic"], "--loss=relativistic comes with a gradient penalty"),
        (["--loss=wgan-gp"], "use hinge or logistic"),
        (["--aug=ada"], "use diff or noaug"),
        (["--augpipe=blit"], "--augpipe=blit: is for --aug=ada and --aug=fixed"),
        (["--target=0.5"], "--target=0.5: needs --aug=ada"),
        (["--mbstd-group=2"], "--mbstd-group=2: --cfg=stylegan2 with --discriminator=projected has no such thing"),
        (["--freezed=1"], "--freezed=1: --cfg=stylegan2 with --discriminator=projected has no such thing"),
        (["--feature-size=50"], "--feature-size=50 is not a multiple of 32"),
        (["--feature-size=16"], "--feature-size=16 must be from 32 to 1,024"),
        (["--discriminator=own", "--feature-size=64"], "--feature-size=64: needs --discriminator=projected"),
        (["--cfg=fastgan", "--discriminator=own"], "--discriminator=own: --cfg=fastgan has none of its own"),
    ],
)
def test_what_it_has_nothing_for_is_refused(tmp_path, folders, args, words):
    known = ["--cfg=stylegan2", "--discriminator=projected", "--device=cpu"]
    status, out, err = run_inside(*known, f"--data={folders['rgb']}", f"--outdir={tmp_path / 'runs'}", *args)
    assert status == 2, out + err
    assert words in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_fixed_pipe_is_taken(tmp_path, folders):
    args = ["--cfg=dcgan", *SMALL, "--aug=fixed", "--augpipe=blit", "--p=0.5", "--kimg=0.004"]
    status, out, err = run_inside(*args, f"--data={folders['rgb']}", f"--outdir={tmp_path / 'runs'}")
    assert status == 0 and "blit with probability 0.5, fixed" in out, out + err


def test_differentiable_augmentation_goes_with_every_discriminator(tmp_path, folders):
    args = ["--cfg=stylegan2", *STYLES, *SMALL[:6], "--aug=diff", "--kimg=0.008", f"--data={folders['rgb']}"]
    status, out, err = run_inside(*args, f"--outdir={tmp_path / 'runs'}")
    assert status == 0 and "(--aug=diff)" in out, out + err


def test_without_the_package_nothing_begins(tmp_path, folders, monkeypatch):
    monkeypatch.undo()
    from training.networks_projected import frozen_detector

    frozen_detector.cache_clear()
    status, out, err = run_inside("--cfg=dcgan", *SMALL, f"--data={folders['rgb']}", f"--outdir={tmp_path / 'runs'}")
    assert status == 2, out + err
    assert "--discriminator=projected: " in err and "[features]" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_other_eyes_start_afresh(tmp_path, folders):
    """Heads that were trained on features of other weights, or D of pixels, are worth nothing to this one."""
    args = ["--cfg=dcgan", f"--data={folders['rgb']}", *SMALL, "--kimg=0.004"]
    status, out, err = run_inside(*args, f"--outdir={tmp_path / 'runs'}")
    assert status == 0, out + err
    path = snapshot_of(max((tmp_path / "runs").iterdir()))
    contents = load_snapshot(path)
    contents["D"].weights_hash = contents["D"]._init_kwargs["weights_hash"] = "fedcba9876543210"
    save_snapshot(path, contents)
    status, out, err = run_inside(*args, f"--outdir={tmp_path / 'next'}", f"--resume={path}")
    assert status == 0 and "Resume: D of the snapshot looks at pixels, or at features of other weights" in out, (
        out + err
    )
    args = [
        "--cfg=dcgan",
        f"--data={folders['rgb']}",
        *SMALL[:6],
        "--kimg=0.004",
        f"--resume={path}",
        "--resume-augment=1",
    ]
    status, out, err = run_inside(*args, f"--outdir={tmp_path / 'third'}")
    assert status == 2 and "was trained without ADA's augmentation" in err, out + err
