"""Names of the stages, and the parameters that each of them reads."""

STAGES = ("download", "preprocess", "reference", "train", "sample", "evaluate", "register")
"""Stages in the order in which dvc.yaml names them and the pipeline runs them."""

LINEAGE = ("download", "preprocess", "train", "sample", "reference", "evaluate", "register")
"""Stages in the order in which their parameters shape a model and its metrics; `reference` runs before `train` only to
fail early."""

READ_BESIDE = {
    "reference": ("evaluate.enabled",),
    "evaluate": ("reference",),
    "register": ("profile", "preprocess.image_size", "sample.weights"),
}
"""Parameters and sections that a stage reads beside the section of its own name; dvc.yaml names the same."""
