"""Training: it learns, a step is a function of (seed, step), a resumed run equals a whole one, bad steps are found."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from ddpm import TrainingConfig, TrainingImages, TrainingState, UNet, UNetConfig, train
from ddpm.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from ddpm.training import draw_t_and_eps
from ddpm.training_state import NotFiniteError, learning_rate_at
from tests.ddpm.small_training import CONFIG, NUM_STEPS, assert_same_bits, fields, snapshot, start


def test_it_learns_eight_images_by_heart(diffusion):
    """The loss falls far below that of the best predictor which knows nothing of the images.

    Bytes of 0 and 255 make x_0^2 = 1. Among the predictions a x_t, the best at t is a = sqrt(1 - alphas_cumprod_t), and
    its loss alphas_cumprod_t. A network that predicts zero, as at the start, has a loss of 1.
    """
    blocks = torch.randint(0, 2, (8, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)) * 255
    pixels = blocks.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    images = TrainingImages(pixels, batch_size=8, seed=0, random_flips=False)
    config = TrainingConfig(num_steps=160, learning_rate=3e-3, precision="float32")
    unet_config = UNetConfig(
        widths=(16, 32), attention=(False, False), num_res_blocks=1, time_embedding_dim=16, norm_groups=4
    )
    torch.manual_seed(0)
    state = TrainingState.start(UNet(unet_config), config)
    losses = [float(event.loss) for event in train(state, images, diffusion, config)]
    ignorant = float(diffusion.alphas_cumprod.mean())
    assert losses[0] == pytest.approx(1.0, abs=0.1)
    assert sum(losses[-50:]) / 50 < 0.5 * ignorant


def test_an_event_describes_its_step(images, diffusion):
    state = start()
    average = [parameter.detach().clone() for parameter in state.model.parameters()]
    state.model.eval()
    for number, event in enumerate(train(state, images, diffusion, CONFIG), start=1):
        assert event.step == number == state.step == state.ema.num_updates
        assert event.num_images_seen == 4 * number
        assert event.learning_rate == learning_rate_at(number - 1, CONFIG)
        assert state.optimizer.param_groups[0]["lr"] == event.learning_rate
        assert event.loss.shape == event.gradient_norm.shape == ()
        assert event.quartile_loss_sums.shape == event.quartile_counts.shape == (4,)
        assert not (event.loss.requires_grad or event.quartile_loss_sums.requires_grad)
        decay = min(0.9, number / (9 + number))
        for mean, parameter, kept in zip(average, state.model.parameters(), state.ema.module.parameters(), strict=True):
            mean.mul_(decay).add_(parameter.detach(), alpha=1.0 - decay)
            torch.testing.assert_close(kept, mean, rtol=1e-4, atol=1e-6)
    assert number == NUM_STEPS
    assert state.model.training and not state.ema.module.training
    assert state.model.first_conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert list(train(state, images, diffusion, CONFIG)) == []  # it is finished


def test_the_steps_are_those_of_adam(images, diffusion):
    """Fused and channels-last in training; here the plain Adam of torch, row by row, fed with the same gradients."""
    config = dataclasses.replace(CONFIG, gradient_clip=None)
    state = start(config)
    plain = [parameter.detach().clone(memory_format=torch.contiguous_format) for parameter in state.model.parameters()]
    optimizer = torch.optim.Adam([weight.requires_grad_(True) for weight in plain], foreach=False)
    for event in train(state, images, diffusion, config):
        optimizer.param_groups[0]["lr"] = event.learning_rate
        for weight, parameter in zip(plain, state.model.parameters(), strict=True):
            weight.grad = parameter.grad.contiguous()
        optimizer.step()
        for weight, parameter in zip(plain, state.model.parameters(), strict=True):
            torch.testing.assert_close(parameter, weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("loss", "plain"), [("mse", F.mse_loss), ("l1", F.l1_loss), ("huber", F.huber_loss)])
def test_the_loss_is_that_of_the_batch(images, diffusion, watched, loss, plain):
    """Algorithm 1 of Ho et al. 2020: the batch of this step, a t and an eps for each image."""
    config = dataclasses.replace(CONFIG, loss=loss)
    state = start(config)
    given, inputs, outputs = watched(state)
    for event in itertools.islice(train(state, images, diffusion, config), 3):
        (t, eps), (x_t, t_seen), eps_pred = given[-1], inputs[-1], outputs[-1]
        torch.testing.assert_close(t_seen, t, rtol=0, atol=0)
        torch.testing.assert_close(
            x_t, diffusion.q_sample(images.batch(event.step - 1), t, eps), rtol=0, atol=1e-6, check_stride=False
        )
        torch.testing.assert_close(event.loss, plain(eps_pred, eps), rtol=1e-5, atol=0, check_stride=False)
    assert len(given) == 3
    assert (given[0][1] - given[1][1]).abs().max() > 0.1  # other noise in each step


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_interrupted_or_resumed_run_equals_an_uninterrupted_one(images, diffusion, tmp_path, dropout):
    whole, interrupted = start(dropout=dropout), start(dropout=dropout)
    expected = [fields(event) for event in train(whole, images, diffusion, CONFIG)]
    events = []
    for stop in (3, 4, 11, NUM_STEPS):
        for event in train(interrupted, images, diffusion, CONFIG):
            events.append(fields(event))
            save_checkpoint(tmp_path, interrupted, {}, {}, keep=NUM_STEPS)
            # What the caller does in between does not matter.
            torch.rand(7)
            with torch.no_grad():
                interrupted.model.eval()(torch.zeros(1, 3, 8, 8), torch.tensor([0]))
            if event.step == stop:
                break
    assert events == expected
    assert_same_bits(snapshot(interrupted), snapshot(whole))
    # A new process: other initial weights, other data object, other state of the global generator.
    resumed = start(seed=123, dropout=dropout)
    load_checkpoint(checkpoint_path(tmp_path, 5), resumed, {})
    fresh_images = TrainingImages(images.images, images.batch_size, images.seed)
    assert [fields(event) for event in train(resumed, fresh_images, diffusion, CONFIG)] == expected[5:]
    assert_same_bits(snapshot(resumed), snapshot(whole))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_global_generator_is_neither_used_nor_changed(images, diffusion, dropout):
    results, masks = [], []
    for seed in (1, 2):
        state = start(dropout=dropout)
        state.model.middle[0].residual.dropout.register_forward_hook(lambda _, __, output: masks.append(output == 0))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append([fields(event) for event in train(state, images, diffusion, CONFIG)])
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1]
    assert torch.equal(masks[0], masks[1]) == (dropout == 0.0)  # drawn anew in each step
    other = dataclasses.replace(CONFIG, seed=1)
    losses = [fields(event)[2] for event in train(start(other, dropout=dropout), images, diffusion, other)]
    assert all(one[2] != loss for one, loss in zip(results[0], losses, strict=True))


@pytest.mark.parametrize(
    ("precision", "dtype", "allowed"),
    [
        ("float32", torch.float32, False),
        ("tensorfloat32", torch.float32, True),
        ("bfloat16", torch.bfloat16, True),
    ],
)
def test_the_precision_is_that_of_forward_and_backward_products(images, diffusion, precision, dtype, allowed):
    def tensorfloat32():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    dtypes, backward, before = set(), set(), tensorfloat32()
    config = dataclasses.replace(CONFIG, precision=precision)
    state = start(config)
    state.model.first_conv.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    next(state.model.parameters()).register_hook(lambda _: backward.add(tensorfloat32()))
    event = next(train(state, images, diffusion, config))
    assert dtypes == {dtype} and backward == {(allowed, allowed)}
    assert event.loss.dtype == torch.float32
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}
    # The caller's modes are left alone.
    assert tensorfloat32() == before and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def test_t_is_uniform_and_eps_standard_normal():
    shape = (20_000, 1, 2, 2)
    t, eps = draw_t_and_eps(shape, 10, torch.Generator().manual_seed(0))
    counts = torch.bincount(t)
    # 2,000 each; five standard deviations are 212.
    assert len(counts) == 10 and (counts - 2000).abs().max() < 212
    assert eps.shape == shape and eps.dtype == torch.float32
    # 80,000 numbers; five standard errors.
    assert abs(float(eps.mean())) < 5 / 80_000**0.5
    assert float(eps.var()) == pytest.approx(1.0, abs=5 * (2 / 80_000) ** 0.5)


def test_a_copied_state_goes_on_like_the_original(images, diffusion):
    state = start()
    next(train(state, images, diffusion, CONFIG))
    copied = copy.deepcopy(state)  # the optimizer of the copy must move the model of the copy
    for one in (state, copied):
        assert len(list(train(one, images, diffusion, CONFIG))) == NUM_STEPS - 1
    assert_same_bits(snapshot(copied), snapshot(state))


def spoil_loss(state, step):
    """Make one pixel infinite in one step; it has no gradient, so that later steps are good."""

    def spoil(_model, _arguments, output):
        pixel = torch.zeros_like(output, dtype=torch.bool)
        pixel[0, 0, 0, 0] = state.step == step - 1
        return torch.where(pixel, math.inf, output)

    state.model.register_forward_hook(spoil)


def spoil_gradient(state, step):
    bias = state.model.last_conv.bias
    bias.register_hook(lambda gradient: gradient * (math.inf if state.step == step - 1 else 1.0))


@pytest.mark.parametrize(
    ("spoil", "step", "clip"),
    [*((spoil_loss, step, 0.5) for step in (1, 3, NUM_STEPS)), *((spoil_gradient, 3, clip) for clip in (None, 0.5))],
)
def test_the_first_step_that_is_not_finite_is_named(images, diffusion, spoil, step, clip):
    config = dataclasses.replace(CONFIG, gradient_clip=clip)
    state = start(config)
    spoil(state, step)
    events = list(train(state, images, diffusion, config))
    losses = [bool(event.loss.isfinite()) for event in events]
    if spoil is spoil_loss:
        assert losses == [number != step for number in range(1, NUM_STEPS + 1)]  # later ones are good
        assert all(event.gradient_norm.isfinite() for event in events)
    else:
        assert losses == [number <= step for number in range(1, NUM_STEPS + 1)]  # the weights are gone
        assert [bool(event.gradient_norm.isfinite()) for event in events[:step]] == [True, True, False]
    with pytest.raises(NotFiniteError, match=f"step {step} is not finite, at a learning rate of") as error:
        state.check_finite(config)
    assert (error.value.step, error.value.learning_rate) == (step, learning_rate_at(step - 1, config))
    assert f"{error.value.learning_rate:g}" in str(error.value)


def test_a_bad_step_is_not_forgotten_between_two_calls(images, diffusion):
    state = start()
    state.check_finite(CONFIG)
    spoil_loss(state, 3)
    for last in (5, NUM_STEPS):
        for event in train(state, images, diffusion, CONFIG):
            if event.step < 3:
                state.check_finite(CONFIG)
            if event.step == last:
                break
    with pytest.raises(NotFiniteError) as error:
        state.check_finite(CONFIG)
    assert error.value.step == 3
