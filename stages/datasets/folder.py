"""Any folder of images; its sub-folders, if there are any, are the classes, or splits that hold classes."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from pathlib import Path, PurePath

from contract.errors import StageError, name_few
from contract.sections import DownloadParams
from stages.datasets.source import SUFFIXES, SourceImage, SplitName
from stages.datasets.walking import find_source, list_visible_entries
from stages.runtime.reporting import say, warn

_SPLITS: dict[str, SplitName] = {
    "train": "train", "training": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test",
    "testing": "test",
}  # fmt: skip


class Folder:
    """The raw dataset is a copy of the folder, so that DVC can restore what a model was trained on."""

    is_immutable = False

    def fetch(self, params: DownloadParams, folder: Path, previous: Path) -> None:  # noqa: ARG002 (always copied anew)
        source = find_source(params.source)
        if source is None or not source.is_dir():
            raise StageError(f"download.source must be a folder of images, got {source or params.source}")
        entries = list_visible_entries(source)
        images = [path for path in entries if _is_image(path)]
        left_out = _describe_left_out(source, entries, images)
        if not images:
            raise StageError(
                f"{source} holds no images: no file in or below it ends in {', '.join(sorted(SUFFIXES))}"
                f"; it holds {left_out or 'nothing'}"
            )
        names = [path.relative_to(source) for path in images]
        _check_names(names)
        if splits := sorted({split for split, _ in sort_images(names) if split}):
            say("download", f"the folders of {source} are taken as its own splits: {', '.join(splits)}")
        if left_out:
            warn("download", f"not taken from {source}: {left_out}")
        for path, name in zip(images, names, strict=True):
            _copy(path, folder / name)

    def count(self, folder: Path) -> int:
        return len(_list_images(folder))

    def images(self, folder: Path) -> Iterator[SourceImage]:
        paths = _list_images(folder)
        names = [path.relative_to(folder) for path in paths]
        places = sort_images(names)
        number_of = number_classes({class_name for _, class_name in places})
        for number, (path, name, (split, class_name)) in enumerate(zip(paths, names, places, strict=True), start=1):
            yield SourceImage(number, name.as_posix(), _read(path), number_of[class_name], class_name, split)


def number_classes(names: Set[str]) -> dict[str, int]:
    """Return the number of each class: 5 of "5" or "005" where every name is such a number, else its place by name."""
    in_order = sorted(names)
    numbers = [int(name) for name in in_order if re.fullmatch("[0-9]{1,18}", name)]
    return dict(zip(in_order, numbers if len({*numbers}) == len(names) else range(len(names)), strict=True))


def sort_images(names: Sequence[PurePath]) -> list[tuple[SplitName | None, str]]:
    """Return split and class of each image, by the folders of its relative path.

    Folders named as splits, directly below the source, are the dataset's own splits, and the folders in them the
    classes. Without them an image has no split, and all its folders are its class.

    Raises:
        StageError: a folder can be meant as a split and as a class.
    """
    folders = sorted({name.parts[0] for name in names if len(name.parts) > 1 and name.parts[0].casefold() in _SPLITS})
    others = sorted({name.parts[0] for name in names} - set(folders))
    if folders and others:
        raise StageError(
            f"download.source holds folders of splits ({', '.join(folders)}) beside {name_few(others)}, whose split is "
            "not known: move everything into the folders of splits, or rename those that are classes"
        )
    if folders and all(_SPLITS[folder.casefold()] != "train" for folder in folders):
        raise StageError(
            f"download.source holds images for {', '.join(folders)} and none for train; add a folder train"
        )
    for name in names:
        for depth, folder in enumerate(name.parts[1:-1], start=1):
            if _SPLITS.get(folder.casefold(), "train") != "train":
                raise StageError(
                    f"{'/'.join(name.parts[: depth + 1])} in download.source is named as a split, which must lie "
                    f"directly below it ({folder}/{name.parts[0]}, not {name.parts[0]}/{folder}); move or rename it"
                )
    if not folders:
        return [(None, "/".join(name.parts[:-1])) for name in names]
    return [(_SPLITS[name.parts[0].casefold()], "/".join(name.parts[1:-1])) for name in names]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _list_images(folder: Path) -> list[Path]:
    return [path for path in list_visible_entries(folder) if _is_image(path)]


def _describe_left_out(source: Path, entries: Sequence[Path], images: Sequence[Path]) -> str:
    """Return in one line what is not taken: files by suffix, links and special files, folders of classes."""
    others = [path for path in entries if not _is_image(path)]
    suffixes = Counter(path.suffix.lower() or "without a suffix" for path in others if path.is_file())
    unusable = [str(path.relative_to(source)) for path in others if not path.is_file()]
    used = {source, *(folder for path in images for folder in path.parents)}
    folders = [path for pattern in ("*", "*/*") for path in sorted(source.glob(pattern)) if path.is_dir()]
    unused = [path for path in folders if path not in {*used, *others} and path.parent in used]
    empty = [str(path.relative_to(source)) for path in unused if not path.name.startswith(".")]
    parts = {
        "": [f"{count} {suffix}" for suffix, count in suffixes.most_common()],
        "links to nothing or back, or no files: ": unusable,
        "folders without images: ": empty,
    }
    return "; ".join(f"{what}{name_few(names)}" for what, names in parts.items() if names)


def _check_names(names: Sequence[PurePath]) -> None:
    bad = [str(name) for name in names if str(name) != os.fsencode(name).decode(errors="replace")]
    if bad:
        raise StageError(f"names of files and folders must be UTF-8: rename {name_few(bad)}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StageError(f"{path} cannot be read: {error.strerror}") from None


def _copy(path: Path, destination: Path) -> None:
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, destination)
    except OSError as error:
        raise StageError(f"{path} cannot be copied to {destination}: {error.strerror}") from None
