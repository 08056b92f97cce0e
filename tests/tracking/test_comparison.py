"""Runs side by side: their figures, the parameters that differ, and their order."""

import json
from urllib.parse import parse_qs, unquote, urlsplit

import pandas as pd
import pytest

from tracking.comparison import charts_page, compare_page, compare_runs, format_table, rank, write_csv

KID = "kid_efficientnet_lite0"


def test_the_best_comes_first_with_figures_and_what_differs(recorded):
    runs = recorded({"kid": 0.5, "rate": "1"}, {"rate": "2"}, {"kid": 0.25, "rate": "3"}, {"kid": float("nan")})
    table = compare_runs(runs)
    assert table["name"].tolist()[:2] == ["run-3", "run-1"] and set(table["name"][2:]) == {"run-2", "run-4"}
    assert table.index.tolist() == [1, 2, 3, 4] and table.index.name == "rank"
    assert table["rate"].tolist()[:2] == ["3", "1"]
    assert list(table) == [
        "run", "name", "status", KID, f"{KID}_low", f"{KID}_high", "fd_efficientnet_lite0",
        "precision_efficientnet_lite0", "recall_efficientnet_lite0", "loss", "rate",
    ]  # fmt: skip


def test_a_parameter_that_one_run_has_not_reached_is_no_difference(recorded):
    assert "rate" not in compare_runs(recorded({"kid": 0.5, "rate": "1"}, {}))


def test_other_features_are_not_ranked_with_these(recorded):
    table = compare_runs(recorded({"kid": 9.0, "extractor": "inception"}, {"kid": 0.5}, {"kid": 0.25}))
    assert table["name"].tolist() == ["run-3", "run-2", "run-1"]
    assert table["reference.extractor"].tolist()[-1] == "inception"


def test_without_figures_or_with_equal_ones_the_order_stays(recorded):
    assert compare_runs(recorded({}, {}))["name"].tolist() == ["run-1", "run-2"]
    table = rank(pd.DataFrame({"name": list("abcd"), "kid_x": [2.0, 1.0, 2.0, 1.0]}))
    assert table["name"].tolist() == ["b", "d", "a", "c"]


def test_the_terminal_shows_short_ids_and_rounded_figures_within_its_width(recorded, monkeypatch):
    lines = format_table(compare_runs(recorded({"kid": 0.123456}, {}))).splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in lines}
    assert cells["rank"] == ["1", "2"] and cells["run"] == ["00000000", "00000000"]
    assert cells[KID] == ["0.1235", "–"] and cells["loss"] == ["0.25", "0.25"]
    monkeypatch.setenv("COLUMNS", "100")
    lines = format_table(compare_runs(recorded(*[{"kid": 0.5}] * 30))).splitlines()
    assert max(map(len, lines)) <= 100 and sum(line.split()[:1] == ["name"] for line in lines) > 1


def test_the_file_has_the_whole_table_or_is_not_there(recorded, tmp_path, monkeypatch):
    table = compare_runs(recorded({"kid": 0.125}, {"kid": 0.5}))
    path = tmp_path / "tables" / "owls.csv"
    write_csv(table, path)
    assert pd.read_csv(path, index_col="rank", dtype={"run": str}).equals(table)
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_csv(table, tmp_path / "other.csv")
    assert not (tmp_path / "other.csv").exists()


def test_the_pages_show_these_runs(recorded, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    runs = recorded({}, {})
    base, _, fragment = compare_page(runs).partition("#")
    query = parse_qs(urlsplit(fragment).query)
    assert base == "http://server:5000/" and urlsplit(fragment).path == "/compare-runs"
    assert json.loads(query["runs"][0]) == runs["run_id"].tolist() and json.loads(query["experiments"][0]) == ["7"]
    charts = charts_page(runs)
    assert charts.startswith("http://server:5000/#/experiments/7/runs?") and "compareRunsMode=CHART" in charts
    assert f"searchFilter=attributes.run_id IN ('{1:032x}', '{2:032x}')" in unquote(charts)
