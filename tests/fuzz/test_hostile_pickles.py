"""No file runs code, takes memory or time that it did not bring, or ends in anything but one clear error."""

import contextlib
import io
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import legacy
from tests.helpers import hostile_pickles
from tests.helpers.golden import GOLDEN
from tests.helpers.reliability import IS_LONG, amount, record
from torch_utils.data_pickles import SnapshotError
from training.checkpoints.snapshot import load_snapshot

resource = pytest.importorskip("resource", reason="limits on memory need a Unix")

TOPIC = "Hostile pickles"
MAX_SECONDS = 10  # of this process, for one file: 0.6 is the most that was measured
MEMORY = 1 << 30  # bytes that reading may map beyond what is there already
# What the interpreter reports when code runs, files are touched, names are looked up or programs start.
FORBIDDEN = (
    "os.", "subprocess.", "pty.", "socket.", "shutil.", "ctypes.", "exec", "compile", "import", "open", "pickle.", "marshal.",
    "urllib.", "webbrowser.", "tempfile.", "builtins.input", "builtins.breakpoint", "code.", "function.", "glob.",
)  # fmt: skip

_events: list[str] | None = None
_watched_thread = 0


def _watch(event: str, args: tuple) -> None:
    if _events is not None and threading.get_ident() == _watched_thread and event.startswith(FORBIDDEN):
        _events.append(f"{event} {args!r}"[:200])


@pytest.fixture(scope="module")
def read() -> Callable[[bytes], dict]:
    """Read a file under a watch that sees code run, names imported and files opened."""
    sys.addaudithook(_watch)  # cannot be taken back, and costs nothing while nobody listens
    for data in hostile_pickles.valid_files().values():  # what is imported on first use
        legacy.load_network_pkl(io.BytesIO(data))

    def read(data: bytes) -> dict:
        with watched():
            return legacy.load_network_pkl(io.BytesIO(data))

    return read


@contextlib.contextmanager
def watched(allowed: str = "\0") -> Iterator[None]:
    """allowed: the path that may be opened."""
    global _events, _watched_thread
    _watched_thread, _events = threading.get_ident(), []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        seen, _events = _events, None
        seen = [event for event in seen if not (event.startswith("open ") and allowed in event)]
        assert not seen, seen


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Allocations far beyond what the process has now fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check_refusal(error: SnapshotError) -> None:
    message = str(error)
    assert message.isprintable() and len(message) < 1000, message
    assert "MemoryError" not in message, message


def refusal_of(name: str, load: Callable[[], dict]) -> SnapshotError:
    try:
        load()
    except SnapshotError as error:
        return error
    pytest.fail(f"{name} was loaded")


def test_the_watch_sees_code(read):
    with pytest.raises(AssertionError, match="exec"), watched():
        exec("1")
    with pytest.raises(AssertionError, match="open"), watched():
        Path(__file__).read_bytes()


def test_what_is_attacked_loads_when_left_alone(read):
    for name, data in hostile_pickles.valid_files().items():
        assert read(data)["G_ema"] is not None, name
    assert read(hostile_pickles.beside(None))["D"] is None


def test_every_hostile_file_is_refused_by_both_readers_and_runs_nothing(read, tmp_path):
    sentinel = tmp_path / "it-ran"
    whole = hostile_pickles.corpus(str(sentinel))
    assert len(whole) >= 200 and len({family for family, _ in whole.values()}) == 11
    chosen = list(whole.items())[:: amount(3, 1)]
    path = tmp_path / "hostile.pkl"
    tried: Counter[str] = Counter()
    with little_memory():
        for name, (family, data) in chosen:
            path.write_bytes(data)
            start = time.process_time()
            check_refusal(refusal_of(name, lambda data=data: read(data)))
            with watched(allowed="hostile.pkl"):
                error = refusal_of(name, lambda: load_snapshot(path))
            assert "hostile.pkl: " in str(error), name
            assert time.process_time() - start < MAX_SECONDS, name
            tried[family] += 1
    assert sorted(item.name for item in tmp_path.iterdir()) == ["hostile.pkl"]
    for family, count in tried.items():
        record(TOPIC, family, count, count, "one error by both readers, no code run, no memory beyond 1 GB taken")


def test_names_are_refused_with_the_byte_where_they_stand(read):
    data = hostile_pickles.beside(hostile_pickles.call(("os", "system"), "echo"))
    with pytest.raises(
        SnapshotError, match=r"^at byte (\d+): the file asks for os\.system, .* nothing of it was run"
    ) as refusal:
        read(data)
    offset = int(str(refusal.value).split()[2].rstrip(":"))
    assert data[offset : offset + 1] == b"\x93" and data[:offset].endswith(b"system")


def test_names_inside_storages_are_refused_with_the_byte_in_the_file(read):
    inner = hostile_pickles.file(hostile_pickles.call(("os", "system"), "echo"), 2)
    data = hostile_pickles.beside(hostile_pickles.call(hostile_pickles.STORAGE, inner))
    with pytest.raises(SnapshotError, match=r"asks for os\.system") as refusal:
        read(data)
    offset = int(str(refusal.value).split()[2].rstrip(":"))
    assert data[offset : offset + 1] == b"\x93" and data[:offset].endswith(b"system")


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: bits flipped, bytes set, pieces removed, doubled or moved."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(len(changed))), int(rng.integers(1, 40))
        kind = rng.integers(6)
        if kind == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[at] = int(rng.integers(256))
        elif kind == 2:
            changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x80", b"\xff\xff\xff\x7f"])
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length]
        else:
            source = int(rng.integers(len(changed)))
            changed[at : at + length] = changed[source : source + length]
        if not changed:
            break
    return bytes(changed)


@pytest.mark.parametrize("kind", ["snapshot", "assembled", "stylegan3", "safetensors", "official"])
def test_mutations_load_or_are_refused(kind, read):
    """Bytes of tensors may change unnoticed here (the seal of a snapshot is checked elsewhere); nothing else happens."""
    if kind == "official":
        data = min((GOLDEN / "pickles").glob("*.pkl"), key=lambda path: path.stat().st_size).read_bytes()
    else:
        data = hostile_pickles.valid_files()[kind]
    seconds, limit = amount(2, 60), amount(150, 10**6)
    rng = np.random.default_rng(0)
    start, tried, refused = time.monotonic(), 0, 0
    with little_memory():
        while tried < limit and time.monotonic() - start < seconds:
            attack = mutated(data, rng)
            tried += 1
            try:
                read(attack)
            except SnapshotError as error:
                refused += 1
                check_refusal(error)
    assert tried > 0 and (refused > 0 or not IS_LONG)
    record(
        TOPIC,
        f"random changes to a file ({kind})",
        tried,
        tried,
        f"one error ({refused:,} times) or networks, nothing else",
    )
