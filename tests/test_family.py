"""Every configuration of the table, whole: trains, snapshots, goes on to the bit, generates, is measured."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dnnlib.cli
import gen_images
from demo.digits import handwritten_digits, printed_digits, save_zip
from tests.helpers.reliability import IS_LONG, amount
from tests.helpers.runs import assert_same_run, resume, run_inside, snapshot_of
from tests.helpers.sources import write_images
from training.checkpoints.snapshot import load_snapshot
from training.config.presets import PRESETS
from training.losses import LOSSES

pytestmark = pytest.mark.usefixtures("random_eye")
SMALL = "--device=cpu --batch=8 --cbase=128 --cmax=8 --z-dim=16 --tick=0.016 --snap=1 --workers=0".split()
GROWING = ["--grow-kimg=0.01"]  # within the runs below: 4x4, 8x8 faded in, 8x8, 16x16 faded in
STYLE_BASED = ["--w-dim=16", "--map-depth=2"]
CONFIGURATIONS = [cfg for cfg in PRESETS if not PRESETS[cfg].is_style_based]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    target = write_images(root / "target", size=(16, 16), count=20)
    labels = [[path.name, index % 3] for index, path in enumerate(sorted(target.iterdir()))]
    (target / "dataset.json").write_text(json.dumps({"labels": labels}))
    return {"target": target, "source": write_images(root / "source", size=(16, 16), count=20, seed=1)}


def train(outdir, cfg, folders, *args):
    args = [*(GROWING if PRESETS[cfg].grow_kimg else []), *args]
    small = [*SMALL, *(STYLE_BASED if PRESETS[cfg].is_style_based else []), f"--data={folders['target']}"]
    status, out, err = run_inside(f"--cfg={cfg}", f"--outdir={outdir}", *small, *args)
    assert status == 0, out + err
    return max(outdir.iterdir())


def adapting(cfg):
    return ["--target=0.1"] if PRESETS[cfg].aug == "ada" else []


@pytest.mark.parametrize("is_spider", [False, True], ids=["gaussian", "spider"])
@pytest.mark.parametrize("cond", [0, 1], ids=["plain", "cond"])
@pytest.mark.parametrize("cfg", CONFIGURATIONS)
def test_a_configuration_does_all_that_a_run_is(tmp_path, folders, cfg, cond, is_spider):
    args, stop_at = [f"--cond={cond}", *adapting(cfg)], 0.024
    if is_spider:
        encoder = "conv" if cond else "flatten"
        args += [
            f"--source={folders['source']}",
            f"--source-encoder={encoder}",
            "--source-noise=0.1",
            "--pretrain=0.008",
        ]
    elif cond:
        args, stop_at = [*args, "--metrics=fid1k"], 0.016  # a stop in the middle of a tick is measured, too
    whole = train(tmp_path / "whole", cfg, folders, *args, "--kimg=0.032")
    parts = train(tmp_path / "parts", cfg, folders, *args, f"--kimg={stop_at}")
    resume(parts, "--kimg=0.032")
    assert_same_run(whole, parts)

    contents = load_snapshot(snapshot_of(whole))
    G, D = contents["G_ema"], contents["D"]
    assert (G.c_dim, G.img_resolution) == (3 if cond else 0, 16)
    c = torch.eye(3)[:2] if cond else None
    z = torch.randn([2, 16], generator=torch.Generator().manual_seed(0))
    images = G(z, c)
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all()
    assert not torch.equal(images[0], images[1])
    assert torch.allclose(G(z[:1], None if c is None else c[:1]), images[:1], atol=1e-5)  # independent of the batch
    mean = G(z, c, truncation_psi=0)
    assert cond or torch.allclose(mean[0], mean[1], atol=1e-5)
    assert D(images, c).shape == (2, 64 if PRESETS[cfg].discriminator_kind == "projected" else 1)
    if cond:
        assert not torch.equal(G(z[:1], c[:1]), G(z[:1], c[1:]))
        assert not torch.equal(D(images, c), D(images, c.flip(0)))
    if cond and not is_spider:
        (line,) = (whole / "metric-fid1k.jsonl").read_text().splitlines()[-1:]
        assert np.isfinite(json.loads(line)["results"]["fid1k[tiny]"])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The demo's: (target, source)."""
    root = tmp_path_factory.mktemp("real")
    handwritten, printed = root / "handwritten.zip", root / "printed.zip"
    save_zip(handwritten, handwritten_digits()[0])
    save_zip(printed, printed_digits(1000)[0])
    return handwritten, printed


@pytest.fixture(params=["digits", "photographs"])
def pair(request, digits):
    """(target, source). Photographs with LONG_TESTS only: a few steps on them show no more than on digits."""
    if request.param == "digits":
        return digits
    if not IS_LONG:
        pytest.skip("photographs are for LONG_TESTS=1")
    folder = request.getfixturevalue("shared_data")
    return folder / "cifar10.zip", folder / "tinyimagenet.zip"


@pytest.mark.parametrize("cfg", [cfg for cfg, row in PRESETS.items() if row.batch is None and not row.adapts])
def test_a_configuration_trains_on_real_images(tmp_path, pair, cfg):
    """Stops half way, goes on to the bit, generates; with LONG_TESTS for 2 kimg, and is measured."""
    kimg = amount(0.048, 2)
    args = f"--cfg={cfg} --device=cpu --batch=16 --cbase=512 --cmax=16 --z-dim=64 --snap=1 --workers=1".split()
    args += [f"--data={pair[0]}", f"--source={pair[1]}", f"--tick={kimg / 2}"]
    args += adapting(cfg)
    args += [f"--grow-kimg={kimg / 8}"] if PRESETS[cfg].grow_kimg else []
    args += ["--w-dim=32", "--map-depth=2", "--gamma=5"] if PRESETS[cfg].is_style_based else []
    args += ["--metrics=fid1k_full"] if IS_LONG else []
    for folder, length in (("whole", kimg), ("parts", kimg / 2)):
        status, out, err = run_inside(*args, f"--outdir={tmp_path / folder}", f"--kimg={length}")
        assert status == 0, out + err
    whole, parts = (max((tmp_path / folder).iterdir()) for folder in ("whole", "parts"))
    resume(parts, f"--kimg={kimg}")
    assert_same_run(whole, parts)
    images = generated(whole, tmp_path / "images")
    assert np.std(images, axis=0).mean() > 0.01 * kimg  # of 255; they are not all the same
    if IS_LONG:
        lines = (whole / "metric-fid1k_full.jsonl").read_text().splitlines()
        values = [json.loads(line)["results"]["fid1k_full[tiny]"] for line in lines]
        print(f"\n{cfg}, {pair[0].name}: fid1k_full[tiny] {values} ({whole})")
        assert len(values) == 2 and np.isfinite(values).all()


def generated(run_dir, outdir, *args):
    """What gen_images.py makes of a run's last snapshot, float `[n, h, w, ...]`."""
    with pytest.MonkeyPatch.context() as patch:
        given = [f"--network={snapshot_of(run_dir)}", "--seeds=0-7", f"--outdir={outdir}", *args]
        patch.setattr(sys, "argv", ["gen_images.py", *given])
        with pytest.raises(SystemExit) as leaving:
            dnnlib.cli.run(gen_images.main)
    assert leaving.value.code == 0
    return np.stack([np.asarray(Image.open(path), dtype=float) for path in sorted(outdir.glob("seed*.png"))])


@pytest.mark.parametrize("cfg", CONFIGURATIONS)
def test_gen_images_at_the_command_line(tmp_path, folders, cfg):
    run_dir = train(tmp_path / "runs", cfg, folders, "--cond=1", "--kimg=0.008")
    images = generated(run_dir, tmp_path / "out", "--class=2", "--trunc=0.7")
    assert images.shape[:3] == (8, 16, 16)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(tmp_path, folders, loss):
    for cfg in ("stylegan2", "dcgan"):
        run_dir = train(tmp_path / cfg, cfg, folders, f"--loss={loss}", "--kimg=0.016")
        (stats,) = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
        assert np.isfinite(stats["Loss/G/loss"]["mean"]) and np.isfinite(stats["Loss/D/loss"]["mean"])
        assert ("Loss/D/reg" in stats) == (cfg == "stylegan2" or LOSSES[loss].needs_penalty)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--loss=square"], "--loss"),
        (["--w-dim=16"], "--w-dim=16: --cfg=dcgan has no such thing"),
        (["--map-depth=2"], "--map-depth=2: --cfg=dcgan has no such thing"),
        (["--freezed=2"], "--freezed=2: --cfg=dcgan has no such thing"),
        (["--mbstd-group=2"], "--mbstd-group=2: --cfg=dcgan has no such thing"),
        (["--grow-kimg=2"], "--grow-kimg=2.0: --cfg=dcgan has no such thing"),
        (["--data=WIDE"], "images of 24x16 do not suit this --cfg, which makes 16x16, 32x32, 64x64, 128x128"),
    ],
)
def test_what_a_configuration_cannot_do_is_one_line(tmp_path, folders, args, words):
    wide = write_images(tmp_path / "wide", size=(16, 24), count=2)
    args = [arg.replace("WIDE", str(wide)) for arg in args]
    args += [] if any(arg.startswith("--data") for arg in args) else [f"--data={folders['target']}"]
    status, out, err = run_inside("--cfg=dcgan", f"--outdir={tmp_path / 'runs'}", *args)
    assert status == 2, out + err
    assert words in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_another_micro_batch_is_no_matter_of_rounding_with_batch_norm(tmp_path, folders):
    for cfg, words in (("dcgan", "batch norm sees other micro-batches"), ("r3gan", "equal up to rounding")):
        run_dir = train(tmp_path / cfg, cfg, folders, "--kimg=0.008")
        assert f"--batch-gpu: 4 instead of None: {words}" in resume(run_dir, "--kimg=0.016", "--batch-gpu=4")


def test_the_table_is_whole():
    for preset in PRESETS.values():
        assert preset.loss in LOSSES
        assert {field.name for field in dataclasses.fields(preset)} >= {"generator", "discriminator", "check_size"}
