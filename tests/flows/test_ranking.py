"""The end of a sweep: which figures and MLflow runs are whose, and the ranked table."""

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import httpx
import pandas as pd
import pytest
from prefect.client.schemas.objects import State
from prefect.states import Failed

from contract.params import compose
from flows import ranking
from flows.fan_out import Outcome
from flows.ranking import rank_trials, show_ranking
from flows.sweep import conclude
from flows.trials import Trial
from tracking.connection import TrackingError
from tracking.search import to_records

PARAMS = compose("quickstart", {}, Path(__file__).parents[2] / "params.yaml")
KID = "kid_efficientnet_lite0"


def outcome(number, state="Completed", why=None):
    trial = Trial(f"owls-{number}", {}, {"train.seed": number}, PARAMS)
    return Outcome(trial, UUID(int=number), State(type=state.upper(), message=why))


def test_the_best_comes_first_and_failed_trials_last_with_the_reason(recorded):
    outcomes = [outcome(1), outcome(2, "Failed", "not finite"), outcome(3)]
    runs = to_records(recorded({"kid": 0.5}, {}, {"kid": 0.25}))
    table = rank_trials(outcomes, dict(zip(("owls-1", "owls-2", "owls-3"), runs, strict=True)), {})
    assert table["trial"].tolist() == ["owls-3", "owls-1", "owls-2"] and table[KID].tolist()[:2] == [0.25, 0.5]
    assert table["train.seed"].tolist() == ["3", "1", "2"] and table["why"].tolist()[2] == "not finite"
    assert table["run"].tolist() == [f"{number:032x}" for number in (3, 1, 2)]
    assert list(table)[:2] == ["trial", "state"] and list(table)[-2:] == ["run", "why"]
    assert pd.isna(table["loss"].tolist()[2]), "a failed trial's last loss is no figure to compare"


def test_failures_alone_and_parameters_that_are_lists_make_a_table_too():
    trial = Trial("owls-1", {}, {"train.unet.widths": [8, 16]}, PARAMS)
    table = rank_trials([Outcome(trial, None, Failed(name="Not started", message="no roses"))], {}, {})
    assert table.iloc[0].to_dict() == {
        "trial": "owls-1", "state": "Not started", "train.unet.widths": "[8, 16]", "why": "no roses",
    }  # fmt: skip


@pytest.fixture
def servers(monkeypatch, tmp_path, caplog, recorded):
    """Plays both servers: what each answers, or the error that it raises, and what the page shows."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "test")
    known = SimpleNamespace(runs=recorded().reindex(columns=["run_id"]), tables={}, asked=[], shown=[], caplog=caplog)

    def answer(value):
        if isinstance(value, Exception):
            raise value
        return value

    def read_artifacts(artifact_filter):
        table = answer(known.tables.get(artifact_filter.flow_run_id.any_[0].int, {}))
        rows = pd.DataFrame(table.items(), columns=["metric", "value"])
        return [SimpleNamespace(data=rows.to_json(orient="records"))]

    client = SimpleNamespace(read_artifacts=read_artifacts)
    monkeypatch.setattr(ranking, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(ranking, "get_client", lambda **_: nullcontext(client))
    monkeypatch.setattr(ranking, "join_runs", lambda *asked: known.asked.append(asked) or answer(known.runs))
    monkeypatch.setattr(
        ranking, "create_table_artifact", lambda *table, **options: answer(known.shown.append((*table, options)))
    )
    return known


def written():
    return pd.read_csv("build/sweeps/owls.csv", dtype={"run": str})


def test_each_trial_gets_the_run_that_its_metrics_or_its_flow_run_name(servers, recorded):
    # The first was served by the run of an earlier sweep; the third is another sweep's flow run of the same name.
    servers.tables = {1: {"mlflow_run_id": f"{2:032x}"}}
    servers.runs = recorded({"flow_run_id": str(UUID(int=2))}, {"kid": 0.5}, {"flow_run_id": str(UUID(int=99))})
    show_ranking("owls", [outcome(1), outcome(2, "Failed", "no roses"), outcome(3, "Cancelled")])
    assert servers.asked == [({f"{2:032x}"}, "owls")]
    table = written().astype(object).fillna("")
    assert table["run"].tolist() == [f"{2:032x}", f"{1:032x}", ""] and table["rank"].tolist() == [1, 2, 3]
    ((rows, options),) = servers.shown
    assert options["key"] == "ranking" and rows[0][KID] == 0.5 and rows[1]["why"] == "no roses"
    assert "compare-runs" in options["description"] and "searchFilter" in options["description"]
    assert "owls-2" in servers.caplog.text and "compare-runs" in servers.caplog.text


def test_a_run_that_mlflow_has_lost_costs_no_figures(servers, recorded):
    servers.tables = {number: {"mlflow_run_id": f"{number:032x}", KID: number / 4} for number in (1, 2)}
    servers.runs = recorded({"kid": 0.25})
    show_ranking("owls", [outcome(2), outcome(1)])
    assert written()[KID].tolist() == [0.25, 0.5] and written()["run"].isna().tolist() == [False, True]


@pytest.mark.parametrize(("tracking", "said"), [("", "MLflow does not answer"), ("off", "")])
def test_without_mlflow_the_figures_are_those_of_the_trials_own_tables(servers, monkeypatch, tracking, said):
    monkeypatch.setenv("DDPM_TRACKING", tracking)
    servers.runs = TrackingError("MLflow does not answer")
    servers.tables = {1: {KID: 0.5}, 2: {KID: 0.25}}
    show_ranking("owls", [outcome(1), outcome(2)])
    assert written()["trial"].tolist() == ["owls-2", "owls-1"]
    assert [each.getMessage() for each in servers.caplog.records if each.levelname == "ERROR"] == (
        [f"MLflow cannot be asked for the runs: {said}"] if said else []
    )
    ((_, options),) = servers.shown
    assert options["description"] == "Sweep owls: no run in MLflow"


def test_without_prefect_the_figures_are_mlflows_and_the_file_is_written(servers, recorded, monkeypatch):
    servers.tables = {1: httpx.ConnectError("gone")}
    servers.runs = recorded({"kid": 0.5, "flow_run_id": str(UUID(int=1))})
    monkeypatch.setattr(ranking, "create_table_artifact", lambda *_, **__: 1 / 0)
    show_ranking("owls", [outcome(1)])
    assert written()[KID].tolist() == [0.5]
    assert "cannot be read" in servers.caplog.text and "does not show the ranking" in servers.caplog.text


@pytest.mark.parametrize(
    ("states", "type_", "message"),
    [
        (["Completed", "Failed", "Cancelled"], "COMPLETED", "1 of 3 trials completed; not completed: owls-2, owls-3"),
        (["Failed", "Crashed"], "FAILED", "0 of 2 trials completed; not completed: owls-1, owls-2"),
        (["Completed"], "COMPLETED", "1 of 1 trials completed"),
    ],
)
def test_a_sweep_completes_where_one_trial_did(servers, states, type_, message):
    state = conclude("owls", [outcome(number, state) for number, state in enumerate(states, start=1)])
    assert (state.type.value, state.message) == (type_, message)
