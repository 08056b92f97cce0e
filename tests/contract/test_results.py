"""The MLflow run that a result names."""

import pytest

from contract.results import read_run_id


@pytest.mark.parametrize("run_id", ["", "abc"])
def test_the_run_of_a_result_is_read(tmp_path, run_id):
    (tmp_path / "run.json").write_text(f'{{"mlflow_run_id": "{run_id}", "mlflow_experiment_id": "1"}}')
    assert read_run_id(tmp_path / "run.json") == run_id
