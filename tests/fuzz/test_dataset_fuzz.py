"""The reader of data sets on what it was never meant for: an answer, or one line, soon and in bounded memory."""

import io
import json
import random
import resource
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dnnlib.errors import UserError
from tests.helpers.hostile import animation, mutate, png, write_members
from tests.helpers.reliability import amount, record
from training.data import image_files
from training.data.file_index import Names, encode_name
from training.data.image_files import open_files
from training.data.shards import part_paths
from training.dataset import ImageFolderDataset

TOPIC = "Broken images and archives"
SLOW_SEC = 10.0  # for files of a few kilobytes
MEMORY_MB = 2500  # beyond what the process had
OUTCOME = "an answer or one line, within seconds and bounded memory"

pytestmark = pytest.mark.filterwarnings("ignore")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


def survives(look: Callable[[], object]) -> bool:
    """Whether it ends as it should; anything but a `UserError` of one line gets through to pytest."""
    start, message = time.perf_counter(), ""
    try:
        look()
    except UserError as error:
        message = str(error)
    assert message.isprintable()  # a line end is not
    return time.perf_counter() - start < SLOW_SEC


def fuzz(what: str, samples: list[bytes], count: int, look: Callable[[bytes], object]) -> None:
    """`count` mutations of the samples, the same ones each time."""
    rng, survived, before = random.Random(what), 0, peak_mb()
    for number in range(count):
        survived += survives(lambda n=number: look(mutate(samples[n % len(samples)], rng)))
    assert survived == count
    assert peak_mb() - before < MEMORY_MB
    record(TOPIC, what, count, survived, OUTCOME)


def zips() -> list[bytes]:
    files = {
        "x/a.png": png(8, 8),
        "y/ö.png": png(8, 8, seed=1),
        "dataset.json": b'{"labels": [["x/a.png", 0], ["y/\xc3\xb6.png", 1]]}',
    }
    samples = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in files.items():
                with archive.open(name, "w", force_zip64=method == zipfile.ZIP_DEFLATED) as file:
                    file.write(data)
        samples.append(buffer.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 0)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a.png", png(8, 8))
        samples.append(buffer.getvalue())
    return samples


def test_zips(tmp_path):
    path = tmp_path / "a.zip"

    def look(data: bytes) -> None:
        path.write_bytes(data)
        dataset = ImageFolderDataset(path, use_labels=True, cache_bytes=0)
        dataset.describe()
        for index in range(len(dataset)):
            dataset[index]

    fuzz("zips with flipped, cut, moved and forged bytes", zips(), amount(800, 30_000), look)


def test_ends_of_zips(tmp_path):
    """The same, aimed at the directory and its end, where the lies are."""
    path, rng = tmp_path / "a.zip", random.Random(0)
    samples = [(data[: data.index(b"PK\1\2")], data[data.index(b"PK\1\2") :]) for data in zips()]

    def look(data: bytes) -> None:
        path.write_bytes(rng.choice(samples)[0] + data)
        files = open_files(path)
        for index in range(len(files)):
            survives(lambda: files.decode(index))  # noqa: B023

    fuzz("zips with a forged directory", [directory for _, directory in samples], amount(800, 30_000), look)


def images() -> list[bytes]:
    rng = np.random.default_rng(0)
    pictures = [
        ("PNG", Image.fromarray(rng.integers(0, 256, [12, 9, 3], dtype=np.uint8)), {}),
        ("PNG", Image.fromarray(rng.integers(0, 65536, [12, 9], dtype=np.uint16)), {}),
        ("PNG", Image.fromarray(rng.integers(0, 256, [12, 9, 3], dtype=np.uint8)).quantize(7), {"transparency": 2}),
        ("JPEG", Image.fromarray(rng.integers(0, 256, [12, 9, 3], dtype=np.uint8)), {"progressive": True}),
        ("JPEG", Image.new("CMYK", (9, 12), (9, 99, 199, 9)), {}),
        ("WEBP", Image.fromarray(rng.integers(0, 256, [12, 9, 4], dtype=np.uint8)), {"lossless": True}),
        ("WEBP", Image.fromarray(rng.integers(0, 256, [12, 9, 3], dtype=np.uint8)), {}),
        ("BMP", Image.fromarray(rng.integers(0, 256, [12, 9, 3], dtype=np.uint8)), {}),
        ("TIFF", Image.fromarray(rng.integers(0, 256, [12, 9, 4], dtype=np.uint8)), {}),
        ("TIFF", Image.fromarray(rng.integers(0, 256, [12, 9, 3], dtype=np.uint8)), {"compression": "tiff_lzw"}),
        (
            "TIFF",
            Image.fromarray(rng.integers(0, 65536, [12, 9], dtype=np.uint16)),
            {"compression": "tiff_adobe_deflate"},
        ),
    ]
    samples = [png(12, 9, 4), animation("PNG"), animation("WEBP"), animation("TIFF")]
    for kind, image, options in pictures:
        exif = Image.Exif()
        exif[0x0112] = 6
        buffer = io.BytesIO()
        image.save(buffer, kind, **options, **({"exif": exif} if kind in ("JPEG", "WEBP", "PNG") else {}))
        samples.append(buffer.getvalue())
    return samples


def test_images(tmp_path):
    """Read from a folder: in a zip, checksums would find most of the damage first."""
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "a.png"

    def look(data: bytes) -> None:
        path.write_bytes(data)
        files = open_files(tmp_path / "a")
        header = files.probe(0)
        pixels = files.decode(0)
        assert pixels.dtype in (np.uint8, np.uint16)
        assert pixels.shape[2] in (1, 3, 4)
        assert header.width * header.height < 2 * Image.MAX_IMAGE_PIXELS

    fuzz("images of all formats with broken bytes", images(), amount(1000, 20_000), look)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a.png", "b.png", "labels"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["labels", "a.png", "b.png", ""]), inner, max_size=3)
    ),
    max_leaves=12,
)
LABEL = st.integers(-2, 5) | st.lists(st.floats(width=32), max_size=3) | JSON
LABELS = JSON | st.fixed_dictionaries(
    {"labels": st.lists(st.tuples(st.sampled_from(["a.png", "b.png", "c.png", "../a.png"]), LABEL), max_size=3)}
)


def test_dataset_json(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(png(8, 8))
    tried = []

    @settings(
        max_examples=amount(60, 1500),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(LABELS)
    def run(content):
        (folder / "dataset.json").write_text(json.dumps(content))
        assert survives(lambda: ImageFolderDataset(folder, use_labels=True)[1])
        tried.append(1)

    run()
    record(TOPIC, "dataset.json of any content", len(tried), len(tried), OUTCOME)


def test_bytes_of_dataset_json(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(8, 8))
    sample = json.dumps({"labels": [["a.png", [0.5, 1e3]], ["b.png", [-7, 0]]]}).encode()

    def look(data: bytes) -> None:
        (tmp_path / "dataset.json").write_bytes(data)
        ImageFolderDataset(tmp_path, use_labels=True).describe()

    fuzz("dataset.json with broken bytes", [sample], amount(200, 5000), look)


@settings(max_examples=amount(50, 3000), deadline=None, database=None, derandomize=True)
@given(st.sets(st.text(max_size=6) | st.text(st.characters(categories=["Cs"]), max_size=2), max_size=20))
def test_names_keep_their_order(names):
    packed = Names.pack(sorted(map(encode_name, names)))
    assert list(packed) == sorted(names) == packed[:]
    assert all(packed[packed.position(name)] == name for name in names)
    assert "\uffff never" not in packed


@settings(max_examples=amount(200, 5000), deadline=None, database=None, derandomize=True)
@given(st.text(st.sampled_from("a{},.0123/"), max_size=24))
def test_paths_with_braces(text):
    assert survives(lambda: part_paths(text))


def test_indices_on_disk(tmp_path, monkeypatch):
    """A damaged cache costs time and nothing else."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(image_files, "CACHE_FROM", 1)
    path = write_members(tmp_path / "a.zip", {f"{k}.png": png(8, 8, seed=k) for k in range(3)})
    expected = ImageFolderDataset(path).fingerprint
    (cached,) = (tmp_path / "cache" / "indices").iterdir()
    sample = cached.read_bytes()

    def look(data: bytes) -> None:
        Path(cached).write_bytes(data)
        assert ImageFolderDataset(path).fingerprint == expected

    fuzz("the cached index of a zip with broken bytes", [sample], amount(100, 3000), look)
