"""The folder that legacy.py --model-card writes: whole, true, without the paths of this machine."""

import json

import pytest

import gen_images
import legacy
from tests.helpers import tiny
from tests.test_project import call
from training.checkpoints.snapshot import load_snapshot, save_snapshot
from training.sources.source import GaussianSource, ImageSource


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    images = ImageSource.open(tiny.write_images(root / "photos", num=5))
    spider = tiny.generator2(encoder={"kind": "flatten"})
    spider.mapping.encoder.fit(images.all_batches())
    networks = {"conditional": (tiny.generator2(c_dim=3), GaussianSource(tiny.Z_DIM)), "spider": (spider, images)}
    found = {}
    for name, (G, source) in networks.items():
        (root / name).mkdir()
        found[name] = tiny.save(root / name / "network-snapshot-000002.pkl", G, source)
        meta = {"cfg": "stylegan2", "cur_nimg": 2000, "data": {"path": str(root / "secret" / "cats.zip")}}
        save_snapshot(found[name], {**load_snapshot(found[name]), "meta": meta})
    lines = [{"kimg": kimg, "results": {"fid1k[tiny]": kimg + 0.5}} for kimg in (1, 2)]
    text = "\n".join(["no JSON", *map(json.dumps, lines)])
    (root / "conditional" / "metric-fid1k.jsonl").write_text(text + "\n")
    return found


@pytest.mark.parametrize("name", ["conditional", "spider"])
def test_a_folder_to_upload(tmp_path, snapshots, name, capsys):
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "cats"
    assert call(legacy, f"--source={snapshots[name]}", f"--dest={folder}", "--model-card", "--license=mit") == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "generator.onnx",
        "generator-synthesis.onnx",
        "samples.png",
    }
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlicense: mit\n") and "# cats" in text and "cats.zip, 2 thousand images seen" in text
    assert "secret" not in text + (folder / "config.json").read_text() and str(tmp_path) not in text
    facts = json.loads((folder / "config.json").read_text())
    assert facts["parameters"] == sum(p.numel() for p in load_snapshot(snapshots[name])["G_ema"].parameters())
    if name == "conditional":
        assert facts["metrics"] == {"fid1k[tiny]": 2.5} and "| `fid1k[tiny]` | 2.5 |" in text and "--class=any" in text
    else:
        assert facts["source"] == {"kind": "images", "name": "photos"} and "Nothing was measured" in text
    args = ["--seeds=0", *(["--class=any"] if name == "conditional" else []), f"--outdir={tmp_path / 'out'}"]
    assert call(gen_images, f"--network={folder / 'model.safetensors'}", *args) == 0
    assert "Note: say in" not in capsys.readouterr().out


def test_what_cannot_be_exported_is_a_note(tmp_path, snapshots, capsys, monkeypatch):
    from dnnlib.errors import UserError
    from training.checkpoints import onnx_export

    def missing():
        raise UserError("ONNX is not installed")

    monkeypatch.setattr(onnx_export, "require_packages", missing)
    folder = tmp_path / "cats"
    assert call(legacy, f"--source={snapshots['spider']}", f"--dest={folder}", "--model-card") == 0
    said = capsys.readouterr().out
    assert "Note: no generator.onnx: ONNX is not installed" in said and "under which licence" in said
    assert not (folder / "generator.onnx").exists() and "onnxruntime" not in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--dest=FULL", "--model-card"], "is there already, and not empty"),
        (["--dest=new.pkl", "--license=mit"], "--license=mit: stands in the card of --model-card"),
        (["--dest=new", "--model-card", "--format=official"], "leave --format and --force-fp16 out"),
        (["--dest=new"], "the ending says what to write"),
    ],
)
def test_what_is_no_folder_is_one_line(tmp_path, snapshots, capsys, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert call(legacy, f"--source={snapshots['spider']}", *[arg.replace("FULL", "full") for arg in args]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
