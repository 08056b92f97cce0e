"""Classes of images: a network counts them by labels, people ask for them by name or number."""

import difflib
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from numbers import Integral
from typing import SupportsIndex

AskedClass = str | SupportsIndex
"""Name or number of a class; NumPy's whole numbers are taken as well."""

NO_CLASS = -1
"""The label of an image whose class is unknown, or kept back from the network: one before the first class."""

_NUM_LISTED = 8
"""Classes that an error names."""

_Labels = dict[Hashable, list[int]]


@dataclass(frozen=True)
class ImageClass:
    """A class as its dataset knows it; a network's label l means the l-th of a list of these."""

    number: int
    """any; numbers need neither follow each other nor start at 0"""
    name: str

    def __str__(self) -> str:
        return self.name if _read_number(self.name) is not None else f"{self.name} ({self.number})"


def labels_of(asked: Sequence[AskedClass] | None, classes: Sequence[ImageClass]) -> tuple[int, ...]:
    """Return the labels of the classes asked for.

    A name that is written exactly so comes first. Then capital letters, spaces around and forms of the same Unicode
    letter do not matter, and 7 is the class named 007. Only then a number means the class of that number, and never one
    whose name is another number: of folders named 1 … 102, 5 means the one named 5.

    Args:
        asked: names or numbers, which may be written as text; None asks for every class once.
        classes: by label; none, where the network knows no classes.

    Returns:
        Labels in 0 … len(classes) - 1, in the order of `asked`.

    Raises:
        ValueError: a class is unknown, could be several, or there are none to ask for.
    """
    if asked is None:
        return tuple(range(len(classes)))
    if isinstance(asked, str) or not len(asked):
        raise ValueError(f"classes must be a list of at least one name or number, got {asked!r}")
    if not classes:
        got = [*map(str, asked)]
        raise ValueError(f"the model knows no classes, got {got}; ask for none, or train a conditional model")
    by_name = [_group(read(each.name) for each in classes) for read in _READINGS]
    by_number = _group(None if _read_number(each.name) is not None else each.number for each in classes)
    return tuple(_label_of(each, by_name, by_number, classes) for each in asked)


def _label_of(asked: object, by_name: Sequence[_Labels], by_number: _Labels, classes: Sequence[ImageClass]) -> int:
    if isinstance(asked, bool) or not isinstance(asked, str | Integral):
        got = f"{asked} ({type(asked).__name__})"
        raise ValueError(f"a class must be a name or a whole number, got {got}; write a name in quotes")
    text = str(asked)
    for read, labels in zip([*_READINGS, _read_number], [*by_name, by_number], strict=True):
        found = labels.get(read(text), [])
        if len(found) > 1:
            several = " or ".join(f"{classes[label].name!r}" for label in found)
            raise ValueError(f"class {text!r} could be {several}; write the name exactly")
        if found:
            return found[0]
    shown = repr(text) if isinstance(asked, str) else text
    raise ValueError(f"unknown class {shown}; {_suggest(text, by_name[1], classes)}")


def _fold(name: str) -> str:
    """Return a name without differences that the eye hardly sees: capital letters, spaces, forms of a letter."""
    return " ".join(unicodedata.normalize("NFKC", name.casefold()).split())


def _read_number(name: str) -> Decimal | None:
    """Return the number that a name spells, such as 7 for 007; None for other names."""
    try:
        number = Decimal(name.strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None  # "nan" and "infinity" are names


_READINGS: tuple[Callable[[str], Hashable], ...] = (str, _fold, _read_number)
"""Ways to read a name; what the first does not find is looked for by the next."""


def _group(keys: Iterable[Hashable]) -> _Labels:
    """Return the labels of the classes with the same key; classes without one are left out."""
    groups: _Labels = {}
    for label, key in enumerate(keys):
        if key is not None:
            groups.setdefault(key, []).append(label)
    return groups


def _suggest(asked: str, by_name: _Labels, classes: Sequence[ImageClass]) -> str:
    close = difflib.get_close_matches(_fold(asked), map(str, by_name), n=3, cutoff=0.7)
    if close:
        return f"did you mean {' or '.join(str(classes[label]) for name in close for label in by_name[name])}?"
    listed = ", ".join(map(str, classes[:_NUM_LISTED]))
    num_left_out = len(classes) - _NUM_LISTED
    return f"the model knows {listed}" + (f" and {num_left_out} more" if num_left_out > 0 else "")
