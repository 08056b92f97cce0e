"""Register the model in MLflow, as a version that names its run, data and code."""

from stages.params import Params
from stages.paths import METRICS, MODEL
from stages.prepared import recorded_run_id
from stages.runner import run_stage
from stages.tracking import reopened_run


def main(params: Params) -> None:
    """A new version of the registered model."""
    if not params.register_.enabled:
        print("register: switched off by register.enabled", flush=True)
        return
    with reopened_run(params, "register", recorded_run_id(METRICS)) as tracker:
        version = tracker.register_model(params.register_.model_name, MODEL, params)
    if version:
        print(f"register: {params.register_.model_name} version {version}, run {tracker.run_id}", flush=True)
    else:
        print("register: nothing is registered, since tracking is off", flush=True)


if __name__ == "__main__":
    run_stage("register", main)
