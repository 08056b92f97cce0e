"""Exempt local servers from HTTP proxies: a proxy cannot reach this machine's own ports."""

from collections.abc import Mapping

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def proxy_exceptions(environment: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """Return variables that keep requests to this machine and `hosts` away from a proxy that `environment` names."""
    named = (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(",")
    exceptions = ",".join(dict.fromkeys(host.strip() for host in (*named, *_LOCAL_HOSTS, *hosts) if host.strip()))
    return {"no_proxy": exceptions, "NO_PROXY": exceptions}
