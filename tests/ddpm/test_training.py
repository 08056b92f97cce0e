"""Training: it learns, each step is a function of (seed, step), and a resumed run equals an uninterrupted one."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch

from ddpm import GaussianDiffusion, TrainingConfig, TrainingImages, TrainingState, UNet, UNetConfig, linear_betas, train
from ddpm.checkpoint import load_checkpoint, save_checkpoint
from ddpm.training import NotFiniteError, draw_t_and_eps, learning_rate_at

NUM_STEPS = 12

# Every part that keeps something from step to step: a changing rate, clipping, a changing decay.
CONFIG = TrainingConfig(
    num_steps=NUM_STEPS,
    learning_rate=3e-3,
    rate_schedule="cosine",
    warmup_steps=3,
    gradient_clip=0.5,
    ema_decay=0.9,
    ema_warmup=True,
    precision="float32",
)


@pytest.fixture
def diffusion():
    return GaussianDiffusion(linear_betas(20, 1e-4, 0.3))


@pytest.fixture
def images():
    pixels = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TrainingImages(pixels, batch_size=4, seed=1)


@pytest.fixture
def start(tiny_config):
    """Makes the state before the first step, always the same."""

    def make(config=CONFIG, **changes):
        torch.manual_seed(0)
        return TrainingState.start(UNet(dataclasses.replace(tiny_config, **changes)), config)

    return make


def snapshot(state):
    """Everything that training changes, by name."""
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in state.ema.module.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": moment for name, moment in moments.items()}
    tensors["numbers"] = torch.tensor([state.step, state.ema.num_updates])
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same_bits(snapshot_1, snapshot_2):
    assert snapshot_1.keys() == snapshot_2.keys()
    for name, tensor in snapshot_1.items():
        torch.testing.assert_close(tensor, snapshot_2[name], rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}")


def fields(event):
    return event.step, event.num_images_seen, float(event.loss), event.learning_rate


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


def test_an_event_tells_of_its_step(start, images, diffusion):
    state = start()
    for number, event in enumerate(train(state, images, diffusion, CONFIG), start=1):
        assert event.step == number == state.step
        assert event.num_images_seen == 4 * number
        assert event.learning_rate == learning_rate_at(number - 1, CONFIG)
        assert state.optimizer.param_groups[0]["lr"] == event.learning_rate
        assert event.loss.shape == event.gradient_norm.shape == ()
        assert event.quartile_loss_sums.shape == event.quartile_counts.shape == (4,)
        assert not (event.loss.requires_grad or event.quartile_loss_sums.requires_grad)
    assert number == NUM_STEPS


def test_events_come_after_the_optimizer_and_the_moving_average(start, images, diffusion):
    state = start()
    average = [parameter.detach().clone() for parameter in state.model.parameters()]
    for event in train(state, images, diffusion, CONFIG):
        assert state.ema.num_updates == event.step
        decay = min(0.9, event.step / (9 + event.step))
        for mean, parameter, kept in zip(average, state.model.parameters(), state.ema.module.parameters(), strict=True):
            mean.mul_(decay).add_(parameter.detach(), alpha=1.0 - decay)
            torch.testing.assert_close(kept, mean, rtol=1e-4, atol=1e-6)


def test_the_steps_are_those_of_adam(start, images, diffusion):
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


def test_the_loss_is_that_of_the_batch(start, images, diffusion, monkeypatch):
    """Algorithm 1 of Ho et al. 2020: the batch of this step, a t and an eps for each image."""
    given, seen = [], []
    monkeypatch.setattr(
        "ddpm.training.draw_t_and_eps", lambda *arguments: given.append(draw_t_and_eps(*arguments)) or given[-1]
    )
    state = start()
    state.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    state.model.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    for event in itertools.islice(train(state, images, diffusion, CONFIG), 3):
        (x_t, t_seen), eps_pred = seen[-2:]
        t, eps = given[-1]
        torch.testing.assert_close(t_seen, t, rtol=0, atol=0)
        torch.testing.assert_close(
            x_t, diffusion.q_sample(images.batch(event.step - 1), t, eps), rtol=0, atol=1e-6, check_stride=False
        )
        torch.testing.assert_close(event.loss, (eps - eps_pred).square().mean(), rtol=1e-5, atol=0)
    assert len(given) == 3
    assert (given[0][1] - given[1][1]).abs().max() > 0.1  # other noise in each step


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("stops", [(1,), (5,), (3, 4, 11)])
def test_a_run_left_and_gone_on_with_equals_an_uninterrupted_one(start, images, diffusion, stops, dropout):
    whole, interrupted = start(dropout=dropout), start(dropout=dropout)
    expected = [fields(event) for event in train(whole, images, diffusion, CONFIG)]
    events = []
    for stop in [*stops, NUM_STEPS]:
        for event in train(interrupted, images, diffusion, CONFIG):
            events.append(fields(event))
            torch.rand(7)  # what the caller draws in between does not matter
            if event.step == stop:
                break
    assert events == expected
    assert_same_bits(snapshot(interrupted), snapshot(whole))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_run_resumed_from_disk_equals_an_uninterrupted_one(start, images, diffusion, tmp_path, dropout):
    whole, first = start(dropout=dropout), start(dropout=dropout)
    expected = [fields(event) for event in train(whole, images, diffusion, CONFIG)]
    events = []
    for event in train(first, images, diffusion, CONFIG):
        events.append(fields(event))
        if event.step == 5:
            path = save_checkpoint(tmp_path, first, {}, {}, keep=1)
        if event.step == 7:
            break  # two steps beyond the checkpoint are lost, and done again
    # A new process: other initial weights, other data object, other state of the global generator.
    torch.manual_seed(123)
    model = UNet(dataclasses.replace(first.model.config))
    second = TrainingState.start(model, CONFIG)
    load_checkpoint(path, second, {})
    fresh_images = TrainingImages(images.images, images.batch_size, images.seed)
    events[5:] = [fields(event) for event in train(second, fresh_images, diffusion, CONFIG)]
    assert events == expected
    assert_same_bits(snapshot(second), snapshot(whole))


def test_saving_changes_nothing(start, images, diffusion, tmp_path):
    plain, saving = start(), start()
    for _ in train(plain, images, diffusion, CONFIG):
        pass
    for _ in train(saving, images, diffusion, CONFIG):
        save_checkpoint(tmp_path, saving, {}, {}, keep=1)
    assert_same_bits(snapshot(saving), snapshot(plain))


def test_a_finished_run_has_no_more_steps(start, images, diffusion):
    state = start()
    assert len(list(train(state, images, diffusion, CONFIG))) == NUM_STEPS
    before = snapshot(state)
    assert list(train(state, images, diffusion, CONFIG)) == []
    assert_same_bits(snapshot(state), before)


def test_the_callers_modes_are_left_alone(start, images, diffusion):
    # Precision bfloat16 enters autocast, which must not be seen from outside.
    config = dataclasses.replace(CONFIG, precision="bfloat16")
    for _ in itertools.islice(train(start(config), images, diffusion, config), 2):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")


def test_the_caller_may_use_the_model_between_steps(start, images, diffusion):
    undisturbed, disturbed = start(dropout=0.5), start(dropout=0.5)
    for _ in train(undisturbed, images, diffusion, CONFIG):
        pass
    for _ in train(disturbed, images, diffusion, CONFIG):
        with torch.no_grad():
            disturbed.model.eval()(torch.zeros(1, 3, 8, 8), torch.tensor([0]))
    assert_same_bits(snapshot(disturbed), snapshot(undisturbed))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_global_generator_is_neither_used_nor_changed(start, images, diffusion, dropout):
    results = []
    for seed in (1, 2):
        state = start(dropout=dropout)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append([fields(event) for event in train(state, images, diffusion, CONFIG)])
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1]


def test_dropout_is_drawn_anew_in_each_step(start, images, diffusion):
    masks = []
    state = start(dropout=0.5)
    dropout = next(module for module in state.model.modules() if isinstance(module, torch.nn.Dropout))
    dropout.register_forward_hook(lambda _, __, output: masks.append(output == 0))
    for _ in itertools.islice(train(state, images, diffusion, CONFIG), 3):
        pass
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_the_seed_decides_the_noise(start, images, diffusion):
    other = dataclasses.replace(CONFIG, seed=1)
    losses = [[float(event.loss) for event in train(start(), images, diffusion, config)] for config in (CONFIG, other)]
    assert all(one != other for one, other in zip(*losses, strict=True))


def norm_of_gradient(model):
    return sum(float(parameter.grad.double().square().sum()) for parameter in model.parameters()) ** 0.5


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_the_norm_of_the_whole_gradient_is_clipped(start, images, diffusion, clip):
    config = dataclasses.replace(CONFIG, gradient_clip=clip)
    state = start(config)
    for _ in train(state, images, diffusion, config):
        norm = norm_of_gradient(state.model)
        assert norm == pytest.approx(clip, rel=1e-3) if clip else norm > 1e-2


def test_an_event_tells_the_norm_of_the_gradient_before_it_is_clipped(start, images, diffusion):
    unclipped, clipped = (dataclasses.replace(CONFIG, gradient_clip=clip) for clip in (None, 1e-3))
    state = start(unclipped)
    for event in train(state, images, diffusion, unclipped):
        assert float(event.gradient_norm) == pytest.approx(norm_of_gradient(state.model), rel=1e-5)
        if event.step == 1:
            first = float(event.gradient_norm)
    assert float(next(train(start(clipped), images, diffusion, clipped)).gradient_norm) == first > 1e-2


@pytest.fixture
def watched(monkeypatch):
    """Attaches to a state, and collects t and eps of each step and the output of each call of its network."""
    given = []
    monkeypatch.setattr(
        "ddpm.training.draw_t_and_eps", lambda *arguments: given.append(draw_t_and_eps(*arguments)) or given[-1]
    )

    def watch(state):
        outputs = []
        state.model.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
        return given, outputs

    return watch


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("num_timesteps", [20, 6])  # quarters of 20 are equal, of 6 they are not
def test_losses_are_told_apart_by_quartile_of_t(start, images, watched, num_timesteps, accumulation_steps):
    config = dataclasses.replace(CONFIG, min_snr_gamma=0.5, accumulation_steps=accumulation_steps)
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-2, 0.3))
    state = start(config)
    given, outputs = watched(state)
    met = set()
    for event in train(state, images, diffusion, config):
        t, eps = given[-1]
        predicted = torch.cat(outputs[-accumulation_steps:])
        sums, counts = [0.0] * 4, [0] * 4
        for time, error in zip(t.tolist(), eps - predicted, strict=True):
            quartile = next(q for q in range(4) if time < (q + 1) * num_timesteps / 4)
            sums[quartile] += float(error.square().mean())  # not weighed
            counts[quartile] += 1
            met.add(quartile)
        assert event.quartile_loss_sums.tolist() == pytest.approx(sums, rel=1e-5)
        assert event.quartile_counts.tolist() == counts
    assert met == {0, 1, 2, 3}


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_min_snr_weighs_the_loss_of_each_image_by_its_formula(start, images, watched, prediction):
    config = dataclasses.replace(CONFIG, min_snr_gamma=2.0)
    diffusion = GaussianDiffusion(linear_betas(20, 1e-4, 0.3), prediction)
    state = start(config)
    given, outputs = watched(state)
    differences = []
    for event in train(state, images, diffusion, config):
        t, eps = given[-1]
        target = diffusion.target(images.batch(event.step - 1), t, eps)
        losses = (target - outputs[-1]).square().mean(dim=(1, 2, 3))
        expected = []
        for time, loss in zip(t.tolist(), losses.tolist(), strict=True):
            cumprod = float(diffusion.alphas_cumprod[time])
            snr = cumprod / (1.0 - cumprod)
            # Hang et al. 2023, section 3.4.
            expected.append(min(snr, 2.0) / {"eps": snr, "v": snr + 1.0, "x_0": 1.0}[prediction] * loss)
        assert float(event.loss) == pytest.approx(sum(expected) / 4, rel=1e-5)
        differences.append(abs(float(event.loss - losses.mean())))
    assert max(differences) > 0.1


def test_min_snr_weighs_the_gradient_too(start, images, diffusion):
    plain, weighted = (dataclasses.replace(CONFIG, min_snr_gamma=gamma) for gamma in (None, 0.5))
    norms = [float(next(train(start(config), images, diffusion, config)).gradient_norm) for config in (plain, weighted)]
    assert norms[1] < 0.9 * norms[0]


def gently(state):
    """The optimizer divides by the size of each gradient; of those that are all rounding it leaves more alone."""
    state.optimizer.param_groups[0]["eps"] = 1e-3
    return state


@pytest.mark.parametrize("changes", [{}, {"min_snr_gamma": 5.0, "gradient_clip": None, "extra_ema_decays": (0.5,)}])
@pytest.mark.parametrize("accumulation_steps", [2, 4])
def test_a_batch_in_parts_gives_the_steps_of_the_whole(start, images, diffusion, accumulation_steps, changes):
    whole = dataclasses.replace(CONFIG, **changes)
    in_parts = dataclasses.replace(whole, accumulation_steps=accumulation_steps)
    one, other = gently(start(whole)), gently(start(in_parts))
    sizes = []
    other.model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    pairs = zip(train(one, images, diffusion, whole), train(other, images, diffusion, in_parts), strict=True)
    for event, event_in_parts in pairs:
        assert event_in_parts.num_images_seen == event.num_images_seen
        assert event_in_parts.quartile_counts.tolist() == event.quartile_counts.tolist()
        for name in ("loss", "gradient_norm", "quartile_loss_sums"):
            torch.testing.assert_close(getattr(event_in_parts, name), getattr(event, name), rtol=1e-4, atol=1e-6)
    assert sizes == [4 // accumulation_steps] * accumulation_steps * NUM_STEPS
    expected = snapshot(one)
    for name, tensor in snapshot(other).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_the_parts_of_a_batch_have_dropout_of_their_own(start, images, diffusion):
    config = dataclasses.replace(CONFIG, accumulation_steps=2)
    masks = []
    state = start(config, dropout=0.5)
    dropout = next(module for module in state.model.modules() if isinstance(module, torch.nn.Dropout))
    dropout.register_forward_hook(lambda _, __, output: masks.append(output == 0))
    next(train(state, images, diffusion, config))
    assert len(masks) == 2 and not torch.equal(*masks)


def test_a_batch_that_cannot_be_split_evenly_is_an_error(start, images, diffusion):
    config = dataclasses.replace(CONFIG, accumulation_steps=3)
    with pytest.raises(
        ValueError, match=r"batch_size=4 must be a multiple of processes \* accumulation_steps = 1 \* 3"
    ):
        next(train(start(config), images, diffusion, config))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_gradient_checkpointing_changes_nothing_but_the_memory(start, images, diffusion, dropout, accumulation_steps):
    plain = dataclasses.replace(CONFIG, accumulation_steps=accumulation_steps)
    checkpointing = dataclasses.replace(plain, gradient_checkpointing=True)
    states, calls, events = [], [], []
    for config in (plain, checkpointing):
        state = start(config, dropout=dropout)
        counted = []
        state.model.middle[0].register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        events.append([fields(event) for event in train(state, images, diffusion, config)])
        states.append(state)
        calls.append(len(counted))
    assert calls[1] == 2 * calls[0] == 2 * NUM_STEPS * accumulation_steps
    assert events[1] == events[0]
    assert_same_bits(snapshot(states[1]), snapshot(states[0]))


def test_each_moving_average_is_that_of_a_run_with_its_decay_alone(start, images, diffusion):
    decays = (0.9, 0.5, 0.99)
    together = dataclasses.replace(CONFIG, ema_decay=decays[0], extra_ema_decays=decays[1:], ema_warmup=False)
    state = start(together)
    for _ in train(state, images, diffusion, together):
        pass
    emas = [state.ema, *state.extra_emas]
    assert [ema.decay for ema in emas] == list(decays)
    for ema in emas:
        config = dataclasses.replace(together, ema_decay=ema.decay, extra_ema_decays=())
        alone = start(config)
        for _ in train(alone, images, diffusion, config):
            pass
        assert alone.extra_emas == [] and ema.num_updates == NUM_STEPS
        assert_same_bits(ema.module.state_dict(), alone.ema.module.state_dict())


def test_further_averages_warm_up_like_the_first(start):
    state = start(dataclasses.replace(CONFIG, extra_ema_decays=(0.5, 0.99)))
    assert all(ema.warmup for ema in state.extra_emas)
    assert state.extra_emas[1].current_decay() == 0.1


def test_the_network_is_compiled_as_the_configuration_says(start, images, diffusion, monkeypatch):
    asked, called = [], []

    class Compiled(torch.nn.Module):
        def __init__(self, network, compilation, device):
            super().__init__()
            asked.append((compilation, device))
            self.network = network

        def forward(self, x_t, t):
            called.append(1)
            return self.network(x_t, t)

    monkeypatch.setattr("ddpm.training.compiled", Compiled)
    config = dataclasses.replace(CONFIG, compilation="default", accumulation_steps=2)
    assert len(list(train(start(config), images, diffusion, config))) == NUM_STEPS
    assert asked == [("default", torch.device("cpu"))]
    assert len(called) == 2 * NUM_STEPS


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tensorfloat32", True)])
def test_backward_passes_multiply_as_forward_passes_do(start, images, diffusion, precision, allowed):
    config = dataclasses.replace(CONFIG, precision=precision)
    state, seen = start(config), []

    def note(_gradient):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    next(state.model.parameters()).register_hook(note)
    next(train(state, images, diffusion, config))
    assert seen == [(allowed, allowed)]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def spoil_loss(state, step):
    """One infinite pixel in one step; it has no gradient, so that later steps are good."""

    def spoil(_model, _arguments, output):
        pixel = torch.zeros_like(output, dtype=torch.bool)
        pixel[0, 0, 0, 0] = state.step == step - 1
        return torch.where(pixel, math.inf, output)

    state.model.register_forward_hook(spoil)


def spoil_gradient(state, step):
    bias = state.model.last_conv.bias
    bias.register_hook(lambda gradient: gradient * (math.inf if state.step == step - 1 else 1.0))


def run(state, images, diffusion, config):
    return [
        (event.loss.isfinite(), event.gradient_norm.isfinite()) for event in train(state, images, diffusion, config)
    ]


@pytest.mark.parametrize("step", [1, 3, NUM_STEPS])
def test_an_infinite_loss_is_found_though_later_ones_are_good(start, images, diffusion, step):
    state = start()
    spoil_loss(state, step)
    finite = run(state, images, diffusion, CONFIG)
    assert finite == [(number != step, True) for number in range(1, NUM_STEPS + 1)]
    with pytest.raises(NotFiniteError, match=f"step {step} is not finite, at a learning rate of") as error:
        state.check_finite(CONFIG)
    assert (error.value.step, error.value.learning_rate) == (step, learning_rate_at(step - 1, CONFIG))
    assert f"{error.value.learning_rate:g}" in str(error.value)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_an_infinite_gradient_is_found_and_the_first_bad_step_is_named(start, images, diffusion, clip):
    config = dataclasses.replace(CONFIG, gradient_clip=clip)
    state = start(config)
    spoil_gradient(state, 3)
    finite = run(state, images, diffusion, config)
    assert finite[:3] == [(True, True), (True, True), (True, False)]
    assert not any(loss for loss, _ in finite[3:])  # the weights are gone, and with them all that comes
    with pytest.raises(NotFiniteError) as error:
        state.check_finite(config)
    assert (error.value.step, error.value.learning_rate) == (3, learning_rate_at(2, config))


def test_a_bad_step_is_not_forgotten_between_two_calls(start, images, diffusion):
    state = start()
    spoil_loss(state, 2)
    for last in (5, NUM_STEPS):
        for event in train(state, images, diffusion, CONFIG):
            if event.step == last:
                break
    with pytest.raises(NotFiniteError) as error:
        state.check_finite(CONFIG)
    assert error.value.step == 2


def test_a_good_run_is_finite(start, images, diffusion):
    state = start()
    state.check_finite(CONFIG)
    for _ in train(state, images, diffusion, CONFIG):
        state.check_finite(CONFIG)


def test_the_model_trains_in_training_mode_and_channels_last(start, images, diffusion):
    state = start()
    state.model.eval()
    next(train(state, images, diffusion, CONFIG))
    assert state.model.training and not state.ema.module.training
    assert state.model.first_conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_precision_is_that_of_the_convolutions(start, images, diffusion, precision, dtype):
    dtypes = set()
    config = dataclasses.replace(CONFIG, precision=precision)
    state = start(config)
    state.model.first_conv.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    event = next(train(state, images, diffusion, config))
    assert dtypes == {dtype}
    assert event.loss.dtype == torch.float32
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}


def test_the_chosen_loss_is_used(start, images, diffusion):
    first = {
        loss: float(next(train(start(), images, diffusion, dataclasses.replace(CONFIG, loss=loss))).loss)
        for loss in ("mse", "l1", "huber")
    }
    # The first prediction is zero, so these are moments of a standard normal eps: 1, sqrt(2 / pi), and for huber,
    # E[min(|e|, 1)^2 / 2 + max(|e| - 1, 0)] = 0.4246. 768 numbers know them to 4 %; five times that.
    assert first["mse"] == pytest.approx(1.0, rel=0.25)
    assert first["l1"] == pytest.approx(math.sqrt(2 / math.pi), rel=0.15)
    assert first["huber"] == pytest.approx(0.4246, rel=0.2)


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


def test_one_time_step_is_drawn_where_there_is_one():
    t, _ = draw_t_and_eps((5, 1, 2, 2), 1, torch.Generator())
    assert t.tolist() == [0] * 5


def rates(**changes):
    config = TrainingConfig(num_steps=10, learning_rate=2.0, **changes)
    return [learning_rate_at(step, config) for step in range(10)]


def test_a_constant_rate():
    assert rates() == [2.0] * 10


def test_a_constant_rate_behind_a_warm_up():
    assert rates(warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, *[2.0] * 6]


def test_a_cosine_rate():
    # Loshchilov & Hutter 2017, Eq. 5: half way down at half time.
    assert rates(rate_schedule="cosine") == pytest.approx([1.0 + math.cos(math.pi * k / 10) for k in range(10)])
    assert rates(rate_schedule="cosine")[5] == pytest.approx(1.0)


def test_a_cosine_rate_behind_a_warm_up():
    falling = [1.0 + math.cos(math.pi * k / 6) for k in range(6)]
    assert rates(rate_schedule="cosine", warmup_steps=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, *falling])


def test_a_linear_rate():
    assert rates(rate_schedule="linear") == pytest.approx([0.2 * k for k in range(10, 0, -1)])


def test_a_linear_rate_behind_a_warm_up():
    falling = [2.0 * (6 - k) / 6 for k in range(6)]
    assert rates(rate_schedule="linear", warmup_steps=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, *falling])


def test_a_warm_up_may_last_the_whole_run():
    assert rates(rate_schedule="cosine", warmup_steps=10) == pytest.approx([0.2 * k for k in range(1, 11)])


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0, got nan"),
        ({"warmup_steps": -1}, "warmup_steps must lie in 0 … num_steps=10, got -1"),
        ({"warmup_steps": 11}, "warmup_steps must lie in 0 … num_steps=10, got 11"),
        ({"rate_schedule": "step"}, "unknown rate schedule 'step'; choose one of constant, cosine, linear"),
        ({"loss": "l2"}, "unknown loss 'l2'; choose one of mse, l1, huber"),
        ({"precision": "float16"}, "unknown precision 'float16'; choose one of auto, float32, tensorfloat32, bfloat16"),
        ({"compilation": "on"}, "unknown compilation 'on'; choose one of auto, off, default, reduce-overhead"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma must be above 0 or None, got 0.0"),
        ({"min_snr_gamma": math.nan}, "min_snr_gamma must be above 0 or None, got nan"),
        ({"accumulation_steps": 0}, "accumulation_steps must be at least 1, got 0"),
        ({"gradient_clip": 0.0}, "gradient_clip must be above 0 or None, got 0.0"),
        ({"gradient_clip": -1.0}, "gradient_clip must be above 0 or None, got -1.0"),
    ],
)
def test_a_value_outside_its_range_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{"num_steps": 10, **changes})


def test_a_decay_outside_its_range_is_an_error(start):
    with pytest.raises(ValueError, match="decay must lie in"):
        start(dataclasses.replace(CONFIG, ema_decay=1.0))
    with pytest.raises(ValueError, match="decay must lie in"):
        start(dataclasses.replace(CONFIG, extra_ema_decays=(0.5, 1.0)))


@pytest.mark.parametrize("decays", [(0.999,), (0.9, 0.9)])
def test_two_averages_of_the_same_decay_are_an_error(decays):
    with pytest.raises(ValueError, match="extra_ema_decays must differ from each other and from ema_decay"):
        TrainingConfig(ema_decay=0.999, extra_ema_decays=decays)


@pytest.mark.parametrize("compilation", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_with_accumulation_are_an_error(compilation):
    with pytest.raises(ValueError, match="records CUDA graphs"):
        TrainingConfig(compilation=compilation, accumulation_steps=2)
    assert TrainingConfig(compilation=compilation).compilation == compilation


def test_the_state_starts_at_step_zero_with_an_average_of_its_own(start):
    state = start()
    assert state.step == state.ema.num_updates == 0
    assert (state.ema.decay, state.ema.warmup) == (0.9, True)
    assert not {id(p) for p in state.model.parameters()} & {id(p) for p in state.ema.module.parameters()}
    for weight, average in zip(state.model.parameters(), state.ema.module.parameters(), strict=True):
        torch.testing.assert_close(average, weight, rtol=0, atol=0)


def test_a_copied_state_goes_on_like_the_original(start, images, diffusion):
    state = start()
    next(train(state, images, diffusion, CONFIG))
    copied = copy.deepcopy(state)  # whole: the optimizer of the copy must move the model of the copy
    for one in (state, copied):
        assert len(list(train(one, images, diffusion, CONFIG))) == NUM_STEPS - 1
    assert_same_bits(snapshot(copied), snapshot(state))
