"""Give the champion's place to a version of the registered model: by its metrics, or by hand.

The rule: the whole 95 % interval of the new kernel distance lies below the whole interval of the champion's. Most
trainings of a sweep differ by chance alone, and each is another chance to be lucky. Where nothing but chance differs,
two intervals of equal width lie apart, on the better side, 3 times in 1,000: a sweep of twenty such trainings replaces
the champion 1 time in 20. A weaker rule, the new distance below the champion's interval, would do so 1 time in 12 for
each training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tracking.registry import Registry, Version

PROMOTION_TAG = "promotion"
"""Version tag that says why a version became the champion, or did not."""

METRIC_TAG = "evaluate."
"""Beginning of the version tags that hold its metrics."""

Metrics: TypeAlias = Mapping[str, str]
"""Metrics of build/metrics.json by name, as text; none where the model was not evaluated."""

_MUST_AGREE = (
    "extractor", "weights_sha256", "dataset_md5", "reference_split", "num_reference", "num_samples",
    "kernel_subsets", "kernel_subset_size",
)  # fmt: skip
"""Values that two evaluations must share for their distances to be compared."""

_SHOWN_CHARACTERS = 12
"""Characters of a digest that a message shows."""


@dataclass(frozen=True)
class Interval:
    """Kernel distance with its 95 % interval."""

    name: str
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} {self.mean:.4f} (95 %: {self.low:.4f} … {self.high:.4f})"


@dataclass(frozen=True)
class Verdict:
    """Decision on a version, with its reason."""

    promotes: bool
    reason: str


def promote_if_better(registry: Registry, version: Version, metrics: Metrics) -> Verdict | None:
    """Judge the version against the champion, and promote it if it is better; None, where it is the champion already.

    MLflow moves the alias for whoever asks last. Another registration may move it meanwhile, so the champion is read
    again before and after: whoever finds another one than expected judges once more, against that one.
    """
    verdict = None
    while (champion := registry.champion()) is None or champion.number != version.number:
        verdict = judge_version(metrics, champion)
        if not verdict.promotes:
            break
        if registry.champion() == champion:
            registry.promote(version.number)
    return verdict


def promote_by_hand(registry: Registry, number: str) -> str:
    """Make a version the champion whatever its metrics, note it with the version, and return what was done, in words.

    Raises:
        TrackingError: there is no such version.
    """
    before = registry.champion()
    registry.promote(number)
    outcome = "Became champion by hand" + (f", after version {before.number}" if before else "")
    registry.note(number, {PROMOTION_TAG: outcome}, f"{outcome}.")
    return f"{registry.name} version {number} is the champion" + (f", after {before.number}" if before else "")


def judge_version(new: Metrics, champion: Version | None) -> Verdict:
    """Decide whether a version with the metrics `new` replaces the champion; None means that there is no champion."""
    if champion is None:
        return Verdict(True, "there was no champion")
    named = f"the champion, version {champion.number}"
    old = {name.removeprefix(METRIC_TAG): tag for name, tag in champion.tags.items() if name.startswith(METRIC_TAG)}
    if not new:
        return Verdict(False, f"it was not evaluated, so it cannot be compared with {named}")
    if not old:
        return Verdict(False, f"{named}, was not evaluated, so there is no metric to beat")
    if differences := [
        f"{name} is {_shorten(new.get(name))} and was {_shorten(old.get(name))}"
        for name in _MUST_AGREE
        if new.get(name) != old.get(name)
    ]:
        return Verdict(False, f"it was evaluated in another way than {named}: {'; '.join(differences)}")
    ours, theirs = read_interval(new), read_interval(old)
    both = f"{ours}, the champion's, version {champion.number}, {theirs}"
    if ours.high < theirs.low:
        return Verdict(True, f"its whole interval lies below: {both}")
    return Verdict(False, f"{'the intervals overlap' if ours.mean < theirs.mean else 'it is no lower'}: {both}")


def read_interval(metrics: Metrics) -> Interval:
    """Return the kernel distance of an evaluated model; lower is better."""
    name = f"kid_{metrics['extractor']}"
    return Interval(name, *(float(metrics[f"{name}{ending}"]) for ending in ("", "_low", "_high")))


def _shorten(value: str | None) -> str:
    return "unknown" if value is None else value if len(value) <= 2 * _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS]
