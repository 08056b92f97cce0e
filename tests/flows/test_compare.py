"""Runs side by side: their figures, the parameters that differ, and their order."""

import json
import subprocess
import sys
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import pandas as pd
import pytest

from flows import compare
from flows.compare import (
    CompareError,
    charts_address,
    compare_address,
    compared,
    differing,
    figures,
    headline,
    in_columns,
    ranked,
    read_runs,
    write_csv,
)


def run(number, kid=None, extractor="efficientnet_lite0", **params):
    metrics = {"loss": 0.25, f"kid_{extractor}_std": 9.0, f"kid_{extractor}_floor_valid": 0.0}
    if kid is not None:
        metrics |= {f"kid_{extractor}": kid, f"kid_{extractor}_low": kid - 0.1, f"kid_{extractor}_high": kid + 0.1}
        metrics |= {f"fd_{extractor}": 10 * kid, f"precision_{extractor}": 0.5, f"recall_{extractor}": 0.75}
    return {
        "run_id": f"{number:032x}",
        "experiment_id": "7",
        "name": f"run-{number}",
        "status": "FINISHED" if kid is not None else "FAILED",
        "started_ms": 0,
        "params": {"reference.extractor": extractor, "train.batch_size": "16"} | params,
        "metrics": metrics,
        "tags": {},
    }


def test_the_figures_are_the_headline_with_its_interval_the_others_and_the_loss():
    assert list(figures(run(1, 0.5))) == [
        "kid_efficientnet_lite0", "kid_efficientnet_lite0_low", "kid_efficientnet_lite0_high",
        "fd_efficientnet_lite0", "precision_efficientnet_lite0", "recall_efficientnet_lite0", "loss",
    ]  # fmt: skip
    assert figures(run(1)) == {"loss": 0.25}


def test_only_parameters_that_differ_are_told():
    one, two = {"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4"}
    assert differing([one, two]) == ["b"]  # c is not known of the other
    assert differing([one]) == differing([]) == []


def test_the_best_comes_first_and_what_has_no_figure_last():
    runs = [run(1, 0.5, rate="1"), run(2, rate="2"), run(3, 0.25, rate="3"), run(4, float("nan"), rate="4")]
    table = compared(runs)
    assert table["name"].tolist()[:2] == ["run-3", "run-1"]
    assert set(table["name"][2:]) == {"run-2", "run-4"}
    assert table.index.tolist() == [1, 2, 3, 4] and table.index.name == "rank"
    assert table["rate"].tolist()[:2] == ["3", "1"]
    assert "train.batch_size" not in table and "reference.extractor" not in table


def test_other_features_are_not_ranked_with_these():
    runs = [run(1, 9.0, "inception"), run(2, 0.5), run(3, 0.25)]
    assert headline(runs) == "kid_efficientnet_lite0"
    table = compared(runs)
    assert table["name"].tolist() == ["run-3", "run-2", "run-1"]
    assert table["reference.extractor"].tolist()[-1] == "inception"


def test_without_any_figure_the_order_stays():
    assert headline([run(1), run(2)]) is None
    assert compared([run(2), run(1)])["name"].tolist() == ["run-2", "run-1"]


def test_equal_figures_keep_their_order():
    table = ranked(pd.DataFrame({"name": list("abcd"), "kid": [2.0, 1.0, 2.0, 1.0]}), "kid")
    assert table["name"].tolist() == ["b", "d", "a", "c"]


def test_the_terminal_shows_short_ids_and_rounded_figures():
    lines = in_columns(compared([run(1, 0.123456), run(2)])).splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in lines}
    assert cells["rank"] == ["1", "2"] and cells["run"] == ["00000000", "00000000"]
    assert cells["kid_efficientnet_lite0"] == ["0.1235", "–"] and cells["loss"] == ["0.25", "0.25"]


def test_many_runs_are_laid_out_below_each_other(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = in_columns(compared([run(number, 0.5) for number in range(30)])).splitlines()
    assert max(map(len, lines)) <= 100 and sum(line.split()[:1] == ["name"] for line in lines) > 1


def test_the_file_has_all_of_it_or_is_not_there(tmp_path, monkeypatch):
    table = compared([run(1, 0.125), run(2, 0.5)])
    path = tmp_path / "tables" / "owls.csv"
    write_csv(table, path)
    assert pd.read_csv(path, index_col="rank", dtype={"run": str}).equals(table)
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_csv(table, tmp_path / "other.csv")
    assert not (tmp_path / "other.csv").exists()


def test_the_addresses_lead_to_these_runs(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    address = compare_address([run(1), run(2)])
    base, _, fragment = address.partition("#")
    query = parse_qs(urlsplit(fragment).query)
    assert base == "http://server:5000/" and urlsplit(fragment).path == "/compare-runs"
    assert json.loads(query["runs"][0]) == [f"{1:032x}", f"{2:032x}"]
    assert json.loads(query["experiments"][0]) == ["7"]
    charts = charts_address([run(1), run(2)])
    assert charts.startswith("http://server:5000/#/experiments/7/runs?") and "compareRunsMode=CHART" in charts
    assert f"searchFilter=attributes.run_id IN ('{1:032x}', '{2:032x}')" in unquote(charts)


@pytest.fixture
def answered(monkeypatch):
    """Puts an answer in the place of the child process, and gives its command."""
    commands = []

    def put(status=0, out="", err=""):
        def play(command, **_):
            commands.append(command)
            return SimpleNamespace(returncode=status, stdout=out, stderr=err)

        monkeypatch.setattr(subprocess, "run", play)
        return commands

    return put


def test_runs_are_read_by_the_stage_program(answered):
    commands = answered(out=json.dumps([run(1)]))
    assert read_runs(["--last", "3"]) == [run(1)]
    assert commands == [[sys.executable, "-m", "tracking.search", "--last", "3"]]


def test_what_the_program_cannot_do_is_told_in_its_words(answered):
    answered(status=1, err="compare: error: MLflow has no run 'rose'\n")
    with pytest.raises(CompareError, match=r"^MLflow has no run 'rose'$"):
        read_runs(["rose"])


@pytest.fixture
def program(answered, monkeypatch, capsys):
    """Runs `python -m flows.compare`, and gives its command and what it prints, or says in the end."""

    def call(*words, **answer):
        commands = answered(**answer)
        monkeypatch.setattr(sys, "argv", ["compare", *words])
        try:
            compare.main()
        except SystemExit as end:
            return commands, capsys.readouterr().err or end.code
        return commands, capsys.readouterr().out

    return call


def test_by_hand_the_table_and_the_address_are_printed(program, tmp_path):
    path = tmp_path / "table.csv"
    answer = json.dumps([run(1, 0.5, rate="a"), run(2, 0.25, rate="b")])
    commands, out = program("ab", "cd", "--sweep", "owls", "--last", "2", "--csv", str(path), out=answer)
    assert commands[0][3:] == ["ab", "cd", "--sweep", "owls", "--last", "2"]
    assert out.index("run-2") < out.index("run-1") and "rate" in out and "batch_size" not in out
    assert "MLflow: http" in out
    assert pd.read_csv(path)["name"].tolist() == ["run-2", "run-1"]


@pytest.mark.parametrize(
    ("words", "answer", "message"),
    [
        ([], {"out": "[]"}, "compare: MLflow has no runs yet"),
        (["rose"], {"status": 1, "err": "compare: error: no run 'rose'"}, "compare: no run 'rose'"),
        (["--last", "0"], {}, "'0' is no number of runs: give 1 or more"),
        (["--csv", "/proc/none/x.csv"], {"out": json.dumps([run(1, 1.0)])}, "compare: [Errno"),
    ],
)
def test_by_hand_an_error_is_one_line(program, words, answer, message):
    assert message in program(*words, **answer)[1]
