"""Register the model in MLflow, as a version that names its run, data and code; the best one becomes the champion."""

import hashlib
import json
import os
from pathlib import Path

import ddpm
from contract.documents import read_result
from contract.environment import VISIBLE_GPUS
from contract.params import Params
from contract.paths import METRICS, MODEL
from ddpm.files import file_digest
from stages.runtime.reporting import say
from stages.runtime.runner import run_stage
from tracking.lineage import read_lineage, read_model_digest
from tracking.promotion import METRIC_TAG, PROMOTION_TAG, Metrics, promote_if_better
from tracking.registry import CONTENTS_TAG, Registry, Version
from tracking.runs import open_run, read_run_id


def main(params: Params) -> None:
    """Register build/model as a version, and make it the champion if it is better."""
    if not params.register.enabled:
        say("register", "switched off by register.enabled")
        return
    # The stage holds no GPU, so torch must find none: the trial of the model is drawn on the CPU.
    os.environ[VISIBLE_GPUS] = ""
    with open_run(params, "register", read_run_id(METRICS)) as tracker:
        if tracker.run_id:
            register(params, tracker.run_id, Registry(params.register.model_name))
        else:
            say("register", "nothing is registered, since tracking is off")


def register(params: Params, run_id: str, registry: Registry) -> None:
    """Register the model unless it is registered already, judge it against the champion, and note the outcome."""
    metrics = read_evaluation()
    version = find_or_add_version(params, run_id, registry, metrics)
    verdict = promote_if_better(registry, version, metrics)
    if verdict is None:
        say("register", f"version {version.number} is the champion")
        return
    becomes, became = ("becomes", "Became") if verdict.promotes else ("does not become", "Did not become")
    say("register", f"version {version.number} {becomes} champion: {verdict.reason}")
    if not verdict.promotes:
        say("register", f"`flowers promote {version.number}` makes it champion all the same")
    outcome = f"{became} champion: {verdict.reason}"
    registry.note(version.number, {PROMOTION_TAG: outcome}, f"Profile {params.profile}. {outcome}.")


def find_or_add_version(params: Params, run_id: str, registry: Registry, metrics: Metrics) -> Version:
    """Return the version of this very model; add it where there is none."""
    weights = params.sample.weights
    contents = contents_digest(weights, metrics)
    if version := registry.find(contents):
        say("register", f"this model is {registry.name} version {version.number} already")
        return version
    tags = version_tags(params, metrics) | {CONTENTS_TAG: contents}
    metadata = {"profile": params.profile, "image_size": params.preprocess.image_size}
    version = registry.add(run_id, MODEL, weights, tags, metadata)
    say("register", f"{registry.name} version {version.number}, run {run_id}")
    return version


def read_evaluation() -> Metrics:
    """Return the metrics of build/metrics.json; none where evaluation is off."""
    metrics = read_result(METRICS)
    if metrics.get("evaluated") is False:
        return {}
    return {name: str(value) for name, value in metrics.items() if name != "mlflow_run_id"}


def version_tags(params: Params, metrics: Metrics) -> dict[str, str]:
    """Return the tags that trace a version: code, data, model, profile, weights and metrics."""
    tags = read_lineage() | {"dvc_model": read_model_digest(), "profile": params.profile}
    tags |= {"weights": params.sample.weights} | {f"{METRIC_TAG}{name}": value for name, value in metrics.items()}
    return {name: value for name, value in tags.items() if value}


def contents_digest(weights: str, metrics: Metrics) -> str:
    """Return the digest of the weights, their configuration, the code that draws with them, and their metrics."""
    package = Path(ddpm.__file__).parent
    code = [*sorted(package.rglob("*.py")), package.parent / "tracking/served_model.py"]
    files = [MODEL / f"{weights}.safetensors", MODEL / "config.json", *code]
    parts = [f"{path.name} {file_digest(path, 'sha256')}" for path in files]
    return hashlib.sha256(json.dumps([parts, dict(sorted(metrics.items()))]).encode()).hexdigest()


if __name__ == "__main__":
    run_stage("register", main)
