"""Servers that mean ill: a length that is not true, data without end, addresses that lead out of the web."""

import gzip
import inspect
from pathlib import Path

import pytest

import dnnlib
from dnnlib import downloads
from dnnlib.errors import UserError
from dnnlib.util import open_url
from tests.helpers.reliability import record
from tests.helpers.server import DATA, Server, cached_files


class LyingServer(Server):
    """Also `length N` (announces so many bytes and sends the file), `endless`, `bomb` (a gzip that nobody asked for)."""

    def answer(self, handler):
        kind, _, argument = (self.plan[0] if self.plan else "").partition(" ")
        if kind not in ("length", "endless", "bomb", "range"):
            super().answer(handler)
            return
        self.plan.pop(0)
        handler.send_response(206 if kind == "range" else 200)
        body = DATA
        if kind == "length":
            handler.send_header("Content-Length", argument)
        elif kind == "range":
            handler.send_header("Content-Range", argument)
        elif kind == "bomb":
            body = gzip.compress(bytes(1 << 24))
            handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        try:
            handler.wfile.write(body)
            while kind == "endless":
                handler.wfile.write(bytes(1 << 16))
        except OSError:  # the other side has had enough
            pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(downloads, "FIRST_WAIT_SEC", 0.001)
    monkeypatch.setattr(downloads, "LONGEST_WAIT_SEC", 0.01)
    server = LyingServer()
    yield server
    server.close()


def test_there_is_a_limit_for_those_who_name_none():
    assert inspect.signature(open_url).parameters["max_bytes"].default == downloads.MAX_BYTES == 4 << 30


@pytest.mark.parametrize("answer", ["length 99999999999999999999", "length 5000000000", "endless", "bomb"])
def test_more_than_the_limit(server, tmp_path, answer):
    """Refused by what is announced, else as soon as it has arrived; the disk gets no more than the limit."""
    server.plan = [answer]
    limit = downloads.MAX_BYTES if "length" in answer else 1 << 20
    with pytest.raises(UserError, match=rf"model\.pkl: is larger than the limit of {limit} bytes") as caught:
        open_url(server.url, max_bytes=limit)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1
    assert cached_files(tmp_path) == []
    assert open_url(server.url).read() == DATA


@pytest.mark.parametrize("answer", ["length 20000", "length -7", "length many", "length 5000"])
def test_lengths_that_are_not_true(server, tmp_path, answer):
    """What is too short is asked for again; what cannot be told apart from the truth is for the sha256 to find."""
    server.plan = [answer] * 3
    found = open_url(server.url, num_attempts=5, max_bytes=1 << 20).read()
    assert found in (DATA, DATA[:5000])
    assert [name for name in cached_files(tmp_path) if "part" in name] == []


def test_a_length_that_is_never_true(server, tmp_path):
    server.plan = ["length 20000"] * 9
    with pytest.raises(UserError, match=r"model\.pkl: cannot be reached \("):
        open_url(server.url, num_attempts=3)
    assert "model.pkl" not in cached_files(tmp_path)  # only a part, which the next attempt judges


@pytest.mark.parametrize("value", ["bytes 4000-9/99999999999999", "bytes x", "bytes 4000-10239/10239", ""])
def test_ranges_that_nobody_asked_for(server, tmp_path, value):
    server.plan = ["truncate 4500", f"range {value}"]
    if "99999999999999" in value:
        with pytest.raises(UserError, match="larger than the limit"):
            open_url(server.url, max_bytes=1 << 20)
        assert cached_files(tmp_path) == []
    assert open_url(server.url, max_bytes=1 << 20).read() == DATA


SCHEMES = [
    "file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "file://localhost/etc/passwd", "ftp://host.org/x",
    "gopher://host.org/1", "data:text/plain,hello", "javascript:alert(1)", "unix:///run/x.sock", "jar:file:///x",
    "s3://bucket/x", "smb://host/x", "ldap://host/x", "view-source:http://host/x",
]  # fmt: skip


def test_addresses_that_lead_out_of_the_web(server, tmp_path):
    survived = 0
    for number, location in enumerate(SCHEMES):
        server.plan = ["redirect " + location]
        with pytest.raises(UserError, match="only http and https are followed"):
            open_url(f"{server.url}?{number}")
        survived += cached_files(tmp_path) == []
    assert survived == len(server.requests) == len(SCHEMES)
    record(
        "Downloads", "redirects to other schemes (file, ftp, data, …)", len(SCHEMES), survived, "one line, nothing kept"
    )


def test_a_way_round_that_ends_outside(server, tmp_path):
    server.plan = ["redirect /one", "redirect /two", "redirect file:///etc/passwd"]
    with pytest.raises(UserError, match="only http and https are followed"):
        open_url(server.url)
    assert cached_files(tmp_path) == []


@pytest.mark.parametrize(
    "url", [url for url in SCHEMES if "://" in url and not url.startswith(("http", "view", "jar"))]
)
def test_other_schemes_are_not_opened(url):
    with pytest.raises(UserError, match="only http and https"):
        open_url(url)


def test_names_in_addresses_stay_in_the_cache(server, tmp_path):
    for tail in (
        "/../../../../evil.pkl",
        "/..%2f..%2fevil.pkl",
        "/%2e%2e/evil.pkl",
        "/C:%5cevil.pkl",
        "/..",
        "/.hidden",
    ):
        path = Path(open_url(server.url + tail, return_filename=True)).resolve()
        assert path.parent == Path(dnnlib.make_cache_dir_path("downloads")).resolve()


def test_every_place_to_stop(server, tmp_path, monkeypatch):
    """The connection breaks after any number of bytes: the next attempts bring the whole file."""
    tried = survived = 0
    for stop in range(0, len(DATA), 1013):
        server.plan = [f"truncate {stop}"]
        tried += 1
        survived += open_url(f"{server.url}?stop={stop}").read() == DATA
    assert survived == tried
    assert [name for name in cached_files(tmp_path) if "part" in name] == []
    record(
        "Downloads", "connections that break after any number of bytes", tried, survived, "the whole file, continued"
    )
