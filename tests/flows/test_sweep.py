"""The end of a sweep: whose figures are whose, the ranked table, and the state; and the form of its deployment."""

import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pandas as pd
import pytest
from prefect.utilities.callables import parameter_schema

from contract.params import read_params
from flows import sweep as module
from flows.compare import CompareError
from flows.fan_out import Outcome
from flows.sweep import conclude, mlflow_addresses, ranking, runs_of, sweep
from flows.trials import Child
from tests.flows.test_compare import run

PARAMS = read_params(Path(__file__).parents[2] / "profiles/quickstart.yaml")


def outcome(number, state="Completed", why=""):
    child = Child(f"owls-{number}", {}, {"train.seed": number}, PARAMS)
    return Outcome(child, UUID(int=number), state, why)


@pytest.fixture
def mlflow(monkeypatch):
    """Plays `python -m tracking.search`: the runs that it knows of the sweep, and what it was asked."""
    known = SimpleNamespace(runs=[], asked=[], measured={})

    def read(arguments):
        known.asked.append(list(arguments))
        if not known.runs:
            raise CompareError("no sweep")
        return known.runs

    monkeypatch.setattr(module, "read_runs", read)
    monkeypatch.setattr(module, "recorded_metrics", lambda number: known.measured.get(number, {}))
    return known


def test_each_child_has_the_run_that_its_own_metrics_name(mlflow):
    # The first was served by the run of an earlier sweep, which joins this one.
    mlflow.runs = [run(8, 0.5), run(9, 0.25)]
    measured = {"owls-1": {"mlflow_run_id": f"{9:032x}"}, "owls-2": {"mlflow_run_id": f"{8:032x}"}}
    found = runs_of("owls", [outcome(1), outcome(2)], measured)
    assert {child: one["name"] for child, one in found.items()} == {"owls-1": "run-9", "owls-2": "run-8"}
    assert mlflow.asked == [[f"{9:032x}", f"{8:032x}", "--join", "owls"]]


def test_a_failed_child_has_the_run_that_names_its_flow_run(mlflow):
    failed = run(7) | {"tags": {"prefect_flow_run_id": str(UUID(int=2))}}
    other = run(6) | {"tags": {"prefect_flow_run_id": str(UUID(int=99))}}  # of an earlier sweep of this name
    mlflow.runs = [failed, other]
    assert runs_of("owls", [outcome(2, "Failed")], {}) == {"owls-2": failed}


def test_where_none_came_to_its_training_there_are_no_runs(mlflow):
    assert runs_of("owls", [outcome(1, "Failed")], {}) == {}


def test_without_mlflow_the_runs_are_missed(mlflow):
    with pytest.raises(CompareError):
        runs_of("owls", [outcome(1)], {"owls-1": {"mlflow_run_id": "a"}})


def test_the_ranking_has_the_best_first_and_the_failed_last_with_the_reason():
    outcomes = [outcome(1), outcome(2, "Failed", "stage train failed: not finite"), outcome(3)]
    runs = {"owls-1": run(1, 0.5), "owls-2": run(2), "owls-3": run(3, 0.25)}
    table = ranking(outcomes, runs, {})
    assert table["child"].tolist() == ["owls-3", "owls-1", "owls-2"]
    assert table["kid_efficientnet_lite0"].tolist()[:2] == [0.25, 0.5]
    assert table["train.seed"].tolist() == ["3", "1", "2"]
    assert table["run"].tolist() == [f"{number:032x}" for number in (3, 1, 2)]
    assert table["why"].tolist()[2] == "stage train failed: not finite"
    assert list(table)[:2] == ["child", "state"] and list(table)[-2:] == ["run", "why"]
    assert pd.isna(table["loss"].tolist()[2]), "a failed child's last loss is no figure to compare"


def test_a_ranking_of_failures_alone_is_a_table_too():
    table = ranking([outcome(1, "Failed", "no roses"), outcome(2, "Crashed", "gone")], {}, {})
    assert table["child"].tolist() == ["owls-1", "owls-2"] and table["why"].tolist() == ["no roses", "gone"]


def test_parameters_that_are_lists_can_be_ranked():
    child = Child("owls-1", {}, {"train.unet.widths": [8, 16]}, PARAMS)
    assert ranking([Outcome(child, None, "Not started", "x")], {}, {})["train.unet.widths"].tolist() == ["[8, 16]"]


@pytest.fixture
def concluded(mlflow, tmp_path, monkeypatch, caplog):
    """Concludes a sweep; gives its state, the artifact and the log."""
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(
        module, "create_table_artifact", lambda table, key, description: shown.append((table, key, description))
    )
    caplog.set_level(logging.INFO, "test")

    def conclude_it(*outcomes):
        return conclude("owls", outcomes), shown, caplog

    return conclude_it


def test_a_sweep_ends_well_where_one_child_did_and_names_the_others(concluded, mlflow, tmp_path):
    mlflow.runs = [run(1, 0.5) | {"tags": {"prefect_flow_run_id": str(UUID(int=1))}}]
    state, shown, log = concluded(outcome(1), outcome(2, "Failed", "no roses"), outcome(3, "Cancelled", "by hand"))
    assert state.is_completed()
    assert state.message == ("1 of 3 children completed; not so owls-2, owls-3")
    ((table, key, description),) = shown
    assert key == "ranking" and table[0]["rank"] == 1 and table[0]["kid_efficientnet_lite0"] == 0.5
    assert table[1]["why"] == "no roses" and table[1]["kid_efficientnet_lite0"] is None
    assert "compare-runs" in description and "searchFilter" in description
    written = pd.read_csv(tmp_path / "build/sweeps/owls.csv")
    assert written["child"].tolist() == ["owls-1", "owls-2", "owls-3"] and written["rank"].tolist() == [1, 2, 3]
    assert "owls-2" in log.text and "compare-runs" in log.text


def test_a_sweep_without_any_success_has_failed(concluded):
    state, shown, _ = concluded(outcome(1, "Failed", "no roses"), outcome(2, "Crashed", "gone"))
    assert state.is_failed() and state.message.startswith("0 of 2 children completed; not so owls-1")
    assert len(shown) == 1


def test_without_mlflow_the_figures_are_those_of_the_childrens_own_tables(concluded, mlflow, tmp_path):
    mlflow.measured[UUID(int=1)] = {"mlflow_run_id": "a", "kid_efficientnet_lite0": 0.5}
    mlflow.measured[UUID(int=2)] = {"mlflow_run_id": "b", "kid_efficientnet_lite0": 0.25}
    state, _, log = concluded(outcome(1), outcome(2))
    assert state.is_completed() and "MLflow cannot be asked for the runs: no sweep" in log.text
    table = pd.read_csv(tmp_path / "build/sweeps/owls.csv")
    assert table["child"].tolist() == ["owls-2", "owls-1"] and table["kid_efficientnet_lite0"].tolist() == [0.25, 0.5]


def test_one_run_that_mlflow_has_lost_costs_the_others_nothing(concluded, mlflow, tmp_path):
    mlflow.runs = [run(2, 0.5)]
    mlflow.measured[UUID(int=1)] = {"mlflow_run_id": f"{1:032x}", "kid_efficientnet_lite0": 0.25}
    mlflow.measured[UUID(int=2)] = {"mlflow_run_id": f"{2:032x}", "kid_efficientnet_lite0": 0.5}
    concluded(outcome(1), outcome(2))
    table = pd.read_csv(tmp_path / "build/sweeps/owls.csv", dtype={"run": str})
    assert table["kid_efficientnet_lite0"].tolist() == [0.25, 0.5]
    assert table["run"].tolist()[1] == f"{2:032x}" and pd.isna(table["run"].tolist()[0])


def test_a_table_that_the_server_refuses_costs_no_sweep(concluded, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "create_table_artifact", lambda *_, **__: 1 / 0)
    state, _, log = concluded(outcome(1))
    assert state.is_completed() and "the run page does not show the ranking" in log.text
    assert (tmp_path / "build/sweeps/owls.csv").is_file()


def test_without_runs_there_is_no_address():
    assert mlflow_addresses([]) == {}
    assert len(mlflow_addresses([run(1)])) == 2


def test_the_form_explains_and_bounds_every_parameter():
    schema = parameter_schema(sweep)
    assert {name for name, field in schema.properties.items() if field.get("description")} == {
        "profile", "grid", "overrides", "params", "name", "max_concurrent",
    }  # fmt: skip
    assert schema.properties["max_concurrent"]["minimum"] == 1 and schema.properties["max_concurrent"]["maximum"] == 64
    assert any(kind.get("pattern") for kind in schema.properties["name"]["anyOf"])
    assert any("quickstart" in kind.get("enum", []) for kind in schema.properties["profile"]["anyOf"])
    assert schema.required == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a grid or a list of overrides, got neither"),
        (["--grid", "train.seed=3"], "a list of values"),
        (["--grid", "train.seed=[1,-1]"], "1 of 2 children cannot be used"),
        (["--overrides", "{train.seed: 1}"], "--overrides takes a list of mappings"),
        (["--overrides", "[1"], "--overrides is not YAML"),
        (["--grid", "train.seed"], "NAME=VALUE"),
        (["--grid", "train.seed=[1]", "--profile", "tulips"], "unknown profile 'tulips'"),
        (["--grid", "train.seed=[1]", "--name", "Two Owls"], "'Two Owls'"),
        (["--grid", "train.seed=[1]", "--max-concurrent", "0"], "'0'"),
    ],
)
def test_by_hand_what_is_wrong_is_told_before_anything_starts(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep", *words])
    monkeypatch.setattr(module, "completed", lambda *_: pytest.fail("nothing is to be started"))
    monkeypatch.setattr(module, "last_commit", nullcontext)
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert message in str(caught.value.code) + capsys.readouterr().err
