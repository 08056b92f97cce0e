"""Make a version of the registered model the champion by hand."""

from contract.params import read_params
from tracking.promotion import promote_by_hand
from tracking.registry import Registry


def promote(version: str, model: str | None) -> None:
    """Make a version the champion, and print what was done.

    Args:
        version: its number, as MLflow's page and the register stage name it.
        model: name of the registered model; None takes register.model_name of params.yaml.

    Raises:
        TrackingError: there is no such version, or MLflow cannot be reached.
    """
    registry = Registry(model or read_params().register.model_name)
    print(f"promote: {promote_by_hand(registry, version)}")
