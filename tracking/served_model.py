"""Draw images on request: the code that MLflow loads and serves with a registered model; nothing is pickled.

MLflow copies this file and ddpm/ into the model, so nothing else of the project can be imported here. A request that
cannot be drawn is refused in one line, and with HTTP status 400 where the model is served: `RefusedRequest`.
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
from typing import Any, get_args

import mlflow
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import DEADLINE_EXCEEDED, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from ddpm.config import MAX_GUIDANCE_SCALE, MAX_SEED, SamplerName, SamplingConfig

MAX_IMAGES = 64
"""Maximum images of one request, all rows together."""

MAX_NETWORK_CALLS = 12_800
"""Maximum calls of the network for one request, all rows together; guidance doubles them."""

MAX_STEPS = 1000
"""Maximum steps of a row."""

_MAX_CLASS_CHARACTERS = 100


class RefusedRequest(MlflowException):
    """Request that cannot be drawn; the message names what was got and what is allowed."""

    code = INVALID_PARAMETER_VALUE

    def __init__(self, reason: str) -> None:
        super().__init__(reason, error_code=self.code)
        self.reason = reason

    def serialize_as_json(self) -> str:
        """Return the server's answer; MLflow's own would repeat the request before the reason."""
        return json.dumps({"error_code": self.error_code, "message": self.reason})


class OverdueRequest(RefusedRequest):
    """Request whose time is up."""

    code = DEADLINE_EXCEEDED


class Deadline:
    """Time by which a request must be drawn.

    After it the server has answered by itself: drawing on would serve nobody, while other requests wait.

    Args:
        seconds: time from now on; None never ends.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._end = monotonic() + (seconds or 0.0)

    def check(self, _step: object = None) -> None:
        """Check that there is time for another step.

        Raises:
            OverdueRequest: the time is up.
        """
        if self._seconds is not None and monotonic() >= self._end:
            raise self._overdue()

    @contextmanager
    def turn(self, lock: threading.Lock) -> Iterator[None]:
        """Hold the lock; wait for it until the time is up.

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
    """The served model, which draws images on request."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the published weights, onto the GPU where there is one."""
        from ddpm import load

        self.model = load(context.artifacts["model"])
        # The server hands over requests in parallel; drawn one by one, they need less memory and no more time.
        self.turn = threading.Lock()
        # The server's own time limit; without a server nobody gives up waiting.
        timeout = os.environ.get(MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.name)
        self.seconds = None if timeout is None else float(timeout)

    # MLflow derives the model's signature from the type hints, and hands rows over as they were sent.
    def predict(self, model_input: list[dict[str, Any]]) -> list[dict[str, list[str]]]:  # type: ignore[override]
        """Return n images, as PNG in base64, for each row {n, seed, sampler, steps, eta, class, guidance}.

        Raises:
            RefusedRequest: a row asks for what is unknown, or for too much.
            OverdueRequest: the server has given the request up.
        """
        deadline = Deadline(self.seconds)
        rows = read_rows(model_input, self.model)
        with deadline.turn(self.turn):
            drawn = [self.model.draw(**row, on_step=deadline.check) for row in rows]
        return [{"png_base64": [encode_png(image) for image in pixels.permute(0, 2, 3, 1).numpy()]} for pixels in drawn]


def read_rows(rows: list[dict[str, Any]], model: Any) -> list[dict[str, Any]]:
    """Return the arguments of the model's `draw` for each row.

    Raises:
        RefusedRequest: a row asks for what is unknown, or for too much.
    """
    if not rows:
        raise RefusedRequest('inputs holds no row; give at least one, such as {"n": 4}')
    asked = []
    for number, row in enumerate(rows, start=1):
        try:
            asked.append(_read_row(row, model))
        except ValueError as error:
            raise RefusedRequest(f"row {number}: {error}" if len(rows) > 1 else str(error)) from None
    num_images = sum(row["n"] for row in asked)
    if num_images > MAX_IMAGES:
        raise RefusedRequest(f"a request gives at most {MAX_IMAGES} images, got {num_images} in all rows")
    num_calls = sum(row["n"] * row["steps"] * (1 if row["guidance"] in {0.0, 1.0} else 2) for row in asked)
    if num_calls > MAX_NETWORK_CALLS:
        raise RefusedRequest(
            f"a request takes at most {MAX_NETWORK_CALLS} network calls, got {num_calls}: images times "
            "steps, twice that with guidance; ask for fewer of either"
        )
    return asked


def encode_png(image: Any) -> str:
    """Return an array of shape (height, width, channels) as PNG in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _read_row(row: Mapping[str, Any], model: Any) -> dict[str, Any]:
    most_steps = min(MAX_STEPS, model.diffusion.num_timesteps)
    defaults = {  # taken where a field is left out or null; n has none
        "seed": SamplingConfig.seed,
        "sampler": SamplingConfig.sampler,
        "steps": min(SamplingConfig.num_sampling_steps, most_steps),
        "eta": SamplingConfig.eta,
        "class": None,
        "guidance": SamplingConfig.guidance_scale,
    }
    if unknown := [name for name in row if name not in {"n", *defaults}]:
        raise ValueError(f"unknown field {reprlib.repr(unknown[0])}; a row may hold n, {', '.join(defaults)}")
    row = defaults | {name: value for name, value in row.items() if value is not None}
    if "n" not in row:
        raise ValueError(f"n is missing: how many images, a whole number in 1 … {MAX_IMAGES}")
    asked = {
        "n": _read_number("n", row["n"], int, 1, MAX_IMAGES),
        "seed": _read_number("seed", row["seed"], int, 0, MAX_SEED),
        "sampler": _read_sampler(row["sampler"]),
        "steps": _read_number("steps", row["steps"], int, 1, most_steps),
        "eta": _read_number("eta", row["eta"], float, 0, 1),
        "classes": _read_classes(row["class"]),
        "guidance": _read_number("guidance", row["guidance"], float, 0, MAX_GUIDANCE_SCALE),
    }
    model.bind_classes(asked["classes"], [0], asked["guidance"])  # refuses what this model cannot be asked for
    return asked


def _read_number(name: str, value: Any, kind: type[int | float], least: int, most: int) -> int | float:
    is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        described = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {described} in {least} … {most}, got {reprlib.repr(value)}")
    return kind(value)


def _read_sampler(value: Any) -> str:
    if value not in get_args(SamplerName):
        raise ValueError(f"sampler must be one of {', '.join(get_args(SamplerName))}, got {reprlib.repr(value)}")
    return str(value)


def _read_classes(value: Any) -> list[str | int] | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or len(str(value)) > _MAX_CLASS_CHARACTERS:
        raise ValueError(f"class must be a name or a number of a class, got {reprlib.repr(value)}")
    return [value]


mlflow.models.set_model(FlowerSampler())
