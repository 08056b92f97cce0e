"""Whatever proxy the environment names, this machine's own servers are reached directly."""

import httpx
import pytest
import requests

from flows.service.proxy import proxy_exceptions


def test_what_was_excepted_stays_so_and_comes_first():
    found = proxy_exceptions({"NO_PROXY": "intranet, 127.0.0.1"}, "box")
    assert found == dict.fromkeys(("no_proxy", "NO_PROXY"), "intranet,127.0.0.1,localhost,::1,box")


def test_the_small_letters_count_where_both_are_set():
    assert proxy_exceptions({"NO_PROXY": "big", "no_proxy": "small"})["NO_PROXY"].startswith("small,127.0.0.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_libraries_that_ask_the_servers_understand_it(monkeypatch, host):
    environment = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    for name, value in (environment | proxy_exceptions(environment)).items():
        monkeypatch.setenv(name, value)
    address = f"http://{host}:4200/api"
    assert requests.utils.get_environ_proxies(address) == {}
    assert "http" in requests.utils.get_environ_proxies("http://example.org/")
    with httpx.Client() as client:
        assert client._transport_for_url(httpx.URL(address)) is client._transport
        assert client._transport_for_url(httpx.URL("http://example.org/")) is not client._transport
