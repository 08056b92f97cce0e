"""This machine's own servers are reached directly, whatever proxy the environment names."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import requests

from flows.service.addresses import proxy_exceptions


@pytest.mark.parametrize(
    "environment", [{"NO_PROXY": "intranet, 127.0.0.1"}, {"NO_PROXY": "x", "no_proxy": "intranet"}]
)
def test_exceptions_that_are_set_stay_and_come_first(environment):
    exceptions = "intranet,127.0.0.1,localhost,::1,box"
    assert proxy_exceptions(environment, "box") == {"no_proxy": exceptions, "NO_PROXY": exceptions}


@pytest.mark.parametrize("get", [httpx.get, requests.get])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_libraries_that_ask_the_servers_go_past_the_proxy(monkeypatch, host, get):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}  # nobody listens there
    for name, value in (proxy | proxy_exceptions({})).items():
        monkeypatch.setenv(name, value)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert get(f"http://{host}:{server.server_port}/", timeout=10).status_code == 204
        server.shutdown()
    with pytest.raises((httpx.ConnectError, requests.exceptions.ProxyError)):
        get("http://example.org/", timeout=10)
