"""Batches: a function of (seed, step) alone, in which every image is seen equally often."""

import itertools
import threading

import numpy as np
import pytest
import torch

from ddpm.data import TrainingImages, load_images


def numbered_images(count):
    """Make images: image i is i everywhere, except in a bright left column, which shows whether it was mirrored."""
    pixels = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 3, 4, 4)
    pixels[:, :, :, 0] = 255
    return pixels


def is_mirrored(batch):
    return (batch[:, 0, 0, -1] == 1.0).tolist()


def indices(images, num_steps):
    return list(itertools.chain.from_iterable(images.indices(step).tolist() for step in range(num_steps)))


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    first = TrainingImages(numbered_images(10), batch_size=4, seed=3)
    before = torch.get_rng_state()
    batches = [first.batch(step) for step in range(12)]
    assert torch.equal(torch.get_rng_state(), before)
    assert batches[0].shape == (4, 3, 4, 4) and batches[0].dtype == torch.float32
    # Another object, in another order, some steps twice, with other random numbers drawn in between.
    second = TrainingImages(numbered_images(10), batch_size=4, seed=3)
    for step in [7, 0, 11, 7, 3, 2, 1, 10]:
        torch.rand(step + 1)
        torch.testing.assert_close(second.batch(step), batches[step], rtol=0, atol=0)
    other_seed = TrainingImages(numbered_images(10), batch_size=4, seed=4)
    assert indices(other_seed, 12) != indices(first, 12)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 23])
def test_every_epoch_holds_each_image_once(batch_size):
    # 4 does not divide 10, and 23 exceeds it: batches run over the ends of epochs.
    num_epochs = 23
    images = TrainingImages(numbered_images(10), batch_size, seed=1)
    seen = indices(images, num_epochs * 10 // batch_size)
    epochs = [seen[i : i + 10] for i in range(0, len(seen) - 9, 10)]
    assert len(epochs) >= 22
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len(set(map(tuple, epochs))) == len(epochs)  # in another order each


def test_flips_mirror_left_and_right_and_nothing_else():
    pixels = torch.randint(0, 256, (10, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flipped = TrainingImages(pixels, batch_size=10, seed=1)
    plain = TrainingImages(pixels, batch_size=10, seed=1, random_flips=False)
    kinds = set()
    for image, original in zip(flipped.batch(0), plain.batch(0), strict=True):
        mirror = torch.stack([original[:, :, column] for column in range(5, -1, -1)], dim=2)
        kinds.add((torch.equal(image, original), torch.equal(image, mirror)))
    assert kinds == {(True, False), (False, True)}


def test_about_half_of_the_images_are_mirrored_anew_in_each_step():
    images = TrainingImages(numbered_images(100), batch_size=100, seed=1)
    flips = [is_mirrored(images.batch(step)) for step in range(20)]
    # 2,000 flips of a fair coin: five standard deviations are 0.056.
    assert abs(np.mean(flips) - 0.5) < 0.056
    assert len(set(map(tuple, flips))) == 20


@pytest.fixture(params=[True, False], ids=["resident", "streamed"])
def resident(request):
    return request.param


@pytest.mark.parametrize("positions", [None, torch.tensor([7, 2, 3, 5, 0])])
def test_streamed_batches_are_those_of_resident_images(positions):
    pixels = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resident, streamed = (
        TrainingImages(pixels, batch_size=4, seed=3, resident=resident, positions=positions)
        for resident in (True, False)
    )
    assert (resident.is_resident, streamed.is_resident) == (True, False)
    # In order; then back, forth and one again, where what was fetched ahead is of no use.
    for step in [0, 1, 2, 3, 4, 2, 7, 7, 8]:
        torch.testing.assert_close(streamed.batch(step), resident.batch(step), rtol=0, atol=0)


@pytest.mark.parametrize("positions", [None, torch.tensor([8, 1, 4, 5])])
def test_labels_are_those_of_the_images_of_a_batch(resident, positions):
    pixels, labels = numbered_images(10), 100 + torch.arange(10)
    images = TrainingImages(pixels, 3, seed=1, resident=resident, positions=positions, labels=labels)
    for step in range(5):
        # An image is its number everywhere, but for its bright column.
        numbers = ((images.batch(step)[:, 0, 0, 1] + 1.0) * 127.5).round().long()
        assert images.batch_labels(step).tolist() == (100 + numbers).tolist()


@pytest.mark.parametrize("num_readers", [1, 3])
def test_parts_make_up_the_whole_batch(resident, num_readers):
    """One reader may be asked for all parts, or each for its own."""
    whole, *readers = (
        TrainingImages(numbered_images(10), 6, seed=3, resident=each, labels=torch.arange(10))
        for each in (True, *[resident] * num_readers)
    )
    parts = [slice(0, 2), slice(2, 3), slice(3, 6)]
    for step in range(6):
        pairs = list(zip(itertools.cycle(readers), parts, strict=False))
        labels = [reader.batch_labels(step, part) for reader, part in pairs]
        batches = [reader.batch(step, part) for reader, part in pairs]
        assert [len(batch) for batch in batches] == [2, 1, 3]
        torch.testing.assert_close(torch.cat(batches), whole.batch(step), rtol=0, atol=0)
        torch.testing.assert_close(torch.cat(labels), whole.batch_labels(step), rtol=0, atol=0)


class SlowImages:
    """Images in a file: notes the threads that read, and fails in one reading."""

    def __init__(self, images, fails_at=None):
        self.images, self.device, self.fails_at, self.threads = images, images.device, fails_at, []

    def __getitem__(self, indices):
        self.threads.append(threading.current_thread())
        if len(self.threads) == self.fails_at:
            raise OSError("disk error")
        return self.images[indices]


def streamed(**options):
    images = TrainingImages(numbered_images(10), batch_size=4, seed=3, resident=False)
    images.images = SlowImages(images.images, **options)
    return images


def test_the_next_batch_is_fetched_ahead_beside_the_caller():
    images = streamed()
    for step in (0, 1, 2, 6, 7):
        images.batch(step)
    here = threading.current_thread()
    assert images.images.threads[0] is here
    assert images.images.threads.count(here) == 2, "steps 0 and 6, which do not follow the step before"


def test_an_error_in_fetching_ahead_is_raised_with_its_batch():
    images = streamed(fails_at=3)
    images.batch(0)
    images.batch(1)
    with pytest.raises(OSError, match="disk error"):
        images.batch(2)


@pytest.mark.parametrize(("resident", "place"), [(None, "meta"), (False, "cpu")])
def test_batches_come_on_the_device_and_resident_images_move_there(resident, place):
    meta = torch.device("meta")  # a device without memory
    images = TrainingImages(numbered_images(10), 4, seed=3, device=meta, positions=torch.arange(5), resident=resident)
    assert images.images.device.type == place and len(images) == 5
    assert images.batch(0).device == meta


@pytest.mark.parametrize(("free_bytes", "is_resident"), [(2 * 5 * 48, True), (2 * 5 * 48 - 2, False)])
def test_the_free_memory_decides_by_the_images_that_are_used(monkeypatch, free_bytes, is_resident):
    asked = []
    monkeypatch.setattr(
        "ddpm.data.fits_on", lambda device, num_bytes: asked.append(device) or num_bytes <= free_bytes // 2
    )
    meta = torch.device("meta")
    images = TrainingImages(numbered_images(10), 4, seed=3, device=meta, positions=torch.arange(5))
    assert images.is_resident is is_resident
    assert asked == [meta]


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "holds no images"),
        (3, {"positions": torch.tensor([], dtype=torch.int64)}, "holds no images"),
        (3, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (10, {"labels": torch.arange(9)}, "10 images, got 9 labels"),
    ],
)
def test_images_that_make_no_batches_are_an_error(count, options, message):
    with pytest.raises(ValueError, match=message):
        TrainingImages(numbered_images(count), **{"batch_size": 1, "seed": 0} | options)


def test_loaded_images_are_the_stored_ones_and_never_change_the_file(tmp_path):
    stored = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", stored)
    images = load_images(tmp_path / "images.npy")
    assert images.shape == (5, 3, 4, 6) and images.dtype == torch.uint8
    np.testing.assert_array_equal(images.numpy(), stored.transpose(0, 3, 1, 2))
    # In memory they stay channels-last, as convolutions like it.
    assert images.is_contiguous(memory_format=torch.channels_last)
    images.fill_(9)
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), stored)


@pytest.mark.parametrize("array", [np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4), np.uint8)])
def test_a_file_of_something_else_is_an_error(tmp_path, array):
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(ValueError, match="must hold uint8 of 4 axes"):
        load_images(tmp_path / "images.npy")
