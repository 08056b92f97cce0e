"""Features: deterministic, one vector an image whatever its batch, and those that the known distances came from."""

import io
import tarfile
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
from PIL import Image

from ddpm.features import FeatureExtractor, build_extractor, extract_features
from ddpm.metrics import frechet_distance, kernel_distance

FLOWERS = Path(__file__).parents[3] / "shared" / "data" / "flowers-102"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def extractor():
    return build_extractor("efficientnet_lite0")


def some_pixels(count, height=32, width=32):
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 48), (224, 224), (300, 260)])
def test_each_image_of_any_size_has_1280_features(extractor, height, width):
    features = extractor(some_pixels(2, height, width))
    assert features.shape == (2, 1280) and features.dtype == torch.float32
    assert extractor.num_features == 1280 and extractor.name == "efficientnet_lite0"
    assert bool(features.isfinite().all())
    assert (features[0] - features[1]).abs().max() > 0.1


def test_features_are_deterministic(extractor):
    pixels = some_pixels(2)
    first = extractor(pixels)
    torch.manual_seed(1)
    torch.testing.assert_close(extractor(pixels), first, rtol=0, atol=0)
    # Another object with the same weights, and none that were drawn at random.
    torch.testing.assert_close(build_extractor("efficientnet_lite0")(pixels), first, rtol=0, atol=0)


def test_features_do_not_depend_on_the_batch_size(extractor):
    pixels = some_pixels(5)
    together = extractor(pixels)
    assert together.abs().max() > 1.0
    for size in (1, 2, 3):
        parts = list(extract_features(extractor, pixels, size, CPU))
        assert [len(part) for part in parts] == [size] * (5 // size) + [5 % size] * (5 % size > 0)
        torch.testing.assert_close(torch.cat(parts), together, rtol=0, atol=1e-3)


def test_an_extractor_is_in_evaluation_mode_and_keeps_its_statistics(extractor):
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
    assert any("running_mean" in name for name in before)
    extractor(some_pixels(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in extractor.state_dict().items())


def test_images_are_scaled_as_the_network_was_trained(extractor):
    pixels = some_pixels(1, 224, 224)  # of the network's own size: resizing changes nothing
    expected = extractor.network.extract_features((pixels.float() - 127.0) / 128.0).mean(dim=(2, 3))
    torch.testing.assert_close(extractor(pixels), expected, rtol=0, atol=1e-3)


def test_large_images_are_resized_by_antialiased_bicubic_interpolation(extractor):
    """As Pillow resizes; interpolation that only picks pixels lets fine structure through."""
    pixels = some_pixels(1, 600, 600)
    resized = Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    as_pillow = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
    picked = F.interpolate(pixels.float(), size=(224, 224), mode="bicubic").clamp(0.0, 255.0).round().to(torch.uint8)
    features = extractor(pixels)
    # Pillow rounds to bytes, so a little remains.
    assert (features - extractor(as_pillow)).norm() < 0.1 * (features - extractor(picked)).norm()


def test_extraction_computes_no_gradients_and_leaves_the_callers_mode_alone(extractor):
    for features in extract_features(extractor, some_pixels(2), 1, CPU):
        assert torch.is_grad_enabled()
        assert not features.requires_grad


def test_monochrome_images_are_refused(extractor):
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'pixels'"):
        extractor(some_pixels(1)[:, :1])


@pytest.mark.usefixtures("without_shape_checks")
def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown extractor 'vgg'; choose one of efficientnet_lite0, inception"):
        build_extractor("vgg")


def test_an_extractor_without_a_network_says_so():
    with pytest.raises(NotImplementedError):
        FeatureExtractor()(some_pixels(1))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not FLOWERS.is_dir(), reason=f"the real flowers are not in {FLOWERS.parent.name}/{FLOWERS.name}")
def test_the_known_distances_of_real_flowers(extractor):
    """Train against valid, 1,020 images each: the figures in the README beside the images."""
    splits = scipy.io.loadmat(FLOWERS / "setid.mat")
    wanted = {f"jpg/image_{number:05d}.jpg" for split in ("trnid", "valid") for number in splits[split].ravel()}
    pixels = {}
    with tarfile.open(FLOWERS / "102flowers.tgz") as archive:
        for member in archive:
            if member.name.removeprefix("./") in wanted:
                image = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
                pixels[member.name.removeprefix("./")] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    train, valid = (
        torch.cat(
            list(
                extract_features(
                    extractor,
                    torch.stack([pixels[f"jpg/image_{number:05d}.jpg"] for number in splits[split].ravel()]),
                    32,
                    CPU,
                )
            )
        )
        for split in ("trnid", "valid")
    )
    assert train.shape == valid.shape == (1020, 1280)
    assert frechet_distance(train, valid) == pytest.approx(24.1, abs=0.1)
    assert kernel_distance(train, valid).mean == pytest.approx(-0.0002, abs=0.0003)
