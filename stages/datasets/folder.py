"""Any directory of images; its sub-folders, where there are any, are the classes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from contract.sections import DownloadParams
from stages.datasets.source import DatasetError, SourceImage

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


class Folder:
    """A copy of the directory is the raw dataset, so that what was trained on can be had again."""

    is_immutable = False

    def fetch(self, params: DownloadParams, folder: Path, previous: Path) -> None:  # noqa: ARG002 (always read anew)
        assert params.source is not None  # params.py sees to it
        source = Path(params.source).expanduser()
        if not source.is_dir():
            raise DatasetError(f"download.source must be a directory of images, got {source.absolute()}, which is none")
        paths = image_paths(source)
        if not paths:
            raise DatasetError(f"{source} holds no image; looked for {', '.join(sorted(SUFFIXES))} in it and below it")
        for path in paths:
            destination = folder / path.relative_to(source)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, destination)

    def count(self, folder: Path) -> int:
        return len(image_paths(folder))

    def images(self, folder: Path) -> Iterator[SourceImage]:
        paths = image_paths(folder)
        class_names = sorted({_class_name(path, folder) for path in paths})
        for index, path in enumerate(paths):
            name = _class_name(path, folder)
            relative = path.relative_to(folder).as_posix()
            yield SourceImage(index + 1, relative, path.read_bytes(), class_names.index(name), name, None)


def image_paths(folder: Path) -> list[Path]:
    """The images in and below `folder`, in the order of their relative paths; hidden files and folders are left out."""
    paths = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def _class_name(path: Path, folder: Path) -> str:
    parents = path.relative_to(folder).parts[:-1]
    return "/".join(parents)
