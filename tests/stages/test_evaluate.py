"""The figures: what is compared with what, how many of each, and what they need to be had again."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from contract.errors import StageError
from ddpm.metrics import frechet_distance, kernel_distance, precision_recall
from stages import evaluate as module
from stages import reference
from stages.datasets.prepared import dataset_digest

METRICS, EVALUATION = Path("build/metrics.json"), Path("build/evaluation")
SPLITS = ("train",) * 20 + ("valid",) * 24 + ("test",) * 11
EXTRACTOR = "efficientnet_lite0"
ENDINGS = ("", "_floor_valid", "_floor_test")


@pytest.fixture
def evaluated(model, dataset, mean_colours, make_params):
    """Evaluates twelve bright samples against the noisy dataset and gives the metrics."""

    def run(
        changes=None,
        num_samples=12,
        splits=SPLITS,
        draw=lambda real: real // 2 + 100,
        run_id="",
        train_splits=("train",),
    ):
        record_of_samples(run_id, train_splits)
        if not Path("build/dataset").exists():
            real = dataset(splits=splits)
            np.save("build/samples/samples.npy", draw(real)[:num_samples])
        # The comparison may be asked for another split afterwards.
        reference.main(make_params((changes or {}) | {"evaluate.reference_split": max(splits, key=splits.count)}))
        mean_colours.batches.clear()
        module.main(make_params(changes))
        return json.loads(METRICS.read_text())

    return run


def record_of_samples(run_id, train_splits=("train",)):
    Path("build/samples").mkdir(parents=True, exist_ok=True)
    record = {"mlflow_run_id": run_id, "train_splits": train_splits}
    Path("build/samples/samples.json").write_text(json.dumps(record))


def test_every_figure_and_what_it_needs_to_be_had_again(evaluated, mean_colours):
    metrics = evaluated()
    kinds = ("kid{}", "kid{}_low", "kid{}_high", "kid{}_std", "fd{}", "precision{}", "recall{}")
    names = {kind.replace("{}", f"_{EXTRACTOR}{ending}") for kind in kinds for ending in ENDINGS}
    names |= {f"{name}_{EXTRACTOR}" for name in ("memorised_share", "memorised_distance", "nearer_than_held_out")}
    assert next(iter(metrics)) == f"kid_{EXTRACTOR}"  # the headline
    figures = {name: metrics.pop(name) for name in list(metrics) if name in names}
    assert set(figures) == names
    assert all(isinstance(value, float) and np.isfinite(value) for value in figures.values())
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
        "library": f"torch-fidelity {version('torch-fidelity')}",
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


def test_the_figures_are_those_of_the_features(evaluated, mean_colours):
    metrics, table = evaluated(), pd.read_csv("build/reference/images.csv")
    assert mean_colours.batches == [5, 5, 2]  # only samples are extracted
    images, samples = np.load("build/dataset/images.npy"), np.load("build/samples/samples.npy")
    chosen = [images[table.loc[table["split"] == split, "position"]] for split in ("train", "valid", "test")]
    real, *others = map(mean_colours.of, (chosen[0], samples, chosen[1][:12], chosen[2]))  # no more than samples
    for ending, fake in zip(ENDINGS, others, strict=True):
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


def test_parameters_choose_reference_subsets_and_names(evaluated):
    metrics = evaluated({
        "evaluate.kernel_subset_size": 100, "evaluate.reference_split": "valid", "reference.extractor": "inception",
    }, num_samples=13)  # fmt: skip
    # A subset is at most the smaller of the two sets compared.
    assert [metrics[f"kernel_subset_size{ending}"] for ending in ("", "_floor_train", "_floor_test")] == [13, 13, 11]
    assert metrics["reference_split"] == "valid" and metrics["num_reference"] == 16
    assert metrics["num_floor_train"] == 13 and metrics["num_floor_test"] == 11 and "num_floor_valid" not in metrics
    assert "fd_inception" in metrics and "kid_inception_floor_train_low" in metrics
    assert not [name for name in metrics if EXTRACTOR in name]


def test_the_seed_chooses_the_subsets_alone(evaluated):
    first, second = evaluated(), evaluated({"evaluate.seed": 1})
    changed = {name for name in first if first[name] != second[name]}
    assert changed and all(name.startswith("kid_") for name in changed)
    assert evaluated() == first


@pytest.mark.parametrize(
    ("splits", "num_samples", "message"),
    [
        (("train",) * 9 + ("valid",) * 12, 12, "split train holds 9 images"),
        (("train",) * 20 + ("valid",) * 12, 9, "build/samples holds 9 images"),
    ],
)
def test_too_few_images_are_an_error_that_says_which(evaluated, splits, num_samples, message):
    with pytest.raises(StageError, match=rf"{message}, .* needs 10[:;] .*evaluate\.enabled"):
        evaluated(splits=splits, num_samples=num_samples)
    assert not METRICS.exists()


def test_a_split_of_too_few_images_is_no_floor(evaluated, capsys):
    metrics = evaluated(splits=("train",) * 20 + ("valid",) * 9 + ("test",) * 10)
    assert [name for name in metrics if name.startswith("num_floor")] == ["num_floor_test"]
    assert "no floor of split valid, since it holds 9 images" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dataset_md5", "extracted", "extractor", "weights_sha256"])
def test_features_of_another_dataset_or_extractor_are_refused(evaluated, make_params, mean_colours, name):
    evaluated()
    if name == "dataset_md5":
        index = Path("build/dataset/index.csv")
        index.write_text(index.read_text().replace("valid", "test"))
    if name == "extracted":
        reference.main(make_params({"evaluate.enabled": False}))
    if name == "weights_sha256":
        mean_colours.scale.fill_(2.0)
    changes = {"reference.extractor": "inception"} if name == "extractor" else {}
    with pytest.raises(StageError, match=rf"build/reference holds features whose {name} is .*`dvc repro --force"):
        module.main(make_params(changes))


def test_switched_off_it_says_so_and_needs_no_images(folder, make_params, capsys, recording_run):
    record_of_samples("the sampled")
    module.main(make_params({"evaluate.enabled": False}))
    assert json.loads(METRICS.read_text()) == {"evaluated": False, "mlflow_run_id": "the sampled"}
    assert (EVALUATION / "nearest.csv").read_text() == "sample,distance\n"
    assert "switched off by evaluate.enabled" in capsys.readouterr().out and recording_run == []


def test_figures_are_recorded_as_metrics_and_the_rest_as_tags(evaluated, make_params, notes, recording_run):
    metrics = evaluated(run_id="the sampled")
    assert recording_run == [("evaluate", "the sampled")] and notes.ended[-1] == "FINISHED"
    assert metrics.pop("mlflow_run_id") == "the run"
    figures = {name: value for name, value in metrics.items() if isinstance(value, float)}
    assert notes.metrics == {make_params().train.num_steps: figures} and len(figures) == 25
    assert notes.tags == {f"evaluate.{name}": str(value) for name, value in metrics.items() if name not in figures}
    assert {key for key, _, _ in notes.images} == {"closest_pairs"}
    files = [(f"build/evaluation/{name}", "evaluation") for name in ("nearest.csv", "closest_pairs.png")]
    assert notes.files == files


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


@pytest.mark.parametrize(
    ("train_splits", "copied"), [(["train"], range(19, 7, -1)), (["train", "test"], [*range(44, 50), *range(6)])]
)
def test_samples_that_are_training_images_are_found_with_their_numbers(evaluated, train_splits, copied):
    metrics = evaluated(
        {"reference.max_images_per_split": None}, draw=lambda real: real[list(copied)], train_splits=train_splits
    )
    assert metrics[f"memorised_share_{EXTRACTOR}"] == 1.0 and metrics[f"nearer_than_held_out_{EXTRACTOR}"] == 1.0
    table = pd.read_csv(EVALUATION / "nearest.csv")
    assert list(table.columns) == ["sample", "nearest_split", "nearest_position", "nearest_number", "distance"]
    assert table["sample"].tolist() == list(range(12)) and table["distance"].eq(0.0).all()
    assert table["nearest_position"].tolist() == list(copied)
    assert table["nearest_number"].tolist() == [1 + position for position in copied]
    assert table["nearest_split"].tolist() == ["train" if position < 20 else "test" for position in copied]


@pytest.mark.parametrize(("num_pairs", "rows", "columns"), [(3, 1, 6), (5, 2, 8)])
def test_the_closest_pairs_stand_side_by_side_four_in_a_row(evaluated, num_pairs, rows, columns):
    evaluated({"evaluate.num_closest_pairs": num_pairs})
    table = pd.read_csv(EVALUATION / "nearest.csv").sort_values("distance").head(num_pairs)
    real, samples = np.load("build/dataset/images.npy"), np.load("build/samples/samples.npy")
    with Image.open(EVALUATION / "closest_pairs.png") as picture:
        shown = np.asarray(picture)[::6, ::6]  # each pixel is enlarged
    assert shown.shape == (rows * 18 + 2, columns * 18 + 2, 3)
    for number, (_, pair) in enumerate(table.iterrows()):
        top, left = 2 + number // 4 * 18, 2 + number % 4 * 36
        np.testing.assert_array_equal(shown[top : top + 16, left : left + 16], samples[pair["sample"]])
        np.testing.assert_array_equal(shown[top : top + 16, left + 18 : left + 34], real[pair["nearest_position"]])


@pytest.mark.parametrize(
    ("train_splits", "num_trained", "num_held_out"), [(["train", "test"], 27, 16), (["train", "valid", "test"], 43, 0)]
)
def test_images_that_were_trained_on_are_not_held_out(evaluated, capsys, train_splits, num_trained, num_held_out):
    metrics = evaluated(train_splits=train_splits)
    assert metrics["train_splits"] == ", ".join(train_splits)
    assert (metrics["num_training_images_compared"], metrics["num_held_out"]) == (num_trained, num_held_out)
    # Too few to say what the nearest twentieth is.
    assert f"memorised_share_{EXTRACTOR}" not in metrics
    assert f"since {num_held_out} held-out images are too few" in capsys.readouterr().out
    assert len(pd.read_csv(EVALUATION / "nearest.csv")) == 12
