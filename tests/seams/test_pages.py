"""What people see: the run pages of MLflow and Prefect, in a real browser."""

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.seams.browser import CHROMIUM, opened_browser
from tests.seams.checkout import stages_run

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.xdist_group("service"),  # one worker, which makes the servers once
]

# Pictures of a page count once the browser has decoded them.
LOADED = "[...document.images].filter(image => image.complete && image.naturalWidth >= 32 && {condition}).length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory, project):
    with opened_browser(tmp_path_factory.mktemp("browser"), project.environment) as opened:
        yield opened


@pytest.fixture
def keep(browser, tmp_path):
    """Keeps a picture of the page, also in the folder that DDPM_SCREENSHOTS names."""

    def shoot(name):
        time.sleep(1.5)  # pages fade in
        browser.screenshot(tmp_path / f"{name}.png")
        if folder := os.environ.get("DDPM_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / f"{name}.png", folder)

    return shoot


@pytest.fixture(scope="module")
def second_run(service, deployed_run):
    """Another experiment on the same servers, started by hand."""
    output = service.checkout.pipeline("--set", "train.learning_rate=0.0005")
    assert stages_run(output) == ["train", "sample", "evaluate", "register"]
    assert "temporary server" not in output


def test_the_mlflow_page_compares_losses_and_image_grids_of_two_runs(service, second_run, browser, keep):
    experiment = service.tracking("/experiments/get-by-name", experiment_name="flowers-ddpm")["experiment"]
    browser.open(f"{service.mlflow}/#/experiments/{experiment['experiment_id']}/runs?compareRunsMode=CHART")
    # A chart a metric, with both runs in it.
    browser.wait_for("document.querySelectorAll('.js-plotly-plot').length > 0")
    keep("mlflow_charts")
    browser.scroll_until("document.body.innerText.split('\\n').includes('loss')")
    keep("mlflow_losses")
    # The grids of both runs, at the step that the slider chooses.
    browser.scroll_until(f"{LOADED.format(condition='true')} >= 2")
    browser.wait_for("document.querySelectorAll('[role=slider], input[type=range]').length > 0")
    keep("mlflow_image_grid")


def test_the_prefect_page_shows_the_grid_of_samples(service, deployed_run, browser, keep):
    browser.open(f"{service.prefect}/runs/flow-run/{deployed_run['id']}")
    browser.wait_for(f"document.body.innerText.includes({deployed_run['name']!r})")
    browser.wait_for("document.body.innerText.includes('register')")
    keep("prefect_run")
    (artifact,) = service.api(
        "POST",
        "/artifacts/filter",
        artifacts={"flow_run_id": {"any_": [deployed_run["id"]]}, "key": {"any_": ["samples"]}},
    )
    browser.open(f"{service.prefect}/artifacts/artifact/{artifact['id']}")
    pictures = LOADED.format(condition="image.src.startsWith('data:image/png')")
    browser.wait_for(f"{pictures} == 1")
    keep("prefect_samples")


def test_the_prefect_form_of_the_deployment_offers_every_section(service, deployed_run, browser, keep):
    deployment = service.api("GET", "/deployments/name/pipeline/quickstart")
    browser.open(f"{service.prefect}/deployments/deployment/{deployment['id']}/run")
    browser.wait_for("document.body.innerText.toLowerCase().includes('profile')")
    keep("prefect_form")
