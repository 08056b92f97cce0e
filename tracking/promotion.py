"""When a new version of the model becomes the champion, by the figures of both.

The rule: the whole 95 % interval of the new kernel distance lies below the whole interval of the champion's. Most
trainings of a sweep differ by chance alone, and each is another chance to be lucky. Where nothing but chance differs,
two intervals of equal width come to lie apart on the better side 3 times in 1,000, so that twenty such trainings
replace the champion once in twenty times; a new distance below the champion's interval would come 1 time in 12.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

CHAMPION = "champion"
"""The alias of the version that is served."""

PROMOTION_TAG = "promotion"
"""The version tag that says why a version became the champion, or did not."""

Figures: TypeAlias = Mapping[str, str]
"""Of build/metrics.json, by name, as text; none where the model was not evaluated."""

_MUST_AGREE = (
    "extractor", "weights_sha256", "dataset_md5", "reference_split", "num_reference", "num_samples",
    "kernel_subsets", "kernel_subset_size",
)  # fmt: skip
"""What two evaluations must share for their distances to be compared."""

_SHOWN_CHARACTERS = 12
"""Of a digest."""


@dataclass(frozen=True)
class Interval:
    """A kernel distance and its 95 % interval."""

    name: str
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} {self.mean:.4f} (95 %: {self.low:.4f} … {self.high:.4f})"


@dataclass(frozen=True)
class Champion:
    """The version to beat."""

    number: str
    figures: Figures


@dataclass(frozen=True)
class Verdict:
    """Whether a version becomes the champion, and why or why not."""

    promotes: bool
    reason: str


def judged(new: Figures, champion: Champion | None) -> Verdict:
    """Whether the version with the figures `new` takes the champion's place; None, where there is no champion."""
    if champion is None:
        return Verdict(True, "there was no champion")
    if obstacle := _obstacle(new, champion):
        return Verdict(False, obstacle)
    ours, theirs = headline(new), headline(champion.figures)
    both = f"{ours}, the champion's, version {champion.number}, {theirs}"
    if ours.high < theirs.low:
        return Verdict(True, f"its whole interval lies below: {both}")
    return Verdict(False, f"{'the intervals overlap' if ours.mean < theirs.mean else 'it is no lower'}: {both}")


def headline(figures: Figures) -> Interval:
    """The kernel distance of an evaluated model; lower is better."""
    name = f"kid_{figures['extractor']}"
    return Interval(name, *(float(figures[f"{name}{ending}"]) for ending in ("", "_low", "_high")))


def _obstacle(new: Figures, champion: Champion) -> str:
    """What keeps the two from being compared, if anything."""
    of_champion = f"the champion, version {champion.number}"
    if not new:
        return f"it was not evaluated, so that nothing says it is better than {of_champion}"
    if not champion.figures:
        return f"{of_champion}, was not evaluated, so that there is no figure to beat"
    differences = [
        f"{name} is {_short(new.get(name))} and was {_short(champion.figures.get(name))}"
        for name in _MUST_AGREE
        if new.get(name) != champion.figures.get(name)
    ]
    return f"it was evaluated otherwise than {of_champion}: {'; '.join(differences)}" if differences else ""


def _short(value: str | None) -> str:
    return "unknown" if value is None else value if len(value) <= 2 * _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS]
