"""A web server with troubles, and a proxy, for the tests of downloads."""

import hashlib
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests


@dataclass(frozen=True)
class Request:
    name: str
    range: str | None
    if_range: str | None
    encoding: str | None


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients leave, as they do

    @property
    def host(self):
        return f"127.0.0.1:{self.server_port}"

    @property
    def address(self):
        return f"http://{self.host}"


class Mirror(Server):
    """Serves a directory; `troubles` holds, for a name, what happens to its next requests."""

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), MirrorHandler)
        self.root = root
        self.troubles = {}
        self.requests = []
        self.bytes_sent = 0
        self.knows_ranges = True
        self.tags = True
        self.retry_after = None
        self.end_of_silence = threading.Event()

    @property
    def names(self):
        return [request.name for request in self.requests]

    @property
    def ranges(self):
        return [request.range for request in self.requests]


class MirrorHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        folder, _, name = self.path.rpartition("/")
        asked = [self.headers.get(field) for field in ("Range", "If-Range", "Accept-Encoding")]
        self.server.requests.append(Request(name, *asked))
        troubles = self.server.troubles.get(name, [])
        trouble = troubles.pop(0) if troubles else None
        path = self.server.root / name
        self.close_connection = True
        if trouble == "hung up":
            return
        if trouble == "silent":
            self.server.end_of_silence.wait(10.0)
        elif isinstance(trouble, int):
            self.refuse(trouble)
        elif folder not in {"", "/102"} or not path.is_file():
            self.refuse(404)
        else:
            self.answer(path.read_bytes(), trouble)

    def refuse(self, status):
        self.send_response(status)
        if self.server.retry_after is not None:
            self.send_header("Retry-After", self.server.retry_after)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def answer(self, content, trouble):
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        first = self.first_byte(tag)
        if first > len(content) - 1:
            self.refuse(416)
            return
        body = bytes(len(content) - first) if trouble == "garbled" else content[first:]
        if first:
            self.send_response(206)
            stated = first + 1 if trouble == "other range" else first
            self.send_header("Content-Range", f"bytes {stated}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.tags:
            self.send_header("ETag", f"W/{tag}" if self.server.tags == "weak" else tag)
        if trouble != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        part = body[: len(body) // 2] if trouble in {"cut off", "stalled"} else body
        self.server.bytes_sent += len(part)
        self.wfile.write(part)
        if trouble == "stalled":
            self.server.end_of_silence.wait(10.0)

    def first_byte(self, tag):
        """Where the answer begins: not at 0 if a range is asked for, of this version if the request names one."""
        asked = self.headers.get("Range")
        if not asked or not self.server.knows_ranges or self.headers.get("If-Range", tag) != tag:
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def log_message(self, *arguments):
        pass


class Proxy(Server):
    """Forwards, and notes what it was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.requests = []


class ProxyHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(f"GET {self.path}")
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(self.path, headers={"Range": self.headers.get("Range")}, timeout=10)
        self.send_response(answer.status_code)
        for name in ("Content-Length", "Content-Range", "ETag"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.end_headers()
        self.wfile.write(answer.content)

    def do_CONNECT(self):
        self.server.requests.append(f"CONNECT {self.path}")
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as beyond:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=pour, args=(beyond, self.connection), daemon=True)
            back.start()
            pour(self.connection, beyond)
            back.join(10.0)

    def log_message(self, *arguments):
        pass


def pour(source, target):
    """All bytes of one connection into another, and its end."""
    with suppress(OSError):  # either side may have left
        while received := source.recv(2**16):
            target.sendall(received)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def serving(server):
    """The server at work in the background."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
