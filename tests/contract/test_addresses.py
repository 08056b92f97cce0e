"""Addresses of MLflow that name a place in the project."""

from pathlib import Path

import pytest

from contract.addresses import make_absolute


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("mlruns", "/a b/mlruns"),
        ("./x", "/a b/x"),
        ("../x", "/a b/../x"),
        ("~/x", "/a b/~/x"),  # as MLflow reads it
        ("file:mlruns", "file:/a%20b/mlruns"),
        ("sqlite:///x.db", "sqlite:////a b/x.db"),
        ("sqlite:///./x.db?timeout=9", "sqlite:////a b/x.db?timeout=9"),
        ("sqlite:///a:b.db", "sqlite:////a b/a:b.db"),
        ("sqlite+pysqlite:///x.db", "sqlite+pysqlite:////a b/x.db"),
        *((each, each) for each in (
            "/x", "sqlite:////x.db", "sqlite:///:memory:", "sqlite:///file:x.db?uri=true", "sqlite://", "file:/x",
            "file:///x", "http://server:5000", "https://user@server/path", "databricks", "databricks://profile",
            "databricks-uc", "ftp://host/path", "postgresql+psycopg2://me@host/db", "",
        )),
    ],
)  # fmt: skip
def test_a_relative_place_of_mlflow_becomes_one_in_the_project_and_no_other_address_changes(address, meant):
    assert make_absolute(address, Path("/a b")) == meant


def test_signs_that_mean_something_in_an_address_are_quoted():
    assert make_absolute("sqlite:///x.db", Path("/50%/why?")) == "sqlite+pysqlite:////50%25/why%3F/x.db"
    assert make_absolute("mlruns", Path("/50%/why?")) == "/50%/why?/mlruns"
