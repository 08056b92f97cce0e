"""Addresses of MLflow's pages, for people."""

import os

from contract.environment import MLFLOW_PAGES, TRACKING_URI

LOCAL_MLFLOW = "http://127.0.0.1:5000"
"""Address at which `make mlflow` serves the runs of this checkout."""


def tracking_server() -> str | None:
    """Return the address of the MLflow server that records the runs; None where they go to a database file."""
    address = os.environ.get(TRACKING_URI, "")
    return address if address.startswith("http") else None


def mlflow_address() -> str:
    """Return the address of MLflow's pages: on the server, or where `make mlflow` would serve the local runs."""
    return (os.environ.get(MLFLOW_PAGES) or tracking_server() or LOCAL_MLFLOW).rstrip("/")
