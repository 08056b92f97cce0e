"""Fixtures around a small experiment in a folder of its own."""

import copy
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from contract.params import compose, validate_params
from contract.sections import as_plain
from ddpm import TrainingConfig, TrainingState, UNet, distributed
from ddpm.classes import ImageClass
from ddpm.features import FeatureExtractor
from ddpm.published import publish_model
from stages.evaluation import extraction
from stages.training import evaluation as training_evaluation
from tracking.runs import Tracker

PROJECT = Path(__file__).parents[1]

SMALL = {
    "download.synthetic.num_images": 24,
    "download.synthetic.image_size": 16,
    "preprocess.image_size": 16,
    "reference.max_images_per_split": 16,
    "reference.batch_size": 5,
    "train.unet.widths": [8, 16],
    "train.unet.attention": [False, True],
    "train.unet.num_res_blocks": 1,
    "train.unet.time_embedding_dim": 8,
    "train.unet.norm_groups": 4,
    "train.unet.dropout": 0.1,
    "train.diffusion.schedule": "cosine",
    "train.diffusion.num_timesteps": 20,
    "train.diffusion.prediction": "eps",
    "train.num_steps": 6,
    "train.batch_size": 4,
    "train.seed": 3,
    "train.learning_rate": 0.002,
    "train.rate_schedule": "cosine",
    "train.warmup_steps": 2,
    "train.gradient_clip": 1.0,
    "train.ema_decay": 0.9,
    "train.ema_warmup": True,
    "train.precision": "float32",
    "train.compilation": "off",
    "train.log_every": 2,
    "train.sample_every": 4,
    "train.num_grid_images": 4,
    "train.grid_sampling_steps": 3,
    "train.checkpoint_every": 2,
    "train.evaluate_num_images": 10,
    "sample.num_images": 12,
    "sample.batch_size": 5,
    "sample.sampler": "ddim",
    "sample.num_sampling_steps": 6,
    "sample.precision": "float32",
    "sample.compilation": "off",
    "sample.num_grid_images": 4,
    "sample.num_frames": 3,
    "evaluate.kernel_subsets": 4,
    "evaluate.kernel_subset_size": 8,
    "evaluate.num_closest_pairs": 3,
}
"""Changes of the quickstart profile that make it an experiment of a second."""

CLASSES = (ImageClass(3, "01"), ImageClass(5, "nan"), ImageClass(8, "rose"))
"""Classes of the prepared images: numbers with gaps, names that could be taken for something else."""

CONDITIONAL = {"train.class_conditional": True, "download.dataset": "folder", "download.source": "flowers"}
"""Changes that make it one of a dataset whose classes are not known beforehand."""


def differ_by_rounding(one, other):
    """Tell whether pixels are the same but for rounding: a network sums batches of other sizes in another order."""
    distance = np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int))
    return distance.max() <= 1 and (distance > 0).mean() < 0.01


@pytest.fixture(scope="session")
def project():
    """The root of the repository."""
    return PROJECT


@pytest.fixture(scope="session")
def document():
    """Makes the small experiment as params.yaml would hold it, with changes given by dotted names."""
    quickstart = as_plain(compose("quickstart", {}, PROJECT / "params.yaml"))

    def make(changes=None):
        made = copy.deepcopy(quickstart)
        for name, value in (SMALL | (changes or {})).items():
            *sections, leaf = name.split(".")
            place = made
            for section in sections:
                place = place[section]
            place[leaf] = value
        return made

    return make


@pytest.fixture(scope="session")
def make_params(document):
    """Makes the parameters of the small experiment, with changes given by dotted names."""

    def make(changes=None):
        return validate_params(document(changes), "the small experiment")

    return make


@pytest.fixture(scope="session")
def write_params(document):
    """Writes the small experiment, with changes, into params.yaml of the current folder."""

    def write(changes=None):
        YAML(typ="safe").dump(document(changes), Path("params.yaml"))

    return write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, in which nothing is tracked and no variable of the caller's is seen."""
    monkeypatch.chdir(tmp_path)
    unset(
        monkeypatch, "DDPM_EVENTS", "DDPM_PREFECT_FLOW_RUN", "DDPM_PREFECT_FLOW_RUN_ID", "DDPM_SWEEP", "DDPM_WATCH_PID",
        "DVC_ROOT", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "RANK", "WORLD_SIZE",
    )  # fmt: skip
    monkeypatch.setenv("DDPM_TRACKING", "off")
    return tmp_path


def unset(monkeypatch, *names):
    """Unset environment variables, also after the test, which may set them."""
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def in_each_process(monkeypatch):
    """Plays several processes one after the other, which exchange nothing, and gives the result of each."""

    def play(stage, num_processes, work):
        results = []
        for rank in range(num_processes):
            with monkeypatch.context() as patch:
                patch.setattr(distributed, "rank", lambda rank=rank: rank)
                patch.setattr(distributed, "world_size", lambda: num_processes)
                patch.setattr(stage, "collect", lambda part: part)
                results.append(work())
        return results

    return play


class MeanColours(FeatureExtractor):
    """Six features that can be computed by hand: the mean colours of the upper and the lower half."""

    name = "efficientnet_lite0"
    num_features = 6
    resize = "none"
    packages = ("numpy",)

    def __init__(self, scale=1.0):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.batches = []

    def forward(self, pixels):
        self.batches.append(len(pixels))
        halves = pixels.double().unflatten(2, (2, -1)).mean(dim=(3, 4)) / 255.0
        return halves.flatten(1) * self.scale

    def of(self, images):
        """Return the features of an array of shape (images, height, width, 3)."""
        return self.forward(torch.from_numpy(images).permute(0, 3, 1, 2)).float()


@pytest.fixture
def mean_colours(monkeypatch):
    """Stands in for the networks in every stage, and keeps what it was built from."""
    made = MeanColours()

    def build(name, device, weights=None):
        made.built = (name, torch.device(device).type, weights)
        made.name = name
        return made

    monkeypatch.setattr(extraction, "build_extractor", build)
    monkeypatch.setattr(training_evaluation, "build_extractor", build)
    return made


@pytest.fixture
def signal_handlers():
    """Puts the handlers of signals back, which a stage run in this process changes."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def dataset():
    """Writes build/dataset of the current folder as preprocessing leaves it: noisy images of several splits."""

    def write(splits=("train",) * 20 + ("valid",) * 12 + ("test",) * 3, size=16):
        target = Path("build/dataset")
        target.mkdir(parents=True)
        images = np.random.default_rng(0).integers(0, 256, (len(splits), size, size, 3), dtype=np.uint8)
        np.save(target / "images.npy", images)
        rows = [(1 + i, CLASSES[i % 3 - 1].number, CLASSES[i % 3 - 1].name, split) for i, split in enumerate(splits)]
        columns = ["number", "class_number", "class_name", "split"]
        pd.DataFrame(rows, columns=columns).to_csv(target / "index.csv", index=False)
        (target / "dataset.json").write_text(json.dumps({"image_size": size, "images_md5": "0" * 32}))
        return images

    return write


@pytest.fixture(scope="session")
def published(tmp_path_factory, make_params):
    """The folder of a tiny model whose averages and raw weights differ."""
    return publish(tmp_path_factory.mktemp("published") / "model", make_params().train)


@pytest.fixture(scope="session")
def published_conditional(tmp_path_factory, make_params):
    """The folder of such a model that knows the classes of the prepared images."""
    return publish(tmp_path_factory.mktemp("published") / "model", make_params().train, CLASSES)


def publish(target, params, classes=()):
    torch.manual_seed(0)
    unet = UNet(params.unet.configure(len(classes) or None))
    state = TrainingState.start(unet, TrainingConfig(num_steps=1, extra_ema_decays=(0.5,)))
    with torch.no_grad():
        # Layers that start at zero would hide differences; the sets of weights move apart.
        for module in (unet, state.ema.module, state.extra_emas[0].module):
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    publish_model(target, state, params.diffusion, 16, classes, 0.1)
    (target / "run.json").write_text(json.dumps({"mlflow_run_id": "", "mlflow_experiment_id": ""}))
    (target / "trained_on.json").write_text(json.dumps({"train_splits": ["train"]}))
    return target


@pytest.fixture
def model(folder, published):
    """A copy of that model as build/model."""
    shutil.copytree(published, "build/model")
    return Path("build/model")


@pytest.fixture
def conditional_model(folder, published_conditional):
    """A copy of the model that knows classes as build/model."""
    shutil.copytree(published_conditional, "build/model")
    return Path("build/model")


class Notes(Tracker):
    """Keeps what a real tracker would send."""

    def __init__(self):
        self.run_id, self.experiment_id = "the run", "7"
        self.metrics, self.images, self.files, self.tags, self.ended = {}, [], [], {}, []

    def record_metrics(self, values, step=0):
        self.metrics[step] = self.metrics.get(step, {}) | values

    def record_image(self, key, image, step=0):
        self.images.append((key, step, image))

    def record_file(self, path, folder):
        assert path.is_file()
        self.files.append((path.as_posix(), folder))

    def record_tags(self, tags):
        self.tags |= tags

    def close(self, status):
        self.ended.append(status)


@pytest.fixture
def notes():
    """A tracker that keeps what it is told."""
    return Notes()


@pytest.fixture
def recording_run(notes, monkeypatch):
    """Makes stages record in `notes`; gives the stage and the earlier run's id of each run that they open."""
    opened = []

    def open_tracker(params, stage, earlier_run_id):
        opened.append((stage, earlier_run_id))
        return notes

    monkeypatch.setattr("tracking.runs.open_tracker", open_tracker)
    return opened


@pytest.fixture
def recorded():
    """Makes the table of runs that MLflow would give: each with its kernel distance, extractor and parameters."""

    def make(*runs):
        return pd.DataFrame([describe(number, **run) for number, run in enumerate(runs, start=1)])

    def describe(number, kid=None, extractor="efficientnet_lite0", flow_run_id=None, **params):
        metrics = {"loss": 0.25, f"kid_{extractor}_std": 9.0, f"kid_{extractor}_floor_valid": 0.0}
        if kid is not None:
            metrics |= {f"kid_{extractor}": kid, f"kid_{extractor}_low": kid - 0.1, f"kid_{extractor}_high": kid + 0.1}
            metrics |= {f"fd_{extractor}": 10 * kid, f"precision_{extractor}": 0.5, f"recall_{extractor}": 0.75}
        params = {"reference.extractor": extractor, "train.batch_size": "16"} | params
        run = {"run_id": f"{number:032x}", "experiment_id": "7", "status": "FAILED" if kid is None else "FINISHED"}
        tags = {"mlflow.runName": f"run-{number}", "prefect_flow_run_id": flow_run_id}
        fields = {"metrics": metrics, "params": params, "tags": tags}
        return run | {f"{kind}.{name}": value for kind, values in fields.items() for name, value in values.items()}

    return make


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """The tables of MLflow, which take seconds to make, without an experiment."""
    from mlflow import MlflowClient  # seconds, which most tests need not wait for

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(folder, empty_database, monkeypatch):
    """The current folder's database, as a reader of it sees it."""
    from mlflow import MlflowClient  # as above

    shutil.copy(empty_database, "mlflow.db")
    monkeypatch.setenv("DDPM_TRACKING", "on")
    unset(
        monkeypatch, "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    )  # fmt: skip
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
