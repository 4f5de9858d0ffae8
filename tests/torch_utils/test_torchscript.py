"""TorchScript archives as data."""

import io
import pickle
import zipfile

import pytest
import torch

from dnnlib.errors import UserError
from torch_utils.torchscript import is_torchscript, read_tensors


class Layers(torch.nn.Module):
    """Parameters, buffers and other things, in several precisions and layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = torch.nn.Parameter(torch.randn(2, 3).half().t())
        self.register_buffer("passing", torch.arange(4), persistent=False)
        self.constant, self.number, self.numbers = torch.ones(5), 3, [1, 2]
        self.stack = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.BatchNorm2d(4))
        self.register_buffer("empty", torch.empty(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stack(x) * self.number + self.constant.sum() + self.numbers[0]


class Packed(torch.nn.Module):
    """Runs code of its own while it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        print("code of the file runs")
        self.weight, self.training = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def archive(module):
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), file)
    file.seek(0)
    return file


def test_reads_what_pytorch_reads():
    file = archive(Layers())
    assert is_torchscript(file)
    actual = read_tensors(file)
    file.seek(0)
    expected = torch.jit.load(file).state_dict()
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert torch.equal(actual[name], value) and actual[name].dtype == value.dtype


def test_runs_no_code_of_the_file(capfd):
    with pytest.raises(UserError, match="only their own code can undo"):
        read_tensors(archive(Packed()))
    assert "code of the file" not in capfd.readouterr().out


def with_entries(**entries):
    """A Layers archive in which some entries are replaced."""
    file, result = archive(Layers()), io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            last = name.rsplit("/", 1)[-1]
            new.writestr(name, entries.get(last.replace(".", "_"), old.read(name)))
    result.seek(0)
    return result


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"data_pkl": pickle.dumps(print)}, "asks for builtins.print"),
        ({"data_pkl": pickle.dumps([1])}, "holds no module"),
        ({"data_pkl": b"garbage"}, "no readable TorchScript archive"),
        ({"data_pkl": b""}, "no readable TorchScript archive"),
        ({"1": b"short"}, "no readable TorchScript archive"),
    ],
    ids=["code", "list", "garbage", "empty", "short"],
)
def test_bad_archives_are_one_line(entries, words):
    with pytest.raises(UserError, match=words) as error:
        read_tensors(with_entries(**entries))
    assert "\n" not in str(error.value)


def test_other_files_are_none():
    assert not is_torchscript(io.BytesIO(b"PK\x03\x04 and so on"))
    assert not is_torchscript(io.BytesIO(b""))
