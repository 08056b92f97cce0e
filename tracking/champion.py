"""Give the champion's place to a version of the registered model: by its figures, or by hand."""

from tracking.promotion import PROMOTION_TAG, Champion, Figures, Verdict, judge_version, read_figures
from tracking.registry import Registry, Version


def promote_if_better(registry: Registry, version: Version, figures: Figures) -> Verdict | None:
    """Judge the version against the champion, and promote it if it is better; None, where it is the champion already.

    MLflow moves the alias for whoever asks last. Another registration may move it meanwhile, so the champion is read
    again before and after: whoever finds another one than expected judges once more, against that one.
    """
    verdict = None
    while (champion := registry.champion()) is None or champion.number != version.number:
        opponent = None if champion is None else Champion(champion.number, read_figures(champion.tags))
        verdict = judge_version(figures, opponent)
        if not verdict.promotes:
            break
        if registry.champion() == champion:
            registry.promote(version.number)
    return verdict


def promote_by_hand(registry: Registry, number: str) -> str:
    """Make a version the champion whatever its figures, note it with the version, and return what was done, in words.

    Raises:
        TrackingError: there is no such version.
    """
    before = registry.champion()
    registry.promote(number)
    outcome = "Became champion by hand" + (f", after version {before.number}" if before else "")
    registry.note(number, {PROMOTION_TAG: outcome}, f"{outcome}.")
    return f"{registry.name} version {number} is the champion" + (f", after {before.number}" if before else "")
