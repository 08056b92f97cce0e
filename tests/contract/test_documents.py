"""Results of stages: read whole, or refused in one line that names the file and the way to it."""

import re

import pytest

from contract.documents import read_result
from contract.errors import StageError


@pytest.mark.parametrize(
    "content",
    [b"", b'{"step": 4, "ra', b'{"step": 4}{', b"[4]", b"null", b"\xff\xfe{}", b"1" * 5000],
    ids=["empty", "half", "two", "a list", "null", "UTF-16", "5,000 digits"],
)
def test_a_damaged_result_is_refused(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    name = re.escape(str(path))
    message = rf"^{name} is damaged, .+: `dvc checkout --force {name}` brings it back$"
    with pytest.raises(StageError, match=message):
        read_result(path)


def test_a_whole_result_is_read(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"mlflow_run_id": "1f", "step": 4, "classes": null}\n')
    assert read_result(path) == {"mlflow_run_id": "1f", "step": 4, "classes": None}
