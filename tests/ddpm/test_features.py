"""Features: deterministic, independent of the batch, and those behind the known distances of real flowers."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
from PIL import Image

from ddpm.features import build_extractor, extract_features
from ddpm.memorisation import EXPECTED_SHARE, memorisation, nearest_images
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


def test_features_do_not_depend_on_the_batch_size(extractor):
    pixels = some_pixels(5)
    together = extractor(pixels)
    assert together.abs().max() > 1.0 and not together.requires_grad
    for size in (1, 2, 3):
        parts = []
        for part in extract_features(extractor, pixels, size, CPU):
            assert torch.is_grad_enabled() and not part.requires_grad
            parts.append(part)
        assert [len(part) for part in parts] == [size] * (5 // size) + [5 % size] * (5 % size > 0)
        torch.testing.assert_close(torch.cat(parts), together, rtol=0, atol=1e-3)


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


@pytest.mark.usefixtures("without_shape_checks")
def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown extractor 'vgg'; choose one of efficientnet_lite0, inception"):
        build_extractor("vgg")


def test_digest_and_features_are_those_of_the_weights(extractor):
    digest, same = extractor.weights_digest(), build_extractor("efficientnet_lite0")
    assert len(digest) == 64 and same.weights_digest() == digest
    # None were drawn at random, and features neither.
    pixels = some_pixels(2)
    torch.testing.assert_close(same(pixels), extractor(pixels), rtol=0, atol=0)
    for name, moved in {"_bn0.running_mean": 0.1, "_conv_stem.weight": 1e-3}.items():
        other = build_extractor("efficientnet_lite0")
        other.network.state_dict()[name].view(-1)[0] += moved
        assert other.weights_digest() != digest


@pytest.fixture(scope="module")
def flowers(extractor):
    """The pixels and features of the real flowers by split."""
    if not FLOWERS.is_dir():
        pytest.skip(f"the real flowers are not in {FLOWERS.parent.name}/{FLOWERS.name}")
    splits = scipy.io.loadmat(FLOWERS / "setid.mat")
    pixels = {}
    with tarfile.open(FLOWERS / "102flowers.tgz") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg"):
                image = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
                pixels[int(member.name[-9:-4])] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    names = {"train": "trnid", "valid": "valid", "test": "tstid"}
    by_split = {split: torch.stack([pixels[number] for number in splits[key].ravel()]) for split, key in names.items()}
    return by_split, {split: all_features(extractor, images) for split, images in by_split.items()}


def all_features(extractor, pixels):
    return torch.cat(list(extract_features(extractor, pixels, 32, CPU)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_known_distances_of_real_flowers(extractor, flowers):
    """The table beside the images, made independently; `kid` there is the mean of 100 subsets of 1,000."""
    pixels, features = flowers
    train, generator = pixels["train"], torch.Generator().manual_seed(0)
    noise = 16.0 * torch.randn(train.shape, generator=generator)
    changed = {
        "flipped": train.flip(3),
        "noisy": (train + noise).round().clamp(0.0, 255.0).to(torch.uint8),
        "uniform": torch.randint(0, 256, train.shape, dtype=torch.uint8, generator=generator),
    }
    others = features | {name: all_features(extractor, images) for name, images in changed.items()}
    # The split stands in the order of the classes, so its halves are drawn.
    order = torch.randperm(6149, generator=torch.Generator().manual_seed(0))
    halves = features["test"][order[:3074]], features["test"][order[3074:6148]]
    # Noise is drawn anew, so what holds it is known a little less exactly.
    assert [len(features[split]) for split in ("train", "valid", "test")] == [1020, 1020, 6149]
    assert frechet_distance(features["train"], others["valid"]) == pytest.approx(24.1, abs=0.1)
    assert frechet_distance(features["train"], others["test"]) == pytest.approx(17.3, abs=0.1)
    assert frechet_distance(halves[0], halves[1]) == pytest.approx(8.6, abs=0.3)
    assert frechet_distance(features["train"], others["flipped"]) == pytest.approx(5.4, abs=0.1)
    assert frechet_distance(features["train"], others["noisy"]) == pytest.approx(76.2, abs=1.0)
    assert frechet_distance(features["train"], others["uniform"]) == pytest.approx(388.8, abs=2.0)
    for name, expected, tolerance in (("valid", -0.0002, 0.0003), ("test", 0.0009, 0.0003), ("noisy", 0.080, 0.002)):
        assert kernel_distance(features["train"], others[name]).mean == pytest.approx(expected, abs=tolerance)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_new_real_flowers_are_no_copies_and_noisy_ones_are(extractor, flowers):
    pixels, features = flowers
    train, held_out = features["train"], nearest_images(features["valid"], features["train"]).distances
    real = memorisation(nearest_images(features["test"], train).distances, held_out)
    # 1,020 images of valid give the twentieth with a standard error of 0.7 %; the tests' own images add 0.3 %.
    assert real.share == pytest.approx(EXPECTED_SHARE, abs=0.03)
    assert real.nearer_than_held_out == pytest.approx(0.5, abs=0.05)
    noise = 2.0 * torch.randn(256, *pixels["train"].shape[1:], generator=torch.Generator().manual_seed(0))
    noisy = (pixels["train"][:256] + noise).round().clamp(0.0, 255.0).to(torch.uint8)
    for copies in (pixels["train"][:256], noisy, pixels["train"][:256].flip(3)):
        found = memorisation(nearest_images(all_features(extractor, copies), train).distances, held_out)
        assert found.share > 0.9
