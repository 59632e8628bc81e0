"""A file server on the loopback device that misbehaves as told, and writes down what it was asked for."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server(ThreadingHTTPServer):
    """Serves the files of a folder.

    Attributes:
        faults: by file name, what goes wrong in its next requests: an HTTP status; or (kind, number):
            ("cut", n) closes the connection after n bytes, ("stall", n) sends no more after n bytes,
            ("length", n) claims that there are n bytes more than there are, ("redirect", address) sends the client
            there, ("reason", text) answers 404 with that text; or ("trickle", condition) sends a byte at a
            time until the condition holds.
        honours_range: whether it can send the end of a file alone.
        says_length: whether it says how much it will send.
        requests: (file name, first byte asked for), in order.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, list[Any]] = defaultdict(list)
        self.honours_range = True
        self.says_length = True
        self.requests: list[tuple[str, int]] = []
        self.closing = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the client has hung up, as it should

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data"

    def asked_for(self, name: str) -> list[int]:
        """The first byte of each request for a file."""
        return [start for found, start in self.requests if found == name]


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.rpartition("/")[2]
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start = int(first) if self.server.honours_range else 0
        fault: Any = None
        if body:
            self.server.requests.append((name, int(first)))
            if self.server.faults[name]:
                fault = self.server.faults[name].pop(0)
        path = self.server.folder / name.partition("?")[0]
        if isinstance(fault, tuple) and fault[0] == "redirect":
            self.send_response(302)
            self.send_header("Location", fault[1])
            self.end_headers()
            return
        if isinstance(fault, tuple) and fault[0] == "reason":
            self.send_response(404, fault[1])
            self.end_headers()
            return
        if isinstance(fault, int) or not path.is_file():
            self.send_error(fault or 404)
            return
        whole = path.read_bytes()
        if start and start >= len(whole):
            self.send_error(416)
            return
        end = min(int(last) + 1, len(whole)) if last else len(whole)
        content = whole[start:end]
        kind, number = fault or ("", 0)
        is_held = number if kind == "trickle" else lambda: True
        self.send_response(206 if self.headers.get("Range") and self.server.honours_range else 200)
        if self.headers.get("Range") and self.server.honours_range:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(whole)}")
        if self.server.says_length:
            self.send_header("Content-Length", str(len(content) + (number if kind == "length" else 0)))
        self.end_headers()
        if body:
            sent = 0
            while not is_held() and sent < len(content) and not self.server.closing.wait(0.05):
                self.wfile.write(content[sent : sent + 1])
                self.wfile.flush()
                sent += 1
            self.wfile.write(content[:number] if kind in ("cut", "stall") else content[sent:])
        if kind == "stall":
            self.wfile.flush()
            self.server.closing.wait(10)

    def log_message(self, format: str, *arguments: object) -> None:
        pass
