"""Paths of parameters, and those that stages read and write; dvc.yaml names the same ones."""

from pathlib import Path

PARAMS_FILE = Path("params.yaml")
PROFILES_FOLDER = Path("profiles")
DATA = Path("data")
DATA_PIN = Path("data.dvc")
DVC_LOCK = Path("dvc.lock")
DVC_FILE = Path("dvc.yaml")
DVC_IGNORE = Path(".dvcignore")
BUILD = Path("build")
DOWNLOADS = BUILD / "downloads"
RECEIPT = BUILD / "download.json"
STAGED_RECEIPT = BUILD / ".download.json"
"""Receipt of data that take the place of the former ones just now, and are not final yet."""
FORMER_PIN = BUILD / ".former_pin"
"""Copy of data.dvc meanwhile, empty if there was none."""
DOWNLOAD_LOCK = BUILD / "download.lock"
DATASET = BUILD / "dataset"
REFERENCE = BUILD / "reference"
CHECKPOINTS = BUILD / "checkpoints"
PREVIEWS = BUILD / "previews"
MODEL = BUILD / "model"
MODEL_RUN = MODEL / "run.json"
TRAINED_ON = MODEL / "trained_on.json"
LOSSES = BUILD / "losses.csv"
SAMPLES = BUILD / "samples"
SAMPLES_RECORD = SAMPLES / "samples.json"
GRID = SAMPLES / "grid.png"
SAMPLES_CLASSES = SAMPLES / "classes.csv"
REVERSE_PROCESS = SAMPLES / "reverse_process.webp"
REVERSE_PROCESS_STRIP = SAMPLES / "reverse_process.png"
INTERPOLATION = SAMPLES / "interpolation.png"
METRICS = BUILD / "metrics.json"
EVALUATION = BUILD / "evaluation"
NEAREST = EVALUATION / "nearest.csv"
CLOSEST_PAIRS = EVALUATION / "closest_pairs.png"


def list_profiles(folder: Path = PROFILES_FOLDER) -> list[str]:
    """Return the names of the saved experiments."""
    return sorted(path.stem for path in folder.glob("*.yaml"))
