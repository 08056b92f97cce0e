"""Datasets that the pipeline can start from."""

from stages.datasets.flowers102 import Flowers102
from stages.datasets.folder import Folder
from stages.datasets.source import Dataset
from stages.datasets.synthetic.dataset import SyntheticFlowers

DATASETS: dict[str, Dataset] = {
    "synthetic_flowers": SyntheticFlowers(),
    "flowers102": Flowers102(),
    "folder": Folder(),
}
