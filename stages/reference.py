"""Extract the features of real images, once for a dataset and an extractor: what samples will be compared with."""

import pandas as pd
import torch
from torch import Tensor

from contract.params import Params
from contract.paths import REFERENCE
from contract.sections import ReferenceParams
from ddpm.devices import prepare_best_device
from ddpm.distributed import is_first
from stages.datasets.prepared import all_images, dataset_digest, image_index, positions_of
from stages.evaluation.extraction import at_random, described, features_of, wanted_extractor
from stages.evaluation.real_features import RealFeatures, write_real_features, write_record
from stages.runtime.progress import progress_bar
from stages.runtime.runner import run_stage


def main(params: Params) -> None:
    """build/reference/."""
    if not params.evaluate.enabled:
        if is_first():
            write_record(REFERENCE, {"extracted": False})
            print("reference: switched off by evaluate.enabled", flush=True)
        return
    wanted, device = params.reference, prepare_best_device()
    extractor = wanted_extractor(wanted, device)
    chosen, images = chosen_positions(wanted), all_images()
    with progress_bar("reference", sum(map(len, chosen.values())), "images") as bar:
        features = {
            split: features_of(extractor, images, positions, wanted.batch_size, device, bar)
            for split, positions in chosen.items()
        }
    if not is_first():
        return
    counts = {split: len(positions) for split, positions in chosen.items()}
    record = {"extracted": True, "dataset_md5": dataset_digest(), "num_images": counts}
    record |= {"seed": wanted.seed} | described(extractor)
    write_real_features(REFERENCE, RealFeatures(features, image_table(chosen), record))
    print(f"reference: {wanted.extractor} features of {counts}", flush=True)


def chosen_positions(wanted: ReferenceParams) -> dict[str, Tensor]:
    """Which images of each split, in random order."""
    splits = image_index()["split"]
    return {
        split: at_random(positions_of([split]), wanted.max_images_per_split, wanted.seed)
        for split in ("train", "valid", "test")
        if (splits == split).any()
    }


def image_table(chosen: dict[str, Tensor]) -> pd.DataFrame:
    """A row an image: split, position in the prepared array, number in the dataset."""
    splits = [split for split, positions in chosen.items() for _ in range(len(positions))]
    positions = torch.cat(list(chosen.values())).numpy()
    numbers = image_index()["number"].to_numpy()[positions]
    return pd.DataFrame({"split": splits, "position": positions, "number": numbers})


if __name__ == "__main__":
    run_stage("reference", main, lambda params: params.reference.num_processes)
