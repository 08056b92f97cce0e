"""The summary at the end of a run by hand."""

from flows.summary import list_pages


def test_without_servers_the_commands_that_start_them_are_named(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert [line.split()[:2] for line in list_pages()] == [["make", "mlflow"], ["make", "prefect"]]


def test_servers_in_force_are_named_themselves(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://box:4711/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://box:5711")
    assert [line.split()[-1] for line in list_pages()] == ["http://box:5711", "http://box:4711"]
