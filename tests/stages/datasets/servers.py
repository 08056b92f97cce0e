"""A web server with faults, for the tests of downloads."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror(ThreadingHTTPServer):
    """Serves a folder; `faults` holds what happens to the next requests of a name."""

    daemon_threads = True

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), MirrorHandler)
        self.root = root
        self.host = f"127.0.0.1:{self.server_port}"
        self.address = f"http://{self.host}"
        self.requests = []
        self.faults = {}
        self.knows_ranges = True
        self.retry_after = None
        self.end_of_silence = threading.Event()

    @property
    def names(self):
        return [path.rsplit("/", 1)[-1] for path, _ in self.requests]

    @property
    def ranges(self):
        return [headers["Range"] for _, headers in self.requests]

    def handle_error(self, request, client_address):
        pass  # clients leave early


class MirrorHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        folder, _, name = self.path.rpartition("/")
        self.server.requests.append((self.path, self.headers))
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else None
        path = self.server.root / name
        self.close_connection = True
        if fault == "hung up":
            return
        if fault == "silent":
            self.server.end_of_silence.wait(60.0)
        elif isinstance(fault, int):
            self.refuse(fault)
        elif folder not in {"", "/102"} or not path.is_file():
            self.refuse(404)
        else:
            self.answer(path.read_bytes(), fault)

    def refuse(self, status):
        self.send_response(status)
        if self.server.retry_after is not None:
            self.send_header("Retry-After", self.server.retry_after)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def answer(self, content, fault):
        requested = self.headers["Range"] if self.server.knows_ranges else None
        first = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
        if first > len(content) - 1:
            self.refuse(416)
            return
        body = bytes(len(content) - first) if fault == "garbled" else content[first:]
        self.send_response(206 if first else 200)
        if first:
            stated = first + 1 if fault == "other range" else first
            self.send_header("Content-Range", f"bytes {stated}-{len(content) - 1}/{len(content)}")
        if fault != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault in {"cut off", "stalled"} else body)
        if fault == "stalled":
            self.server.end_of_silence.wait(60.0)

    def log_message(self, *arguments):
        pass


@contextmanager
def serve_folder(root):
    """Serve a folder in the background."""
    with Mirror(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.end_of_silence.set()
            server.shutdown()
            thread.join()
