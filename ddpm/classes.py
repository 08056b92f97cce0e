"""Classes of images: a network counts them by labels, people ask for them by name or number."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NO_CLASS = -1
"""The label of an image whose class is unknown, or kept back from the network: one before the first class."""

_NUM_LISTED = 8
"""Classes that an error names."""


@dataclass(frozen=True)
class ImageClass:
    """A class as its dataset knows it; a network's label l means the l-th of a list of these."""

    number: int
    """any; numbers need neither follow each other nor start at 0"""
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.number})"


def labels_of(asked: Sequence[str | int] | None, classes: Sequence[ImageClass]) -> tuple[int, ...]:
    """The labels of the classes asked for.

    Args:
        asked: names (capital letters do not matter) or numbers, which may be written as text; None asks for every
            class once.
        classes: by label; none, where the network knows no classes.

    Returns:
        Labels in 0 … len(classes) - 1, in the order of `asked`.

    Raises:
        ValueError: a class is unknown, or there are none to ask for.
    """
    if asked is None:
        return tuple(range(len(classes)))
    if not classes:
        raise ValueError(f"the model knows no classes, got {list(asked)}; ask for none, or train a conditional model")
    return tuple(_label_of(each, classes) for each in asked)


def _label_of(asked: str | int, classes: Sequence[ImageClass]) -> int:
    by_number = {each.number: label for label, each in enumerate(classes)}
    by_name = {each.name.casefold(): label for label, each in enumerate(classes)}
    by_name |= {each.name: label for label, each in enumerate(classes)}  # two may differ by capital letters alone
    if isinstance(asked, int):
        label = by_number.get(asked)
    else:
        label = by_name.get(asked, by_name.get(asked.casefold()))
        if label is None and asked.isdecimal():
            label = by_number.get(int(asked))
    if label is None:
        raise ValueError(f"unknown class {asked!r}; {_suggestion(str(asked), by_name, classes)}")
    return label


def _suggestion(asked: str, by_name: Mapping[str, int], classes: Sequence[ImageClass]) -> str:
    close = difflib.get_close_matches(asked.casefold(), by_name, n=3, cutoff=0.7)
    if close:
        return f"did you mean {' or '.join(dict.fromkeys(str(classes[by_name[name]]) for name in close))}?"
    listed = ", ".join(map(str, classes[:_NUM_LISTED]))
    num_left_out = len(classes) - _NUM_LISTED
    return f"the model knows {listed}" + (f" and {num_left_out} more" if num_left_out > 0 else "")
