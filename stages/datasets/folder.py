"""Any folder of images; its sub-folders, if there are any, are the classes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from contract.errors import StageError
from contract.sections import DownloadParams
from stages.datasets.source import SourceImage, find_source, list_visible_files

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


class Folder:
    """The raw dataset is a copy of the folder, so that DVC can restore what a model was trained on."""

    is_immutable = False

    def fetch(self, params: DownloadParams, folder: Path, previous: Path) -> None:  # noqa: ARG002 (always copied anew)
        source = find_source(params.source)
        if source is None or not source.is_dir():
            raise StageError(f"download.source must be a folder of images, got {source or params.source}")
        paths = list_images(source)
        if not paths:
            raise StageError(f"{source} holds no images: no file in or below it ends in {', '.join(sorted(SUFFIXES))}")
        for path in paths:
            destination = folder / path.relative_to(source)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, destination)

    def count(self, folder: Path) -> int:
        return len(list_images(folder))

    def images(self, folder: Path) -> Iterator[SourceImage]:
        paths = list_images(folder)
        class_of = {path: path.parent.relative_to(folder).as_posix().removeprefix(".") for path in paths}
        class_names = sorted(set(class_of.values()))
        for number, (path, name) in enumerate(class_of.items(), start=1):
            relative = path.relative_to(folder).as_posix()
            yield SourceImage(number, relative, path.read_bytes(), class_names.index(name), name, None)


def list_images(folder: Path) -> list[Path]:
    """Return the visible images in and below `folder`, sorted by relative path."""
    return [path for path in list_visible_files(folder) if path.suffix.lower() in SUFFIXES]
