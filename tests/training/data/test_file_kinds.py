"""A file that is no snapshot is named by what it is, with the way out."""

import gzip
import io
import zipfile

import pytest
import safetensors.torch
import torch
from PIL import Image

import legacy
from dnnlib.errors import UserError
from tests.helpers import tiny
from training.checkpoints.snapshot import is_snapshot, load_snapshot, save_tensors
from training.checkpoints.state_file import write_state
from training.data.file_kinds import describe_file
from training.data.image_files import open_files


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def saved(value, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


ONNX = b"\x08\x08\x12\x07pytorch\x1a\x062.13.0:" + bytes(range(200))
KINDS = {
    "x.onnx": (ONNX, "an ONNX model"),
    "renamed.pkl": (ONNX, "an ONNX model"),
    "weights.pt": (saved({"w": torch.zeros(3)}), "a checkpoint of PyTorch"),
    "old.pth": (saved({"w": torch.zeros(3)}, _use_new_zipfile_serialization=False), "a checkpoint of PyTorch"),
    "foreign.safetensors": (safetensors.torch.save({"w": torch.zeros(3)}), "safetensors file of other origin"),
    "x.png": (png(), "a PNG, a single picture"),
    "x.jpg": (b"\xff\xd8\xff\xe0" + bytes(40), "a JPEG, a single picture"),
    "weights.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file"),
    "saved_model.pb": (b"\x08\x01\x12\x80\x80\x01" + bytes(40), "a model of TensorFlow"),
    "graph.pb": (b"\x0a\x20\x0a\x05\xffinput" + bytes(40), "a part of a TensorFlow model"),
    "download.pkl": (b"\n<!DOCTYPE html><html><title>Sign in</title>", "a web page and not a snapshot"),
    "notes.pkl": (b"see network-snapshot-000200.pkl\n", "a text that begins with 'see network-snapshot"),
    "pointer.pkl": (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
    "x.pkl.gz": (gzip.compress(b"x"), "packed by gzip; unpack it first"),
    "nothing.pkl": (b"", "empty (0 bytes)"),
}


@pytest.mark.parametrize("name", KINDS)
def test_files_that_are_no_snapshots(tmp_path, name):
    """`--network=x.onnx` said "at byte 0: no instruction (8)"."""
    data, words = KINDS[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_snapshot(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)
    with pytest.raises(UserError) as caught, open(path, "rb") as file:
        legacy.load_network_pkl(file)
    assert words in str(caught.value)
    if not is_snapshot(str(path)):  # a --source or --data
        with pytest.raises(UserError) as caught:
            open_files(path)
        assert "empty" in str(caught.value) or words in str(caught.value)


def test_a_training_state_under_any_name(tmp_path):
    write_state(tmp_path / "renamed.pt", {"x": torch.zeros(3)})
    for read in (load_snapshot, open_files):
        with pytest.raises(UserError, match=r"renamed.pt: is a training state; to continue its run, name its folder"):
            read(tmp_path / "renamed.pt")


def test_a_zip_of_images_is_a_set(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a.png", png())
    with pytest.raises(UserError, match=r"set.zip: is a zip; a set of images is for --data"):
        load_snapshot(tmp_path / "set.zip")
    assert len(open_files(tmp_path / "set.zip")) == 1


def test_folders(tmp_path):
    with pytest.raises(UserError, match="is a folder; give the network-snapshot"):
        load_snapshot(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12")
    with pytest.raises(UserError, match="is a model of TensorFlow"):
        load_snapshot(tmp_path)


def test_snapshots_have_no_other_name(tmp_path):
    path = tiny.save(tmp_path / "x.pkl", tiny.generator2(), None)
    assert describe_file(path) is None
    save_tensors(tmp_path / "x.safetensors", load_snapshot(path))
    assert describe_file(tmp_path / "x.safetensors") is None
    assert load_snapshot(tmp_path / "x.safetensors")["G_ema"].z_dim == tiny.Z_DIM
