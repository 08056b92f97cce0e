"""Extract the features of real images, once per dataset and extractor, for evaluate to compare samples with."""

import pandas as pd
import torch
from torch import Tensor

from contract.params import Params
from contract.paths import REFERENCE
from contract.sections import ReferenceParams
from ddpm.devices import prepare_best_device
from ddpm.distributed import is_first
from stages.datasets.prepared import all_images, dataset_digest, image_index, positions_of
from stages.datasets.suitability import check_suitability
from stages.evaluation.extraction import choose_at_random, describe_extractor, extract_together, load_extractor
from stages.evaluation.real_features import RECORD, RealFeatures, write_real_features
from stages.runtime.outputs import write_json
from stages.runtime.reporting import progress_bar, say
from stages.runtime.runner import run_stage


def main(params: Params) -> None:
    """Extract features of build/dataset; write build/reference."""
    check_suitability(params)
    if not params.evaluate.enabled:
        if is_first():
            write_json(REFERENCE / RECORD, {"extracted": False})
            say("reference", "switched off by evaluate.enabled")
        return
    reference, device = params.reference, prepare_best_device()
    extractor = load_extractor(reference, device)
    chosen, images = choose_images(reference), all_images()
    with progress_bar("reference", sum(map(len, chosen.values())), "images") as bar:
        features = {
            split: extract_together(extractor, images, positions, reference.batch_size, device, bar)
            for split, positions in chosen.items()
        }
    if is_first():
        counts = {split: len(positions) for split, positions in chosen.items()}
        record = {"extracted": True, "dataset_md5": dataset_digest(), "num_images": counts, "seed": reference.seed}
        record |= describe_extractor(extractor)
        write_real_features(REFERENCE, RealFeatures(features, tabulate_images(chosen), record))
        say("reference", f"{reference.extractor} features of {counts}")


def choose_images(params: ReferenceParams) -> dict[str, Tensor]:
    """Return positions of images of each split, in random order."""
    splits = image_index()["split"]
    return {
        split: choose_at_random(positions_of([split]), params.max_images_per_split, params.seed)
        for split in ("train", "valid", "test")
        if (splits == split).any()
    }


def tabulate_images(chosen: dict[str, Tensor]) -> pd.DataFrame:
    """Return one row per image: split, position in the prepared array, number in the dataset."""
    images = image_index().iloc[torch.cat(list(chosen.values())).numpy()].reset_index(names="position")
    return images[["split", "position", "number"]]


if __name__ == "__main__":
    run_stage("reference", main, lambda params: params.reference.num_processes)
