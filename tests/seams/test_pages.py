"""Run pages of MLflow and Prefect, in a real browser."""

import time
from urllib.parse import quote

import pytest

from flows.forms import Overrides
from tests.seams.browser import CHROMIUM, opened_browser
from tests.seams.checkout import STAGES, command

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.xdist_group("service"),  # one worker, which makes the servers once
    pytest.mark.timeout(600),  # the first test may wait for a whole sweep, on a machine that runs others, too
]

SLIDER = "document.querySelector('[role=slider]:not([data-disabled])')"

# Pictures of a page count once the browser has decoded them.
LOADED = "[...document.images].filter(image => image.complete && image.naturalWidth >= 32 && {condition})"

# The grids of samples come as artifacts of the runs.
GRIDS = LOADED.format(condition="image.src.includes('get-artifact?path=images%2Fsamples%2B')")
RUNS_WITH_GRIDS = f"[...new Set({GRIDS}.map(image => new URL(image.src).searchParams.get('run_uuid')))].sort()"
GRID_ADDRESSES = f"{GRIDS}.map(image => image.src).sort()"


@pytest.fixture(scope="module")
def browser(tmp_path_factory, project):
    with opened_browser(tmp_path_factory.mktemp("browser"), project.environment) as opened:
        yield opened


@pytest.fixture(scope="module")
def two_runs(service, deployed_run, owls):
    """Return the ids of two MLflow runs, in order."""
    return sorted(service.mlflow_run_of(run) for run in (deployed_run, owls[1]["owls-1"]))


def test_the_mlflow_page_compares_losses_and_image_grids_of_two_runs(service, two_runs, browser):
    numbers = two_runs
    found = [service.mlflow_run(number)["info"] for number in numbers]
    names = {run["run_name"] for run in found}
    assert len(names) == len(numbers) == 2
    chosen = quote(f"attributes.run_id IN ('{numbers[0]}', '{numbers[1]}')")
    page = f"{service.mlflow}/#/experiments/{found[0]['experiment_id']}/runs"
    browser.open(f"{page}?searchFilter={chosen}&compareRunsMode=CHART")
    browser.wait_for("document.querySelectorAll('.js-plotly-plot').length > 0")
    # The assistant's panel.
    browser.evaluate("document.querySelector('[aria-label=close], [aria-label=Close]')?.click()")
    assert all(name in browser.text() for name in names)
    # In the legend of the chart of losses each run has a line.
    lines = [f"{name} (loss)" for name in names]
    browser.scroll_until(f"{lines}.every(line => document.body.innerText.includes(line))")
    # One grid a run, at the step that the slider chooses; the slider moves both.
    browser.scroll_until(f"{RUNS_WITH_GRIDS}.length >= 2")
    assert browser.evaluate(RUNS_WITH_GRIDS) == numbers
    browser.evaluate(f"{GRIDS}[0].scrollIntoView({{block: 'center'}})")
    before = browser.evaluate(GRID_ADDRESSES)
    assert all("step%2B0%2B" in address for address in before)
    browser.evaluate(f"{SLIDER}.focus()")
    browser.press("ArrowRight")
    browser.wait_for(f"{GRIDS}.every(image => !image.src.includes('step%2B0%2B')) && {RUNS_WITH_GRIDS}.length >= 2")
    assert browser.evaluate(RUNS_WITH_GRIDS) == numbers


def test_the_address_that_compare_prints_is_the_page_of_these_runs(service, two_runs, browser):
    output = service.checkout.run(*command("compare", *two_runs))
    browser.open(output.rpartition("MLflow: ")[2].strip())
    names = [service.mlflow_run(number)["info"]["run_name"] for number in two_runs]
    browser.wait_for(f"{names}.every(name => document.body.innerText.includes(name))")
    assert "learning_rate" in browser.text()


def test_the_prefect_page_shows_the_grid_of_samples(service, deployed_run, browser):
    browser.open(f"{service.prefect}/runs/flow-run/{deployed_run['id']}")
    browser.wait_for_text(f"{len(STAGES)} Task runs")
    assert deployed_run["name"] in browser.text()
    artifact = service.artifacts(deployed_run)["samples"]
    browser.open(f"{service.prefect}/artifacts/artifact/{artifact['id']}")
    embedded = LOADED.format(condition="image.src.startsWith('data:image/png')")
    browser.wait_for(f"{embedded}.length == 1")


@pytest.fixture
def resting_pool(service):
    """Runs that are started wait."""
    for action in ("pause", "resume"):
        service.checkout.run("prefect", "work-pool", action, "local")
        if action == "pause":
            yield


def fill_in(browser, label, value):
    """Put a whole number into the field of this label, which is of no kind at first."""
    labels = "[...document.querySelectorAll('.schema-form-property__label')]"
    field = f"{labels}.find(part => part.innerText == '{label} (Optional)').closest('.p-label')"
    if not browser.evaluate(f"{field}.querySelector('input')"):
        browser.click("int", field)
    browser.wait_for(f"{field}.querySelector('input') != null")
    browser.evaluate(f"{field}.scrollIntoView({{block: 'center'}})")
    browser.evaluate(f"{field}.querySelector('input').focus()")
    browser.evaluate(f"{field}.querySelector('input').select()")
    browser.call("Input.insertText", text=value)
    browser.wait_for(f"{field}.querySelector('input').value == '{value}'")


def submit(browser):
    time.sleep(2.0)  # the form takes in with a delay what was typed
    browser.click("Submit")


def test_the_prefect_form_explains_bounds_refuses_and_starts(service, resting_pool, browser):
    browser.open(f"{service.prefect}/deployments/deployment/{service.deployment('quickstart')['id']}/run")
    browser.wait_for_text("parameters that differ")  # what the flow's docstring says of its parameters
    assert "saved experiment of profiles/" in browser.text()
    assert [stage for stage in STAGES if f"{stage.capitalize()} (Optional)" in browser.text()] == STAGES
    browser.click("TrainParamsOverride")
    browser.wait_for_text("optimizer steps of the whole training (at least 1, at most 100000000)")
    assert "highest learning rate of the Adam optimizer (above 0.0, at most 1.0)" in browser.text()

    before = service.api("POST", "/flow_runs/count")
    fill_in(browser, "Num Steps", "0")
    submit(browser)
    browser.wait_for_text("is not valid under any of the given schemas")
    assert "'num_steps': 0}" in browser.text()
    assert service.api("POST", "/flow_runs/count") == before

    fill_in(browser, "Num Steps", "700")
    # The form has taken the new value in; a click before that is lost.
    browser.wait_for("!document.body.innerText.includes('is not valid under any of the given schemas')")
    submit(browser)
    browser.wait_for("!location.pathname.endsWith('/run')")
    (run,) = service.flow_runs(state={"type": {"any_": ["SCHEDULED"]}})
    assert Overrides(**run["parameters"]["params"]).model_dump(exclude_unset=True) == {"train": {"num_steps": 700}}
    service.checkout.run("prefect", "flow-run", "delete", run["id"])
