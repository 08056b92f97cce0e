"""The registered model, as MLflow loads it: from this code and safetensors, nothing pickled."""

import base64
import io
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class FlowerSampler(PythonModel):
    """Draws images on request."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the published weights."""
        from ddpm.checkpoint import load_model

        folder = Path(context.artifacts["model"])
        # The folder holds the weights that were evaluated, and no others.
        (weights,) = folder.glob("*.safetensors")
        self.model = load_model(folder, weights.stem)

    # MLflow reads type hints here as a schema, and the schema is the signature that it was logged with.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, ARG002
        """A row of {n, seed, class_name} gives n images, as PNG in base64.

        The class, by name or number, may be left out: a model that knows classes then draws all of them in turn.
        """
        from PIL import Image

        from ddpm.images import to_pixels
        from ddpm.samplers import ImageNoise, sample

        asked = {"num_sampling_steps": 50, "guidance_scale": 1.0} | (params or {})
        steps = int(asked["num_sampling_steps"])
        size = self.model.image_size
        encoded = []
        for row in model_input.itertuples():
            numbers, class_name = range(int(row.n)), getattr(row, "class_name", None)
            classes = None if class_name is None or pd.isna(class_name) else [str(class_name)]
            predict = self.model.asked(classes, numbers, float(asked["guidance_scale"]))
            noise = ImageNoise(int(row.seed), numbers, (3, size, size))
            images = to_pixels(sample("ddim", predict, self.model.diffusion, noise, steps))
            for image in images.permute(0, 2, 3, 1).numpy():
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, format="PNG")
                encoded.append(base64.b64encode(buffer.getvalue()).decode())
        return pd.DataFrame({"png_base64": encoded})


mlflow.models.set_model(FlowerSampler())
