"""A proxy has no way to this machine's own ports, where the servers of the flows listen."""

from collections.abc import Mapping

_OWN = ("127.0.0.1", "localhost", "::1")


def proxy_exceptions(environment: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """Variables that keep requests to this machine, and to `hosts`, away from the proxy that `environment` may name."""
    named = (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(",")
    exceptions = ",".join(dict.fromkeys(host.strip() for host in (*named, *_OWN, *hosts) if host.strip()))
    return {"no_proxy": exceptions, "NO_PROXY": exceptions}
