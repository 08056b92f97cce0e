"""Make a version of the registered model the champion by hand: `python -m flows.promote VERSION`."""

import argparse
import sys

from contract.errors import StageError
from contract.params import read_params
from tracking.promotion import PROMOTION_TAG
from tracking.registry import Registry


def promote(registry: Registry, number: str) -> str:
    """Move the alias; returns what was done, in words.

    Raises:
        TrackingError: there is no such version.
    """
    before = registry.champion()
    registry.promote(number)
    outcome = "Became champion by hand" + (f", after version {before.number}" if before else "")
    registry.note(number, {PROMOTION_TAG: outcome}, f"{outcome}.")
    return f"{registry.name} version {number} is the champion" + (f", after {before.number}" if before else "")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description="Make a version the champion.")
    parser.add_argument("version", help="its number, as MLflow's page or the register stage says")
    parser.add_argument("--model", help="the registered model; by default register.model_name of params.yaml")
    asked = parser.parse_args()
    try:
        print(f"promote: {promote(Registry(asked.model or read_params().register.model_name), asked.version)}")
    except StageError as error:
        sys.exit(f"promote: {error}")


if __name__ == "__main__":
    main()
