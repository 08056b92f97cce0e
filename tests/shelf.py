"""A registry without MLflow, and the figures of the versions in it."""

from tracking.registry import CONTENTS_TAG, Version

SETTING = {
    "extractor": "efficientnet_lite0",
    "weights_sha256": "a" * 64,
    "dataset_md5": "b" * 32,
    "reference_split": "train",
    "num_reference": "256",
    "num_samples": "128",
    "kernel_subsets": "50",
    "kernel_subset_size": "100",
    "fd_efficientnet_lite0": "80.0",
}


def figures(mean, half_width=0.01, **changes):
    """Contents of build/metrics.json for a model with this kernel distance."""
    kid = "kid_efficientnet_lite0"
    interval = {kid: mean, f"{kid}_low": mean - half_width, f"{kid}_high": mean + half_width}
    return SETTING | {name: str(value) for name, value in interval.items()} | changes


class Shelf:
    """A registry that keeps its versions in a list; tests/tracking/test_registry.py tests MLflow's own."""

    name = "tulips"

    def __init__(self):
        self.tags, self.descriptions, self.runs, self.metadata, self.alias = [], {}, [], {}, None

    def champion(self):
        return self.version(self.alias) if self.alias else None

    def version(self, number):
        return Version(number, self.tags[int(number) - 1])

    def find(self, contents):
        numbers = [str(i) for i, tags in enumerate(self.tags, start=1) if tags[CONTENTS_TAG] == contents]
        return self.version(numbers[-1]) if numbers else None

    def add(self, run_id, model_folder, weights, tags, metadata):
        assert (model_folder / f"{weights}.safetensors").is_file()
        self.tags.append(dict(tags))
        self.runs.append(run_id)
        self.metadata = metadata
        return self.version(str(len(self.tags)))

    def note(self, number, tags, description):
        self.tags[int(number) - 1] |= tags
        self.descriptions[number] = description

    def promote(self, number):
        self.alias = number
