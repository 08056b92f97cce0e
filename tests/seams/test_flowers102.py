"""All 8,189 images of Oxford Flowers 102 at 64×64, through every stage by each door."""

import json
import sys
from pathlib import Path

import pytest

from contract.nesting import flatten
from tests.seams.checkout import STAGES, command, stages_run

COPIES = Path(__file__).parents[3] / "shared" / "data" / "flowers-102"
LONG_SECONDS = 900.0
CHANGES = {
    "download": {"dataset": "flowers102", "source": str(COPIES), "archive_md5": "df1af0edb4234c69c71eb742a8430468"},
    "preprocess": {"image_size": 64},
    "train": {"unet": {"widths": [8, 16, 16, 16], "attention": [False, False, True, True]}},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COPIES.is_dir(), reason="needs the 64×64 copies of Flowers 102"),
    pytest.mark.xdist_group("service"),
]


def by_hand(checkout, tmp_path):
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in flatten(CHANGES).items()}
    words = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    output = checkout.run(*command("run", *words), timeout=LONG_SECONDS)
    assert stages_run(output) == STAGES
    return checkout


def by_dvc(checkout, tmp_path):
    checkout.run("python", "-c", f"from contract.params import activate; activate(None, {CHANGES!r})")
    assert stages_run(checkout.run(sys.executable, "-m", "dvc", "repro", timeout=LONG_SECONDS)) == STAGES
    return checkout


def by_deployment(checkout, tmp_path):
    parameter = f"params={json.dumps(CHANGES)}"
    command = ["prefect", "deployment", "run", "pipeline/quickstart", "--param", parameter, "--watch"]
    output = checkout.run(*command, "--flow-run-name", "whole-dataset", timeout=LONG_SECONDS)
    assert "Flow run finished successfully" in output
    applied = checkout.copy(tmp_path / "applied")
    applied.dvc("exp", "apply", "whole-dataset")
    return applied


@pytest.mark.parametrize("door", [by_hand, by_dvc, by_deployment])
def test_the_whole_dataset_goes_through_every_stage(door, request, tmp_path):
    if door is by_deployment:
        start = request.getfixturevalue("service").checkout
    else:
        start = request.getfixturevalue("project").copy(tmp_path / "flowers")
    checkout = door(start, tmp_path)
    summary = json.loads((checkout.folder / "build/dataset/dataset.json").read_text())
    assert summary["splits"] == {"test": 6149, "train": 1020, "valid": 1020}
    assert summary["num_classes"] == 102
    metrics = json.loads((checkout.folder / "build/metrics.json").read_text())
    assert metrics["num_samples"] == 12
    assert metrics["reference_split"] == "train"
    assert metrics["num_floor_test"] == 12
    assert "up to date" in checkout.dvc("status")
    assert stages_run(checkout.dvc("repro")) == []
