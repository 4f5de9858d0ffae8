"""Files from elsewhere: cached, resumed where they stopped, checked, and only over http(s)."""

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import requests
import urllib3

from dnnlib.bars import tqdm
from dnnlib.errors import UserError

MAX_BYTES = 4 << 30  # of a file, unless the caller says more: several times the largest snapshot or detector
CHUNK_BYTES = 1 << 17  # what an interruption may lose
MAX_REDIRECTS = 10
MAX_CONNECT_ATTEMPTS = 3  # with no network at all, waiting for minutes helps nobody
TIMEOUT_SEC = (10.0, 60.0)  # to connect, and between two pieces of data
FIRST_WAIT_SEC = 0.5
LONGEST_WAIT_SEC = 20.0
LOCK_POLL_SEC = 0.2

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def make_cache_dir_path(*paths: str) -> str:
    """A path in the user's cache folder, which DNNLIB_CACHE_DIR moves. Nothing is created."""
    root = os.environ.get("DNNLIB_CACHE_DIR")
    if not root and os.environ.get("XDG_CACHE_HOME"):
        root = os.path.join(os.environ["XDG_CACHE_HOME"], "dnnlib")
    if not root:
        home = os.path.expanduser("~")
        root = os.path.join(home if home != "~" else tempfile.gettempdir(), ".cache", "dnnlib")
    return os.path.join(root, *paths)


def is_url(obj: Any, allow_file_urls: bool = False) -> bool:
    """Whether `obj` is a string with the form of an http(s) address (or of a file:// one, where that is allowed)."""
    if not isinstance(obj, str) or not _SCHEME.match(obj):
        return False
    try:
        parts = urllib.parse.urlsplit(obj)
    except ValueError:
        return False
    if parts.scheme == "file":
        return allow_file_urls
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def open_url(
    url: str | os.PathLike,
    cache_dir: str | os.PathLike | None = None,
    num_attempts: int = 10,
    verbose: bool = True,
    return_filename: bool = False,
    cache: bool = True,
    sha256: str | None = None,
    max_bytes: int | None = MAX_BYTES,
) -> Any:
    """Open a local file or an http(s) address for reading bytes.

    A download is kept in `cache_dir` (default: the `downloads` folder of the user's cache), so that it happens once;
    an interrupted one is continued the next time. `sha256` (hex) is compared when given; `max_bytes` limits a
    download (None: it does not). With `return_filename` the path of the file is returned instead of the open file, which
    needs `cache`.

    Raises `UserError` for a missing file, a scheme other than http(s), an address that cannot be reached, a file that
    is too large or whose hash is not the expected one (the download is then deleted).
    """
    if return_filename and not cache:
        raise ValueError("open_url: return_filename=True needs cache=True")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"open_url: sha256 must be 64 hexadecimal digits, not {sha256!r}")
    url = os.fspath(url)
    if not _SCHEME.match(url):
        path = _checked_local_file(url, sha256)
        return path if return_filename else _open_file(path)
    _require_http(url)
    request = _Request(url, num_attempts, verbose, sha256, max_bytes)
    if not cache:
        with tempfile.TemporaryDirectory() as folder:
            return io.BytesIO(Path(_fetch(request, Path(folder))).read_bytes())
    path = _fetch(request, Path(cache_dir or make_cache_dir_path("downloads")))
    return path if return_filename else _open_file(path)


def cached_path(url: str) -> str | None:
    """Where an earlier `open_url` keeps this address; None if it does not."""
    path = make_cache_dir_path("downloads", _Request(url).file_name)
    return path if os.path.isfile(path) else None


@dataclass(frozen=True)
class _Request:
    url: str
    num_attempts: int = 10
    verbose: bool = True
    sha256: str | None = None
    max_bytes: int | None = None

    @property
    def shown(self) -> str:
        return _shown(self.url)

    @property
    def file_name(self) -> str:
        """Where the cache keeps it: the address's hash, then a name that people recognise."""
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path).rsplit("/", 1)[-1]
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")[-100:]
        return hashlib.sha256(self.url.encode()).hexdigest()[:16] + "_" + (name or "file")

    def say(self, message: str) -> None:
        if self.verbose:
            print(f"{self.shown}: {message}", file=sys.stderr, flush=True)


class _Retry(Exception):
    """This attempt failed, the next one may not. `wait_sec` is what the server asked for."""

    def __init__(self, reason: str, is_offline: bool = False, wait_sec: float = 0.0):
        super().__init__(reason)
        self.is_offline, self.wait_sec = is_offline, wait_sec


class _Session(requests.Session):
    """A session that leaves redirects to `_get`. Even when told not to follow them, requests reads their bodies."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


@dataclass
class _Part:
    """An unfinished download and, beside it, the validator of the version that it is a part of."""

    path: Path

    @property
    def validator_path(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def resume_point(self) -> tuple[int, str | None]:
        """How many bytes can be kept, and the validator to send; (0, None) to start over."""
        try:
            validator = json.loads(self.validator_path.read_text())["validator"]
            num_bytes = self.path.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return 0, None
        return (num_bytes, validator) if num_bytes and isinstance(validator, str) else (0, None)

    def start(self, validator: str | None) -> None:
        self.delete()
        if validator is not None:
            self.validator_path.write_text(json.dumps({"validator": validator}))

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self.validator_path.unlink(missing_ok=True)


def _checked_local_file(path: str, sha256: str | None) -> str:
    if not os.path.isfile(path):
        raise UserError(f"{path}: {'is a folder, not a file' if os.path.isdir(path) else 'no such file'}")
    if sha256 is not None:
        actual = _sha256_of(Path(path))
        if actual != sha256.lower():
            raise UserError(f"{path}: its sha256 is {actual}, not the expected {sha256.lower()}")
    return path


def _open_file(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from error


def _require_http(url: str, redirected_from: str | None = None) -> None:
    if is_url(url):
        return
    if redirected_from is not None:
        raise UserError(f"{_shown(redirected_from)}: redirects to {_shown(url)}, and only http and https are followed")
    raise UserError(f"{url}: only http and https addresses are opened; give a local file by its path")


def _fetch(request: _Request, folder: Path) -> str:
    """The path of the file in `folder`, downloaded if it is not there yet."""
    path = folder / request.file_name
    try:
        if not _is_cached(request, path):
            folder.mkdir(parents=True, exist_ok=True)
            with _exclusive(path.with_name(path.name + ".lock"), request):
                if not _is_cached(request, path):  # another process may have been faster
                    _download(request, path)
    except OSError as error:
        if isinstance(error, requests.RequestException):
            raise
        place = error.filename or folder
        raise UserError(
            f"{place}: cannot be written ({error.strerror}); DNNLIB_CACHE_DIR names another cache folder"
        ) from error
    return str(path)


def _is_cached(request: _Request, path: Path) -> bool:
    if not path.is_file():
        return False
    if request.sha256 is None or _sha256_of(path) == request.sha256.lower():
        return True
    request.say("the cached copy has another sha256 and is downloaded again")
    path.unlink()
    return False


@contextlib.contextmanager
def _exclusive(lock_path: Path, request: _Request) -> Iterator[None]:
    """One process at a time; the lock falls with its process, however that ends."""
    is_announced = False
    while True:
        with open(lock_path, "a") as lock:
            # Whoever had the lock before deleted the file: then the lock is on a file that nobody else sees.
            if _try_lock(lock) and lock_path.exists() and os.path.samestat(os.fstat(lock.fileno()), lock_path.stat()):
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):  # Windows deletes no open file
                        lock_path.unlink()
                return
        if not is_announced:
            request.say("waiting for another process that downloads it")
            is_announced = True
        time.sleep(LOCK_POLL_SEC)


def _try_lock(file: TextIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a network folder without locks: better alone than not at all
    return True


def _download(request: _Request, path: Path) -> None:
    """Download into `path`, by way of a `.part` file, with as many attempts as asked for."""
    part = _Part(path.with_name(path.name + ".part"))
    with _Session() as session:
        for attempt in range(max(request.num_attempts, 1)):
            try:
                _attempt(request, session, part)
                break
            except _Retry as failure:
                limit = min(MAX_CONNECT_ATTEMPTS, request.num_attempts) if failure.is_offline else request.num_attempts
                if attempt + 1 >= limit:
                    raise UserError(
                        f"{request.shown}: cannot be reached ({failure}). "
                        "Check the connection, or download it elsewhere and give the local file"
                    ) from failure
                wait_sec = min(max(FIRST_WAIT_SEC * 2**attempt, failure.wait_sec), LONGEST_WAIT_SEC)
                if not failure.is_offline:  # the few quick attempts without a connection end in one clear line
                    request.say(f"{failure}; trying again in {wait_sec:.1f} s")
                time.sleep(wait_sec)
    _check_hash(request, part)
    os.replace(part.path, path)
    part.delete()


def _check_hash(request: _Request, part: _Part) -> None:
    if request.sha256 is None:
        return
    actual = _sha256_of(part.path)
    if actual != request.sha256.lower():
        part.delete()
        expected = request.sha256.lower()
        raise UserError(
            f"{request.shown}: the download's sha256 is {actual}, not the expected {expected}; it was deleted"
        )


def _attempt(request: _Request, session: requests.Session, part: _Part) -> None:
    """One connection: leaves the whole file in `part`, or raises `_Retry` or `UserError`."""
    start, validator = part.resume_point()
    _check_size(request, part, start)
    headers = {"Accept-Encoding": "identity"}
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        with _get(session, request.url, headers) as response:
            if response.status_code == 416 and _total_bytes(response, 0) == start:
                return
            start = _agree_on_start(request, response, part, start, validator)
            _receive(request, response, part, start)
    except requests.RequestException as error:
        if _is_hopeless(error):
            raise UserError(f"{request.shown}: cannot be reached ({_reason(error)})") from error
        raise _Retry(_reason(error), is_offline=_is_offline(error)) from error


def _is_hopeless(error: requests.RequestException) -> bool:
    is_refused = isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE" in str(error)
    return is_refused or isinstance(error, requests.exceptions.InvalidURL)


def _is_offline(error: requests.RequestException) -> bool:
    """Whether no connection came about at all, as against one that broke."""
    if isinstance(error, (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError)):
        return True
    cause = error.args[0] if error.args else None
    return isinstance(getattr(cause, "reason", None), urllib3.exceptions.NewConnectionError)


def _get(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    """GET with every redirect checked before it is followed."""
    origin = url
    for _ in range(MAX_REDIRECTS):
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT_SEC)
        if not response.is_redirect:
            return response
        response.close()
        url = _joined(url, response.headers["location"])
        _require_http(url, redirected_from=origin)
    raise UserError(f"{_shown(origin)}: redirects more than {MAX_REDIRECTS} times")


def _joined(url: str, location: str) -> str:
    try:
        return urllib.parse.urljoin(url, location)
    except ValueError:
        return location


def _agree_on_start(
    request: _Request, response: requests.Response, part: _Part, start: int, validator: str | None
) -> int:
    """Where the server's data begins: at `start` when it continues the same version, else at 0."""
    status = response.status_code
    if status == 206 and start and _continues(response, start, validator):
        return start
    if status in (206, 416):
        part.delete()
        raise _Retry("the file changed while it was downloaded")
    if status == 200:
        part.start(_validator(response))
        return 0
    reason = f"{status} {response.reason}".strip()
    if status >= 500 or status in (408, 425, 429):
        raise _Retry(reason, wait_sec=_retry_after_sec(response))
    raise UserError(f"{request.shown}: the server answers {reason}")


def _continues(response: requests.Response, start: int, validator: str | None) -> bool:
    if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        return False
    return _validator(response) in (None, validator)


def _validator(response: requests.Response) -> str | None:
    """What identifies this version of the file byte for byte; None if nothing does."""
    etag = response.headers.get("ETag")
    if etag is not None:
        return None if etag.startswith("W/") else etag
    return response.headers.get("Last-Modified")


def _total_bytes(response: requests.Response, start: int) -> int | None:
    """The size of the whole file, where the server tells it."""
    match = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    if match:
        return int(match[1])
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None  # the length is that of the compressed form
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _retry_after_sec(response: requests.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def _receive(request: _Request, response: requests.Response, part: _Part, start: int) -> None:
    """Append the response's body to the part."""
    total = _total_bytes(response, start)
    _check_size(request, part, total or 0)
    with _progress(request, start, total) as bar, open(part.path, "ab") as file:
        num_bytes = start
        for chunk in response.iter_content(CHUNK_BYTES):
            num_bytes += len(chunk)
            _check_size(request, part, num_bytes)
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and num_bytes < total:
        raise _Retry(f"only {num_bytes} of {total} bytes arrived")
    if num_bytes != part.path.stat().st_size or num_bytes != (total or num_bytes):
        part.delete()
        raise _Retry("more bytes arrived than the file has")


def _check_size(request: _Request, part: _Part, num_bytes: int) -> None:
    if request.max_bytes is not None and num_bytes > request.max_bytes:
        part.delete()
        raise UserError(
            f"{request.shown}: is larger than the limit of {request.max_bytes} bytes; if that is right, download it "
            "elsewhere and give the local file"
        )


def _progress(request: _Request, start: int, total: int | None) -> tqdm:
    is_terminal = bool(sys.stderr is not None and sys.stderr.isatty())
    if not is_terminal:
        size = "" if total is None else f" ({total / 1e6:.1f} MB)"
        request.say(f"{'continuing' if start else 'downloading'}{size}")
    name = request.file_name.split("_", 1)[1]
    is_shown = is_terminal and request.verbose
    return tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=not is_shown)


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(url: str) -> str:
    """An address for messages: without user name, password and query, which may hold secrets."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return repr(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rsplit("@", 1)[-1], parts.path, "", ""))


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words; urllib3 wraps it several times, with addresses of objects in between."""
    text = str(error)
    for pattern in (r"\[Errno [^\]]+\] ([^'\")]+)", r"(Name or service not known|getaddrinfo failed)", r"(timed out)"):
        match = re.search(pattern, text)
        if match:
            return match[1].strip()
    return re.sub(r"<[^>]*>:? ?", "", text)[:200] or type(error).__name__
