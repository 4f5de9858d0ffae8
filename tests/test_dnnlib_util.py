"""dnnlib: attribute dicts, construction by name, times, the log, and downloads against a local server."""

import hashlib
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

import dnnlib
from dnnlib import downloads
from dnnlib.util import Logger, UserError, open_url
from tests.helpers.server import DATA, SHA256, Server, cached_files

# EasyDict


def test_easy_dict_items_are_attributes():
    d = dnnlib.EasyDict(a=1)
    d.b = 2
    d["c"] = 3
    del d.a
    assert d == {"b": 2, "c": 3}
    assert d.c == 3
    assert pickle.loads(pickle.dumps(d)) == d


def test_easy_dict_missing_attribute():
    d = dnnlib.EasyDict()
    assert not hasattr(d, "nothing")
    with pytest.raises(AttributeError, match="nothing"):
        _ = d.nothing
    with pytest.raises(AttributeError, match="nothing"):
        del d.nothing


# Names


def test_construct_and_call_by_name():
    made = dnnlib.util.construct_class_by_name(a=1, class_name="dnnlib.util.EasyDict")
    assert type(made) is dnnlib.EasyDict
    assert made == {"a": 1}
    assert dnnlib.util.call_func_by_name(5, func_name="dnnlib.util.format_time") == "5.0s"
    assert dnnlib.util.get_obj_by_name("dnnlib.EasyDict") is dnnlib.EasyDict  # re-exported


def test_a_program_names_classes_of_any_package(tmp_path, monkeypatch):
    """`torch.optim.Adam` and a module of the user's own were refused ('is not a class or function of this project')."""
    weight = torch.nn.Parameter(torch.ones(2))
    adam = dnnlib.util.construct_class_by_name([weight], class_name="torch.optim.Adam", lr=0.5)
    assert type(adam) is torch.optim.Adam and adam.defaults["lr"] == 0.5
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "net.py").write_text("class Net:\n    class Part(list):\n        pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    part = dnnlib.util.construct_class_by_name((1, 2), class_name="my_package.net.Net.Part")
    assert part == [1, 2] and type(part).__name__ == "Part"
    assert dnnlib.util.call_func_by_name("4", func_name="builtins.int") == 4


@pytest.mark.parametrize(
    "name",
    ["no_such_package.Thing", "dnnlib.no_such_module.Thing", "dnnlib.util.no_such_thing", "dnnlib.util.EasyDict.x.y",
     "json.decoder.nothing", "dnnlib", "dnnlib..util.EasyDict", "dnnlib.util.EasyDict ", ".dnnlib", "", None, 7],
)  # fmt: skip
def test_names_of_nothing_are_named(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        dnnlib.util.get_obj_by_name(name)


def test_an_error_inside_of_a_named_module_comes_through(tmp_path, monkeypatch):
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        dnnlib.util.get_obj_by_name("my_broken.Thing")


def test_only_classes_are_constructed_and_only_callables_called():
    with pytest.raises(ValueError, match="not a class"):
        dnnlib.util.construct_class_by_name(5, class_name="dnnlib.util.format_time")
    with pytest.raises(ValueError, match=r"'os\.sep' is a str, which cannot be called"):
        dnnlib.util.call_func_by_name(func_name="os.sep")


# Times


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (5, "5.0s"),
        (59.94, "59.9s"),
        (59.96, "1m 00s"),
        (184, "3m 04s"),
        (3599.9, "1h 00m 00s"),
        (7384, "2h 03m 04s"),
        (86400 + 2 * 3600 + 3 * 60 + 4, "1d 02h 03m"),
    ],
)
def test_format_time(seconds, text):
    assert dnnlib.util.format_time(seconds) == text


# Log


@pytest.fixture
def log_path(tmp_path):
    return tmp_path / "log.txt"


def test_logger_copies_both_streams_and_gives_them_back(log_path, capsys):
    before = sys.stdout, sys.stderr
    with Logger(log_path):
        print("one")
        print("two", file=sys.stderr)
        print("no newline", end="")
        assert log_path.read_text() == "one\ntwo\n"  # flushed
    assert (sys.stdout, sys.stderr) == before
    assert log_path.read_text() == "one\ntwo\nno newline\n"
    assert capsys.readouterr() == ("one\nno newline", "two\n")


def test_logger_appends(log_path):
    for mode in "wa":
        with Logger(log_path, file_mode=mode):
            print(mode)
    assert log_path.read_text() == "w\na\n"


def test_logger_without_file(capsys):
    with Logger() as logger:
        logger.write("shown\n")
        logger.flush()
    assert capsys.readouterr().out == "shown\n"


def test_logger_leaves_progress_bars_out(log_path):
    with Logger(log_path):
        for leave in (True, False):
            for _ in tqdm(range(3), leave=leave, mininterval=0, file=sys.stderr):
                tqdm.write("message", file=sys.stderr)
        print("after", file=sys.stderr)
    assert log_path.read_text() == "message\n" * 6 + "after\n"


def test_logger_keeps_a_warning_in_the_middle_of_a_bar(log_path):
    with Logger(log_path), warnings.catch_warnings():
        warnings.simplefilter("always")
        with tqdm(total=3, file=sys.stderr) as bar:
            bar.update()
            sys.stderr.write("Warning: look\n")
            bar.update()
    assert log_path.read_text() == "Warning: look\n"


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        ("dos\r\n", "dos\n"),
        ("50%\r100%\n", ""),
        ("\r50%\r      \rdone\n", "done\n"),
        ("\x1b[32mgreen\x1b[0m\n", "green\n"),
        ("a\n\nb\n", "a\n\nb\n"),
        ("é 🕷\n", "é 🕷\n"),
    ],
)
def test_logger_lines(log_path, text, logged):
    with Logger(log_path):
        sys.stdout.write(text)
    assert log_path.read_text(encoding="utf-8") == logged


def test_logger_notes_what_ended_the_block(log_path):
    with pytest.raises(ZeroDivisionError), Logger(log_path):
        _ = 1 / 0
    assert log_path.read_text().endswith("ZeroDivisionError: division by zero\n")
    with pytest.raises(UserError), Logger(log_path):
        raise UserError("--data: no such file")
    assert log_path.read_text() == "Error: --data: no such file\n"


def test_logger_survives_closed_and_missing_streams(log_path, monkeypatch, tmp_path):
    closed = open(tmp_path / "closed", "w")  # noqa: SIM115
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    monkeypatch.setattr(sys, "stderr", None)
    with Logger(log_path):
        print("one")
        print("two", file=sys.stderr)
        sys.stdout.flush()
        assert not sys.stdout.isatty()
        assert not sys.stderr.isatty()
    assert log_path.read_text() == "one\ntwo\n"


def test_logger_survives_a_terminal_that_cannot_write_it(log_path, monkeypatch, tmp_path):
    with open(tmp_path / "ascii", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with Logger(log_path):
            print("🕷")
    assert (tmp_path / "ascii").read_text() == "\\U0001f577\n"
    assert log_path.read_text(encoding="utf-8") == "🕷\n"


@pytest.mark.skipif(os.name != "posix", reason="pipes break differently elsewhere")
def test_logger_survives_a_broken_pipe(log_path):
    script = f"""
import sys, dnnlib
sys.stdin.readline()
with dnnlib.util.Logger({str(log_path)!r}):
    for i in range(3):
        print(i)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""
    assert log_path.read_text() == "0\n1\n2\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a disk that is always full, is a Linux device")
def test_logger_survives_a_full_disk(capsys):
    with Logger("/dev/full"):
        print("one")
        print("two")
    assert capsys.readouterr().out == "one\ntwo\n"


def test_logger_names_a_file_that_it_cannot_write(tmp_path):
    before = sys.stdout
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        Logger(tmp_path)
    assert sys.stdout is before


# Addresses and local files


def test_is_url():
    assert dnnlib.util.is_url("https://host.org/a?b#c")
    assert dnnlib.util.is_url("http://localhost:8000/x")
    assert not dnnlib.util.is_url("file:///etc/passwd")
    assert dnnlib.util.is_url("file:///etc/passwd", allow_file_urls=True)
    for other in ("ftp://host.org/x", "host.org/x", "C:\\x", "http://", "http://[", "", None, 3):
        assert not dnnlib.util.is_url(other)


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    assert dnnlib.make_cache_dir_path("a", "b") == str(tmp_path / "a" / "b")
    monkeypatch.delenv("DNNLIB_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert dnnlib.make_cache_dir_path() == str(tmp_path / ".cache" / "dnnlib")
    assert list(tmp_path.iterdir()) == []


def test_local_files_are_simply_opened(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"abc")
    for name in (path, str(path)):
        with open_url(name) as file:
            assert file.read() == b"abc"
    assert open_url(path, return_filename=True) == str(path)
    assert open_url(path, return_filename=True, sha256=hashlib.sha256(b"abc").hexdigest().upper()) == str(path)


def test_local_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"nothing.pkl: no such file"):
        open_url(tmp_path / "nothing.pkl")
    with pytest.raises(UserError, match="is a folder"):
        open_url(tmp_path)
    path = tmp_path / "file.bin"
    path.write_bytes(b"abc")
    with pytest.raises(UserError, match=f"{hashlib.sha256(b'abc').hexdigest()}.*expected {'0' * 64}"):
        open_url(path, sha256="0" * 64)
    assert path.exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host.org/x", "FILE:///etc/passwd", "http://", "http://["])
def test_other_schemes_are_refused(url):
    with pytest.raises(UserError, match=re.escape(url)):
        open_url(url)


def test_contradictory_arguments():
    with pytest.raises(ValueError, match="needs cache=True"):
        open_url("http://localhost/x", return_filename=True, cache=False)
    with pytest.raises(ValueError, match="64 hexadecimal"):
        open_url("http://localhost/x", sha256="abc")


# Downloads


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(downloads, "FIRST_WAIT_SEC", 0.001)
    monkeypatch.setattr(downloads, "LONGEST_WAIT_SEC", 0.01)
    server = Server()
    yield server
    server.close()


def test_download_happens_once(server, tmp_path):
    for _ in range(2):
        with open_url(server.url, sha256=SHA256) as file:
            assert file.read() == DATA
    assert Path(open_url(server.url, return_filename=True)).read_bytes() == DATA
    assert len(server.requests) == 1
    assert cached_files(tmp_path) == ["model.pkl"]


def test_cache_distinguishes_queries(server):
    open_url(server.url + "?v=1")
    open_url(server.url + "?v=2")
    assert len(server.requests) == 2


def test_download_without_cache(server, tmp_path):
    assert open_url(server.url, cache=False).read() == DATA
    assert not (tmp_path / "cache").exists()


def test_cache_dir_argument(server, tmp_path):
    path = Path(open_url(server.url, cache_dir=tmp_path / "mine", return_filename=True))
    assert path.parent == tmp_path / "mine"


def test_broken_transfer_is_continued(server, tmp_path):
    server.plan = ["truncate 4500", "truncate 1500"]
    assert open_url(server.url, sha256=SHA256).read() == DATA
    # Nothing that arrived is asked for again, but for the rest of a chunk.
    ranges = [wanted for _, wanted in server.requests]
    assert ranges == [None, "bytes=4000-", "bytes=5000-"]
    assert cached_files(tmp_path) == ["model.pkl"]


def test_download_is_continued_by_the_next_call(server, tmp_path):
    server.plan = ["truncate 4500"]
    with pytest.raises(UserError, match="cannot be reached"):
        open_url(server.url, num_attempts=1)
    assert cached_files(tmp_path) == ["model.pkl.part", "model.pkl.part.json"]
    assert open_url(server.url).read() == DATA
    assert server.requests[1][1] == "bytes=4000-"
    assert cached_files(tmp_path) == ["model.pkl"]


def test_changed_file_starts_over(server):
    server.plan = ["truncate 4500"]
    with pytest.raises(UserError):
        open_url(server.url, num_attempts=1)
    server.data, server.etag = DATA[::-1], '"v2"'
    assert open_url(server.url).read() == DATA[::-1]


def test_changed_file_of_a_server_that_ignores_if_range(server, monkeypatch):
    server.plan = ["truncate 4500"]
    with pytest.raises(UserError):
        open_url(server.url, num_attempts=1)
    server.data, server.etag = DATA[::-1], '"v2"'
    monkeypatch.setattr(server, "_start", lambda handler: 4000 if handler.headers.get("Range") else 0)
    assert open_url(server.url).read() == DATA[::-1]


def test_finished_part_is_taken(server):
    """A process killed between the last byte and the renaming."""
    server.plan = ["truncate 10"]
    with pytest.raises(UserError):
        open_url(server.url, num_attempts=1)
    folder = Path(dnnlib.make_cache_dir_path("downloads"))
    part = next(folder.glob("*.part.json")).with_suffix("")
    part.write_bytes(DATA)
    assert open_url(server.url, sha256=SHA256).read() == DATA


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_strong_validator_it_starts_over(server, etag):
    server.etag = etag
    server.plan = ["truncate 4500"]
    assert open_url(server.url).read() == DATA
    assert [wanted for _, wanted in server.requests] == [None, None]


def test_server_without_ranges(server):
    server.plan = ["truncate 4500", "norange"]
    assert open_url(server.url).read() == DATA


def test_unknown_length(server):
    server.plan = ["nolength"]
    assert open_url(server.url, sha256=SHA256).read() == DATA


def test_busy_server_is_asked_again(server, capsys):
    server.plan = ["status 500", "status 503", "status 429"]
    assert open_url(server.url).read() == DATA
    assert capsys.readouterr().err.count("trying again") == 3


def test_attempts_are_limited(server):
    server.plan = ["status 500"] * 9
    with pytest.raises(UserError, match=r"cannot be reached \(500 .*local file"):
        open_url(server.url, num_attempts=4)
    assert len(server.requests) == 4


def test_missing_file_is_not_asked_for_again(server, tmp_path):
    server.plan = ["status 404"]
    with pytest.raises(UserError, match="answers 404"):
        open_url(server.url)
    assert len(server.requests) == 1
    assert cached_files(tmp_path) == []


def test_wrong_hash_deletes_the_download(server, tmp_path):
    with pytest.raises(UserError, match=f"{SHA256}.*expected {'0' * 64}"):
        open_url(server.url, sha256="0" * 64)
    assert cached_files(tmp_path) == []


def test_cached_file_with_another_hash_is_replaced(server):
    open_url(server.url)
    server.data = DATA[::-1]
    sha256 = hashlib.sha256(server.data).hexdigest()
    assert open_url(server.url, sha256=sha256).read() == DATA[::-1]


@pytest.mark.parametrize("fault", ["", "nolength"])
def test_size_limit(server, tmp_path, fault):
    server.plan = [fault]
    with pytest.raises(UserError, match="limit of 5000 bytes"):
        open_url(server.url, max_bytes=5000)
    assert cached_files(tmp_path) == []
    assert open_url(server.url, max_bytes=len(DATA)).read() == DATA


@pytest.mark.parametrize("location", ["/elsewhere.pkl", "elsewhere.pkl?x=1", "{origin}/elsewhere.pkl"])
def test_redirect_is_followed(server, location):
    server.plan = ["redirect " + location.format(origin=server.url.removesuffix("/files/model.pkl"))]
    assert open_url(server.url).read() == DATA
    assert "elsewhere" in server.requests[1][0]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://host.org/x", "http://[", "data:,x"])
def test_redirect_out_of_the_web_is_refused(server, tmp_path, location):
    server.plan = ["redirect " + location]
    with pytest.raises(UserError, match="only http and https are followed"):
        open_url(server.url)
    assert len(server.requests) == 1
    assert cached_files(tmp_path) == []


def test_endless_redirects(server):
    server.plan = ["redirect /again"] * 50
    with pytest.raises(UserError, match="redirects more than"):
        open_url(server.url)


def test_offline(server, tmp_path):
    server.close()
    with pytest.raises(UserError) as caught:
        open_url(server.url.replace("http://", "http://user:password@") + "?token=secret")
    message = str(caught.value)
    assert message == (
        f"{server.url}: cannot be reached (Connection refused). "
        "Check the connection, or download it elsewhere and give the local file"
    )
    assert cached_files(tmp_path) == []


def test_cached_file_opens_offline(server):
    open_url(server.url)
    server.close()
    assert open_url(server.url).read() == DATA


def test_cache_folder_that_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file.*cannot be written.*DNNLIB_CACHE_DIR"):
        open_url(server.url)


def test_quiet_and_plain_output(server, capsys):
    open_url(server.url, verbose=False)
    assert capsys.readouterr() == ("", "")
    open_url(server.url + "?2")
    assert capsys.readouterr() == ("", f"{server.url}: downloading (0.0 MB)\n")


def test_progress_bar_on_a_terminal(server, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    open_url(server.url)
    assert re.search(r"model.pkl: 100%.*10.2k/10.2k", capsys.readouterr().err)


def _download_in_another_process(url, ready, results):
    ready.wait()
    results.put(open_url(url, verbose=False).read() == DATA)


def test_processes_share_one_download(server):
    context = multiprocessing.get_context("spawn")
    ready, results = context.Event(), context.Queue()
    workers = [
        context.Process(target=_download_in_another_process, args=(server.url, ready, results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    ready.set()
    assert all(results.get(timeout=30) for _ in workers)
    for worker in workers:
        worker.join()
    assert len(server.requests) == 1


@pytest.mark.skipif(os.name != "posix", reason="file locks are other ones elsewhere")
def test_lock_of_another_process_is_waited_for(server, tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(downloads, "LOCK_POLL_SEC", 0.01)
    path = open_url(server.url, return_filename=True)
    os.unlink(path)
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=open_url, args=(server.url,))
        thread.start()
        time.sleep(0.1)
        assert len(server.requests) == 1
    thread.join(timeout=10)
    assert len(server.requests) == 2
    assert cached_files(tmp_path) == ["model.pkl"]


def test_damaged_validator_is_ignored(server):
    server.plan = ["truncate 4500"]
    with pytest.raises(UserError):
        open_url(server.url, num_attempts=1)
    folder = Path(dnnlib.make_cache_dir_path("downloads"))
    next(folder.glob("*.part.json")).write_text(json.dumps(["not", "it"]))
    assert open_url(server.url).read() == DATA
    assert server.requests[1][1] is None
