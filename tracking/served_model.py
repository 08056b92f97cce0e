"""The registered model, as MLflow loads and serves it: from this code and safetensors, nothing pickled.

It draws from the copy of ddpm that goes with it. What cannot be drawn is refused in one line, as HTTP status 400 where
it is served: `RefusedRequest`.
"""

import base64
import io
import json
import os
import reprlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

import mlflow
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import DEADLINE_EXCEEDED, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

LIMITS = {"max_images": 64, "max_steps": 1000, "max_network_calls": 12_800}
"""Of one request, all rows together but for the steps; guidance doubles the network calls."""

FIELDS = ("n", "seed", "sampler", "steps", "eta", "class", "guidance")
"""What a row may ask for; all but n may be left out, or null."""

_MAX_SEED = 2**63 - 1
_MAX_GUIDANCE = 100.0
_MAX_CLASS_CHARACTERS = 100
_USUAL_STEPS = 50


class RefusedRequest(MlflowException):
    """A request that cannot be drawn; the message says what was got and what is allowed."""

    code = INVALID_PARAMETER_VALUE

    def __init__(self, reason: str) -> None:
        super().__init__(reason, error_code=self.code)
        self.reason = reason

    def serialize_as_json(self) -> str:
        """What the server answers; MLflow's own would repeat the request before the reason."""
        return json.dumps({"error_code": self.error_code, "message": self.reason})


class OverdueRequest(RefusedRequest):
    """A request whose time is up."""

    code = DEADLINE_EXCEEDED


class Deadline:
    """When a request's time is up.

    The server then answers by itself, and leaves the request to be drawn for nobody, while others wait for their turn.

    Args:
        seconds: from now on; None never ends.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._end = monotonic() + (seconds or 0.0)

    def check(self, _step: object = None) -> None:
        """Let another step be drawn.

        Raises:
            OverdueRequest: the time is up.
        """
        if self._seconds is not None and monotonic() >= self._end:
            raise self._overdue()

    @contextmanager
    def turn(self, lock: threading.Lock) -> Iterator[None]:
        """Hold the lock, waiting for it until then.

        Raises:
            OverdueRequest: others held it all the time.
        """
        if not lock.acquire(timeout=-1 if self._seconds is None else max(0.0, self._end - monotonic())):
            raise self._overdue()
        try:
            yield
        finally:
            lock.release()

    def _overdue(self) -> OverdueRequest:
        return OverdueRequest(
            f"the request took longer than {self._seconds:g} seconds, its wait for others included; ask for fewer "
            "images or steps, or serve with a longer --timeout"
        )


class FlowerSampler(PythonModel):
    """Draws images on request."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the published weights, onto the GPU where there is one."""
        from ddpm import load

        self.model = load(context.artifacts["model"])
        # The server hands over requests side by side, which would only share the device's time and memory.
        self.turn = threading.Lock()
        # What the server was started with, in its own variable; without a server nobody gives up waiting.
        timeout = os.environ.get(MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.name)
        self.seconds = None if timeout is None else float(timeout)

    # MLflow makes the model's signature of the type hints, and hands rows over as they were sent.
    def predict(self, model_input: list[dict[str, Any]]) -> list[dict[str, list[str]]]:  # type: ignore[override]
        """A row {n, seed, sampler, steps, eta, class, guidance} gives n images, as PNG in base64.

        Raises:
            RefusedRequest: a row asks for what is unknown, or for too much.
            OverdueRequest: the server has given the request up.
        """
        deadline = Deadline(self.seconds)
        rows = understood(model_input, self.model, LIMITS)
        with deadline.turn(self.turn):
            drawn = [self.model.draw(**row, on_step=deadline.check) for row in rows]
        return [{"png_base64": [png_base64(image) for image in pixels.permute(0, 2, 3, 1).numpy()]} for pixels in drawn]


def understood(rows: list[dict[str, Any]], model: Any, limits: Mapping[str, int]) -> list[dict[str, Any]]:
    """What `ddpm.published.PublishedModel.draw` is to be asked for each row.

    Raises:
        RefusedRequest: a row asks for what is unknown, or for too much.
    """
    if not rows:
        raise RefusedRequest('inputs holds no row; give at least one, such as {"n": 4}')
    asked = []
    for number, row in enumerate(rows, start=1):
        try:
            asked.append(_understood_row(row, model, limits))
        except ValueError as error:
            raise RefusedRequest(f"row {number}: {error}" if len(rows) > 1 else str(error)) from None
    num_images = sum(row["n"] for row in asked)
    if num_images > limits["max_images"]:
        raise RefusedRequest(f"a request gives at most {limits['max_images']} images, got {num_images} in all rows")
    num_calls = sum(row["n"] * row["steps"] * (1 if row["guidance"] in {0.0, 1.0} else 2) for row in asked)
    if num_calls > limits["max_network_calls"]:
        raise RefusedRequest(
            f"a request takes at most {limits['max_network_calls']} network calls, got {num_calls}: images times "
            "steps, twice that with guidance; ask for fewer of either"
        )
    return asked


def png_base64(image: Any) -> str:
    """An array of shape (height, width, channels) as PNG in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _understood_row(row: Mapping[str, Any], model: Any, limits: Mapping[str, int]) -> dict[str, Any]:
    if unknown := [name for name in row if name not in FIELDS]:
        raise ValueError(f"unknown field {_shown(unknown[0])}; a row may hold {', '.join(FIELDS)}")
    given = {name: value for name, value in row.items() if value is not None}
    most_steps = min(limits["max_steps"], model.diffusion.num_timesteps)
    if "n" not in given:
        raise ValueError(f"n is missing: how many images, a whole number in 1 … {limits['max_images']}")
    asked = {
        "n": _whole("n", given["n"], 1, limits["max_images"]),
        "seed": _whole("seed", given.get("seed", 0), 0, _MAX_SEED),
        "sampler": _sampler(given.get("sampler", "ddim")),
        "steps": _whole("steps", given.get("steps", min(_USUAL_STEPS, most_steps)), 1, most_steps),
        "eta": _number("eta", given.get("eta", 0.0), 1.0),
        "classes": _classes(given.get("class")),
        "guidance": _number("guidance", given.get("guidance", 1.0), _MAX_GUIDANCE),
    }
    model.bind_classes(asked["classes"], [0], asked["guidance"])  # refuses what this model cannot be asked for
    return asked


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number in {least} … {most}, got {_shown(value)}")
    return value


def _sampler(value: Any) -> str:
    from typing import get_args

    from ddpm.config import SamplerName

    if value not in get_args(SamplerName):
        raise ValueError(f"sampler must be one of {', '.join(get_args(SamplerName))}, got {_shown(value)}")
    return str(value)


def _classes(value: Any) -> list[str | int] | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or len(str(value)) > _MAX_CLASS_CHARACTERS:
        raise ValueError(f"class must be a name or a number of a class, got {_shown(value)}")
    return [value]


def _number(name: str, value: Any, most: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0.0 <= value <= most:
        raise ValueError(f"{name} must be a number in 0 … {most:.0f}, got {_shown(value)}")
    return float(value)


def _shown(value: Any) -> str:
    """A value of any size in a line."""
    return reprlib.repr(value)


mlflow.models.set_model(FlowerSampler())
