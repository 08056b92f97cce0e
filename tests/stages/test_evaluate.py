"""The figures: what is compared with what, how many of each, and what they need to be had again."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from contract.errors import StageError
from ddpm.metrics import frechet_distance, kernel_distance, precision_recall
from stages import evaluate as module
from stages import reference
from stages.datasets.prepared import dataset_digest
from tracking.runs import _closing

METRICS, EVALUATION = Path("build/metrics.json"), Path("build/evaluation")
SPLITS = ("train",) * 20 + ("valid",) * 24 + ("test",) * 11
EXTRACTOR = "efficientnet_lite0"
ENDINGS = ("", "_floor_valid", "_floor_test")


@pytest.fixture
def evaluated(model, dataset, mean_colours, make_params):
    """Evaluates twelve bright samples against the noisy dataset and gives the metrics."""

    def run(changes=None, num_samples=12, splits=SPLITS, draw=lambda real: real // 2 + 100):
        if not Path("build/dataset").exists():
            real = dataset(splits=splits)
            Path("build/samples").mkdir()
            np.save("build/samples/samples.npy", draw(real)[:num_samples])
            record_of_samples("")
        reference.main(make_params(changes))
        mean_colours.batches.clear()
        module.main(make_params(changes))
        return json.loads(METRICS.read_text())

    return run


def record_of_samples(run_id, train_splits=("train",)):
    Path("build/samples").mkdir(parents=True, exist_ok=True)
    record = {"mlflow_run_id": run_id, "train_splits": train_splits}
    Path("build/samples/samples.json").write_text(json.dumps(record))


def order_of(count):
    """In which the reference stage takes the images of a split."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()


@pytest.fixture
def sets(mean_colours):
    """The features of the sets that are compared, by hand."""

    def make():
        real, samples = np.load("build/dataset/images.npy"), np.load("build/samples/samples.npy")
        chosen = {
            "reference": real[:20][order_of(20)[:16]],  # at most 16 of each split
            "": samples,
            "_floor_valid": real[20:44][order_of(24)[:12]],  # as many as there are samples
            "_floor_test": real[44:55][order_of(11)],
        }
        return {name: mean_colours.of(images) for name, images in chosen.items()}

    return make


def test_every_figure_and_what_it_needs_to_be_had_again(evaluated, mean_colours):
    metrics = evaluated()
    names = {
        f"{name}_{EXTRACTOR}{ending}{end}"
        for ending in ENDINGS
        for name, ends in {
            "kid": ("", "_low", "_high", "_std"),
            "fd": ("",),
            "precision": ("",),
            "recall": ("",),
        }.items()
        for end in ends
    } | {f"{name}_{EXTRACTOR}" for name in ("memorised_share", "memorised_distance", "nearer_than_held_out")}
    figures = {name: metrics.pop(name) for name in list(metrics) if name in names}
    assert set(figures) == names
    assert all(isinstance(value, float) and np.isfinite(value) for value in figures.values())
    assert next(iter(evaluated())) == f"kid_{EXTRACTOR}"  # the headline
    assert metrics == {
        "num_samples": 12,
        "num_reference": 16,
        "num_floor_valid": 12,
        "num_floor_test": 11,
        "reference_split": "train",
        "kernel_subsets": 4,
        **{f"kernel_subset_size{ending}": 8 for ending in ENDINGS},
        "kernel_interval": "95 %: jackknife over images, and the subsets' standard error",
        "precision_recall_neighbourhood": 3,
        "library": f"torchmetrics {version('torchmetrics')}, torch-fidelity {version('torch-fidelity')}",
        "memorised_share_expected": 0.05,
        "train_splits": "train",
        "num_training_images_compared": 16,
        "num_held_out": 16 + 11,
        "extractor": EXTRACTOR,
        "resize": "none",
        "weights_sha256": mean_colours.weights_digest(),
        "extractor_versions": f"torch {version('torch')}, numpy {version('numpy')}",
        "dataset_md5": dataset_digest(),
        "mlflow_run_id": "",
    }


def test_the_figures_are_those_of_the_features(evaluated, sets):
    metrics, features = evaluated(), sets()
    for ending in ENDINGS:
        real, fake = features["reference"], features[ending]
        assert metrics[f"fd_{EXTRACTOR}{ending}"] == pytest.approx(frechet_distance(real, fake))
        kernel = kernel_distance(real, fake, num_subsets=4, subset_size=8, seed=0)
        for end, value in {"": kernel.mean, "_low": kernel.low, "_high": kernel.high, "_std": kernel.std}.items():
            assert metrics[f"kid_{EXTRACTOR}{ending}{end}"] == pytest.approx(value)
        shares = precision_recall(real, fake)
        assert metrics[f"precision_{EXTRACTOR}{ending}"] == pytest.approx(shares.precision)
        assert metrics[f"recall_{EXTRACTOR}{ending}"] == pytest.approx(shares.recall)
    # Noise of one kind is near to noise, bright samples are not.
    assert metrics[f"fd_{EXTRACTOR}_floor_valid"] < metrics[f"fd_{EXTRACTOR}"]
    assert metrics[f"kid_{EXTRACTOR}_floor_valid_high"] < metrics[f"kid_{EXTRACTOR}_low"]


def test_a_subset_is_at_most_the_smaller_of_the_two_sets_compared(evaluated):
    metrics = evaluated({"evaluate.kernel_subset_size": 100}, num_samples=13)
    assert [metrics[f"kernel_subset_size{ending}"] for ending in ENDINGS] == [13, 13, 11]


def test_the_wanted_split_is_the_reference_and_the_others_are_floors(evaluated):
    metrics = evaluated({"evaluate.reference_split": "valid"})
    assert metrics["reference_split"] == "valid" and metrics["num_reference"] == 16
    assert metrics["num_floor_train"] == 12 and metrics["num_floor_test"] == 11 and "num_floor_valid" not in metrics


def test_the_seed_chooses_the_subsets_alone(evaluated):
    first, second = evaluated(), evaluated({"evaluate.seed": 1})
    changed = {name for name in first if first[name] != second[name]}
    assert changed and all(name.startswith("kid_") for name in changed)
    assert evaluated() == first


def test_features_of_real_images_are_not_extracted_again(evaluated, mean_colours):
    metrics = evaluated()
    assert mean_colours.batches == [5, 5, 2]
    assert evaluated({"reference.batch_size": 100}) == metrics


@pytest.mark.parametrize(
    ("splits", "num_samples", "message"),
    [
        (("train",) * 9 + ("valid",) * 12, 12, r"reference \(split train\) holds 9 images"),
        (("train",) * 20 + ("valid",) * 12, 9, "samples holds 9 images"),
        (("valid",) * 12 + ("test",) * 2, 12, r"reference \(split train\) holds 0 images"),
    ],
)
def test_too_few_images_are_an_error_that_says_which(evaluated, splits, num_samples, message):
    with pytest.raises(StageError, match=rf"{message}, and a distance needs 10: .*evaluate\.enabled"):
        evaluated(splits=splits, num_samples=num_samples)
    assert not METRICS.exists()


def test_a_split_of_too_few_images_is_no_floor(evaluated, capsys):
    metrics = evaluated(splits=("train",) * 20 + ("valid",) * 9 + ("test",) * 10)
    assert [name for name in metrics if name.startswith("num_floor")] == ["num_floor_test"]
    assert "no floor of split valid, since it holds 9 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("dataset_md5", lambda path: path.write_text(path.read_text().replace("valid", "test"))),
        ("extracted", None),
        ("extractor", None),
        ("weights_sha256", None),
    ],
)
def test_features_of_another_dataset_or_extractor_are_refused(evaluated, make_params, mean_colours, name, spoil):
    evaluated()
    if spoil:
        spoil(Path("build/dataset/index.csv"))
    if name == "extracted":
        reference.main(make_params({"evaluate.enabled": False}))
    if name == "weights_sha256":
        mean_colours.scale.fill_(2.0)
    changes = {"reference.extractor": "inception"} if name == "extractor" else {}
    with pytest.raises(
        StageError, match=rf"build/reference holds features whose {name} is .* wanted: `dvc repro --force"
    ):
        module.main(make_params(changes))


def test_the_extractor_stands_in_the_names_of_the_figures(evaluated):
    metrics = evaluated({"reference.extractor": "inception"})
    assert "fd_inception" in metrics and "kid_inception_floor_valid_low" in metrics
    assert not [name for name in metrics if EXTRACTOR in name]


def test_switched_off_it_says_so_and_needs_no_images(folder, make_params, capsys, monkeypatch):
    monkeypatch.setattr(module, "reopened_run", lambda *_: pytest.fail("nothing is to be recorded"))
    record_of_samples("the sampled")
    module.main(make_params({"evaluate.enabled": False}))
    assert json.loads(METRICS.read_text()) == {"evaluated": False, "mlflow_run_id": "the sampled"}
    assert (EVALUATION / "nearest.csv").read_text() == "sample,distance\n"
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
    figures = {name: value for name, value in metrics.items() if isinstance(value, float)}
    assert notes.metrics == {make_params().train.num_steps: figures} and len(figures) == 25
    assert notes.tags == {f"evaluate.{name}": str(value) for name, value in metrics.items() if name not in figures}
    assert {key for key, _, _ in notes.images} == {"closest_pairs"}
    assert notes.files == [(f"build/evaluation/{name}", "evaluation") for name in ("nearest.csv", "closest_pairs.png")]


def test_the_terminal_shows_each_figure_beside_what_real_images_reach(evaluated, capsys):
    metrics = evaluated()
    samples, valid, test, memorised = capsys.readouterr().out.splitlines()[-4:]
    kid = [metrics[f"kid_{EXTRACTOR}{end}"] for end in ("", "_low", "_high")]
    assert samples.startswith(
        f"evaluate: 12 samples against 16 images of split train: kid_{EXTRACTOR} {kid[0]:.4f} "
        f"(95 %: {kid[1]:.4f} … {kid[2]:.4f}), fd_{EXTRACTOR} {metrics[f'fd_{EXTRACTOR}']:.1f}, precision "
    )
    assert valid.startswith("evaluate: 12 real images of split valid against the same: kid_")
    assert f"fd_{EXTRACTOR} {metrics[f'fd_{EXTRACTOR}_floor_test']:.1f}" in test
    assert memorised.endswith(
        "% of the samples are as near to a training image as the nearest 5 % of 27 held-out images"
    )


def test_samples_that_are_training_images_are_found_with_their_numbers(evaluated):
    metrics = evaluated({"reference.max_images_per_split": None}, draw=lambda real: real[:20][::-1])
    assert metrics[f"memorised_share_{EXTRACTOR}"] == 1.0 and metrics[f"nearer_than_held_out_{EXTRACTOR}"] == 1.0
    table = pd.read_csv(EVALUATION / "nearest.csv")
    assert list(table.columns) == ["sample", "nearest_split", "nearest_position", "nearest_number", "distance"]
    assert table["sample"].tolist() == list(range(12))
    assert table["nearest_position"].tolist() == list(range(19, 7, -1))
    assert table["nearest_number"].tolist() == list(range(20, 8, -1))
    assert set(table["nearest_split"]) == {"train"} and table["distance"].eq(0.0).all()


def test_the_closest_pairs_stand_side_by_side(evaluated):
    evaluated({"evaluate.num_closest_pairs": 3})
    table = pd.read_csv(EVALUATION / "nearest.csv").sort_values("distance").head(3)
    real, samples = np.load("build/dataset/images.npy"), np.load("build/samples/samples.npy")
    with Image.open(EVALUATION / "closest_pairs.png") as picture:
        shown = np.asarray(picture)[::6, ::6]  # each pixel is enlarged
    assert shown.shape == (16 + 4, 6 * (16 + 2) + 2, 3)
    for column, (_, row) in enumerate(table.iterrows()):
        left = 2 + 2 * column * 18
        np.testing.assert_array_equal(shown[2:18, left : left + 16], samples[row["sample"]])
        np.testing.assert_array_equal(shown[2:18, left + 18 : left + 34], real[row["nearest_position"]])


def test_images_that_were_trained_on_are_not_held_out(evaluated):
    evaluated()
    record_of_samples("", ["train", "test"])
    metrics = evaluated()
    assert metrics["train_splits"] == "train, test"
    assert (metrics["num_training_images_compared"], metrics["num_held_out"]) == (16 + 11, 16)
    assert f"memorised_share_{EXTRACTOR}" not in metrics  # 16 are too few to say what the nearest twentieth is
    assert len(pd.read_csv(EVALUATION / "nearest.csv")) == 12


def test_a_model_trained_on_everything_has_nothing_held_out(evaluated, capsys):
    evaluated()
    record_of_samples("", ["train", "valid", "test"])
    assert evaluated()["num_held_out"] == 0
    assert "no share of memorised samples, since 0 held-out images are too few" in capsys.readouterr().out
