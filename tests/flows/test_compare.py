"""`flows.compare` prints what `tracking` finds; both are tested there."""

import pandas as pd
import pytest

from contract.errors import FlowersError
from flows.compare import CompareError, compare


@pytest.fixture
def choose(monkeypatch, recorded):
    """Puts these runs in the place of MLflow's; gives the choices that it was asked for."""
    asked = []

    def put(*runs):
        monkeypatch.setattr("tracking.search.choose_runs", lambda *choice: asked.append(choice) or recorded(*runs))
        return asked

    return put


def test_the_table_is_printed_written_and_linked(choose, capsys, tmp_path):
    asked = choose({"kid": 0.5, "rate": "a"}, {"kid": 0.25, "rate": "b"})
    compare(["ab", "cd"], "owls", 2, tmp_path / "table.csv")
    out = capsys.readouterr().out
    assert asked == [(["ab", "cd"], "owls", 2)]
    assert out.index("run-2") < out.index("run-1") and "rate" in out and "MLflow: http" in out
    assert pd.read_csv(tmp_path / "table.csv")["name"].tolist() == ["run-2", "run-1"]


@pytest.mark.parametrize(
    ("runs", "last", "csv", "message"),
    [
        ([], None, None, "MLflow has no runs yet"),
        ([{}], 0, None, "must be 1 or more, got 0"),
        ([{}], None, "none/x.csv", "the table cannot be written"),
    ],
)
def test_what_cannot_be_compared_is_a_clear_error(choose, tmp_path, runs, last, csv, message):
    choose(*runs)
    (tmp_path / "none").touch()
    with pytest.raises(CompareError, match=message):
        compare([], None, last, csv and tmp_path / csv)


def test_a_server_that_does_not_answer_is_a_clear_error(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(FlowersError, match=r"MLflow at http://127\.0\.0\.1:1 does not answer"):
        compare([], None, None, None)
