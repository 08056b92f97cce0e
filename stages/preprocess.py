"""Crop and resize every raw image into one uint8 array, and write a table of them."""

import pandas as pd

from contract.errors import StageError
from contract.params import Params
from contract.paths import DATA, DATASET
from ddpm.files import file_digest
from stages.datasets import DATASETS
from stages.datasets.pin import read_receipt
from stages.datasets.preparation import SOURCE_COLUMNS, write_images
from stages.runtime.outputs import write_json, write_table
from stages.runtime.reporting import say, warn
from stages.runtime.runner import run_stage

INDEX_COLUMNS = [*SOURCE_COLUMNS, "original_width", "original_height", "source_md5"]
SKIPPED_COLUMNS = [*SOURCE_COLUMNS, "source_md5", "reason"]


def preprocess(params: Params) -> None:
    """Write build/dataset/: images.npy, index.csv, skipped.csv and dataset.json.

    index.csv has one row per image of the array, in the same order; skipped.csv lists the images that cannot
    be decoded and that `skip_damaged` left out.

    Raises:
        StageError: data/ differs from what was downloaded; an image cannot be decoded and must not be skipped; no image
            can be decoded.
    """
    receipt, section = read_receipt(), params.preprocess
    dataset = DATASETS[receipt["dataset"]]
    count = dataset.count(DATA)
    rows, skipped = write_images(DATASET / "images.npy", dataset.images(DATA), count, section)
    if len(rows) + len(skipped) != count:
        raise StageError(f"{receipt['dataset']} should hold {count} images, got {len(rows) + len(skipped)}")
    index = pd.DataFrame(rows, columns=INDEX_COLUMNS)
    index["split"] = index["split"].fillna(pd.Series(choose_splits(index, section.valid_fraction)))
    splits = index["split"].value_counts().sort_index().to_dict()
    write_table(DATASET / "index.csv", index)
    write_table(DATASET / "skipped.csv", pd.DataFrame(skipped, columns=SKIPPED_COLUMNS))
    summary = {
        "dataset": receipt["dataset"],
        "source_digest": receipt["digest"],
        "image_size": section.image_size,
        "num_images": len(index),
        "num_skipped": len(skipped),
        "images_md5": file_digest(DATASET / "images.npy"),
        "splits": splits,
        "num_classes": int(index["class_number"].nunique()),
    }
    write_json(DATASET / "dataset.json", summary)
    say("preprocess", f"{len(index)} images of {section.image_size}x{section.image_size}, splits {splits}")
    if skipped:
        warn("preprocess", f"{len(skipped)} images cannot be decoded and are left out, see {DATASET / 'skipped.csv'}")


def choose_splits(index: pd.DataFrame, valid_fraction: float) -> list[str]:
    """Return a split for each image, by the digest of its source: it stays when other images come or go.

    The digest is read as a number in [0, 1): below `valid_fraction` it gives "valid", below twice that "test", else
    "train".
    """
    positions = index["source_md5"].map(lambda digest: int(digest[:13], 16) / 16**13)
    return ["valid" if p < valid_fraction else "test" if p < 2 * valid_fraction else "train" for p in positions]


if __name__ == "__main__":
    run_stage("preprocess", preprocess)
