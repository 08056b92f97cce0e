"""The figures: what is compared with what, how many of each, and what they need to be had again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ddpm.features
from ddpm.features import FeatureExtractor
from ddpm.metrics import frechet_distance, kernel_distance
from stages import evaluate as module
from stages.errors import StageError
from stages.tracking import _closing

METRICS = Path("build/metrics.json")


class MeanColours(FeatureExtractor):
    """Six features that can be computed by hand: the mean colours of the upper and the lower half."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, pixels):
        self.batches.append(len(pixels))
        halves = pixels.double().unflatten(2, (2, -1)).mean(dim=(3, 4)) / 255.0
        return halves.flatten(1)


@pytest.fixture
def extractor(monkeypatch):
    """Stands in for the networks, and keeps what it was built from."""
    made = MeanColours()

    def build(name, device, weights):
        made.built = (name, device.type, weights)
        return made

    monkeypatch.setattr(module, "build_extractor", build)
    return made


@pytest.fixture
def evaluated(model, dataset, extractor, make_params):
    """Evaluates twelve bright samples against the noisy dataset and gives the metrics."""

    def run(changes=None, num_samples=12, **options):
        if not Path("build/dataset").exists():
            real = dataset(**options)
            Path("build/samples").mkdir()
            np.save("build/samples/samples.npy", real[:num_samples] // 2 + 100)
            record_of_samples("")
        module.main(make_params(changes))
        return json.loads(METRICS.read_text())

    return run


def record_of_samples(run_id):
    Path("build/samples").mkdir(parents=True, exist_ok=True)
    Path("build/samples/samples.json").write_text(json.dumps({"mlflow_run_id": run_id}))


def features(images):
    return MeanColours()(torch.from_numpy(images).permute(0, 3, 1, 2)).float()


def test_every_figure_and_what_it_needs_to_be_had_again(evaluated):
    metrics = evaluated()
    figures = {name: metrics.pop(name) for name in list(metrics) if name.startswith(("fd_", "kid_"))}
    assert set(figures) == {
        "fd_efficientnet_lite0", "fd_efficientnet_lite0_floor",
        "kid_efficientnet_lite0", "kid_efficientnet_lite0_std",
        "kid_efficientnet_lite0_floor", "kid_efficientnet_lite0_floor_std",
    }  # fmt: skip
    assert all(isinstance(value, float) and np.isfinite(value) for value in figures.values())
    assert metrics.pop("library").startswith("torchmetrics ")
    assert metrics == {
        "num_samples": 12,
        "num_reference": 16,  # of the 20 of the split, by max_reference_images
        "num_floor": 12,
        "reference_split": "train",
        "floor_split": "valid",
        "kernel_subset_size": 8,
        "kernel_subset_size_floor": 8,
        "extractor": "efficientnet_lite0",
        "mlflow_run_id": "",
    }


def test_the_figures_are_those_of_the_features(evaluated):
    metrics = evaluated()
    real, samples = np.load("build/dataset/images.npy"), np.load("build/samples/samples.npy")
    # Datasets come ordered by class, so what is left out is chosen at random.
    reference = features(real[:20][torch.randperm(20, generator=torch.Generator().manual_seed(0))[:16].numpy()])
    floor = features(real[20:32])
    assert metrics["fd_efficientnet_lite0"] == pytest.approx(frechet_distance(reference, features(samples)))
    assert metrics["fd_efficientnet_lite0_floor"] == pytest.approx(frechet_distance(reference, floor))
    kernel = kernel_distance(reference, features(samples), num_subsets=4, subset_size=8, seed=0)
    assert metrics["kid_efficientnet_lite0"] == pytest.approx(kernel.mean)
    assert metrics["kid_efficientnet_lite0_std"] == pytest.approx(kernel.std)
    # Noise of one kind is near to noise, bright samples are not.
    assert metrics["fd_efficientnet_lite0_floor"] < metrics["fd_efficientnet_lite0"]


def test_the_floor_has_as_many_images_as_there_are_samples(evaluated):
    assert evaluated(num_samples=11)["num_floor"] == 11


def test_a_subset_is_at_most_the_smaller_of_the_two_sets_compared(evaluated):
    splits = ("train",) * 20 + ("valid",) * 10
    metrics = evaluated({"evaluate.kernel_subset_size": 100}, num_samples=11, splits=splits)
    assert (metrics["kernel_subset_size"], metrics["kernel_subset_size_floor"]) == (11, 10)


def test_the_wanted_splits_are_compared(evaluated):
    metrics = evaluated({"evaluate.reference_split": "valid", "evaluate.floor_split": "train"})
    assert (metrics["reference_split"], metrics["floor_split"]) == ("valid", "train")
    assert (metrics["num_reference"], metrics["num_floor"]) == (12, 12)
    real = np.load("build/dataset/images.npy")
    others = real[:20][torch.randperm(20, generator=torch.Generator().manual_seed(0))[:12].numpy()]
    expected = frechet_distance(features(real[20:32]), features(others))
    assert metrics["fd_efficientnet_lite0_floor"] == pytest.approx(expected)


def test_the_seed_chooses_the_subsets(evaluated):
    # All images are compared, so only the kernel distance's subsets are left to chance.
    everything = {"evaluate.max_reference_images": 100}
    first, second = evaluated(everything), evaluated(everything | {"evaluate.seed": 1})
    changed = {name for name in first if first[name] != second[name]}
    assert changed and all(name.startswith("kid_") for name in changed)
    assert evaluated(everything) == first


def test_the_seed_chooses_the_reference_images(evaluated):
    assert evaluated()["fd_efficientnet_lite0"] != evaluated({"evaluate.seed": 1})["fd_efficientnet_lite0"]


def test_features_are_extracted_batch_by_batch_without_changing_the_figures(evaluated, extractor):
    metrics = evaluated()
    assert extractor.batches == [5, 5, 5, 1, 5, 5, 2, 5, 5, 2]
    assert evaluated({"evaluate.batch_size": 100}) == metrics


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_that_extract_a_share_each_have_together_what_one_has(
    extractor, make_params, in_each_process, num_processes
):
    wanted = make_params().evaluate
    images = torch.randint(256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sets = {"reference": images, "samples": images[:2]}  # fewer than there are processes, for three
    alone = module.features_of(sets, wanted)
    shares = in_each_process(module, num_processes, lambda: module.features_of(sets, wanted))
    for name, features in alone.items():
        assert torch.equal(torch.cat([share[name] for share in shares]), features)
        assert max(len(share[name]) for share in shares) == -(-len(features) // num_processes)


def test_the_extractor_is_built_by_its_name_and_weights(evaluated, extractor, monkeypatch):
    evaluated()
    assert extractor.built[0] == "efficientnet_lite0" and extractor.built[2] is None
    monkeypatch.setenv("HOME", "/home/of/somebody")
    metrics = evaluated({"evaluate.extractor": "inception", "evaluate.inception_weights": "~/inception.pth"})
    assert extractor.built[0] == "inception" and extractor.built[2] == Path("/home/of/somebody/inception.pth")
    assert "fd_inception" in metrics and "fd_efficientnet_lite0" not in metrics


@pytest.mark.parametrize(
    ("splits", "num_samples", "name"),
    [
        (("train",) * 9 + ("valid",) * 12, 12, "reference"),
        (("train",) * 20 + ("valid",) * 12, 9, "samples"),
    ],
)
def test_too_few_images_are_an_error_that_says_which(evaluated, splits, num_samples, name):
    with pytest.raises(StageError, match=rf"{name} holds 9 images, and a distance needs 10: .*evaluate\.enabled"):
        evaluated(splits=splits, num_samples=num_samples)
    assert not METRICS.exists()


@pytest.mark.parametrize("num_floor", [0, 9])
def test_where_too_few_other_real_images_are_there_is_no_floor(evaluated, capsys, num_floor):
    metrics = evaluated(splits=("train",) * 20 + ("valid",) * num_floor)
    assert "fd_efficientnet_lite0" in metrics
    assert [name for name in metrics if "floor" in name] == ["floor_split"]
    assert f"no floor, since split valid holds {num_floor} images" in capsys.readouterr().out


def test_a_reference_that_holds_no_image_is_an_error(evaluated):
    with pytest.raises(StageError, match="no image in split test"):
        evaluated({"evaluate.reference_split": "test"}, splits=("train",) * 20)


def test_weights_that_cannot_be_had_are_one_clear_error(evaluated, monkeypatch):
    monkeypatch.setattr(module, "build_extractor", ddpm.features.build_extractor)
    changes = {"evaluate.extractor": "inception", "evaluate.inception_weights": "missing.pth"}
    with pytest.raises(StageError, match=r"weights of inception cannot be had: .*missing\.pth.*inception_weights"):
        evaluated(changes)


def test_switched_off_it_says_so_and_needs_no_images(folder, make_params, extractor, capsys, monkeypatch):
    monkeypatch.setattr(module, "reopened_run", lambda *_: pytest.fail("nothing is to be recorded"))
    record_of_samples("the sampled")
    module.main(make_params({"evaluate.enabled": False}))
    assert json.loads(METRICS.read_text()) == {"evaluated": False, "mlflow_run_id": "the sampled"}
    assert "switched off by evaluate.enabled" in capsys.readouterr().out


def test_figures_go_to_the_run_of_the_samples_as_metrics_and_the_rest_as_tags(
    evaluated, make_params, notes, monkeypatch
):
    evaluated()
    record_of_samples("the sampled")
    asked = []
    monkeypatch.setattr(module, "reopened_run", lambda *arguments: asked.append(arguments[1:]) or _closing(notes))
    metrics = evaluated()
    assert asked == [("evaluate", "the sampled")] and notes.ended == ["FINISHED"]
    assert metrics.pop("mlflow_run_id") == "the run"
    figures = {name: value for name, value in metrics.items() if name.startswith(("fd_", "kid_"))}
    assert notes.metrics == {make_params().train.num_steps: figures}
    assert notes.tags == {f"evaluate.{name}": str(value) for name, value in metrics.items() if name not in figures}


def test_the_terminal_shows_each_figure_beside_what_real_images_reach(evaluated, capsys):
    metrics = evaluated()
    first, second = capsys.readouterr().out.splitlines()[-2:]
    fd, floor = metrics["fd_efficientnet_lite0"], metrics["fd_efficientnet_lite0_floor"]
    assert first.startswith(
        f"evaluate: 12 samples against 16 images of split train: fd_efficientnet_lite0 {fd:.1f}, kid_efficientnet_lite0"
    )
    assert "±" in first
    assert second.startswith(
        f"evaluate: 12 real images of split valid against the same: fd_efficientnet_lite0 {floor:.1f}, kid_"
    )


def test_the_real_extractor_fits_in():
    # The name that the parameters allow is one that the library builds.
    built = ddpm.features.build_extractor("efficientnet_lite0")
    batch = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    (vectors,) = ddpm.features.extract_features(built, batch, 5, torch.device("cpu"))
    assert vectors.shape == (1, built.num_features)
