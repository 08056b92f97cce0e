"""Runs chosen from a real database by id, name, sweep and age."""

import pandas as pd
import pytest

from contract.errors import FlowersError
from tracking.runs import SWEEP_TAG, open_run
from tracking.search import choose_runs, find_run, join_runs

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # in MLflow's own tables


@pytest.fixture
def three(client, make_params, monkeypatch):
    """The ids of three runs, oldest first; the last two belong to sweep "owls", the last also to "owls-2"."""
    ids = []
    for number, sweep in enumerate(("", "owls", "owls"), start=1):
        monkeypatch.setenv("DDPM_SWEEP", sweep)
        with open_run(make_params({"train.seed": number})) as tracker:
            tracker.record_metrics({"loss": 1.0 / number}, 1)
        client.update_run(tracker.run_id, name=f"run-{number}")
        ids.append(tracker.run_id)
    join_runs([ids[2]], "owls-2")
    return ids


def chosen(*arguments, **options):
    return choose_runs(*arguments, **options)["run_id"].tolist()


def test_runs_are_chosen_by_id_beginning_name_sweep_and_age_each_once(three):
    first, second, third = three
    assert chosen() == [third, second, first], "all, the newest first"
    assert chosen([second, first[:8], "run-2"]) == [second, first]
    assert chosen(last=2) == [third, second] and chosen(last=9) == [third, second, first]
    assert chosen(sweep="owls") == [third, second]
    assert chosen(sweep="owls-2") == [third], "a sweep is known by its whole name"
    assert chosen(["run-1"], "owls-2", 1) == [first, third]
    run = choose_runs([second]).iloc[0]
    assert (run["status"], run["metrics.loss"], run["params.train.seed"]) == ("FINISHED", 0.5, "2")


def test_a_run_joins_a_sweep_once_and_one_that_is_gone_is_left_out(client, three):
    assert join_runs([three[2], three[0], "f" * 32], "owls")["run_id"].tolist() == three[::-1]
    tags = [client.get_run(run_id).data.tags[SWEEP_TAG] for run_id in three]
    assert tags == ["owls", "owls", "owls owls-2"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"names": ["no-such-run"]}, "has no run 'no-such-run'; the newest are run-3"),
        ({"sweep": "owl"}, "has no sweep 'owl'; there are owls, owls-2"),
        ({"sweep": "o'wls%"}, "has no sweep"),
    ],
)
def test_what_is_unknown_is_a_clear_error(three, choice, message):
    with pytest.raises(FlowersError, match=rf"mlflow\.db {message}"):
        choose_runs(**choice)


def test_a_database_without_runs_is_no_error(client):
    assert choose_runs().empty and join_runs([], "owls").empty
    with pytest.raises(FlowersError, match="it has no runs yet"):
        choose_runs(["abcd"])
    with pytest.raises(FlowersError, match="there are none yet"):
        choose_runs(sweep="owls")


def test_a_name_of_several_runs_asks_for_an_id():
    runs = pd.DataFrame({"run_id": ["aaaa1", "aaaa2"], "tags.mlflow.runName": "twin"})
    for name in ("twin", "aaaa"):
        with pytest.raises(FlowersError, match="aaaa1, aaaa2"):
            find_run(name, runs)
    assert find_run("aaaa2", runs)["run_id"].tolist() == ["aaaa2"]
    with pytest.raises(FlowersError, match="has no run 'aaa'"):  # too short to mean one
        find_run("aaa", runs[:1])
