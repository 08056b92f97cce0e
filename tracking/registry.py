"""Keep models in MLflow's registry, and open them from there."""

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import StageError
from tracking.connection import TrackingError, connect_to_read, explain_refusals, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
"""Alias of the version that is served."""

CONTENTS_TAG = "contents_sha256"
"""Version tag with the digest of all that a version consists of: the same model is not registered twice."""

_DESCRIPTION = "Draws images of flowers; see docs/serving.md"

_EXAMPLE: list[dict[str, Any]] = [{"n": 1, "seed": 0, "sampler": "ddim", "steps": 2}]
"""Request that MLflow keeps with the model, and tries when it is logged."""

_PACKAGES = ("mlflow", "torch", "numpy", "pillow", "safetensors", "pandas")
"""Packages that the model needs where it is served."""


@dataclass(frozen=True)
class Version:
    """Version of a registered model."""

    number: str
    tags: Mapping[str, str]


class Registry:
    """Versions of one registered model.

    Raises:
        TrackingError: all methods do, where there is no such database, or MLflow cannot be reached.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def _client(self) -> "MlflowClient":
        return connect_to_read()

    def champion(self) -> Version | None:
        """Return the version that is served, if there is one."""
        from mlflow.exceptions import MlflowException

        with explain_refusals():
            try:
                return _to_version(self._client.get_model_version_by_alias(self.name, CHAMPION))
            except MlflowException as error:  # no version has the alias, or no such model is registered
                if error.error_code in {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}:
                    return None
                raise

    def find(self, contents_sha256: str) -> Version | None:
        """Return the version with these contents, if one is registered; the newest of several."""
        with explain_refusals():
            found = self._client.search_model_versions(f"name = '{self.name}'")
        alike = [one for one in map(_to_version, found) if one.tags.get(CONTENTS_TAG) == contents_sha256]
        return max(alike, key=lambda one: int(one.number), default=None)

    def add(
        self, run_id: str, model_folder: Path, weights: str, tags: Mapping[str, str], metadata: Mapping[str, Any]
    ) -> Version:
        """Log the model with these weights in the run, and register it as a new version.

        Raises:
            StageError: the model cannot draw; nothing is logged.
        """
        from mlflow.exceptions import MlflowException

        with explain_refusals():
            logged = _log_model(run_id, model_folder, weights, metadata)
            with contextlib.suppress(MlflowException):  # it exists, or another run creates it meanwhile
                self._client.create_registered_model(self.name, description=_DESCRIPTION)
            return _to_version(
                self._client.create_model_version(
                    self.name, logged.model_uri, run_id, tags=dict(tags), model_id=logged.model_id
                )
            )

    def note(self, number: str, tags: Mapping[str, str], description: str) -> None:
        """Set tags of a version, and the description that MLflow's page shows."""
        with explain_refusals():
            for name, value in tags.items():
                self._client.set_model_version_tag(self.name, number, name, value)
            self._client.update_model_version(self.name, number, description)

    def promote(self, number: str) -> None:
        """Make a version the champion.

        Raises:
            TrackingError: there is no such version.
        """
        with explain_refusals():
            self._client.set_registered_model_alias(self.name, CHAMPION, number)


def _to_version(found: Any) -> Version:
    return Version(str(found.version), dict(found.tags))


@contextmanager
def open_model(address: str) -> Iterator[Path]:
    """Give the folder of a registered model, such as models:/flowers-ddpm@champion, for as long as the block lasts.

    `ddpm.load` reads such addresses by this function; pyproject.toml declares it as an entry point.

    Raises:
        CheckpointError: MLflow has no such model of this project.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    from ddpm.checkpoint import CheckpointError

    with tempfile.TemporaryDirectory() as temporary:
        try:
            connect_to_read()
            folder = Path(download_artifacts(artifact_uri=f"{address}/artifacts/model", dst_path=temporary))
        except TrackingError as error:
            raise CheckpointError(f"{address} cannot be opened: {error}") from error
        except (MlflowException, OSError) as error:
            raise CheckpointError(
                f"MLflow at {tracking_uri()} has no model {address} of this project: {error}; set MLFLOW_TRACKING_URI "
                "to look elsewhere"
            ) from error
        yield folder


def _log_model(run_id: str, model_folder: Path, weights: str, metadata: Mapping[str, Any]) -> Any:
    """Log the weights that were sampled and evaluated, and no others."""
    import mlflow

    # Warnings are recorded and dropped: MLflow warns of values of any type, whatever the filters say.
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings(record=True):
        from tracking import served_model

        published = Path(temporary) / "model"
        published.mkdir()
        for name in ("config.json", f"{weights}.safetensors"):
            shutil.copyfile(model_folder / name, published / name)
        _require_model_draws(published)
        with mlflow.start_run(run_id=run_id, log_system_metrics=False):
            return mlflow.pyfunc.log_model(
                name="model",
                python_model=served_model.__file__,
                artifacts={"model": str(published)},
                code_paths=["ddpm"],
                input_example=_EXAMPLE,
                pip_requirements=[f"{package}=={installed_version(package)}" for package in _PACKAGES],
                metadata=dict(metadata),
            )


def _require_model_draws(folder: Path) -> None:
    """Draw the example as the served model would; MLflow tries it, too, but only warns where it fails.

    Raises:
        StageError: the model cannot draw it.
    """
    from mlflow.pyfunc.model import PythonModelContext

    from tracking.served_model import FlowerSampler

    sampler = FlowerSampler()
    try:
        sampler.load_context(PythonModelContext({"model": str(folder)}, model_config=None))  # type: ignore[no-untyped-call]
        sampler.predict(_EXAMPLE)
    except Exception as error:  # whatever serving would meet: damaged files, wrong shapes
        raise StageError(f"the model cannot draw an example, so it is not registered: {error}") from error
