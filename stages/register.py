"""Register the model in MLflow, as a version that names its run, data and code; the best one becomes the champion."""

import hashlib
import json
import os
from pathlib import Path

import ddpm
from contract.params import Params
from contract.paths import METRICS, MODEL
from contract.results import read_run_id
from ddpm.files import file_digest
from stages.runtime.runner import run_stage
from tracking.lineage import lineage_tags, model_digest
from tracking.promotion import PROMOTION_TAG, Champion, Figures, Verdict, judged
from tracking.registry import CONTENTS_TAG, Registry, Version
from tracking.runs import reopened_run

FIGURE = "evaluate."
"""What the tags with a version's figures begin with."""


def main(params: Params) -> None:
    """A new version of the registered model, and the champion's alias on the better one."""
    if not params.register.enabled:
        print("register: switched off by register.enabled", flush=True)
        return
    # The stage holds no slot of the GPUs, so torch is to find none: the trial of the model is drawn on the CPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with reopened_run(params, "register", read_run_id(METRICS)) as tracker:
        if not tracker.run_id:
            print("register: nothing is registered, since tracking is off", flush=True)
            return
        register(params, tracker.run_id, Registry(params.register.model_name))


def register(params: Params, run_id: str, registry: Registry) -> None:
    """Register the model unless it is there already, and judge it against the champion."""
    figures, weights = evaluated_figures(), params.sample.weights
    contents = contents_digest(weights, figures)
    version = registry.find(contents)
    if version is None:
        tags = version_tags(params, figures) | {CONTENTS_TAG: contents}
        metadata = {"profile": params.profile, "image_size": params.preprocess.image_size}
        version = registry.add(run_id, MODEL, weights, tags, metadata)
        _say(f"{registry.name} version {version.number}, run {run_id}")
    else:
        _say(f"this model is {registry.name} version {version.number} already")
    verdict = contest(registry, version, figures)
    if verdict is None:
        _say(f"version {version.number} is the champion")
        return
    if verdict.promotes:
        outcome = f"Became champion: {verdict.reason}"
        _say(f"version {version.number} becomes champion: {verdict.reason}")
    else:
        outcome = f"Did not become champion: {verdict.reason}"
        _say(f"version {version.number} does not become champion: {verdict.reason}")
        _say(f"`python -m flows.promote {version.number}` makes it champion all the same")
    registry.note(version.number, {PROMOTION_TAG: outcome}, f"Profile {params.profile}. {outcome}.")


def contest(registry: Registry, version: Version, figures: Figures) -> Verdict | None:
    """Judge the version against the champion, and promote it if it is better; None, where it is the champion already.

    MLflow moves the alias for whoever asks last. Another registration may move it meanwhile, so the champion is read
    again before and after: whoever finds another one than expected judges once more, against that.
    """
    verdict = None
    while (champion := registry.champion()) is None or champion.number != version.number:
        verdict = judged(figures, Champion(champion.number, figures_of(champion.tags)) if champion else None)
        if not verdict.promotes:
            break
        if registry.champion() == champion:
            registry.promote(version.number)
    return verdict


def evaluated_figures() -> Figures:
    """Of build/metrics.json; none where evaluation is off."""
    metrics = json.loads(METRICS.read_text())
    if metrics.get("evaluated") is False:
        return {}
    return {name: str(value) for name, value in metrics.items() if name != "mlflow_run_id"}


def figures_of(tags: Figures) -> Figures:
    """The figures among a version's tags."""
    return {name.removeprefix(FIGURE): value for name, value in tags.items() if name.startswith(FIGURE)}


def version_tags(params: Params, figures: Figures) -> dict[str, str]:
    """What a version is traced by: code, data, model, parameters' profile, and its figures."""
    tags = lineage_tags() | {"dvc_model": model_digest(), "profile": params.profile, "weights": params.sample.weights}
    tags |= {f"{FIGURE}{name}": value for name, value in figures.items()}
    return {name: value for name, value in tags.items() if value}


def contents_digest(weights: str, figures: Figures) -> str:
    """Of the weights, their configuration, the code that draws with them, and their figures."""
    package = Path(ddpm.__file__).parent
    code = [*sorted(package.rglob("*.py")), package.parent / "tracking/served_model.py"]
    files = [MODEL / f"{weights}.safetensors", MODEL / "config.json", *code]
    parts = [f"{path.name} {file_digest(path, 'sha256')}" for path in files]
    return hashlib.sha256(json.dumps([parts, dict(sorted(figures.items()))]).encode()).hexdigest()


def _say(words: str) -> None:
    print(f"register: {words}", flush=True)


if __name__ == "__main__":
    run_stage("register", main)
