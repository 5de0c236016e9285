"""A file server on loopback that misbehaves on demand, and a process that needs no torch to use it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import rp_lib

PACKAGE = Path(rp_lib.__path__[0])


@dataclass
class Fault:
    """What goes wrong with one request: another status; cut, or silent, after some bytes; slow; or only on a signal."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    stall: int | None = None
    pace: float = 0.0
    chunk: int = 4096
    gate: threading.Event | None = None


@dataclass
class Resource:
    """A file as the server gives it; ``faults`` are used up one for each request, ``always`` for all others."""

    body: bytes
    etag: str | None = '"v1"'
    modified: str | None = None
    ranges: bool = True
    heeds_if_range: bool = True
    length: bool = True
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault = field(default_factory=Fault)


class Server:
    """Serves ``files`` by path; ``log`` has path, Range header and bytes sent of every request."""

    def __init__(self) -> None:
        self.files: dict[str, Resource] = {}
        self.log: list[list] = []
        self.stop = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.base = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def put(self, path: str, body: bytes, *faults: Fault, **more) -> str:
        self.files[path] = Resource(body, faults=deque(faults), **more)
        return f"{self.base}/{path}"

    def ranges(self, path: str) -> list[str | None]:
        return [asked for name, asked, _ in self.log if name == path]

    def sent(self, path: str) -> int:
        return sum(n for name, _, n in self.log if name == path)

    def close(self) -> None:
        self.stop.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(2)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = re.sub(r"^https?://[^/]*", "", request.path).lstrip("/").partition("?")[0]
        entry = [path, request.headers.get("Range"), 0]
        self.log.append(entry)
        file = self.files.get(path)
        if file is None:
            request.send_error(404)
            return
        fault = file.faults.popleft() if file.faults else file.always
        if fault.status:
            request.send_response(fault.status)
            for name, value in {"Content-Length": "0", **fault.headers}.items():
                request.send_header(name, value)
            request.end_headers()
            return
        total, start = len(file.body), 0
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        condition = request.headers.get("If-Range")
        same = condition in (None, file.etag, file.modified) or not file.heeds_if_range
        if file.ranges and match and same:
            start = int(match[1])
            if start >= total:
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{total}")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            request.send_response(200)
        for name, value in (("ETag", file.etag), ("Last-Modified", file.modified)):
            if value:
                request.send_header(name, value)
        if file.length:
            request.send_header("Content-Length", str(total - start))
        for name, value in fault.headers.items():
            request.send_header(name, value)
        request.end_headers()
        body = file.body[start:][: fault.cut if fault.cut is not None else fault.stall]
        if fault.gate:
            fault.gate.wait(10)
        try:
            for i in range(0, len(body), fault.chunk):
                if self.stop.is_set():
                    return
                entry[2] += len(body[i : i + fault.chunk])  # before the client has them, and looks
                request.wfile.write(body[i : i + fault.chunk])
                if fault.pace:
                    time.sleep(fault.pace)
            if fault.stall is not None:
                self.stop.wait(5)
        except OSError:  # the client has left
            return


# The child must be up in a moment; the package's own __init__ would import torch, which nothing here needs.
_CHILD = """
import sys, types
package = types.ModuleType("rp_lib"); package.__path__ = [{package!r}]; sys.modules["rp_lib"] = package
"""


def child_code(code: str) -> str:
    """Python source that runs ``code`` with ``rp_lib.data`` at hand."""
    return _CHILD.format(package=str(PACKAGE)) + code


def start_child(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", child_code(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"no_proxy": "127.0.0.1", "PATH": "/usr/bin:/bin"},
        start_new_session=True,
    )
