"""Options beside the published training, against their formulas or against the results that they must not change."""

import dataclasses
import math

import pytest
import torch

from ddpm import GaussianDiffusion, TrainingConfig, linear_betas, train
from ddpm.training_state import learning_rate_at
from tests.ddpm.small_training import CONFIG, NUM_STEPS, assert_same_bits, fields, snapshot, start


def test_the_gradient_is_clipped_after_its_norm_is_reported(images, diffusion):
    first = []
    for clip in (None, 1e-3):
        config = dataclasses.replace(CONFIG, gradient_clip=clip)
        state = start(config)
        for event in train(state, images, diffusion, config):
            expected = clip or float(event.gradient_norm)
            norms = [parameter.grad.norm() for parameter in state.model.parameters()]
            assert float(torch.stack(norms).norm()) == pytest.approx(expected, rel=1e-3)
            if event.step == 1:
                first.append(float(event.gradient_norm))
    assert first[0] == first[1] > 1e-2


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("num_timesteps", [20, 6])  # quarters of 20 are equal, of 6 they are not
def test_losses_are_reported_by_quartile_of_t(images, watched, num_timesteps, accumulation_steps):
    config = dataclasses.replace(CONFIG, min_snr_gamma=0.5, accumulation_steps=accumulation_steps)
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-2, 0.3))
    state = start(config)
    given, _, outputs = watched(state)
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
def test_min_snr_weighs_the_loss_of_each_image(images, watched, prediction):
    config = dataclasses.replace(CONFIG, min_snr_gamma=2.0)
    diffusion = GaussianDiffusion(linear_betas(20, 1e-4, 0.3), prediction)
    state = start(config)
    given, _, outputs = watched(state)
    differences = []
    for event in train(state, images, diffusion, config):
        t, eps = given[-1]
        target = diffusion.target(images.batch(event.step - 1), t, eps)
        losses = (target - outputs[-1]).square().mean(dim=(1, 2, 3))
        weighted = diffusion.min_snr_weights(t, 2.0) * losses
        torch.testing.assert_close(event.loss, weighted.mean(), rtol=1e-5, atol=0)
        differences.append(abs(float(event.loss - losses.mean())))
    assert max(differences) > 0.1


@pytest.mark.parametrize("changes", [{}, {"min_snr_gamma": 5.0, "gradient_clip": None, "extra_ema_decays": (0.5,)}])
@pytest.mark.parametrize("accumulation_steps", [2, 4])
def test_a_batch_in_parts_gives_the_steps_of_the_whole(images, diffusion, accumulation_steps, changes):
    whole = dataclasses.replace(CONFIG, **changes)
    in_parts = dataclasses.replace(whole, accumulation_steps=accumulation_steps)
    one, other = start(whole), start(in_parts)
    # The optimizer divides by the size of each gradient: let it move weights less whose gradient is rounding.
    one.optimizer.param_groups[0]["eps"] = other.optimizer.param_groups[0]["eps"] = 1e-3
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


@pytest.mark.parametrize(("processes", "accumulation_steps"), [(1, 3), (3, 1)])
def test_a_batch_that_cannot_be_split_evenly_is_an_error(images, diffusion, monkeypatch, processes, accumulation_steps):
    monkeypatch.setattr("ddpm.training.world_size", lambda: processes)
    config = dataclasses.replace(CONFIG, accumulation_steps=accumulation_steps)
    with pytest.raises(ValueError, match=rf"batch_size=4 must be .* = {processes} \* {accumulation_steps}$"):
        next(train(start(config), images, diffusion, config))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_gradient_checkpointing_changes_nothing_but_the_memory(images, diffusion, dropout, accumulation_steps):
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
        state.model.eval()(torch.zeros(1, 3, 8, 8), torch.tensor([0])).sum().backward()
        assert len(counted) == calls[-1] + 1  # outside training nothing is computed twice
    assert calls[1] == 2 * calls[0] == 2 * NUM_STEPS * accumulation_steps
    assert events[1] == events[0]
    assert_same_bits(snapshot(states[1]), snapshot(states[0]))


def test_each_moving_average_is_that_of_a_run_with_its_decay_alone(images, diffusion):
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


def test_the_network_is_compiled_as_the_configuration_says(images, diffusion, monkeypatch):
    settings, calls = [], []

    def compile_nothing(network, *given):
        settings.append(given)
        compiled = torch.nn.Sequential(network)
        compiled.forward = lambda *inputs: calls.append(1) or network(*inputs)
        return compiled

    monkeypatch.setattr("ddpm.training_step.compile_network", compile_nothing)
    config = dataclasses.replace(CONFIG, compilation="default", accumulation_steps=2)
    assert len(list(train(start(config), images, diffusion, config))) == NUM_STEPS
    assert settings == [("default", torch.device("cpu"))]
    assert len(calls) == 2 * NUM_STEPS


WARMUP = [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1.0] * 10),
        ({"warmup_steps": 4}, [*WARMUP, *[1.0] * 6]),
        # Loshchilov & Hutter 2017, Eq. 5: half way down at half time.
        ({"rate_schedule": "cosine"}, [0.5 + 0.5 * math.cos(math.pi * k / 10) for k in range(10)]),
        (
            {"rate_schedule": "cosine", "warmup_steps": 4},
            [*WARMUP, *(0.5 + 0.5 * math.cos(math.pi * k / 6) for k in range(6))],
        ),
        ({"rate_schedule": "linear"}, [0.1 * k for k in range(10, 0, -1)]),
        ({"rate_schedule": "linear", "warmup_steps": 4}, [*WARMUP, *(k / 6 for k in range(6, 0, -1))]),
        ({"rate_schedule": "cosine", "warmup_steps": 10}, [0.1 * k for k in range(1, 11)]),
    ],
)
def test_the_rate_warms_up_and_falls(changes, expected):
    config = TrainingConfig(num_steps=10, learning_rate=1.0, **changes)
    assert [learning_rate_at(step, config) for step in range(10)] == pytest.approx(expected)
