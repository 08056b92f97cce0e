"""Addresses of the two servers, and the environment through which the programs of the service know them."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contract.addresses import require_free_port, server_address
from contract.environment import TRACKING_URI
from contract.errors import FlowersError

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Addresses:
    """Host and ports on which the two servers listen."""

    host: str
    prefect_port: int
    mlflow_port: int

    @property
    def prefect(self) -> str:
        """Address of the Prefect server, for programs on this machine."""
        return server_address(self.host, self.prefect_port)

    @property
    def prefect_api(self) -> str:
        """Address that Prefect's clients use, the value of PREFECT_API_URL."""
        return f"{self.prefect}/api"

    @property
    def mlflow(self) -> str:
        """Address of the MLflow server, for programs on this machine."""
        return server_address(self.host, self.mlflow_port)

    def require_free(self) -> None:
        """Check both ports before anything is started; the error names the option of one that is taken."""
        for name, port in (("PREFECT_PORT", self.prefect_port), ("MLFLOW_PORT", self.mlflow_port)):
            option = f"--{name.lower().replace('_', '-')}"
            other_port = f"flowers up {option} {port + 1000}, make up {name}={port + 1000}"
            require_free_port(self.host, port, f"stop the server that uses it, or choose another port: {other_port}")
        if self.prefect_port == self.mlflow_port:
            raise FlowersError(f"the two servers need different ports, got {self.prefect_port} for both")


def make_environment(addresses: Addresses, caller: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the programs; both servers read their own settings from it.

    The caller's settings of databases and artifact places are kept: PostgreSQL, S3.
    """
    defaults = {
        "MLFLOW_BACKEND_STORE_URI": "sqlite:///mlflow.db",
        # The place that a run by hand uses without a server: each reads what the other has written.
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": "./mlartifacts",
        "MLFLOW_WORKERS": "1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # jobs of MLflow's own, which nothing here uses
        "PATH": os.defpath,
    }
    ours = {
        "PREFECT_API_URL": addresses.prefect_api,
        "PREFECT_SERVER_API_HOST": addresses.host,
        "PREFECT_SERVER_API_PORT": str(addresses.prefect_port),
        "MLFLOW_HOST": addresses.host,
        "MLFLOW_PORT": str(addresses.mlflow_port),
        TRACKING_URI: addresses.mlflow,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        **proxy_exceptions(caller, addresses.host),
    }
    environment = {**defaults, **caller, **ours}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return environment


def proxy_exceptions(environment: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """Return variables that keep requests to this machine and `hosts` away from a proxy that `environment` names."""
    named = (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(",")
    exceptions = ",".join(dict.fromkeys(host.strip() for host in (*named, *_LOCAL_HOSTS, *hosts) if host.strip()))
    return {"no_proxy": exceptions, "NO_PROXY": exceptions}
