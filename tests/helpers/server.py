"""A server of bytes that fails as it is told to, for downloads."""

import hashlib
import http.server
import re
import threading

DATA = bytes(range(256)) * 40  # [10240]
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server:
    """A web server in a thread. `plan` holds what the next answers do wrong, one word each; then all goes well."""

    def __init__(self):
        self.data, self.etag, self.plan = DATA, '"v1"', []
        self.requests = []  # (path, Range header) of each
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/files/model.pkl"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _handler(self):
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests.append((self.path, self.headers.get("Range")))
                server.answer(self)

            def log_message(self, *_):
                pass

        return Handler

    def answer(self, handler):
        fault = self.plan.pop(0) if self.plan else ""
        kind, _, argument = fault.partition(" ")
        if kind == "status":
            handler.send_response(int(argument))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        elif kind == "redirect":
            handler.send_response(302)
            handler.send_header("Location", argument)
            handler.end_headers()
        else:
            self._send_file(handler, kind, int(argument or 0))

    def _send_file(self, handler, fault, num_bytes):
        start = self._start(handler) if fault != "norange" else 0
        if start >= len(self.data):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.data)}")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        if fault != "nolength":
            handler.send_header("Content-Length", str(len(self.data) - start))
        handler.end_headers()
        body = self.data[start:]
        handler.wfile.write(body[:num_bytes] if fault == "truncate" else body)

    def _start(self, handler):
        match = re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        return int(match[1]) if match and handler.headers.get("If-Range") == self.etag else 0


def cached_files(tmp_path):
    return sorted(path.name.split("_", 1)[1] for path in (tmp_path / "cache").rglob("*") if path.is_file())
