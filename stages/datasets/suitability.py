"""Check, before the long work begins, that the prepared images are what the parameters of all stages need."""

from contract.errors import StageError
from contract.params import Params
from contract.sections import MIN_COMPARED_IMAGES
from ddpm.classes import labels_of
from stages.datasets.labels import label_images
from stages.datasets.prepared import count_images, positions_of


def check_suitability(params: Params) -> None:
    """Check that this dataset can be trained on, drawn from and compared with as the parameters say.

    It reads parameters of later stages, and may only refuse. So they shape no result: dvc.yaml does not name them at an
    earlier stage, and a change of them makes nothing run again.

    Raises:
        StageError: there are no images to train on, fewer than two classes to learn, no such class to draw, or too few
            images to compare with.
    """
    positions = positions_of(params.train.splits)
    if params.train.class_conditional:
        _, classes = label_images(positions)
        try:
            labels_of(params.sample.classes, classes)
        except ValueError as error:
            splits = ", ".join(params.train.splits)
            raise StageError(f"sample.classes, of the classes of train.splits ({splits}): {error}") from None
    counts = count_images()
    if params.evaluate.enabled:
        check_reference(counts, params.evaluate.reference_split)
    if params.train.evaluate_every:
        _check_split(counts, params.train.evaluate_split, "train.evaluate_split", "train.evaluate_every to null")


def check_reference(counts: dict[str, int], split: str) -> None:
    """Check that a split holds enough images to compare samples with.

    Raises:
        StageError: it holds too few.
    """
    _check_split(counts, split, "evaluate.reference_split", "evaluate.enabled to false")


def _check_split(counts: dict[str, int], split: str, name: str, way_out: str) -> None:
    if counts.get(split, 0) < MIN_COMPARED_IMAGES:
        raise StageError(
            f"{name}: split {split} holds {counts.get(split, 0)} images, and a distance needs {MIN_COMPARED_IMAGES}; "
            f"images by split: {counts}; name another split, prepare more images, or set {way_out}"
        )
