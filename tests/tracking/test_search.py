"""The runs of MLflow that are asked for, from a real database, as another process reads them."""

import json
import os
import subprocess
import sys

import pytest

from tracking import search as compare
from tracking.runs import SWEEP_TAG, join_sweep, opened_run, recorded_runs
from tracking.search import RecordedRun, UnknownRunError, chosen_runs, named_run

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # in MLflow's own tables


@pytest.fixture
def three(client, make_params, monkeypatch):
    """The ids of three runs, oldest first; the last two belong to sweep "owls", the last also to "owls-2"."""
    ids = []
    for number, sweep in enumerate(("", "owls", "owls"), start=1):
        monkeypatch.setenv("DDPM_SWEEP", sweep)
        with opened_run(make_params({"train.seed": number})) as tracker:
            tracker.record_metrics({"loss": 1.0 / number}, 1)
        client.update_run(tracker.run_id, name=f"run-{number}")
        ids.append(tracker.run_id)
    join_sweep([ids[2]], "owls-2")
    return ids


def ids_of(runs):
    return [run.run_id for run in runs]


def test_a_run_is_told_whole(three):
    (run,) = chosen_runs([three[1]], None, None)
    assert (run.name, run.status, run.metrics, run.params["train.seed"]) == ("run-2", "FINISHED", {"loss": 0.5}, "2")
    assert run.tags[SWEEP_TAG] == "owls" and run.experiment_id


def test_without_a_choice_all_runs_come_the_newest_first(three):
    assert ids_of(chosen_runs([], None, None)) == three[::-1]


def test_runs_are_found_by_id_beginning_and_name_each_once(three):
    first, second, _ = three
    assert ids_of(chosen_runs([second, first[:8], "run-2"], None, None)) == [second, first]


@pytest.mark.parametrize(("last", "expected"), [(1, slice(2, None)), (2, slice(1, None)), (9, slice(0, None))])
def test_the_newest_runs(three, last, expected):
    assert ids_of(chosen_runs([], None, last)) == three[expected][::-1]


def test_many_runs_come_page_by_page(three, monkeypatch):
    monkeypatch.setattr("tracking.runs._PAGE_RUNS", 2)
    assert [run.info.run_id for run in recorded_runs()] == three[::-1]
    assert [run.info.run_id for run in recorded_runs(max_runs=3)] == three[::-1]


def test_a_sweep_is_known_by_its_whole_name(three):
    assert ids_of(chosen_runs([], "owls", None)) == [three[2], three[1]]
    assert ids_of(chosen_runs([], "owls-2", None)) == [three[2]]


def test_a_run_joins_a_sweep_once(client, three):
    join_sweep([three[2], three[0]], "owls")
    tags = [client.get_run(run_id).data.tags[SWEEP_TAG] for run_id in three]
    assert tags == ["owls", "owls", "owls owls-2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["no-such-run"], None, None), "has no run 'no-such-run'; the newest are run-3"),
        (([], "owl", None), "has no sweep 'owl'; there are owls, owls-2"),
        (([], "o'wls%", None), "has no sweep"),
    ],
)
def test_what_is_unknown_is_a_clear_error(three, arguments, message):
    with pytest.raises(UnknownRunError) as caught:
        chosen_runs(*arguments)
    assert message in str(caught.value) and "mlflow.db" in str(caught.value)


def test_a_database_without_runs_is_told(client):
    assert chosen_runs([], None, None) == []
    with pytest.raises(UnknownRunError, match="it has no runs yet"):
        chosen_runs(["abcd"], None, None)
    with pytest.raises(UnknownRunError, match="there are none yet"):
        chosen_runs([], "owls", None)


def run(run_id, name="x"):
    return RecordedRun(run_id, "1", name, "FINISHED", 0, {}, {}, {})


def test_a_name_of_several_runs_asks_for_an_id():
    runs = [run("aaaa1", "twin"), run("aaaa2", "twin")]
    for name in ("twin", "aaaa"):
        with pytest.raises(UnknownRunError, match="aaaa1, aaaa2"):
            named_run(name, runs)
    assert named_run("aaaa2", runs) is runs[1]
    with pytest.raises(UnknownRunError, match="has no run 'aaa'"):  # too short to mean one
        named_run("aaa", runs[:1])


def test_the_program_prints_json_and_joins_what_there_is(three, client, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", three[0], "f" * 32, "--join", "owls"])  # the other is gone
    compare.main()
    runs = {run["run_id"]: run for run in json.loads(capsys.readouterr().out)}
    assert set(runs) == set(three) and runs[three[0]]["metrics"] == {"loss": 1.0}
    assert client.get_run(three[0]).data.tags[SWEEP_TAG] == "owls"


def test_an_error_is_one_line_and_status_1(folder, project):
    environment = os.environ | {"PYTHONPATH": str(project), "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    environment |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    command = [sys.executable, "-m", "tracking.search"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("compare: error: MLflow at http://127.0.0.1:1 does not answer")
