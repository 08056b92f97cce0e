"""The summary at the end of a run by hand."""

from flows.summary import list_pages


def test_servers_in_force_are_named_or_the_commands_that_start_them(monkeypatch):
    for name, address in (("PREFECT_API_URL", "http://box:4711/api"), ("MLFLOW_TRACKING_URI", "http://box:5711")):
        monkeypatch.setenv(name, address)
    assert [line.split()[-1] for line in list_pages()] == ["http://box:5711", "http://box:4711"]
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [line.split()[:2] for line in list_pages()] == [["make", "mlflow"], ["make", "prefect"]]
